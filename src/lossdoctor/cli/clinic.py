"""`lossdoctor clinic`: train programs with and without faults, and see what the rules say of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossdoctor.cli.folders import written
from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages import text

# rich, numpy and torch, and what needs them, are imported where they are used: `--help` must not wait for them.
if TYPE_CHECKING:
    from lossdoctor.cli.progress import Phases
    from lossdoctor.clinic.case import Case
    from lossdoctor.clinic.program import Program
    from lossdoctor.clinic.proof_table import Proofs
    from lossdoctor.clinic.score import Score
    from lossdoctor.clinic.table import Clinic

HOME = Path("runs/clinic")
SEEDS, PROOF_SEEDS = 5, 3
"""Trainings of each pair; and of each arm, where fixes are tried."""
SHOWN = 20
"""Up to so many cases the whole page is shown on the terminal too."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


@click.command("clinic")
@click.option("--programs", metavar="NAME,..")
@click.option("--faults", metavar="NAME,..")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N")
@click.option("--out", type=click.Path(path_type=Path), default=HOME, metavar="DIR")
@click.option("--left-out/--no-left-out", default=True)
@click.option("--train/--no-train", default=True)
@click.option("--fixes", is_flag=True)
@click.option("--steps", type=click.IntRange(min=1), metavar="N")
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    programs: str | None,
    faults: str | None,
    seeds: int | None,
    jobs: int | None,
    out: Path,
    left_out: bool,
    train: bool,
    fixes: bool,
    steps: int | None,
) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.cli.progress import Counted
    from lossdoctor.clinic.programs import PROGRAMS
    from lossdoctor.clinic.table import Clinic
    from lossdoctor.clinic.ward import cases

    talk = settings(ctx)
    chosen = _chosen(PROGRAMS, _names(programs, "--programs"))
    options = {"--seeds": seeds, "--steps": steps, "--programs": programs, "--faults": faults}
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    jobs = jobs or os.cpu_count() or 1
    if fixes:
        try:
            with Counted(talk.console(), talk.lang) as phases:
                place = _Place(out, jobs, phases, talk.lang)
                proofs, code = _try_fixes(chosen, _names(faults, "--faults"), given, place, train=train)
        except KeyboardInterrupt:
            click.echo(text("clinic.stopped", talk.lang))
            ctx.exit(INTERRUPTED)
        _tell_proofs(proofs, out, talk.lang)
        ctx.exit(code)
    if steps is not None:
        raise UsageError(mismatch("--steps is for --fixes.", "--steps with --fixes", "--steps alone", "leave it out"))
    given = {"--seeds": SEEDS, **given}
    wanted = cases(chosen, _names(faults, "--faults"), given["--seeds"])
    if not train:
        wanted = _there(wanted, out)
    asked = ["lossdoctor clinic", *(f"{option} {value}" for option, value in given.items())]
    try:
        with Counted(talk.console(), talk.lang) as phases:
            place = _Place(out, jobs, phases, talk.lang)
            failed = _train(wanted, chosen, place)
            asked += ["--no-left-out"] * (not left_out) + ["--no-train"] * (not train)
            clinic = Clinic([], failed, {}, " ".join(asked), _machine())
            clinic = _judge(clinic, wanted, place, left_out=left_out)
    except KeyboardInterrupt:
        click.echo(text("clinic.stopped", talk.lang))
        ctx.exit(INTERRUPTED)
    _tell(clinic, out, talk.lang)
    ctx.exit(2 if clinic.failed else 0)


def _try_fixes(
    programs: Sequence[Program], faults: Sequence[str] | None, told: dict[str, Any], place: _Place, *, train: bool
) -> tuple[Proofs, int]:
    """And the exit code. told: the options that were given. train: else only pairs that were tried before."""
    from lossdoctor.clinic.proof import STEPS, kept, pairs, prove_all
    from lossdoctor.clinic.proof_table import Proofs
    from lossdoctor.clinic.ward import cases

    cases(programs, faults, 1)  # refuses a fault that no program has
    seeds, steps = told.get("--seeds", PROOF_SEEDS), told.get("--steps", STEPS)
    every, home = pairs(programs, faults), place.out / "fixes"
    wanted = dict.fromkeys(every, seeds) if train else kept(every, home)
    if not wanted:
        raise UsageError(_nothing_there(place.out))
    count = place.counter("proving", len(wanted))

    def done(pair: tuple[str, str], reason: str | None) -> None:
        if reason is not None:
            place.phases.say(text("clinic.failed", place.lang, case="-".join(pair), reason=reason))
        count()

    found, failed = prove_all(wanted, programs, home, steps=steps, jobs=place.jobs, on_done=done)
    asked = ["lossdoctor clinic --fixes", *(f"{option} {value}" for option, value in told.items())]
    asked += ["--no-train"] * (not train)
    there = sum(len(program.faults) for program in programs)
    return Proofs(found, failed, steps, there, " ".join(asked), _machine()), 2 if failed else 0


def _nothing_there(out: Path) -> str:
    return mismatch("--no-train asks about trainings of before.", "some of them in --out", str(out), "train first")


def _tell_proofs(proofs: Proofs, out: Path, lang: str) -> None:
    from lossdoctor.clinic.case import HEALTHY
    from lossdoctor.clinic.proof_table import as_json, as_markdown, as_they_are, rate

    page = as_markdown(proofs, lang)
    written(out / "fixes.json", json.dumps(as_json(proofs), indent=1, allow_nan=False) + "\n")
    written(out / "fixes.md", page)
    if len(proofs.proven) <= SHOWN:
        click.echo(page)
    every, arms = rate(proofs.proven), rate(as_they_are(proofs.proven))
    healthy = [one for one in proofs.proven if one.fault == HEALTHY]
    click.echo(
        text(
            "proof.end",
            lang,
            cases=every.cases,
            removed=every.removed,
            share=_percent(every.share),
            arms_cases=arms.cases,
            arms_removed=arms.removed,
            arms_share=_percent(arms.share),
            confirmed=every.confirmed,
            healthy=len(healthy),
            healthy_confirmed=sum(one.certainty == "confirmed" for one in healthy),
        )
    )
    click.echo(text("proof.tables", lang, out=out))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the work is done and told of."""

    out: Path
    jobs: int
    phases: Phases
    lang: str

    def counter(self, phase: str, total: int) -> Callable[[], None]:
        """A function that is called once for every item of a phase."""
        done = 0
        if total:
            self.phases.at(phase, 0, total)

        def count() -> None:
            nonlocal done
            done += 1
            self.phases.at(phase, done, total)

        return count

    def teller(self, phase: str, total: int) -> Callable[[Case, str | None], None]:
        """The same for cases, which may fail."""
        count = self.counter(phase, total)

        def done(case: Case, reason: str | None) -> None:
            if reason is not None:
                self.phases.say(text("clinic.failed", self.lang, case=case.name, reason=reason))
            count()

        return done


def _names(given: str | None, option: str) -> list[str] | None:
    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise UsageError(
            mismatch(f"{option} names nothing.", "one or more names, with commas between them", repr(given), "name one")
        )
    return names


def _chosen(programs: Sequence[Program], names: Sequence[str] | None) -> list[Program]:
    known = [program.name for program in programs]
    for name in names or ():
        if name not in known:
            raise UsageError(mismatch("There is no such program.", ", ".join(known), name, "name one of these"))
    return [program for program in programs if names is None or program.name in names]


def _there(wanted: Sequence[Case], out: Path) -> list[Case]:
    """Those that have been trained."""
    from lossdoctor.clinic.case import trained

    found = [case for case in wanted if trained(case, out)]
    if not found:
        raise UsageError(_nothing_there(out))
    return found


def _train(wanted: Sequence[Case], programs: Sequence[Program], place: _Place) -> dict[Case, str]:
    from lossdoctor.clinic.case import trained
    from lossdoctor.clinic.ward import train_all

    todo = [case for case in wanted if not trained(case, place.out)]
    if len(todo) < len(wanted):
        place.phases.say(text("clinic.kept", place.lang, count=len(wanted) - len(todo), all=len(wanted)))
    return train_all(todo, programs, place.out, jobs=place.jobs, on_done=place.teller("clinic", len(todo)))


def _judge(clinic: Clinic, wanted: Sequence[Case], place: _Place, *, left_out: bool) -> Clinic:
    from lossdoctor.clinic.tuning import left_out as judged_from_others
    from lossdoctor.clinic.ward import judge_all
    from lossdoctor.rules import RULES

    trained = [case for case in wanted if case not in clinic.failed]
    told = place.teller("judging", len(trained))
    results, unread = judge_all(trained, place.out, jobs=place.jobs, on_done=told)
    clinic = replace(clinic, results=results, failed={**clinic.failed, **unread})
    if left_out and len({result.case.program for result in results}) > 1:
        count = place.counter("thresholds", len(RULES) + len(results))
        elsewhere = judged_from_others(results, place.out, jobs=place.jobs, on_done=count)
        clinic = replace(clinic, left_out=elsewhere)
    return clinic


def _tell(clinic: Clinic, out: Path, lang: str) -> None:
    from lossdoctor.clinic.case import LOCKS
    from lossdoctor.clinic.score import score
    from lossdoctor.clinic.table import as_json, as_markdown
    from lossdoctor.store.alone import alone

    page = as_markdown(clinic, lang)
    with alone(out / LOCKS / "tables"):
        written(out / "clinic.json", json.dumps(as_json(clinic), indent=1, allow_nan=False) + "\n")
        written(out / "clinic.md", page)
    if len(clinic.results) <= SHOWN:
        click.echo(page)
    every = score(clinic.results)
    click.echo(text("clinic.end", lang, sick=every.sick, healthy=every.healthy, **_shares(every)))
    if clinic.left_out:
        click.echo(text("clinic.end_left_out", lang, **_shares(clinic.every_left_out)))
    click.echo(text("clinic.tables", lang, out=out))


def _shares(score: Score) -> dict[str, str]:
    shares = {"found": score.found, "first": score.first, "top3": score.top3, "flagged": score.flagged}
    return {name: _percent(share) for name, share in shares.items()}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _machine() -> str:
    torch = importlib.metadata.version("torch")
    return f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, torch {torch}"
