"""What each experiment must show when the losses work, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lossdoctor.ablate.effects import Effect, beginning, effect, outcome, outcomes
from lossdoctor.arms import BASELINE, Arm, parse
from lossdoctor.kinds import guess_kind
from lossdoctor.store import Run

Verdict = Literal["yes", "no", "undecided"]
Runs = Mapping[int, Run]
"""Seed to run, of one arm."""

NEGLIGIBLE = 0.05
"""An interval around 0 within this share of the size of what is compared is an answer too: nothing happens."""
HARDLY = 0.01
"""So it is when the interval leaves 0 out, as it does with pairs that are nearly alike, and stays within this share."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One expectation of one arm. key: of its sentence, `expect.<key>`. metric: what was looked at. up: whether it was
    to rise. effect: what it did; None when nothing was recorded."""

    arm: str
    key: str
    metric: str
    up: bool
    effect: Effect | None

    @property
    def verdict(self) -> Verdict:
        """yes: the interval is on the expected side. no: it is on the other, or within what is negligible."""
        if self.effect is None or self.effect.pairs < 2:
            return "undecided"
        low, high = (self.effect.low, self.effect.high) if self.up else (-self.effect.high, -self.effect.low)
        size = max(abs(self.effect.baseline), abs(self.effect.arm))
        if low > 0:
            return "yes" if high >= HARDLY * size else "no"
        return "no" if high < 0 or max(high, -low) < NEGLIGIBLE * size else "undecided"


def answers(runs: Mapping[str, Runs]) -> list[Answer]:
    """The expectations of all arms that have one, in the order of the arms. runs: by the text of the arm."""
    baseline = runs.get(BASELINE, {})
    kinds = _kinds(baseline)
    return [
        answer
        for text, own in runs.items()
        for key, metric, up, found in _of(parse(text), own, runs, kinds)
        for answer in [Answer(text, key, metric, up, found)]
    ]


_Asked = tuple[str, str, bool, "Effect | None"]


def _of(arm: Arm, own: Runs, runs: Mapping[str, Runs], kinds: Mapping[str, str]) -> Iterator[_Asked]:
    if len(arm.changes) != 1:
        return
    (change,), baseline = arm.changes, runs.get(BASELINE, {})
    kind = kinds.get(change.target) or guess_kind(change.target)
    if change.verb == "only" and kind == "velocity":
        yield "only.cos", "flow/cos", True, _course(own, "flow/cos")
        yield "only.nmse", "flow/nmse", False, _course(own, "flow/nmse")
        for metric in _finest(own, "flow/endpt_sw@"):
            # A run has endpoints at its end alone: what they would be without training says the run without this loss.
            untrained = runs.get(f"without:{change.target}", {})
            yield "only.endpoint", metric, False, _beside(untrained, own, metric)
    elif change.verb == "without" and kind == "kl":
        yield "without_kl.mu", "mu/abs_mean", True, _beside(baseline, own, "mu/abs_mean")
        yield "without_kl.sigma", "std/mean", True, _beside(baseline, own, "std/mean", lambda std: abs(std - 1))
    elif change.verb == "shuffle":
        yield "shuffle.flow", "flow/cos", False, _beside(baseline, own, "flow/cos")
        yield "shuffle.distill", "distill/agreement", False, _beside(baseline, own, "distill/agreement")


def _course(runs: Runs, metric: str) -> Effect | None:
    """Its end against its beginning, within each run."""
    curves = {seed: run[metric] for seed, run in runs.items() if metric in run and len(run[metric].finite) > 1}
    ends = {seed: outcome(curve) for seed, curve in curves.items()}
    return effect({seed: beginning(curve) for seed, curve in curves.items()}, ends)


def _beside(
    baseline: Runs, own: Runs, metric: str, of: Callable[[float], float] = lambda value: value
) -> Effect | None:
    sides = [{seed: of(value) for seed, value in outcomes(runs, metric).items()} for runs in (baseline, own)]
    return effect(*sides)


def _finest(runs: Runs, start: str) -> list[str]:
    """The metric with the most steps, of those all runs have."""
    shared = set.intersection(*[{name for name in run if name.startswith(start)} for run in runs.values()] or [set()])
    return sorted(shared, key=lambda name: int(name.partition("@")[2]))[-1:]


def _kinds(baseline: Runs) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in baseline.values():
        found |= {str(name): str(kind) for name, kind in (run.meta.get("losses") or {}).items()}
    return found


def default_arms(baseline: Runs) -> list[str]:
    """The baseline, each loss only, each loss left out, and the condition shuffled, of what the baseline has.

    Of one loss there is nothing to leave out.
    """
    losses = list(_kinds(baseline))
    if len(losses) < 2:
        losses = []
    shuffle = any((run.meta.get("experiment") or {}).get("conditions") for run in baseline.values())
    return [
        BASELINE,
        *(f"only:{loss}" for loss in losses),
        *(f"without:{loss}" for loss in losses),
        *(["shuffle:cond"] if shuffle else []),
    ]
