"""`lossdoctor demo`: train the reference system under a Doctor, and lay out what was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossdoctor import config as configuration
from lossdoctor.cli.folders import chosen, next_free
from lossdoctor.cli.options import Settings, global_options, settings
from lossdoctor.errors import LossDoctorWarning, MissingExtraError, UsageError, mismatch
from lossdoctor.messages import text

# Everything heavy is imported where it is used: `lossdoctor demo --help` must not wait for torch.
if TYPE_CHECKING:
    from rich.console import Console

    from lossdoctor.cli.progress import Phases
    from lossdoctor.cli.results import Results
    from lossdoctor.diagnose import Diagnosis
    from lossdoctor.reference import Progress, ReferenceConfig, Trainer
    from lossdoctor.reference.team import Team
    from lossdoctor.store import Run

HOME = Path("runs/demo")
EVERY, LEAST = 50, 50
"""Every 50th step is measured in full, but at least 50 steps of a short run."""
UNFIT = 1
"""Exit code when the checks before the training found an error, and nothing was trained."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--steps", type=click.IntRange(min=1), metavar="N")
@click.option("--seed", type=click.IntRange(min=0), metavar="N")
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]))
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE")
@click.option("--fault", metavar="NAME")
@click.option("--dry-run", is_flag=True)
@click.option("--processes", type=click.IntRange(min=1), default=1, metavar="N")
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    out: Path | None,
    steps: int | None,
    seed: int | None,
    device: str | None,
    config_file: Path | None,
    changes: tuple[str, ...],
    fault: str | None,
    dry_run: bool,
    processes: int,
) -> None:
    """Its help text is in the message catalogues."""
    if fault is not None and _listed(fault, settings(ctx)):
        return
    given = {"train.steps": steps, "seed": seed, "device": device}
    given = {name: value for name, value in given.items() if value is not None}
    if dry_run:
        from lossdoctor.cli.dry_run import rehearsed

        config = configured(config_file, changes, given, look=False)
        rehearsed(config, processes, settings(ctx).console(), settings(ctx).lang)
        return
    for package, module in (("scikit-learn", "sklearn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "demo", "The demo")
    lang, folder = settings(ctx).lang, None
    try:
        config = configured(config_file, changes, given)
        team = _team(config)
        if team.first:
            folder = next_free(HOME) if out is None else chosen(out)
        ctx.exit(run(config, Path(team.told(str(folder))), settings(ctx), fault))
    except KeyboardInterrupt:
        click.echo(text("demo.stopped", lang) if folder is None else text("demo.stopped_at", lang, folder=folder))
        ctx.exit(INTERRUPTED)
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only an empty one goes


def _team(config: ReferenceConfig) -> Team:
    from lossdoctor.reference.team import team

    return team(config.device)


def configured(
    file: Path | None, changes: Sequence[str], options: dict[str, Any], *, look: bool = True
) -> ReferenceConfig:
    """Settings of the reference system: its own, over them the file's, over them --set, over them the other options.

    Relative paths in the file are taken from its folder, others from the current one. look: is the device there?
    """
    from lossdoctor.reference.config import ReferenceConfig, rooted, validate

    config = ReferenceConfig() if file is None else rooted(configuration.load(ReferenceConfig, file), file.parent)
    config = configuration.override(config, configuration.assignments(changes) | options)
    validate(config)
    return configuration.override(config, {"device": _device(config.device)}) if look else config


def _listed(fault: str, talk: Settings) -> bool:
    """Whether the list of faults was asked for, which is then printed. UsageError for a fault that is not in it."""
    from lossdoctor.reference.faults import FAULTS

    if fault == "list":
        width = max(map(len, FAULTS))
        click.echo("\n".join(f"{name:{width}}  {text(f'fault.{name}', talk.lang)}" for name in FAULTS))
    elif fault not in FAULTS:
        todo = "lossdoctor demo --fault list says what each of them is"
        raise UsageError(mismatch("The demo has no such fault.", ", ".join(FAULTS), fault, todo))
    return fault == "list"


def _device(asked: str) -> str:
    """The device meant, after a look whether it is there."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        got = f"{asked!r}: {str(error).splitlines()[0]}"
        todo = "use --device auto, which takes a GPU where there is one"
        raise UsageError(mismatch("This torch cannot use that device.", "cpu, cuda or auto", got, todo)) from error
    return asked


def run(config: ReferenceConfig, folder: Path, settings: Settings, fault: str | None = None) -> int:
    """Train, measure, lay out. Returns the exit code: 0, 2 when a result could not be written, 130 after Ctrl-C.

    Of several ranks only the first speaks and lays out; the others train and measure.
    """
    from lossdoctor.cli.progress import Phases
    from lossdoctor.cli.results import Results
    from lossdoctor.diagnose import diagnose
    from lossdoctor.reference import Trainer
    from lossdoctor.reference.faults import sick
    from lossdoctor.report.digest import digest
    from lossdoctor.report.terminal import Summary
    from lossdoctor.report.verdict.text import Verdict

    first = _team(config).first
    console, lang, results = settings.console(quiet=not first), settings.lang, Results(folder)
    with _warnings_told(console, lang), Phases(console, lang) as phases:
        path = config.pictures.path
        begin = "demo.begin" if path is None else "demo.begin.pictures"
        phases.say(text(begin, lang, folder=folder, path=path))
        trainer = Trainer(config) if fault is None else sick(config, fault)
        checked = _checked(trainer, phases, console, lang)
        if trainer.team.any(checked is not None and any(f.severity == "error" for f in checked.findings)):
            phases.say(text("demo.unfit", lang))
            trainer.team.leave()
            return UNFIT
        record, evaluation, interrupted = _train(trainer, folder, phases, checked)
        trainer.team.leave()
        if not first:
            return INTERRUPTED if interrupted else 0
        notes = [*_held_out(trainer, evaluation, lang), *_sample(trainer, evaluation, phases, results, lang)]
        if fault is not None:
            notes.append(text("demo.fault", lang, fault=fault, what=text(f"fault.{fault}", lang)))
        _lay_out(trainer, record, results, notes, lang)
    console.print(Summary(digest(record), lang))
    console.print("")
    console.print(Verdict(diagnose(record, name=str(folder)), lang))
    console.print("")
    return _end(console, results, notes, interrupted=interrupted, lang=lang)


def _checked(trainer: Trainer, phases: Phases, console: Console, lang: str) -> Diagnosis | None:
    """What preflight finds where a part is not our own: before a wrong scale has cost a training. Digits are known."""
    from lossdoctor.reference.checkup import checkup
    from lossdoctor.reference.parts import without_weights
    from lossdoctor.report.verdict.text import Verdict

    config = trainer.config
    if not any(part.path for part in (config.pictures, config.vae, config.teacher)):
        return None
    for key in without_weights(config):
        phases.say(text("demo.untrained", lang, name=key))
    if not trainer.prepare(lambda progress: _show(phases, progress)):
        raise KeyboardInterrupt
    found = checkup(trainer)
    if found.findings:
        console.print(Verdict(found, lang))
        console.print("")
    else:
        phases.say(text("demo.checked", lang))
    return found


def _show(phases: Phases, progress: Progress) -> None:
    phases.at(progress.phase, progress.step, progress.total, progress.losses)
    if (progress.phase, progress.step) == ("train", progress.total):
        phases.at("evaluate", 0, 1)


def _train(
    trainer: Trainer, folder: Path, phases: Phases, checked: Diagnosis | None
) -> tuple[Run, dict[str, float], bool]:
    """The run, what the evaluation found, and whether Ctrl-C ended it early."""
    from lossdoctor.doctor import Doctor

    config, evaluation, interrupted = trainer.config, {}, False
    every = max(1, min(EVERY, config.train.steps // LEAST))
    meta = {"seed": config.seed, "device": config.device, "config": dataclasses.asdict(config)}
    doctor = Doctor(**trainer.patient(), run=folder, every=every, meta=meta, preflight=checked)
    try:
        with doctor:
            summary = trainer.run(doctor=doctor, on_progress=lambda progress: _show(phases, progress))
            if summary.interrupted:
                raise KeyboardInterrupt  # for the doctor to note it
            evaluation = dict(summary.evaluation)
            phases.at("evaluate", 1, 1)
    except KeyboardInterrupt:
        interrupted = True
    return doctor.run, evaluation, interrupted


def _held_out(trainer: Trainer, evaluation: dict[str, float], lang: str) -> Iterator[str]:
    from lossdoctor.report.wording import number

    found = {
        name.removeprefix("eval/"): number(value) for name, value in evaluation.items() if name.startswith("eval/")
    }
    if found:
        key = "demo.held_out" if trainer.config.pictures.path is None else "demo.held_out.pictures"
        yield text(key, lang, values=", ".join(f"{name} {value}" for name, value in found.items()))


def _sample(
    trainer: Trainer, evaluation: dict[str, float], phases: Phases, results: Results, lang: str
) -> Iterator[str]:
    """Draw pictures with what was trained, keep them, and say what can be said of them."""
    from lossdoctor.cli.demo_pictures import drawn

    if not trainer.ready or not trainer.step:
        yield text("demo.no_samples", lang)
        return
    phases.at("sample", 0, 1)
    yield from drawn(trainer, evaluation, results, lang)
    phases.at("sample", 1, 1)


def _lay_out(trainer: Trainer, record: Run, results: Results, notes: Sequence[str], lang: str) -> None:
    from lossdoctor.report.digest import digest
    from lossdoctor.report.markdown import markdown
    from lossdoctor.report.pictures import draw_curves

    def summary(path: Path) -> None:
        pictures = [name for name in ("samples.png", "curves.png") if name in results.made]
        told = markdown(digest(record), title=results.folder.name, lang=lang, notes=notes, pictures=pictures)
        path.write_text(told, encoding="utf-8")

    results.make("checkpoint.pt", trainer.save)
    results.make("config.toml", lambda path: path.write_text(configuration.dump(trainer.config), encoding="utf-8"))
    results.make("curves.png", lambda path: draw_curves(record, path, lang))
    results.make("report.html", lambda path: path.write_text(_report(record, lang), encoding="utf-8"))
    results.make("summary.md", summary)


def _report(record: Run, lang: str) -> str:
    from lossdoctor.diagnose import diagnose
    from lossdoctor.report.page import page

    return page(record, diagnose(record), lang=lang)


def _end(console: Console, results: Results, notes: Sequence[str], *, interrupted: bool, lang: str) -> int:
    """The last lines on the terminal, and the exit code."""
    from rich.text import Text

    for note in notes:
        console.print(Text(note))
    for name, reason in results.failed.items():
        console.print(Text(text("demo.failed", lang, name=name, reason=reason), style="bold red"))
    key = "demo.interrupted" if interrupted else "demo.end"
    made = ", ".join(results.made)
    console.print(Text(text(key, lang, folder=results.folder, made=made)), soft_wrap=True)
    return INTERRUPTED if interrupted else 2 if results.failed else 0


@contextlib.contextmanager
def _warnings_told(console: Console, lang: str) -> Iterator[None]:
    """The library's own warnings and live findings as sentences, above the progress, instead of as lines of Python."""
    from rich.text import Text

    def tell(told: object) -> None:
        console.print(Text(text("demo.warning", lang, warning=told), style="yellow"))

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    handler, log = Told(logging.WARNING), logging.getLogger("lossdoctor")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LossDoctorWarning)
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
                if issubclass(category, LossDoctorWarning):
                    tell(message)
                else:
                    others(message, category, *rest, **more)

            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(handler)
