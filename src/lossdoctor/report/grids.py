"""Numbers that belong side by side: loss by module, loss by loss, metrics by time and by solver steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lossdoctor.keys import KEYS, Key

Cells = dict[tuple[str, str], float]

GRIDS_AFTER = {"gradient": ("reach", "cosines"), "velocity": ("times",), "endpoint": ("endpoint",)}
"""The grids that belong to each family of metrics."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers now, in two directions; None where there is none. `code` names the grid in the message catalogues."""

    code: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def grids(known: Mapping[str, Key], now: Mapping[str, float], losses: Sequence[str]) -> Iterator[Grid]:
    """All grids that have a number in them. known: metric names with their kind. now: their values. losses: by name."""
    every = (
        _reach(losses, now),
        _cosines(losses, now),
        _by_hole("times", "tenth", known, now),
        _by_hole("endpoint", "K", known, now),
    )
    yield from (grid for grid in every if any(value is not None for row in grid.values for value in row))


def _reach(losses: Sequence[str], now: Mapping[str, float]) -> Grid:
    """Module by loss. A loss's name may hold a "/", so modules are found by the losses at hand, not by the pattern."""
    cells = {
        (name.removeprefix(prefix), loss): value
        for loss in losses
        for name, value in now.items()
        if name.startswith(prefix := f"grad_module/{loss}/")
    }
    return _grid("reach", sorted({module for module, _ in cells}), losses, cells)


def _cosines(losses: Sequence[str], now: Mapping[str, float]) -> Grid:
    pairs = {(a, b): f"grad_cos/{a}|{b}" for a, b in itertools.combinations(losses, 2)}
    cells = {pair: now[name] for pair, name in pairs.items() if name in now}
    return _grid("cosines", losses[:-1], losses[1:], cells)


def _by_hole(code: str, hole: str, known: Mapping[str, Key], now: Mapping[str, float]) -> Grid:
    """Metrics whose names hold a number, by that number. The floor of an endpoint distance goes into a last column."""
    cells: Cells = {}
    for name, key in known.items():
        base, place = _split(key), (key.match(name) or {}).get(hole)
        if place is not None:
            cells[base, place] = now[name]
            if f"{base}_floor" in now:
                cells[base, "floor"] = now[f"{base}_floor"]
    rows = [base for base in dict.fromkeys(map(_split, KEYS)) if any(base == row for row, _ in cells)]
    columns = sorted({column for _, column in cells}, key=lambda column: (column == "floor", len(column), column))
    return _grid(code, rows, columns, cells)


def _split(key: Key) -> str:
    return key.pattern.removesuffix("_t{0..9}").removesuffix("@K")


def _grid(code: str, rows: Sequence[str], columns: Sequence[str], cells: Cells) -> Grid:
    return Grid(
        code,
        tuple(rows),
        tuple(columns),
        tuple(tuple(cells.get((row, column)) for column in columns) for row in rows),
    )
