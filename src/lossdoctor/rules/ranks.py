"""What the rules about several ranks share: who trains, and which inputs are the same on ranks that should differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lossdoctor.record import Series
from lossdoctor.rules.finding import Evidence, Message, say
from lossdoctor.rules.view import RunView, middle, span

DATA = (("flow.z1",), ("flow.v_target",), ("posterior.mu", "distill.teacher_logits"))
"""What shows the data, the surest first. The last ones come from weights that change, so the same few conditions on
every rank look like data there: they count only together, and where nothing else was handed in."""


def one_rank(run: RunView) -> Message | None:
    """Why there is nothing to compare; None where several ranks train."""
    return None if run.meta.get("ranks") else say("skip.one_rank")


def size(run: RunView) -> int:
    """How many ranks train the model."""
    return int((run.meta.get("ranks") or {}).get("size") or 0)


def told(run: RunView, name: str) -> Series:
    """`ranks/same/<name>` at every step: it is a fact, and needs no warm-up."""
    return run[f"ranks/same/{name}"].finite


def often(curve: Series) -> float:
    """In which share of the steps ranks have the same; 0 for an empty curve."""
    return float(np.count_nonzero(curve.values)) / len(curve) if len(curve) else 0.0


def facts(run: RunView, curve: Series, names: Iterable[str]) -> dict[str, Any]:
    """What a sentence about a curve says, the same inputs being those of `names`."""
    told_of = {"percent": 100 * middle(curve), "size": size(run), "inputs": ", ".join(names)}
    return {**told_of, "steps": 100 * often(curve), "count": len(curve), **span(curve)}


def evidence(curves: Mapping[str, Series]) -> tuple[Evidence, ...]:
    """Curves of the same inputs, by name, each held against 0."""
    return tuple(Evidence(f"ranks/same/{name}", middle(one), 0.0, **span(one)) for name, one in curves.items())


def data(run: RunView, least: int) -> dict[str, Series]:
    """The curves that tell whether the data are the same; none when none of them has `least` steps."""
    for names in DATA:
        if found := {name: curve for name in names if len(curve := told(run, name)) >= least}:
            return found
    return {}
