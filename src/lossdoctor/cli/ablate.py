"""`lossdoctor ablate`: train a script under several arms and see what each one does."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossdoctor.cli.folders import written
from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages import text

if TYPE_CHECKING:
    from lossdoctor.ablate.ablation import Ablation, Cure
    from lossdoctor.ablate.engine import Engine, Outcome
    from lossdoctor.ablate.trial import Trial
    from lossdoctor.cli.board import Board

HOME = Path("runs/ablation")
PAGE = "ablation.html"
MEASURED = 20
"""Measured steps of a trial."""
_USE = "lossdoctor ablate --fixes [--run RUN] -- python train.py"
SIGNALLED = 128
"""Exit codes after a signal, as shells have them: 128 + its number, 130 after Ctrl-C."""


@click.command("ablate")
@click.option("--arms", metavar="ARM,..")
@click.option("--fixes", is_flag=True)
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--steps", type=click.IntRange(min=1), default=200, metavar="N")
@click.option("--seeds", type=click.IntRange(min=1), default=3, metavar="N")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N")
@click.option("--devices", metavar="ID,..")
@click.option("--retries", type=click.IntRange(min=0), default=1, metavar="N")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local")
@click.option("--out", type=click.Path(path_type=Path), default=HOME, metavar="DIR")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.option("--verbose", "-v", is_flag=True)
@click.argument("script", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND ...")
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    arms: str | None,
    fixes: bool,
    run: Path | None,
    checkpoint: Path | None,
    steps: int,
    seeds: int,
    jobs: int | None,
    devices: str | None,
    retries: int,
    engine: str,
    out: Path,
    form: str,
    verbose: bool,
    script: tuple[str, ...],
) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.ablate.ablation import ablate, try_fixes
    from lossdoctor.ablate.trial import Plan
    from lossdoctor.cli.board import Board
    from lossdoctor.report.ablation_text import Answers
    from lossdoctor.report.page import ablation_page
    from lossdoctor.report.page.experiments import ANSWERS
    from lossdoctor.store import Run

    if not script:
        raise UsageError(
            mismatch("ablate trains a script", "-- and its command", "nothing", "lossdoctor ablate -- python train.py")
        )
    if (run is not None and not fixes) or (fixes and arms is not None):
        got = "--run without --fixes" if run is not None else "--fixes with --arms"
        raise UsageError(
            mismatch("--fixes tries the fixes of the findings.", "--fixes, with or without --run RUN", got, _USE)
        )
    origin = None if run is None else Run.open(run)
    talk = settings(ctx)
    slots = _listed(devices)
    # Rules ask for more points than means over seeds do.
    plan = Plan(script, out, steps, max(1, steps // (MEASURED * 2 if fixes else MEASURED)), checkpoint)
    try:
        with (
            _ended_gently(),
            _engine(engine, jobs, slots, retries) as place,
            Board(talk.console(err=form == "json"), talk.lang) as board,
        ):
            place.began = board.began
            teller = _Teller(board, talk.lang)
            told: dict[str, Any] = {"seeds": seeds, "tell": teller.tell, "begin": teller.begin}
            done: Ablation | Cure
            if fixes:
                done = try_fixes(plan, place, run=origin, **told)
            else:
                done = ablate(plan, place, arms=None if arms is None else _listed(arms), **told)
    except KeyboardInterrupt as stopped:
        click.echo(text("ablate.stopped", talk.lang), err=True)
        ctx.exit(SIGNALLED + (stopped.args[0] if stopped.args else signal.SIGINT))
    found = done.as_json(talk.lang)
    answer = json.dumps(found, ensure_ascii=False, indent=2)
    written(out / ANSWERS, answer)
    written(out / PAGE, ablation_page(found, talk.lang))
    if form == "json":
        click.echo(answer)
    else:
        talk.console().print(Answers(found, talk.lang, verbose=verbose))
        click.echo("\n" + text("ablate.saved", talk.lang, path=f"{out / ANSWERS}, {out / PAGE}"))
    if run is not None:
        _remember(run, found["fixes"])
        written(run / ANSWERS, answer)
        click.echo(text("ablate.remembered", talk.lang, run=run), err=form == "json")
    if found["failed"]:
        click.echo(text("ablate.lost", talk.lang, n=len(found["failed"]), out=out), err=True)
    ctx.exit(_code(found))


@dataclass(slots=True)
class _Teller:
    """Shows how far the trials are, and those that fail."""

    board: Board
    lang: str
    phase: tuple[str, int] = ("", 0)
    done: int = 0

    def begin(self, phase: str, trials: Sequence[Trial]) -> None:
        self.phase, self.done = (phase, len(trials)), 0
        self.board.expect(trials)
        if trials:
            self.board.at(phase, 0, len(trials))

    def tell(self, outcome: Outcome) -> None:
        trial = outcome.trial
        self.board.ended(trial, whole=outcome.failure is None)
        if outcome.failure is not None:
            self.board.say(text("ablate.failed", self.lang, arm=trial.arm, seed=trial.seed, reason=outcome.failure))
        self.done += 1
        self.board.at(self.phase[0], self.done, self.phase[1])


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """A closed terminal, and what ends jobs on a cluster, do what Ctrl-C does: no training is left behind.

    A signal that somebody has already taken or turned off, as nohup does, is left alone.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    taken = [number for number in wanted if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _engine(name: str, *how: Any) -> Engine:
    if name == "ray":
        from lossdoctor.ablate.ray import Ray

        return Ray(*how)
    from lossdoctor.ablate.local import Local

    return Local(*how)


def _listed(given: str | None) -> list[str]:
    return [part.strip() for part in (given or "").split(",") if part.strip()]


def _remember(run: Path, fixes: list[dict[str, Any]]) -> None:
    """Write what the experiments say into the run's events, where every later diagnosis finds it."""
    from lossdoctor.store import RunWriter

    writer = RunWriter(run, resume=True)
    for proof in fixes:
        best = next((tried["arm"] for tried in proof["tried"] if tried["helps"]), None)
        told = {name: proof[name] for name in ("code", "loss", "subject", "certainty", "seen", "seeds")}
        writer.event("experiment", **told, arm=best)
    writer.close()


def _code(found: dict[str, Any]) -> int:
    if found["failed"]:
        return 2
    missed = any(one["verdict"] == "no" for one in found["expectations"])
    return 1 if missed or any(one["certainty"] == "confirmed" for one in found.get("fixes", ())) else 0
