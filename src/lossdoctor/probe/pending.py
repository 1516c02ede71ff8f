"""Scalars of steps that were not due: kept on their device until a due step takes them along."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

Key = tuple[int, str, int]
"""Step, name, and a running number: micro-batches give the same name several times."""


class Pending:
    """Loss values and logged scalars on their way to the run."""

    def __init__(self) -> None:
        self._waiting: dict[Key, Tensor | float] = {}

    def add(self, step: int, name: str, value: Tensor | float) -> None:
        """Keep one scalar; of a tensor a copy, without its graph and without asking for its value.

        A copy, since the original may be written to before a due step comes: summed over ranks for a log line, or
        overwritten by the next run of a CUDA graph.
        """
        kept = value.detach().clone() if isinstance(value, Tensor) else float(value)
        self._waiting[step, name, len(self._waiting)] = kept

    def correct(self, step: int, name: str, value: Tensor) -> None:
        """Put another value in the place of the last one of this name at `step`."""
        key = next(key for key in reversed(self._waiting) if key[:2] == (step, name))
        self._waiting[key] = value.detach().clone()

    def at(self, step: int, prefix: str) -> dict[str, Tensor | float]:
        """The latest values of `step` whose names begin with `prefix`, without it."""
        return {
            name.removeprefix(prefix): value
            for (s, name, _), value in self._waiting.items()
            if s == step and name.startswith(prefix)
        }

    def take(self, prefix: str) -> tuple[dict[Key, Tensor], dict[Key, float]]:
        """As `drain`, of the names that begin with `prefix` alone; the others wait on."""
        rest = {key: value for key, value in self._waiting.items() if not key[1].startswith(prefix)}
        self._waiting = {key: value for key, value in self._waiting.items() if key not in rest}
        found = self.drain()
        self._waiting = rest
        return found

    def drain(self) -> tuple[dict[Key, Tensor], dict[Key, float]]:
        """Everything that waits, as 0-d tensors still on their device and as numbers; nothing waits afterwards."""
        waiting, self._waiting = self._waiting, {}
        tensors = {k: v if v.ndim == 0 else v.double().mean() for k, v in waiting.items() if isinstance(v, Tensor)}
        return tensors, {k: v for k, v in waiting.items() if not isinstance(v, Tensor)}


def by_step(values: Iterable[tuple[Key, float]]) -> dict[int, dict[str, float]]:
    """step -> name -> value; micro-batches of one optimizer step are averaged."""
    steps: dict[int, dict[str, list[float]]] = {}
    for (step, name, _), value in values:
        steps.setdefault(step, {}).setdefault(name, []).append(value)
    return {
        step: {name: v[0] if len(v) == 1 else math.fsum(v) / len(v) for name, v in found.items()}
        for step, found in sorted(steps.items())
    }
