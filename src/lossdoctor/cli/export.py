"""`lossdoctor export`: a run, written for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from lossdoctor.cli.options import global_options, settings
from lossdoctor.messages import text


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE|DIR", required=True)
@click.option("--format", "form", metavar="[csv|jsonl|tensorboard]")
@click.option("--select", multiple=True, metavar="PATTERN")
@global_options
@click.pass_context
def command(ctx: click.Context, *, run: Path, output: Path, form: str | None, select: tuple[str, ...]) -> None:
    """Its help text is in the message catalogues."""
    # numpy and the sinks are imported where they are used: `lossdoctor export --help` must not wait for them.
    from rich.text import Text

    from lossdoctor.exchange import export
    from lossdoctor.store import Run

    written = export(Run.open(run), output, format=form, select=select)
    console, lang = settings(ctx).console(), settings(ctx).lang
    counts = text(
        "export.counts",
        lang,
        metrics=f"{written.metrics:,}",
        points=f"{written.points:,}",
        first=f"{written.first:,}",
        last=f"{written.last:,}",
        target=output,
    )
    note = text("export.folder" if output.is_dir() else "export.file", lang, target=shlex.quote(str(output)))
    for sentence in (counts, note):
        console.print(Text(sentence), soft_wrap=True)
