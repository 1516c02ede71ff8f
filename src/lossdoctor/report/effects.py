"""Of the many effects of an arm, those worth telling first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossdoctor.keys import describe

_INNER = ("gradient", "step")
"""Families that say how a run gets on, not what comes of it."""


def largest(effects: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The clear effects on what a loss is there for, the largest for their size first; of several step counts one."""
    finest: dict[str, int] = {}
    for name in effects:
        start, at, steps = name.partition("@")
        if at:
            finest[start] = max(finest.get(start, 0), int(steps))
    found = []
    for name, effect in effects.items():
        key, (start, at, steps) = describe(name), name.partition("@")
        inner = key is None or key.family in _INNER or name == "loss/total"
        clear = effect["low"] is not None and (effect["low"] > 0 or effect["high"] < 0)
        if clear and not inner and not (at and int(steps) < finest[start]):
            size = max(abs(effect["baseline"]), abs(effect["arm"]))
            found.append((abs(effect["difference"]) / size, name, effect))
    return [(name, effect) for _, name, effect in sorted(found, key=lambda one: -one[0])]
