"""`lossdoctor report`: one offline HTML page about a run, the log of another program, or an ablation."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lossdoctor.cli.folders import written
from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import RunError, mismatch
from lossdoctor.messages import text

PLAN, PAGE = "ablation.json", "ablation.html"


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE")
@global_options
@click.pass_context
def command(ctx: click.Context, *, run: Path, output: Path | None) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.cli.opening import opened
    from lossdoctor.diagnose import diagnose
    from lossdoctor.report.page import page

    if (run / PLAN).is_file() and not (run / "run.db").exists():
        path = output if output is not None else run / PAGE
        written(path, _ablation(run, settings(ctx).lang))
        click.echo(text("check.written", settings(ctx).lang, path=path))
        return
    found = opened(run, settings(ctx))
    home = found.path or run
    path = output if output is not None else (home if home.is_dir() else home.parent) / "report.html"
    written(path, page(found, diagnose(found, name=str(run)), lang=settings(ctx).lang))
    click.echo(text("check.written", settings(ctx).lang, path=path))


def _ablation(home: Path, lang: str) -> str:
    """The page of the folder of an ablation. Raises RunError for one that is not finished, or of another version."""
    from lossdoctor.report.page import ablation_page
    from lossdoctor.report.page.experiments import ANSWERS

    try:
        return ablation_page(json.loads((home / ANSWERS).read_bytes()), lang)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        todo = "end the ablation with the command that began it"
        raise RunError(
            mismatch("The answers of the ablation cannot be read.", str(home / ANSWERS), got, todo)
        ) from error
