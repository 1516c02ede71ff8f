"""Leave no trace: what an extra forward or backward could move, saved before and put back after."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Put the python, numpy and torch random streams (CPU and `device`) back at the end."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


@contextlib.contextmanager
def same_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put all buffers (BatchNorm statistics, counters) back at the end.

    Version counters cannot tell which were written: BatchNorm moves its statistics without counting. Writing through
    `.data` does not count either, so a buffer that the graph has saved for its backward stays valid.
    """
    buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)


@contextlib.contextmanager
def evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode afterwards."""
    tops = list(modules)
    before = [(module, module.training) for top in tops for module in top.modules()]
    for top in tops:
        top.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


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
def undisturbed(modules: Sequence[nn.Module], precision: Autocast | None) -> Iterator[None]:
    """Everything an extra forward needs to leave no trace, in the given precision; modes stay as they are."""
    device = next((p.device for module in modules for p in module.parameters()), torch.device("cpu"))
    precision = precision or Autocast(())
    with same_randomness(device), same_buffers(modules), precision.again(), torch.no_grad():
        yield


def batch_coupled(modules: Iterable[nn.Module]) -> bool:
    """Whether a sample's output depends on the other samples now: a BatchNorm in training mode."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    return any(m.training and isinstance(m, norms) for module in modules for m in module.modules())


def stochastic(modules: Iterable[nn.Module]) -> bool:
    """Whether some module draws random numbers now, as far as modules tell: dropout in training mode."""
    dropouts = (nn.modules.dropout._DropoutNd,)
    found = (m for module in modules for m in module.modules())
    return any(m.training and isinstance(m, dropouts) and m.p > 0 for m in found)
