"""`lossdoctor check`: diagnose runs, in the form asked for, with an exit code a script can act on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossdoctor import config as configuration
from lossdoctor.cli.answer import FAIL_ON, deliver, delivered, exit_code
from lossdoctor.cli.options import Settings, global_options, settings
from lossdoctor.errors import RunError, UsageError, mismatch
from lossdoctor.messages import text

# numpy, and what needs it, is imported where it is used: `lossdoctor check --help` must not wait for it.
if TYPE_CHECKING:
    from lossdoctor.diagnose import Diagnosis
    from lossdoctor.rules import Rule

FORMATS = ("text", "json", "markdown", "sarif", "github", "html")


@click.command("check")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--select", multiple=True, metavar="CODE,..")
@click.option("--ignore", multiple=True, metavar="CODE,..")
@click.option("--set", "changes", multiple=True, metavar="CODE.FIELD=VALUE")
@click.option("--fail-on", type=click.Choice(FAIL_ON), default="warning")
@click.option("--verbose", "-v", is_flag=True)
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    runs: tuple[Path, ...],
    form: str,
    output: Path | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    changes: tuple[str, ...],
    fail_on: str,
    verbose: bool,
) -> None:
    """Its help text is in the message catalogues."""
    if form == "html" and (output is None or len(runs) != 1):
        got = f"{len(runs)} runs" + (" and no --output" if output is None else "")
        raise UsageError(
            mismatch("A page is one file about one run.", "one RUN and --output FILE", got, "give -o report.html")
        )
    asked = rules_asked(_codes(select), _codes(ignore), changes)
    diagnoses, page, broken = _judged(runs, asked, settings(ctx), paged=form == "html")
    if page is not None:
        delivered(page, output, settings(ctx))
    elif diagnoses:
        deliver(diagnoses, form, output, settings(ctx), verbose=verbose)
    ctx.exit(exit_code(diagnoses, fail_on, broken=broken))


def rules_asked(select: Sequence[str], ignore: Sequence[str], changes: Sequence[str]) -> tuple[Rule, ...]:
    """The rules as the options name and set them."""
    from lossdoctor.diagnose import configured

    thresholds: dict[str, dict[str, object]] = {}
    for name, value in configuration.assignments(changes).items():
        code, _, field = name.partition(".")
        thresholds.setdefault(code.upper(), {})[field] = value
    return configured(select=select, ignore=ignore, settings=thresholds)


def _codes(given: Sequence[str]) -> list[str]:
    return [code.strip() for several in given for code in several.split(",") if code.strip()]


def _judged(
    runs: Sequence[Path], asked: Sequence[Rule], talk: Settings, *, paged: bool
) -> tuple[list[Diagnosis], str | None, bool]:
    """The diagnoses, the page of the last run if one is asked for, and whether a run could not be read.

    One that cannot does not keep the others from being judged. No run stays open, as there may be thousands.
    """
    from lossdoctor.cli.opening import opened
    from lossdoctor.diagnose import diagnose

    found, told, broken = [], None, False
    for path in runs:
        try:
            run = opened(path, talk)
            found.append(diagnose(run, rules=asked, name=str(path)))
            if paged:
                from lossdoctor.report.page import page

                told = page(run, found[-1], lang=talk.lang)
        except RunError as error:
            broken = True
            click.echo(text("check.broken_run", talk.lang, run=path, error=error), err=True)
    return found, told, broken
