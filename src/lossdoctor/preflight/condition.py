"""Does the velocity change when the condition does, and how often is the condition the null one?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lossdoctor.metrics import condition
from lossdoctor.preflight.answers import Answers, all_skipped, fired
from lossdoctor.preflight.given import Given
from lossdoctor.preflight.network import UNCHANGED, change, network
from lossdoctor.rules.cnd601_condition_unused import ConditionUnused
from lossdoctor.rules.cnd602_null_rate import KNOBS, NullRate
from lossdoctor.rules.finding import Cause, Evidence, Finding, say
from lossdoctor.rules.fixes import edit

RULES = (ConditionUnused, NullRate)
NEEDS = ("velocity", "z0", "z1", "cond")

CHANCE = 1e-4
"""Probability under which a share of null conditions is no accident: one false alarm in ten thousand batches."""


def ask(given: Given) -> Answers:
    """Answers for `RULES`. Raises Failed when the velocity fails."""
    return {**_used(given), **null_rate(given)}


def _used(given: Given) -> Answers:
    assert given.z0 is not None
    rows = len(given.z0)
    with network(given) as net:
        true = net(cond=given.cond)
        if change(true, net(cond=given.cond, x=net.x + net.x.std() + 1)) <= UNCHANGED:
            return all_skipped((ConditionUnused,), say("preflight.network.dead"))
        asked: dict[str, float] = {}
        if condition.splittable(given.cond, rows) and (index := _exchanged(given.cond, rows)) is not None:
            asked["other"] = change(true, net(cond=condition.take(given.cond, index)))
        if given.null_cond is not None:
            asked["null"] = change(true, net(cond=_null(given, rows)))
    if not asked:
        return all_skipped((ConditionUnused,), say("preflight.condition.one"), say("preflight.condition.one.todo"))
    return fired((ConditionUnused,), [_unused(name, by) for name, by in asked.items() if by <= UNCHANGED][:1])


def _null(given: Given, rows: int) -> Any:
    """The null condition for a batch, also where one for a single sample was given."""
    cond, null = given.cond, given.null_cond
    if isinstance(cond, Tensor) and isinstance(null, (int, float)):
        return torch.full_like(cond, null)
    if isinstance(cond, Tensor) and isinstance(null, Tensor) and null.shape in (cond.shape[1:], (1, *cond.shape[1:])):
        return null.to(cond.device).expand(cond.shape)
    if isinstance(cond, (list, tuple)) and isinstance(null, str):
        return type(cond)([null] * rows)
    return null


def _exchanged(cond: Any, rows: int) -> Tensor | None:
    """The rows in another order in which some sample gets another condition; None where all are the same."""
    keys = condition.keys(cond, torch.Generator().manual_seed(0))
    if keys is None and isinstance(cond, (list, tuple)):  # texts
        known = {text: i for i, text in enumerate(dict.fromkeys(map(str, cond)))}
        keys = torch.tensor([known[str(text)] for text in cond])
    if keys is None or rows < 2 or bool((keys == keys[0]).all()):
        return None
    index = torch.arange(rows).roll(1)
    return index if bool((keys[index.to(keys.device)] != keys).any()) else None


def _unused(name: str, by: float) -> Finding:
    return ConditionUnused().finding(
        say(f"preflight.condition.{name}"),
        evidence=(Evidence(f"preflight/velocity_change/{name}_condition", by, UNCHANGED),),
        causes=(Cause("condition-not-connected"),),
        fixes=(edit("connect_condition"),),
        subject="velocity",
        severity="error",
        certainty="confirmed",
        confirm="lossdoctor preflight",
    )


def null_rate(given: Given) -> Answers:
    """The share of null conditions in the batch against the rate that a module declares, which needs no network."""
    share = _null_share(given)
    if share is None:
        return all_skipped((NullRate,), say("preflight.condition.no_null"), say("preflight.condition.no_null.todo"))
    count, rows = share
    rate = _configured(given)
    told = {"count": count, "rows": rows, "share": 100 * count / rows}
    if count == rows and rows > 1 and (rate is None or rate[1] < 1):
        return fired((NullRate,), [_rate("preflight.condition.all_null", told, count / rows, None)])
    if rate is None:
        return all_skipped((NullRate,), say("preflight.condition.no_rate", **told))
    name, value = rate
    if _chance(count, rows, value) >= CHANCE:
        return fired((NullRate,), [])
    params = {**told, "name": name, "rate": 100 * value}
    return fired((NullRate,), [_rate("preflight.condition.rate", params, count / rows, value)])


def _null_share(given: Given) -> tuple[int, int] | None:
    """How many rows of the condition equal their row of the null condition, and how many there are."""
    cond, null = given.cond, given.null_cond
    if isinstance(cond, (list, tuple)) and cond and all(isinstance(one, str) for one in cond):
        blank = null if isinstance(null, str) else null[0] if isinstance(null, (list, tuple)) and null else None
        return (sum(one == blank for one in cond), len(cond)) if isinstance(blank, str) else None
    if not isinstance(cond, Tensor) or not cond.ndim or not len(cond):
        return None
    if isinstance(null, (int, float)) and not isinstance(null, bool):
        null = torch.tensor(null)
    if not isinstance(null, Tensor):
        return None
    try:
        wide = null.to(cond.device, cond.dtype).broadcast_to(cond.shape)
    except RuntimeError:
        return None
    return int((cond == wide).reshape(len(cond), -1).all(1).sum()), len(cond)


def _configured(given: Given) -> tuple[str, float] | None:
    """The rate that a module holds under a usual name."""
    modules = [module for top in given.modules for module in top.modules()]
    for module in modules:
        for name in KNOBS:
            value = None if isinstance(module, nn.Sequential) else getattr(module, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
                return name, float(value)
    return None


def _chance(count: int, rows: int, rate: float) -> float:
    """Probability of a count as far from rate * rows, on its side: exact binomial."""
    if rate in (0.0, 1.0):
        return float(count == rate * rows)
    logs = (
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(rate) + (rows - k) * math.log1p(-rate)
        for k in (range(count, rows + 1) if count > rate * rows else range(count + 1))
    )  # fmt: skip
    return sum(math.exp(log) for log in logs)


def _rate(sentence: str, params: dict[str, Any], share: float, rate: float | None) -> Finding:
    return NullRate().finding(
        say(sentence, **params),
        evidence=(Evidence("preflight/null_share", share, rate),),
        causes=(Cause("null-rate"),),
        fixes=(edit("mask_per_sample"),),
        subject="cond",
        certainty="likely",
        confirm="lossdoctor preflight",
    )
