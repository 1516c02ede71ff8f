"""How a metric leaves the device: many readings, one copy, undefined ones absent.

Whether a metric is defined often depends on the data (an empty time bin, an all-zero target). Asking on the spot would
synchronise the device once per metric, so a function may return `Maybe(value, defined)` and the answer is read with
the values, in one packed copy.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
Key = TypeVar("Key", bound=Hashable)

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Maybe(NamedTuple):
    """A 0-d value that exists only where `defined` (0-d, bool) is true."""

    value: Tensor
    defined: Tensor


Readings = Mapping[str, "Tensor | Maybe"]


class Metric(Generic[P]):
    """A metric function with two doors.

    Calling it returns `dict[str, Tensor]`, 0-d tensors on their device, undefined keys absent (one synchronisation if
    any key depends on the data). `deferred` returns the readings unresolved, without synchronising, for the Doctor.
    Both run without gradients and outside autocast: a metric is never less precise than float32.
    """

    def __init__(self, function: Callable[P, Readings]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def deferred(self, *args: P.args, **kwargs: P.kwargs) -> Readings:
        """The readings with `Maybe` values still in them; never synchronises."""
        with torch.no_grad(), _outside_autocast():
            return self._function(*args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Tensor]:
        """The defined values, 0-d tensors on their device."""
        return resolved(self.deferred(*args, **kwargs))


def metric(function: Callable[P, Readings]) -> Metric[P]:
    """Make a function that returns readings usable both at once and deferred."""
    return Metric(function)


class FieldMetric(Metric[P]):
    """A metric that asks the user's model: the same two doors, but the caller's autocast stays on for the model."""

    def deferred(self, *args: P.args, **kwargs: P.kwargs) -> Readings:
        """The readings with `Maybe` values still in them; what the model itself does may synchronise."""
        with torch.no_grad():
            return self._function(*args, **kwargs)


def field_metric(function: Callable[P, Readings]) -> FieldMetric[P]:
    """Like `metric`, for a function that calls a model and leaves the arithmetic on its answers to a `metric`."""
    return FieldMetric(function)


@contextlib.contextmanager
def _outside_autocast() -> Iterator[None]:
    # Entering autocast costs 10 us per device type, so only those that are on are switched off.
    with contextlib.ExitStack() as stack:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def widened(tensor: Tensor) -> Tensor:
    """The tensor, detached, in float32 or wider: half-precision norms overflow."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def resolved(readings: Readings) -> dict[str, Tensor]:
    """The values that are defined, still on their device: one synchronisation if any of them depends on the data."""
    asked = {key: reading.defined for key, reading in readings.items() if isinstance(reading, Maybe)}
    defined = dict(zip(asked, _floats(list(asked.values())), strict=True))
    return {
        key: reading.value if isinstance(reading, Maybe) else reading
        for key, reading in readings.items()
        if defined.get(key, 1.0)
    }


def to_host(readings: Mapping[Key, Tensor | Maybe]) -> dict[Key, float]:
    """All readings as Python floats through one copy per device; undefined ones are absent."""
    values = [reading.value if isinstance(reading, Maybe) else reading for reading in readings.values()]
    masks = [reading.defined for reading in readings.values() if isinstance(reading, Maybe)]
    host = _floats([*values, *masks])
    defined = iter(host[len(values) :])
    return {
        key: value
        for (key, reading), value in zip(readings.items(), host, strict=False)
        if not isinstance(reading, Maybe) or next(defined)
    }


def _floats(tensors: Sequence[Tensor]) -> list[float]:
    """0-d tensors of any dtype and device as floats, in order: stacked by dtype, one copy per device."""
    places: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault(tensor.device, {}).setdefault(tensor.dtype, []).append(index)
    host = [0.0] * len(tensors)
    with torch.no_grad():
        for by_dtype in places.values():
            parts = [torch.stack([tensors[i] for i in indices]).to(torch.float64) for indices in by_dtype.values()]
            order = itertools.chain.from_iterable(by_dtype.values())
            for index, value in zip(order, torch.cat(parts).tolist(), strict=True):
                host[index] = value
    return host
