"""Does the fix help? Every program with every fault is given to `ablate --fixes`, as a user would do it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossdoctor.ablate.ablation import try_fixes
from lossdoctor.ablate.fixes import EDIT, Proof, Tried, arm_of
from lossdoctor.ablate.trial import Plan
from lossdoctor.clinic.case import HEALTHY
from lossdoctor.clinic.processes import Failed, spread
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.trial import Bedside
from lossdoctor.errors import LossDoctorError, mismatch

STEPS = 200
"""Of each training: what `lossdoctor ablate` has by default."""
TRIED = 3
"""Fixes tried of each finding, in the order they are printed."""
MEASURED = 40
"""Measured steps of each training, as `lossdoctor ablate --fixes` has them."""

_DONE = "proven.json"

Pair = tuple[str, str]
"""Names of a program and of a fault, or HEALTHY."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One fix that was tried. place: among the fixes as they are printed, 0 first; None for an arm that only settles.

    See `Tried` for the rest.
    """

    arm: str
    place: int | None
    removed: int
    pairs: int
    alarms: tuple[str, ...]

    @property
    def edit(self) -> bool:
        """Whether it is an edit of the program; else an arm any script can have."""
        return self.arm.startswith(f"knob:{EDIT}")

    @property
    def gone(self) -> bool:
        """Whether the finding is gone in every seed that showed it."""
        return 0 < self.pairs == self.removed


@dataclass(frozen=True, slots=True)
class Proven:
    """What came of one program and fault. seen: in how many of `seeds` trainings its first finding is there.

    code: of that finding, None where there is none. certainty: what it is after the experiments, "withdrawn" among
    them. attempts: best first. untried: edits it proposes that do not say what is wrong here. needed: seeds with which
    it would be confirmed, where only that is missing.
    """

    program: str
    fault: str
    seeds: int
    seen: int = 0
    code: str | None = None
    certainty: str | None = None
    attempts: tuple[Attempt, ...] = ()
    untried: tuple[str, ...] = ()
    needed: int | None = None

    @property
    def gone(self) -> bool:
        """Whether the fix that is ranked first removes the finding."""
        return bool(self.attempts) and self.attempts[0].gone


def pairs(programs: Iterable[Program], faults: Sequence[str] | None) -> list[Pair]:
    """Every program healthy, and with every fault it has or with those named."""
    return [
        (program.name, fault)
        for program in programs
        for fault in (HEALTHY, *program.faults)
        if faults is None or fault in (HEALTHY, *faults)
    ]


def prove_all(
    wanted: Mapping[Pair, int],
    programs: Iterable[Program],
    home: Path,
    *,
    steps: int = STEPS,
    jobs: int = 1,
    on_done: Callable[[Pair, str | None], None] = lambda pair, why: None,
) -> tuple[list[Proven], dict[Pair, str]]:
    """All pairs, the healthy ones first; and those that failed, with the reason. What is trained is not repeated.

    wanted: seeds of each pair.
    """
    work = _Proving({program.name: program for program in programs}, home, wanted, steps)
    answers: dict[Pair, Proven | Failed] = {}
    for healthy in (True, False):
        some = [pair for pair in wanted if (pair[1] == HEALTHY) is healthy]
        answers |= spread(work, some, jobs=jobs, group=lambda pair: pair[0], on_done=_telling(on_done))
    found = [answer for pair in wanted if isinstance(answer := answers[pair], Proven)]
    return found, {pair: answer.reason for pair, answer in answers.items() if isinstance(answer, Failed)}


def prove(program: Program, fault: str, home: Path, *, seeds: int, steps: int) -> Proven:
    """Train a program under the first fixes of its first finding, `seeds` times each, and look whether it is gone.

    Raises LossDoctorError when a training failed.
    """
    shorter = copy.copy(program)
    shorter.steps = steps  # type: ignore[misc]  # of this copy alone
    plan, healthy = (_plan(program, one, home, steps) for one in (fault, HEALTHY))
    engine = Bedside(shorter, None if fault == HEALTHY else fault, healthy)
    cure = try_fixes(plan, engine, seeds=seeds, findings=1, most=TRIED)
    if cure.ablation.failed:
        first = cure.ablation.failed[0]
        raise LossDoctorError(_failed(program, fault, f"{first.trial.name}: {first.failure}"))
    (plan.home / _DONE).write_text(json.dumps({"seeds": seeds}), encoding="utf-8")
    return _proven(program, fault, seeds, cure.proofs[0] if cure.proofs else None)


def kept(wanted: Iterable[Pair], home: Path) -> dict[Pair, int]:
    """Of these pairs the ones that were tried to their end before, and with how many seeds."""
    done = {pair: home / "-".join(pair) / _DONE for pair in wanted}
    return {pair: int(json.loads(path.read_bytes())["seeds"]) for pair, path in done.items() if path.exists()}


def _proven(program: Program, fault: str, seeds: int, proof: Proof | None) -> Proven:
    if proof is None:
        return Proven(program.name, fault, seeds)
    places = {arm: place for place, fix in enumerate(proof.finding.fixes) if (arm := arm_of(fix)) is not None}
    return Proven(
        program.name,
        fault,
        seeds,
        proof.seen,
        proof.finding.code,
        proof.certainty or "withdrawn",
        tuple(_attempt(one, places) for one in proof.tried),
        tuple(str(fix.params["what"]) for fix in proof.by_hand),
        proof.seeds_needed(),
    )


def _attempt(one: Tried, places: Mapping[str, int]) -> Attempt:
    return Attempt(one.arm, places.get(one.arm), one.removed, one.pairs, one.alarms)


def _plan(program: Program, fault: str, home: Path, steps: int) -> Plan:
    # One step more than the program takes: it comes to its end, where it samples.
    command = ("lossdoctor", "clinic", "--fixes", program.name, fault)
    return Plan(command, home / f"{program.name}-{fault}", steps + 1, max(1, steps // MEASURED))


def _failed(program: Program, fault: str, reason: str) -> str:
    return mismatch(
        f"{program.name} with {fault} was not tried to its end.",
        "every training to come to its end",
        reason,
        "run the same command again, which trains only what is missing",
    )


@dataclass(frozen=True, slots=True)
class _Proving:
    programs: Mapping[str, Program]
    home: Path
    seeds: Mapping[Pair, int]
    steps: int

    def __call__(self, pair: Pair) -> Proven:
        program, fault = pair
        return prove(self.programs[program], fault, self.home, seeds=self.seeds[pair], steps=self.steps)


def _telling(on_done: Callable[[Pair, str | None], None]) -> Callable[[Pair, Proven | Failed], None]:
    return lambda pair, answer: on_done(pair, answer.reason if isinstance(answer, Failed) else None)
