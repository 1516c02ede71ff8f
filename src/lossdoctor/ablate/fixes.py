"""Which fix helps: the fixes of the findings as arms, and what each does to the finding it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lossdoctor.ablate.effects import Effect
from lossdoctor.ablate.script import Script
from lossdoctor.arms import ALL, BASELINE, Arm, Change, parse
from lossdoctor.curves import adjusted
from lossdoctor.diagnose import FALSE_DISCOVERIES, Diagnosis
from lossdoctor.errors import UsageError
from lossdoctor.keys import describe
from lossdoctor.rules.finding import Certainty, Finding, Fix

Known = tuple[str, str | None, str | None]
"""Code, loss and subject: what makes a finding the same one in another run."""

MOST = 8
"""Arms tried, of the most important findings first."""
LEAST = 2
"""Seeds of which none may show a finding, to withdraw it."""
EDIT = "fix."
"""Begins the name of a knob behind which a script has an edit: `if lossdoctor.knob("fix.copy_ema", 0): ...`."""
_AMOUNTS = ("value", "factor")
"""Parameters of an edit that are its number."""

_NUMBERS = {"scale_weight": ("weight", "*", "factor"), "warm_up_weight": ("warmup", "=", "steps"),
            "scale_rate": ("lr", "*", "factor"), "set_decay": ("wd", "=", "value"),
            "scale_knob": ("knob", "*", "factor"), "set_knob": ("knob", "=", "value")}  # fmt: skip
"""The arm of a fix: its verb, its sign, and the parameter that is its number."""
_MENDS = {"balance", *(verb for verb, _, _ in _NUMBERS.values())}
"""Verbs of arms that mend; the others only show."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One arm for one finding. pairs: seeds whose baseline raises it as an alarm. removed: in how many of them it is
    gone, or only a remark.

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
        """Whether the finding is gone in every seed, two at least, and no new alarm is there."""
        return self.pairs >= LEAST and self.removed == self.pairs and not self.alarms


@dataclass(frozen=True, slots=True)
class Proof:
    """What the experiments say of one finding. seen: in how many of `seeds` baselines. tried: best first.

    by_hand: edits of the program that were not tried. p: how probable it would be at most, by chance alone, that every
    baseline shows it and all seeds of some arm do not; 1 where that was not what happened; adjusted for the other
    findings the experiments were about.
    """

    finding: Finding
    seen: int
    seeds: int
    tried: tuple[Tried, ...]
    by_hand: tuple[Fix, ...]
    p: float = 1.0

    @property
    def certainty(self) -> Certainty | None:
        """confirmed: seen in every baseline, gone in every seed of the best arm, and that is no chance.

        None, withdrawn: not seen in one. Else it stays what it was.
        """
        if self.seeds >= LEAST and not self.seen:
            return None
        return "confirmed" if self.p <= FALSE_DISCOVERIES else self.finding.certainty

    def seeds_needed(self) -> int | None:
        """Of each arm, to confirm what these show; None where it is confirmed, or where they do not agree."""
        if self.p <= FALSE_DISCOVERIES or not _agrees(self):
            return None
        rivals = self.p / chance(self.seeds, len(self.tried))
        return next(n for n in range(self.seeds + 1, 99) if rivals * chance(n, len(self.tried)) <= FALSE_DISCOVERIES)


def chance(seeds: int, arms: int) -> float:
    """The chance of a wrong confirmation, in [0, 1], of a finding that comes and goes by itself.

    The highest probability, over how often it comes, that it comes in all `seeds` baselines and in none of the `seeds`
    runs of at least one of `arms` arms, none of which does anything; all runs independent. Pairs that share a seed are
    rather alike, which only makes it smaller.
    """
    often = np.linspace(0, 1, 2001)
    return float((often**seeds * (1 - (1 - (1 - often) ** seeds) ** arms)).max())


def identity(finding: Finding) -> Known:
    """What makes it the same finding in another run."""
    return finding.code, finding.loss, finding.subject


def arm_of(fix: Fix) -> str | None:
    """The arm that applies a fix; None for what only looks.

    An edit of the program is the knob that a script which has it in two ways calls by its name, see EDIT. It is set to
    the edit's number, or to 1.
    """
    if fix.action == "balance":
        return f"balance:{fix.target}"
    if fix.action == "edit":
        amount = next((float(fix.params[name]) for name in _AMOUNTS if name in fix.params), 1.0)
        return str(Arm((Change("knob", f"{EDIT}{fix.params['what']}", "=", amount),)))
    if fix.action not in _NUMBERS:
        return None
    verb, sign, number = _NUMBERS[fix.action]
    return str(Arm((Change(verb, fix.target, sign, float(fix.params[number])),)))


def arms_for(finding: Finding, script: Script) -> list[str]:
    """The arms to try for a finding: its own fixes, then the one that settles it.

    One that joins several of the fixes goes first: a finding about several heads is gone when all are mended.
    What the script lacks cannot be tried.
    """
    told = [arm for fix in finding.fixes if (arm := arm_of(fix)) is not None]
    if finding.confirm is not None:
        joined = "+" in finding.confirm and set(finding.confirm.split("+")) <= set(told)
        told = [finding.confirm, *told] if joined else [*told, finding.confirm]
    return [arm for arm in dict.fromkeys(told) if _possible(arm, script)]


def _possible(text: str, script: Script) -> bool:
    try:
        changes = parse(text).changes
    except UsageError:  # many rules are settled by a metric or by a command, not by an arm
        return False
    return bool(changes) and all(
        change.verb in _MENDS and script.has(change) and (change.verb, change.target) != ("wd", ALL)
        for change in changes
    )


def to_try(findings: Sequence[Finding], script: Script, most: int = MOST) -> list[str]:
    """At most so many arms: the first fix of every finding, then the second ones."""
    each = [arms_for(finding, script) for finding in findings]
    deepest = max(map(len, each), default=0)
    ordered = [arms[depth] for depth in range(deepest) for arms in each if depth < len(arms)]
    return list(dict.fromkeys(ordered))[:most]


def alarms(diagnosis: Diagnosis) -> list[Finding]:
    """The warnings and errors, most important first."""
    return [finding for finding in diagnosis.findings if finding.severity != "info"]


def proofs(
    findings: Sequence[Finding],
    diagnoses: Mapping[str, Mapping[int, Diagnosis]],
    effects: Mapping[str, Mapping[str, Effect]],
    script: Script,
) -> list[Proof]:
    """What the experiments say of each finding.

    diagnoses: by arm and seed. effects: by arm and metric. script: see `arms_for`.
    """
    baseline = diagnoses.get(BASELINE, {})
    seen = {seed: {identity(one) for one in diagnosis.findings} for seed, diagnosis in baseline.items()}
    told = []
    for finding in findings:
        times = sum(identity(finding) in known for known in seen.values())
        shown = [seed for seed, diagnosis in baseline.items() if identity(finding) in map(identity, alarms(diagnosis))]
        tried = [
            _tried(arm, finding, shown, diagnoses, effects.get(arm, {}))
            for arm in arms_for(finding, script)
            if arm in diagnoses
        ]
        by_hand = tuple(fix for fix in finding.fixes if fix.reach == "change" and arm_of(fix) not in diagnoses)
        told.append(Proof(finding, times, len(baseline), tuple(sorted(tried, key=_rank)), by_hand))
    alone = [chance(proof.seeds, len(proof.tried)) if _agrees(proof) else 1.0 for proof in told]
    return [replace(proof, p=p) for proof, p in zip(told, adjusted(alone).tolist(), strict=True)]


def _agrees(proof: Proof) -> bool:
    best = proof.tried[0] if proof.tried else None
    return best is not None and best.helps and proof.seen == proof.seeds == best.pairs


def _tried(
    arm: str,
    finding: Finding,
    shown: Sequence[int],
    diagnoses: Mapping[str, Mapping[int, Diagnosis]],
    effects: Mapping[str, Effect],
) -> Tried:
    own, baseline = diagnoses[arm], diagnoses[BASELINE]
    both = [seed for seed in shown if seed in own]
    gone = [seed for seed in both if _gone(finding, baseline[seed], own[seed])]
    before = {one.code for diagnosis in baseline.values() for one in alarms(diagnosis)}
    after = [{one.code for one in alarms(diagnosis)} for diagnosis in own.values()]
    new = set.intersection(*after) - before if after else set()
    moved = {name: _direction(name, effect) for name, effect in effects.items()}
    better, worse = (tuple(name for name, way in moved.items() if way == wanted) for wanted in (1, -1))
    return Tried(arm, len(gone), len(both), tuple(sorted(new)), better, worse)


def _gone(finding: Finding, before: Diagnosis, after: Diagnosis) -> bool:
    """Whether it is no alarm any more, and has not only moved to another loss, head or metric."""
    known = set(map(identity, alarms(before))) - {identity(finding)}
    return all(one.code != finding.code or identity(one) in known for one in alarms(after))


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
