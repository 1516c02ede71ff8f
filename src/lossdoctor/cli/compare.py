"""`lossdoctor compare`: two runs side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossdoctor.cli.options import global_options, settings
from lossdoctor.messages import text

if TYPE_CHECKING:
    from lossdoctor.report.comparison import Comparison

SHOWN = 20


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.option("--verbose", "-v", is_flag=True)
@global_options
@click.pass_context
def command(ctx: click.Context, *, a: Path, b: Path, form: str, verbose: bool) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.cli.opening import opened
    from lossdoctor.diagnose import diagnose
    from lossdoctor.report.comparison import compare
    from lossdoctor.report.comparison_text import Sides

    left, right = (opened(path, settings(ctx)) for path in (a, b))
    found = compare(left, right, diagnose(left, name=str(a)), diagnose(right, name=str(b)))
    lang = settings(ctx).lang
    if form == "json":
        click.echo(json.dumps(_json(found, str(a), str(b), lang), ensure_ascii=False, indent=2, allow_nan=False))
    else:
        settings(ctx).console().print(Sides(found, str(a), str(b), lang, shown=None if verbose else SHOWN))
    click.echo(text("compare.seeds", lang), err=True)


def _json(found: Comparison, a: str, b: str, lang: str) -> dict[str, Any]:
    """Findings are those of the schema `lossdoctor/diagnosis@1`."""
    from lossdoctor.diagnose.diagnosis import finding_json
    from lossdoctor.report.verdict.json import finite

    told: dict[str, Any] = {
        "schema": "lossdoctor/comparison@1",
        "a": a,
        "b": b,
        "only_a": [finding_json(finding, lang) for finding in found.only_a],
        "only_b": [finding_json(finding, lang) for finding in found.only_b],
        "both": [finding_json(finding, lang) for finding in found.both],
        "curves": [{**dataclasses.asdict(one), "differs": one.differs} for one in found.shifts],
        "missing_a": list(found.missing_a),
        "missing_b": list(found.missing_b),
    }
    plain: dict[str, Any] = finite(told)
    return plain
