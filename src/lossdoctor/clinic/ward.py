"""Many cases at once: trained and judged in processes, resumed where they were, one failure not stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lossdoctor.clinic.case import HEALTHY, LOCKS, Case, Result, judge, train, trained
from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.processes import Failed, spread
from lossdoctor.clinic.program import Program
from lossdoctor.errors import RunWriteError, UsageError, mismatch
from lossdoctor.rules import Rule

OnDone = Callable[[Case, str | None], None]
"""Told of every case that is done, and why if it failed."""


def cases(programs: Iterable[Program], faults: Sequence[str] | None, seeds: int) -> list[Case]:
    """Every program healthy and with every fault it has a switch for, or with those named; once per seed.

    Raises UsageError for a fault that no program has, and for a program with a fault that `faults.FAULTS` lacks.
    """
    chosen = list(programs)
    for program in chosen:
        for fault in program.faults:
            if fault not in BY_NAME:
                raise UsageError(
                    mismatch(
                        f"The program {program.name} has a fault of its own.",
                        "a name of lossdoctor.clinic.faults.FAULTS",
                        fault,
                        "add it there, with the rules and causes that are right",
                    )
                )
    known = list(dict.fromkeys(fault for program in chosen for fault in (HEALTHY, *program.faults)))
    for fault in faults or ():
        if fault not in known:
            raise UsageError(mismatch("No program has this fault.", ", ".join(known), fault, "name one of these"))
    return [
        Case(program.name, fault, seed)
        for program in chosen
        for seed in range(seeds)
        for fault in (HEALTHY, *program.faults)
        if faults is None or fault in faults
    ]


def train_all(
    wanted: Sequence[Case],
    programs: Iterable[Program],
    home: Path,
    *,
    jobs: int,
    on_done: OnDone = lambda case, why: None,
) -> dict[Case, str]:
    """Train what is not trained yet, each case in a folder of home. Returns the cases that failed, with the reason.

    A process keeps its programs, and cases of one program and seed go to one process where there is a choice: they may
    share what is made once per seed. Raises RunWriteError when nothing can be written in home.
    """
    try:
        (home / LOCKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunWriteError(
            mismatch(
                "The folder of the clinic cannot be written.",
                "a folder to write in",
                f"{home}: {error.strerror or error}",
                "choose another with --out",
            )
        ) from error
    missing = [case for case in wanted if not trained(case, home)]
    work = _Training({program.name: program for program in programs}, home)
    answers = spread(work, missing, jobs=jobs, group=_program_and_seed, on_done=partial(_tell, on_done))
    return {case: answer.reason for case, answer in answers.items() if isinstance(answer, Failed)}


def judge_all(
    wanted: Sequence[Case],
    home: Path,
    *,
    jobs: int,
    rules: Mapping[str, Sequence[Rule]] | None = None,
    early: bool = True,
    on_done: OnDone = lambda case, why: None,
) -> tuple[list[Result], dict[Case, str]]:
    """What the rules say of trained cases, and the cases that cannot be read, with the reason.

    rules: those to ask about the cases of each program; by default all, with their own thresholds.
    """
    answers = spread(_Judging(home, rules, early), wanted, jobs=jobs, on_done=partial(_tell, on_done))
    return (
        [answer for answer in answers.values() if isinstance(answer, Result)],
        {case: answer.reason for case, answer in answers.items() if isinstance(answer, Failed)},
    )


@dataclass(frozen=True, slots=True)
class _Training:
    programs: Mapping[str, Program]
    home: Path

    def __call__(self, case: Case) -> None:
        train(case, self.programs[case.program], self.home)


@dataclass(frozen=True, slots=True)
class _Judging:
    home: Path
    rules: Mapping[str, Sequence[Rule]] | None
    early: bool

    def __call__(self, case: Case) -> Result:
        return judge(case, self.home, None if self.rules is None else self.rules[case.program], early=self.early)


def _program_and_seed(case: Case) -> Hashable:
    return case.program, case.seed


def _tell(on_done: OnDone, case: Case, answer: object) -> None:
    on_done(case, answer.reason if isinstance(answer, Failed) else None)
