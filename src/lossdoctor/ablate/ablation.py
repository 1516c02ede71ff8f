"""An ablation from its command to its answers: the baselines first, as they say which arms there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lossdoctor.ablate.effects import Effect, effect, outcomes
from lossdoctor.ablate.engine import Outcome, Runner, Told
from lossdoctor.ablate.expectations import Answer, Runs, answers, default_arms
from lossdoctor.ablate.fixes import MOST, Proof, alarms, arm_of, identity, proofs, to_try
from lossdoctor.ablate.script import Script
from lossdoctor.ablate.trial import Plan, Trial, trials
from lossdoctor.arms import BASELINE, parse
from lossdoctor.diagnose import diagnose
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.keys import KEYS, describe
from lossdoctor.messages import text
from lossdoctor.rules.finding import Message
from lossdoctor.store import Run
from lossdoctor.store.plain import plain

SCHEMA = "lossdoctor/effects@1"

Begun = Callable[[str, Sequence[Trial]], None]
"""Told when a part of an ablation begins: "baseline" or "arms", and its trials."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What came of it. runs: arm to seed to run, in the order of the arms. failed: trials without a run, and why.

    answers: of the expectations. effects: arm to metric to effect, on every headline metric that the arm and the
    baseline have. seeded: whether the script let itself be seeded, so that the runs are pairs.
    conditioned: whether it passes a condition through `lossdoctor.condition`. alike: whether the baselines of all seeds
    are one and the same, so that their spread says nothing.
    """

    plan: Plan
    runs: Mapping[str, Runs]
    failed: Sequence[Outcome]
    answers: Sequence[Answer]
    effects: Mapping[str, Mapping[str, Effect]]
    seeded: bool
    conditioned: bool
    alike: bool

    def as_json(self, lang: str) -> dict[str, Any]:
        """Plain JSON, with the sentences in a language."""
        return {
            "schema": SCHEMA,
            "command": list(self.plan.command),
            "steps": self.plan.steps,
            "seeded": self.seeded,
            "conditioned": self.conditioned,
            "alike": self.alike,
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
                    "effects": {name: _plain(one) for name, one in self.effects[arm].items()},
                }
                for arm, runs in self.runs.items()
            ],
            "failed": [
                {"arm": one.trial.arm, "seed": one.trial.seed, "reason": one.failure or ""} for one in self.failed
            ],
        }


def ablate(
    plan: Plan,
    engine: Runner,
    *,
    arms: Sequence[str] | None,
    seeds: int,
    tell: Told = lambda outcome: None,
    begin: Begun = lambda phase, trials: None,
) -> Ablation:
    """Run an ablation. arms: their texts, the default set when None; the baseline is always among them.

    tell: see `Engine.run`. begin: called with "baseline", then with "arms", and the trials of each.
    Raises UsageError for a text that is no arm, a folder of another ablation, when no baseline could be run: then with
    the reason, and for arms that the script cannot have, once a baseline has shown what there is.
    """
    wanted = None if arms is None else [str(parse(arm)) for arm in arms]
    work = _Work(plan, engine, seeds, tell, begin)
    first = work.baselines()
    if wanted is not None:
        Script.of(first.runs).check(wanted)
    return work.beside(first, default_arms(first.runs) if wanted is None else wanted)


@dataclass(frozen=True, slots=True)
class _Baselines:
    """runs: seed to run, at least one. failed: the others."""

    runs: Runs
    failed: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class _Work:
    """An ablation in its two parts: what comes second depends on what the baselines show."""

    plan: Plan
    engine: Runner
    seeds: int
    tell: Told
    begin: Begun

    def baselines(self) -> _Baselines:
        self.plan.claim()
        wanted = trials([BASELINE], self.seeds)
        self.begin("baseline", wanted)
        outcomes = self.engine.run(self.plan, wanted, self.tell)
        runs = _runs(self.plan, [BASELINE], self.seeds)[BASELINE]
        if not runs:
            raise UsageError(_no_baseline(self.plan, outcomes))
        return _Baselines(runs, _failed(outcomes))

    def beside(self, first: _Baselines, arms: Sequence[str]) -> Ablation:
        others = [arm for arm in dict.fromkeys(arms) if arm != BASELINE]
        wanted = trials(others, self.seeds)
        self.begin("arms", wanted)
        failed = _failed(self.engine.run(self.plan, wanted, self.tell))
        runs = {BASELINE: first.runs, **_runs(self.plan, others, self.seeds)}
        told = [run.meta.get("experiment") or {} for run in first.runs.values()]
        return Ablation(
            self.plan,
            runs,
            [*first.failed, *failed],
            answers(runs),
            {arm: _effects(first.runs, own) for arm, own in runs.items()},
            seeded=all(bool(one.get("seeded")) for one in told),
            conditioned=any(bool(one.get("conditions")) for one in told),
            alike=_alike(list(first.runs.values())),
        )


@dataclass(frozen=True, slots=True)
class Cure:
    """Which fix helps. ablation: of the arms that were tried. proofs: one for each finding, most important first."""

    ablation: Ablation
    proofs: Sequence[Proof]

    def as_json(self, lang: str) -> dict[str, Any]:
        """That of the ablation, and `fixes`."""
        return {**self.ablation.as_json(lang), "fixes": [_proof_json(proof, lang) for proof in self.proofs]}


def try_fixes(
    plan: Plan,
    engine: Runner,
    *,
    seeds: int,
    run: Run | None = None,
    findings: int | None = None,
    most: int = MOST,
    tell: Told = lambda outcome: None,
    begin: Begun = lambda phase, trials: None,
) -> Cure:
    """Try the fixes of the findings of a run, or of the baselines themselves when None is given.

    findings: only of so many, the most important ones. most: arms at most. Raises UsageError as `ablate` does.
    """
    work = _Work(plan, engine, seeds, tell, begin)
    first = work.baselines()
    baseline = {seed: diagnose(own) for seed, own in first.runs.items()}
    sources = list(baseline.values()) if run is None else [diagnose(run)]
    found = list({identity(one): one for source in sources for one in alarms(source)}.values())[:findings]
    script = Script.of(first.runs)
    done = work.beside(first, to_try(found, script, most))
    diagnoses = {
        arm: baseline if arm == BASELINE else {seed: diagnose(own) for seed, own in runs.items()}
        for arm, runs in done.runs.items()
    }
    return Cure(done, proofs(found, diagnoses, done.effects, script))


def _proof_json(proof: Proof, lang: str) -> dict[str, Any]:
    finding = proof.finding
    sentences = {arm_of(fix): fix.message for fix in finding.fixes}
    return {
        "code": finding.code,
        "name": finding.name,
        "loss": finding.loss,
        "subject": finding.subject,
        "message": finding.message.text(lang),
        "say": _say(finding.message),
        "was": finding.certainty,
        "certainty": proof.certainty or "withdrawn",
        "seen": proof.seen,
        "seeds": proof.seeds,
        "p": proof.p,
        "seeds_needed": proof.seeds_needed(),
        "tried": [
            {**asdict(one), "helps": one.helps, **_sentence(sentences.get(one.arm), lang)} for one in proof.tried
        ],
        "by_hand": [_sentence(fix.message, lang) for fix in proof.by_hand],
    }


def _sentence(message: Message | None, lang: str) -> dict[str, Any]:
    """In one language, and as what it is made of, for every other."""
    return {"text": "" if message is None else message.text(lang), "say": None if message is None else _say(message)}


def _say(message: Message) -> dict[str, Any]:
    return {"key": message.key, "params": plain(message.params)}


def _failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.failure is not None]


def _runs(plan: Plan, arms: Sequence[str], seeds: int) -> dict[str, Runs]:
    return {
        arm: {seed: run for seed in range(seeds) if (run := plan.finished(Trial(arm, seed))) is not None}
        for arm in arms
    }


def _alike(runs: Sequence[Run]) -> bool:
    losses = [{name: run[name].values.tobytes() for name in run if name.startswith("loss/")} for run in runs]
    return len(losses) > 1 and bool(losses[0]) and all(one == losses[0] for one in losses[1:])


def _effects(baseline: Runs, own: Runs) -> dict[str, Effect]:
    names = sorted({name for run in own.values() for name in run if _headline(name)}, key=_order)
    found = {name: effect(outcomes(baseline, name), outcomes(own, name)) for name in names}
    return {name: one for name, one in found.items() if one is not None}


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
