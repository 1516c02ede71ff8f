"""How alike the ranks of a training are: the same data, the same noise, other weights?

Ranks should draw data and noise of their own, and have the same weights to the bit. What they tell each other at a
meeting becomes metrics here, the same numbers on every rank, since every rank has the messages of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lossdoctor.probe.imprints import Imprint, alike

Table = npt.NDArray[np.float64]
Inputs = Mapping[str, Imprint]

LISTED = 20
"""Names told of tensors that differ; the count is complete."""
_ROUNDING = 1e-26
"""Squared, of sums in float64: their order may depend on where in memory a tensor begins."""


class Likeness:
    """Of one run: remembers what the ranks had at the last measured step."""

    def __init__(self) -> None:
        self._before: Sequence[Inputs] = ()

    def inputs(self, each: Sequence[Inputs]) -> dict[str, float]:
        """`ranks/same/<input>`: the share of the ranks that have what another rank has too, in [0, 1]; 0 is right.

        each: what was handed in on every rank, in order. Absent: an input that some rank has not, or that some rank
        already had at the last measured step, such as a fixed grid of times; and everything at the first.
        """
        before, self._before = self._before, each
        if len(before) != len(each):
            return {}
        names = [name for name in each[0] if all(name in one for one in (*each, *before))]
        return {
            f"ranks/same/{name}": _twins([one[name] for one in each])
            for name in names
            if not any(alike(new[name], old[name]) for new, old in zip(each, before, strict=True))
        }


def counted(each: Sequence[Inputs]) -> dict[str, int]:
    """How many different values the ranks have of every input."""
    names = [name for name in each[0] if all(name in one for one in each)]
    return {name: _different([one[name] for one in each]) for name in names}


def distance(tables: Sequence[Table]) -> float:
    """The largest distance of a rank from the first, over the length of the first: an estimate, 0 for the same weights.

    tables: of each rank, as `probe.imprints.sketched` makes them, of the same shape.
    """
    first = tables[0]
    furthest = max(float(np.square(table[:, :-1] - first[:, :-1]).sum()) for table in tables)
    length = float(first[:, -1].sum())
    return float(np.sqrt(furthest / length)) if length > 0 else 0.0


def differing(tables: Sequence[Table], names: Sequence[str]) -> dict[str, Any]:
    """`tensors`: names of those that are not the same on all ranks, at most `LISTED`; `count` of them, of `of`."""
    first = tables[0]
    apart = [np.square(table[:, :-1] - first[:, :-1]).sum(1) > _ROUNDING * first[:, -1] for table in tables]
    found = [name for i, name in enumerate(names) if any(one[i] for one in apart)]
    return {"tensors": found[:LISTED], "count": len(found), "of": len(names)}


def _twins(values: Sequence[Imprint]) -> float:
    shared = sum(any(alike(one, other) for j, other in enumerate(values) if j != i) for i, one in enumerate(values))
    return shared / len(values)


def _different(values: Sequence[Imprint]) -> int:
    found: list[Imprint] = []
    for one in values:
        if not any(alike(one, known) for known in found):
            found.append(one)
    return len(found)
