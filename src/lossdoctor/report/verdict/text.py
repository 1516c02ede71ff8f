"""The diagnosis for a terminal: what matters most first, on one screen, everything with `verbose`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossdoctor.diagnose import Diagnosis
from lossdoctor.messages import text
from lossdoctor.report.receipts import COLUMNS, rows, standing
from lossdoctor.report.receipts import headline as headline_of
from lossdoctor.report.verdict.wording import confirmation, extent, follows, headline, proof, subject
from lossdoctor.report.wording import visible
from lossdoctor.rules import Finding
from lossdoctor.rules.receipts import Treated

SHOWN = 3
"""Groups of findings told in full on one screen; the others are named."""

_STYLE = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


class Verdict:
    """A diagnosis that rich can print: `console.print(Verdict(diagnosis, lang))`."""

    def __init__(self, diagnosis: Diagnosis, lang: str = "en", *, verbose: bool = False) -> None:
        self._diagnosis = diagnosis
        self._lang = lang
        self._verbose = verbose

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        diagnosis, lang = self._diagnosis, self._lang
        yield Text(f"{visible(diagnosis.run)}: {headline(diagnosis, lang)}".removeprefix(": "), style="bold")
        yield Text(extent(diagnosis, lang), style="dim")
        groups = diagnosis.groups
        full = len(groups) if self._verbose else SHOWN
        for place, group in enumerate(groups[:full], 1):
            yield ""
            yield from self._group(place, group)
        if rest := groups[full:]:
            yield ""
            named = ", ".join(f"{group[0].code} {group[0].name}" for group in rest)
            yield Text(text("check.more", lang, n=len(rest), findings=named))
        if diagnosis.treated is not None:
            yield ""
            yield from self._treated(diagnosis.treated)
        yield ""
        yield from self._others()

    def _group(self, place: int, group: tuple[Finding, ...]) -> Iterator[RenderableType]:
        lang, leader = self._lang, group[0]
        head = Text(f"{place} ")
        head.append(text(f"severity.{leader.severity}", lang), style=_STYLE[leader.severity])
        about = f" · {subject(leader)}" if subject(leader) else ""
        head.append(f"  {leader.code} {leader.name}{about}")
        head.append(f"  {text(f'certainty.{leader.certainty}', lang)}", style="dim")
        yield head
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for label, told in self._rows(leader):
            rows.add_row(text(f"check.{label}", lang) if label else "", Text(visible(told)))
        if followers := group[1:]:
            rows.add_row(text("check.also", lang), Text(follows(followers, lang)))
        yield Padding(Text(visible(leader.message.text(lang))), (0, 0, 0, 2))
        yield Padding(rows, (0, 0, 0, 2))
        if self._verbose:
            for follower in followers:
                yield Padding(
                    Text(f"{follower.code} {visible(follower.message.text(lang))}", style="dim"), (0, 0, 0, 4)
                )

    def _rows(self, finding: Finding) -> Iterator[tuple[str, str]]:
        lang, most = self._lang, None if self._verbose else 1
        for place, evidence in enumerate(finding.evidence[: None if self._verbose else 2]):
            yield "" if place else "evidence", proof(evidence, lang)
        for place, cause in enumerate(finding.causes[:most]):
            yield "" if place else "cause", cause.message.text(lang)
        for place, fix in enumerate(finding.fixes[: None if self._verbose else 2]):
            yield "" if place else "try", fix.message.text(lang)
        if self._verbose and (how := confirmation(finding, lang)):
            yield "confirm", how

    def _treated(self, treated: Treated) -> Iterator[RenderableType]:
        """The receipts of a balancer, the last ones where there are many."""
        lang = self._lang
        shown = treated.receipts if self._verbose else treated.receipts[-SHOWN:]
        yield Text(visible(headline_of(treated, lang)), style="bold")
        if hidden := len(treated.receipts) - len(shown):
            yield Padding(Text(text("receipts.earlier", lang, n=hidden), style="dim"), (0, 0, 0, 2))
        if shown:
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
            for column in COLUMNS[:-1]:
                table.add_column(text(f"receipts.{column}", lang), overflow="fold")
            for row in rows(shown, lang):
                table.add_row(*(Text(visible(getattr(row, column))) for column in COLUMNS[:-1]))
            yield Padding(table, (0, 0, 0, 2))
        if self._verbose:
            for row in rows(shown, lang):
                if row.why:
                    yield Padding(Text(visible(f"{row.step} {row.loss}: {row.why}"), style="dim"), (0, 0, 0, 2))
            if shown:
                yield Padding(Text(text("receipts.note", lang), style="dim"), (0, 0, 0, 2))
        for told in standing(treated, lang):
            yield Padding(Text(visible(told), style="yellow"), (0, 0, 0, 2))

    def _others(self) -> Iterator[RenderableType]:
        """Nothing unchecked looks healthy: what is clear, what was skipped, and why."""
        diagnosis, lang = self._diagnosis, self._lang
        yield Text(text("check.others", lang, clear=len(diagnosis.clear), skipped=len(diagnosis.skipped)))
        if not self._verbose:
            if diagnosis.skipped or diagnosis.findings:
                yield Text(text("check.verbose", lang), style="dim")
            return
        if diagnosis.clear:
            yield Padding(Text(f"{text('check.clear_rules', lang)} {' '.join(diagnosis.clear)}"), (0, 0, 0, 2))
        for reason, codes in self._reasons().items():
            yield Padding(Text(visible(reason)), (0, 0, 0, 2))
            yield Padding(Text(" ".join(codes), style="dim"), (0, 0, 0, 6))

    def _reasons(self) -> dict[str, list[str]]:
        """Why rules were not asked, and which: those that one line in the script enables are told together."""
        lang, together = self._lang, dict[str, dict[str, list[str]]]()
        for code, skipped in self._diagnosis.skipped:
            enable, reason = "" if skipped.enable is None else skipped.enable.text(lang), skipped.reason.text(lang)
            together.setdefault(enable or reason, {}).setdefault(reason, []).append(code)
        found = {}
        for told, reasons in together.items():
            # Different metrics that the same line brings: the line says enough.
            sentence = told if len(reasons) > 1 else "; ".join(dict.fromkeys((*reasons, told)))
            found[sentence] = [code for codes in reasons.values() for code in codes]
        return found
