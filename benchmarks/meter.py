"""Time and memory of one training step, on a CPU or a CUDA device.

Two clocks: the wall, and the processor time of the process, all its threads together. On a machine that does other work
as well the wall is noisy; processor time is less so. On CUDA it is the time the host spent, which says little.

Memory is what the allocator holds at the peak of a step, of everything allocated since before the model was made:
parameters, optimizer state, activations, and whatever a way keeps from one step to the next. On a CPU the profiler
records each allocation and each release, and the peak is that of their running sum; on CUDA it is
`max_memory_allocated`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

MARK = "measured step"


class Step(Protocol):
    """One way to take training steps."""

    def step(self, x: Tensor) -> None: ...

    def close(self) -> None: ...


class Took(NamedTuple):
    """Seconds of one step."""

    wall: float
    processor: float


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CPU = torch.device("cpu")


def timed(step: Callable[[], object], device: torch.device = CPU) -> Took:
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def interleaved(ways: Mapping[str, Step], draw: Callable[[], Tensor], rounds: int) -> dict[str, list[Took]]:
    """Seconds of each way in each round; every way sees the same batches, and the order moves on by one each round.

    Python's garbage is collected between rounds, so that none of it is on a clock.
    """
    found: dict[str, list[Took]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        x = draw()
        gc.collect()
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timed(partial(ways[name].step, x), x.device))
    return found


def ratios(found: dict[str, list[Took]], way: str, clock: str, base: str = "plain") -> list[float]:
    """Of the same round, to the plain step."""
    pairs = zip(found[way], found[base], strict=True)
    return [getattr(one, clock) / getattr(plain, clock) for one, plain in pairs]


def peaks(build: Callable[[], Step], x: Tensor, *, prepare: int = 1, steps: int = 2) -> list[int]:
    """Bytes at the highest point of each of `steps` steps after `prepare` others, all counted from before `build`."""
    gc.collect()
    return (_peaks_cuda if x.device.type == "cuda" else _peaks_cpu)(build, x, prepare, steps)


def _peaks_cuda(build: Callable[[], Step], x: Tensor, prepare: int, steps: int) -> list[int]:
    synchronize(x.device)
    before = torch.cuda.memory_allocated(x.device)
    way = build()
    for _ in range(prepare):
        way.step(x)
    found = []
    for _ in range(steps):
        synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        way.step(x)
        synchronize(x.device)
        found.append(torch.cuda.max_memory_allocated(x.device) - before)
    way.close()
    return found


def _peaks_cpu(build: Callable[[], Step], x: Tensor, prepare: int, steps: int) -> list[int]:
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        way = build()
        for _ in range(prepare):
            way.step(x)
        for _ in range(steps):
            with torch.autograd.profiler.record_function(MARK):
                way.step(x)
    way.close()
    events = sorted(profile.kineto_results.events(), key=lambda event: event.start_ns())
    marks = [event for event in events if event.name() == MARK]
    found = [0] * len(marks)
    held = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            for number, mark in enumerate(marks):
                if mark.start_ns() <= event.start_ns() <= mark.end_ns():
                    found[number] = max(found[number], held)
    return found


def spread(values: list[float], digits: int = 2) -> str:
    """Median (quartiles)."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"
