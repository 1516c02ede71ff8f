"""An ablation from its command to its answers: the baselines first, as they say which arms there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lossdoctor.ablate.effects import Effect, effect, outcomes
from lossdoctor.ablate.expectations import Answer, Runs, answers, default_arms
from lossdoctor.ablate.local import Outcome, Told
from lossdoctor.ablate.trial import Plan, Trial, trials
from lossdoctor.arms import BASELINE, parse
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.keys import KEYS, describe
from lossdoctor.messages import text

SCHEMA = "lossdoctor/effects@1"


class Engine(Protocol):
    """Runs trials somewhere."""

    def run(self, plan: Plan, trials: Sequence[Trial], tell: Told) -> list[Outcome]:
        """All trials; one that is finished is not run again. tell: called, one at a time, with each outcome."""
        ...


@dataclass(frozen=True, slots=True)
class Ablation:
    """What came of it. runs: arm to seed to run, in the order of the arms. failed: trials without a run, and why.

    answers: of the expectations. seeded: whether the script let itself be seeded, so that the runs are pairs.
    conditioned: whether it passes a condition through `lossdoctor.condition`.
    """

    plan: Plan
    runs: Mapping[str, Runs]
    failed: Sequence[Outcome]
    answers: Sequence[Answer]
    seeded: bool
    conditioned: bool

    def effects(self, arm: str) -> dict[str, Effect]:
        """Of an arm on every headline metric that it and the baseline have."""
        baseline, own = self.runs.get(BASELINE, {}), self.runs.get(arm, {})
        names = sorted({name for run in own.values() for name in run if _headline(name)}, key=_order)
        found = {name: effect(outcomes(baseline, name), outcomes(own, name)) for name in names}
        return {name: one for name, one in found.items() if one is not None}

    def as_json(self, lang: str) -> dict[str, Any]:
        """Plain JSON, with the sentences in a language."""
        return {
            "schema": SCHEMA,
            "command": list(self.plan.command),
            "steps": self.plan.steps,
            "seeded": self.seeded,
            "conditioned": self.conditioned,
            "expectations": [
                {
                    "arm": answer.arm,
                    "key": answer.key,
                    "text": text(f"expect.{answer.key}", lang),
                    "metric": answer.metric,
                    "expected": "up" if answer.up else "down",
                    "verdict": answer.verdict,
                    "effect": None if answer.effect is None else _plain(answer.effect),
                }
                for answer in self.answers
            ],
            "arms": [
                {
                    "arm": arm,
                    "seeds": sorted(runs),
                    "effects": {name: _plain(one) for name, one in self.effects(arm).items()},
                }
                for arm, runs in self.runs.items()
            ],
            "failed": [
                {"arm": one.trial.arm, "seed": one.trial.seed, "reason": one.failure or ""} for one in self.failed
            ],
        }


def ablate(
    plan: Plan,
    engine: Engine,
    *,
    arms: Sequence[str] | None,
    seeds: int,
    tell: Told = lambda outcome: None,
    begin: Callable[[str, int], None] = lambda phase, trials: None,
) -> Ablation:
    """Run an ablation. arms: their texts, the default set when None; the baseline is always among them.

    tell: see `Engine.run`. begin: called with "baseline", then with "arms", and how many trials there are.
    Raises UsageError for a text that is no arm, a folder of another ablation, and when no baseline could be run: then
    with the reason.
    """
    wanted = None if arms is None else list(dict.fromkeys([BASELINE, *(str(parse(arm)) for arm in arms)]))
    plan.claim()
    begin("baseline", seeds)
    first = engine.run(plan, trials([BASELINE], seeds), tell)
    baseline = _runs(plan, [BASELINE], seeds)[BASELINE]
    if not baseline:
        raise UsageError(_no_baseline(plan, first))
    wanted = wanted or default_arms(baseline)
    others = trials([arm for arm in wanted if arm != BASELINE], seeds)
    begin("arms", len(others))
    rest = engine.run(plan, others, tell)
    return gathered(plan, wanted, seeds, [one for one in (*first, *rest) if one.failure is not None])


def gathered(plan: Plan, arms: Sequence[str], seeds: int, failed: Sequence[Outcome] = ()) -> Ablation:
    """What there is of these arms."""
    runs = _runs(plan, arms, seeds)
    told = [run.meta.get("experiment") or {} for run in runs.get(BASELINE, {}).values()]
    return Ablation(
        plan,
        runs,
        failed,
        answers(runs),
        seeded=all(bool(one.get("seeded")) for one in told),
        conditioned=any(bool(one.get("conditions")) for one in told),
    )


def _runs(plan: Plan, arms: Sequence[str], seeds: int) -> dict[str, Runs]:
    return {
        arm: {seed: run for seed in range(seeds) if (run := plan.finished(Trial(arm, seed))) is not None}
        for arm in arms
    }


def _headline(name: str) -> bool:
    key = describe(name)
    return key is not None and key.headline


def _order(name: str) -> tuple[int, str]:
    key = describe(name)
    return (KEYS.index(key) if key is not None else len(KEYS), name)


def _plain(one: Effect) -> dict[str, Any]:
    low, high = ((bound if math.isfinite(bound) else None) for bound in (one.low, one.high))
    told = {"baseline": one.baseline, "arm": one.arm, "difference": one.difference, "low": low, "high": high}
    return {**told, "p": one.p, "pairs": one.pairs, "pairs_needed": one.pairs_needed()}


def _no_baseline(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    reason = next((one.failure for one in outcomes if one.failure is not None), "nothing")
    return mismatch(
        "The script does not get through its baseline",
        f"{' '.join(plan.command)} to train {plan.steps} steps with a lossdoctor.Doctor",
        reason.replace("\n", "\n            "),
        "run the command by itself; what it printed is in the output files of the folder given as --out",
    )
