"""Leave no trace: what an extra forward or backward could move, saved before and put back after."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lossdoctor.probe.compiled import as_written
from lossdoctor.probe.wrapped import quiet


@dataclass(frozen=True, slots=True)
class Streams:
    """Where the python, numpy and torch random streams (CPU and `device`) are."""

    python: tuple[Any, ...]
    legacy: Any
    cpu: torch.Tensor
    cuda: torch.Tensor | None
    device: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> Streams:
        """Where they are now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, device)  # noqa: NPY002

    def put_back(self) -> None:
        """Make the next numbers drawn those that were drawn next then."""
        random.setstate(self.python)
        np.random.set_state(self.legacy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Put the random streams back at the end."""
    before = Streams.capture(device)
    try:
        yield
    finally:
        before.put_back()


@contextlib.contextmanager
def same_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the buffers (BatchNorm statistics, counters) of the given modules, each for itself, back at the end.

    Version counters cannot tell which were written: BatchNorm moves its statistics without counting. Writing through
    `.data` does not count either, so a buffer that the graph has saved for its backward stays valid.
    """
    buffers = list({id(b): b for m in modules for b in m._buffers.values() if b is not None}.values())
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)


@contextlib.contextmanager
def evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside, for the modules and everything in them; each one's own mode afterwards."""
    with same_modes(modules):
        for module in modules:
            module.eval()
        yield


@contextlib.contextmanager
def same_modes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Each module's mode, and that of everything in it, put back at the end."""
    before = [(module, module.training) for module in every_module(modules)]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def same_gradients(modules: Sequence[nn.Module]) -> Iterator[None]:
    """`.grad` and `requires_grad` of every parameter put back at the end, the tensors and what is in them."""
    parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
    before = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    finally:
        for parameter, required, grad, value in before:
            parameter.requires_grad_(required)
            parameter.grad = grad
            if grad is not None and value is not None:
                grad.data.copy_(value)


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast state at the moment tensors were handed in, to run a probing forward in the same precision."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def capture(cls, device: torch.device) -> Autocast:
        """The state on the CPU and on `device`."""
        kinds = dict.fromkeys(["cpu", device.type])
        return cls(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """The same state; without the weight cache, which would keep casts made without gradients for the training."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.states:
                if enabled:
                    stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
                else:
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield


@contextlib.contextmanager
def undisturbed(
    modules: Sequence[nn.Module],
    precision: Autocast | None,
    forwards: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[None]:
    """Everything an extra forward needs to leave no trace, in the given precision; modes stay as they are.

    forwards: what the forwards themselves need, where modules are sharded over ranks.
    """
    found = (p.device for module in modules for p in module._parameters.values() if p is not None)
    device = next(found, torch.device("cpu"))
    precision = precision or Autocast(())
    with contextlib.ExitStack() as kept:
        for state in (same_randomness(device), same_buffers(modules), quiet(modules), precision.again()):
            kept.enter_context(state)
        with as_written(), torch.no_grad(), forwards():
            yield


def batch_coupled(modules: Iterable[nn.Module]) -> bool:
    """Whether a sample's output depends on the other samples now: a BatchNorm in training mode is among the modules."""
    return any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)


def stochastic(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules draws random numbers now, as far as they tell: dropout in training mode."""
    return any(m.training and isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules)


def every_module(tops: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """The modules themselves and everything inside them, each once."""
    return tuple({id(m): m for top in tops for m in top.modules()}.values())
