"""`lossdoctor report`: one offline HTML page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from lossdoctor.cli.folders import written
from lossdoctor.cli.options import global_options, settings
from lossdoctor.messages import text


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE")
@global_options
@click.pass_context
def command(ctx: click.Context, *, run: Path, output: Path | None) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.diagnose import diagnose
    from lossdoctor.report.page import page
    from lossdoctor.store import Run

    opened = Run.open(run)
    path = output if output is not None else (opened.path or run) / "report.html"
    written(path, page(opened, diagnose(opened, name=str(run)), lang=settings(ctx).lang))
    click.echo(text("check.written", settings(ctx).lang, path=path))
