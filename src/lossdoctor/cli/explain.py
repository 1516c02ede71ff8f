"""`lossdoctor explain`: the page of a rule, or the list of all of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from lossdoctor.cli.options import Settings, global_options, settings
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages import has, text

if TYPE_CHECKING:
    from lossdoctor.rules import Rule


@click.command("explain")
@click.argument("code", required=False)
@global_options
@click.pass_context
def command(ctx: click.Context, *, code: str | None) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.rules import every_rule

    talk, rules = settings(ctx), every_rule()
    if code is None:
        _list(rules, talk)
        return
    rule = next((rule for rule in rules if code.upper() == rule.code or code == rule.name), None)
    if rule is None:
        import difflib

        near = difflib.get_close_matches(code, [x for r in rules for x in (r.code, r.name)], n=3)
        expected = " | ".join(near) or "a code such as GRD101"
        raise UsageError(mismatch("There is no such rule.", expected, code, "list the rules with: lossdoctor explain"))
    from rich.text import Text

    talk.console().print(Text(page(rule, talk.lang)))


def page(rule: type[Rule], lang: str) -> str:
    """The page of a rule in a language, with its thresholds as they are."""
    from lossdoctor.rules import origin

    told = _told(rule, lang)
    status = text("explain.since", lang, status=text(f"status.{rule.status}", lang), since=rule.since)
    lines = [f"{rule.code} {rule.name} ({status})", "", told]
    if package := origin(rule):
        lines += ["", text("explain.plugin", lang, package=package)]
    if rule.needs:
        lines += ["", text("explain.needs", lang, needs=", ".join(rule.needs))]
    if thresholds := rule.thresholds():
        lines += ["", text("explain.thresholds", lang, code=rule.code)]
        lines += [f"  {name} = {value}" for name, value in thresholds.items()]
    return "\n".join(lines)


def _told(rule: type[Rule], lang: str) -> str:
    """The page, one line for each of its parts, so that whoever shows it breaks lines where there is no more room."""
    from lossdoctor.rules.rule import HEADINGS

    if lang != "en" and has(f"rule.{rule.code}.page", lang):
        return text(f"rule.{rule.code}.page", lang)
    parts: list[str] = []
    for line in inspect.cleandoc(rule.page()).splitlines():
        begins = not line or not parts or not parts[-1] or line.startswith(tuple(f"{name}:" for name in HEADINGS))
        if begins:
            parts.append(line)
        else:
            parts[-1] += f" {line}"
    return "\n".join(parts)


def _list(rules: tuple[type[Rule], ...], talk: Settings) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True, style="bold")
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for rule in rules:
        rows.add_row(rule.code, rule.name, Text(_told(rule, talk.lang).splitlines()[0]))
    console = talk.console()
    console.print(rows)
    console.print(Text(text("explain.list", talk.lang), style="dim"))
