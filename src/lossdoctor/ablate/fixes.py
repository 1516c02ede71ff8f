"""Which fix helps: the fixes of the findings as arms, and what each does to the finding it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lossdoctor.ablate.effects import Effect
from lossdoctor.arms import BASELINE, Arm, Change, parse
from lossdoctor.diagnose import Diagnosis
from lossdoctor.errors import UsageError
from lossdoctor.keys import describe
from lossdoctor.rules.finding import Certainty, Finding, Fix

Known = tuple[str, str | None, str | None]
"""Code, loss and subject: what makes a finding the same one in another run."""

MOST = 8
"""Arms tried, of the most important findings first."""
LEAST = 2
"""Seeds in which a finding must be seen, and be gone, to be confirmed."""

_NUMBERS = {"scale_weight": ("weight", "*", "factor"), "warm_up_weight": ("warmup", "=", "steps"),
            "scale_rate": ("lr", "*", "factor"), "set_decay": ("wd", "=", "value"),
            "scale_knob": ("knob", "*", "factor"), "set_knob": ("knob", "=", "value")}  # fmt: skip
"""The arm of a fix: its verb, its sign, and the parameter that is its number."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One arm for one finding. removed: of how many seeds that showed it in the baseline. pairs: those seeds.

    alarms: codes of warnings and errors that appear under it in every seed and in no seed of the baseline. better,
    worse: metrics with a direction that clearly move, see `Key.better`.
    """

    arm: str
    removed: int
    pairs: int
    alarms: tuple[str, ...]
    better: tuple[str, ...]
    worse: tuple[str, ...]

    @property
    def helps(self) -> bool:
        """Whether the finding is gone in every seed, and no new alarm is there."""
        return self.pairs >= LEAST and self.removed == self.pairs and not self.alarms


@dataclass(frozen=True, slots=True)
class Proof:
    """What the experiments say of one finding. seen: in how many of `seeds` baselines. tried: best first.

    by_hand: fixes that are no arm.
    """

    finding: Finding
    seen: int
    seeds: int
    tried: tuple[Tried, ...]
    by_hand: tuple[Fix, ...]

    @property
    def certainty(self) -> Certainty | None:
        """confirmed: seen in every baseline, and gone in every seed of the best arm. None, withdrawn: not in one.

        Else it stays what it was.
        """
        if self.seeds >= LEAST and not self.seen:
            return None
        if self.seen == self.seeds and self.tried and self.tried[0].helps:
            return "confirmed"
        return self.finding.certainty


def identity(finding: Finding) -> Known:
    """What makes it the same finding in another run."""
    return finding.code, finding.loss, finding.subject


def arm_of(fix: Fix) -> str | None:
    """The arm that applies a fix; None for an edit of the program, and for what only looks."""
    if fix.action == "balance":
        return f"balance:{fix.target}"
    if fix.action not in _NUMBERS:
        return None
    verb, sign, number = _NUMBERS[fix.action]
    return str(Arm((Change(verb, fix.target, sign, float(fix.params[number])),)))


def arms_for(finding: Finding, script: Mapping[str, Iterable[str]]) -> list[str]:
    """The arms to try for a finding, its own fixes first, then the one that settles it.

    script: what the script has, "losses", "heads" and "knobs"; what it lacks cannot be tried.
    """
    told = [arm for fix in finding.fixes if (arm := arm_of(fix)) is not None]
    if finding.confirm is not None:
        told.append(finding.confirm)
    return [arm for arm in dict.fromkeys(told) if _possible(arm, script)]


def _possible(text: str, script: Mapping[str, Iterable[str]]) -> bool:
    try:
        changes = parse(text).changes
    except UsageError:  # many rules are settled by a metric or by a command, not by an arm
        return False
    there = {"weight": "losses", "warmup": "losses", "lr": "heads", "wd": "heads", "knob": "knobs"}
    return bool(changes) and all(
        change.verb == "balance"
        or (change.verb in there and change.target in (*script[there[change.verb]], *(["all"] * (change.verb == "lr"))))
        for change in changes
    )


def to_try(findings: Sequence[Finding], script: Mapping[str, Iterable[str]]) -> list[str]:
    """At most MOST arms: the first fix of every finding, then the second ones."""
    each = [arms_for(finding, script) for finding in findings]
    deepest = max(map(len, each), default=0)
    ordered = [arms[depth] for depth in range(deepest) for arms in each if depth < len(arms)]
    return list(dict.fromkeys(ordered))[:MOST]


def alarms(diagnosis: Diagnosis) -> list[Finding]:
    """The warnings and errors, most important first."""
    return [finding for finding in diagnosis.findings if finding.severity != "info"]


def proofs(
    findings: Sequence[Finding],
    diagnoses: Mapping[str, Mapping[int, Diagnosis]],
    effects: Mapping[str, Mapping[str, Effect]],
    script: Mapping[str, Iterable[str]],
) -> list[Proof]:
    """What the experiments say of each finding.

    diagnoses: by arm and seed. effects: by arm and metric. script: see `arms_for`.
    """
    baseline = diagnoses.get(BASELINE, {})
    seen = {seed: {identity(one) for one in diagnosis.findings} for seed, diagnosis in baseline.items()}
    told = []
    for finding in findings:
        shown = [seed for seed, known in seen.items() if identity(finding) in known]
        tried = [
            _tried(arm, finding, shown, diagnoses, effects.get(arm, {}))
            for arm in arms_for(finding, script)
            if arm in diagnoses
        ]
        by_hand = tuple(fix for fix in finding.fixes if fix.reach == "change")
        told.append(Proof(finding, len(shown), len(baseline), tuple(sorted(tried, key=_rank)), by_hand))
    return told


def _tried(
    arm: str,
    finding: Finding,
    shown: Sequence[int],
    diagnoses: Mapping[str, Mapping[int, Diagnosis]],
    effects: Mapping[str, Effect],
) -> Tried:
    own, baseline = diagnoses[arm], diagnoses[BASELINE]
    both = [seed for seed in shown if seed in own]
    gone = [seed for seed in both if identity(finding) not in {identity(one) for one in own[seed].findings}]
    before = {one.code for diagnosis in baseline.values() for one in alarms(diagnosis)}
    after = [{one.code for one in alarms(diagnosis)} for diagnosis in own.values()]
    new = set.intersection(*after) - before if after else set()
    moved = {name: _direction(name, effect) for name, effect in effects.items()}
    better, worse = (tuple(name for name, way in moved.items() if way == wanted) for wanted in (1, -1))
    return Tried(arm, len(gone), len(both), tuple(sorted(new)), better, worse)


def _direction(name: str, effect: Effect) -> int:
    """1 for clearly better, -1 for clearly worse, 0 else."""
    key = describe(name)
    if key is None or key.better == "none" or not effect.clear:
        return 0
    return 1 if (effect.difference > 0) == (key.better == "up") else -1


def _rank(one: Tried) -> tuple[float, int, int]:
    """The best first: what removes it most often, raises least alarms, and does the rest of the run most good."""
    share = one.removed / one.pairs if one.pairs else 0.0
    return (-share, len(one.alarms), len(one.worse) - len(one.better))
