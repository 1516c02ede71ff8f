"""The answers of an ablation for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossdoctor.arms import BASELINE
from lossdoctor.messages import text
from lossdoctor.report.effects import largest
from lossdoctor.report.wording import number, visible

_CERTAIN = {"confirmed": "bold red", "withdrawn": "green"}
SHOWN = 4
"""Effects told of an arm."""
_STYLES = {"yes": "green", "no": "bold red", "undecided": "yellow"}


class Answers:
    """Something rich can print. found: `lossdoctor/effects@1`. verbose: also effects that may be chance."""

    def __init__(self, found: Mapping[str, Any], lang: str = "en", *, verbose: bool = False) -> None:
        self._found = found
        self._lang = lang
        self._verbose = verbose

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found, lang = self._found, self._lang
        seeds = max((len(arm["seeds"]) for arm in found["arms"]), default=0)
        command = visible(" ".join(found["command"]))
        yield Text(text("ablate.title", lang, steps=found["steps"], seeds=seeds, command=command), style="bold")
        yield ""
        if "fixes" in found:
            yield from self._fixes()
            yield from self._remarks(seeds)
            return
        yield Text(text("ablate.expectations", lang), style="bold")
        yield self._expectations() if found["expectations"] else Text(text("ablate.none_expected", lang), style="dim")
        yield ""
        yield Text(text("ablate.effects", lang), style="bold")
        yield from self._effects()
        yield from self._remarks(seeds)

    def _fixes(self) -> Iterator[RenderableType]:
        lang = self._lang
        if not self._found["fixes"]:
            yield Text(text("ablate.nothing_to_fix", lang))
        for proof in self._found["fixes"]:
            about = ", ".join(visible(str(proof[name])) for name in ("loss", "subject") if proof[name])
            head = Text(f"{proof['code']} {proof['name']}{f' ({about})' if about else ''}", style="bold")
            word = proof["certainty"]
            head.append("  " + text(f"certainty.{word}", lang), style=_CERTAIN.get(word, "dim"))
            yield head
            yield Padding(Text(visible(proof["message"])), (0, 0, 0, 2))
            seen = text("ablate.seen", lang, seen=proof["seen"], seeds=proof["seeds"])
            if proof["seeds_needed"]:
                seen += "; " + text("ablate.more_for_proof", lang, n=proof["seeds_needed"])
            yield Padding(Text(seen, style="dim"), (0, 0, 0, 2))
            yield Padding(self._tried(proof), (0, 0, 0, 2))
            yield ""

    def _tried(self, proof: Mapping[str, Any]) -> RenderableType:
        rows = Table.grid(padding=(0, 2, 0, 0))
        for one in proof["tried"]:
            key = "ablate.helps" if one["helps"] else "ablate.removes" if one["removed"] else "ablate.leaves"
            told = [text(key, self._lang, removed=one["removed"], pairs=one["pairs"])]
            for name in ("alarms", "better", "worse"):
                if one[name]:
                    told.append(text(f"ablate.{name}", self._lang, names=", ".join(map(visible, one[name][:4]))))
            style = "green" if one["helps"] else ""
            rows.add_row(Text(visible(one["arm"]), style=style), Text("; ".join(told)))
            if one["text"] and one["helps"]:
                rows.add_row("", Text(one["text"], style="green"))
        if not proof["tried"]:
            rows.add_row(Text(text("ablate.none_tried", self._lang), style="dim"))
        for edit in proof["by_hand"][:3]:
            rows.add_row(Text(text("ablate.by_hand", self._lang), style="dim"), Text(edit["text"], style="dim"))
        return rows

    def _expectations(self) -> Table:
        rows = self._table("arm", "question")
        rows.add_column(text("ablate.column.values", self._lang), justify="right", no_wrap=True)
        rows.add_column(text("ablate.column.answer", self._lang))
        for one in self._found["expectations"]:
            effect = one["effect"]
            values = "" if effect is None else f"{number(effect['baseline'])} -> {number(effect['arm'])}"
            rows.add_row(Text(visible(one["arm"])), Text(one["text"]), values, self._answer(one))
        return rows

    def _answer(self, one: Mapping[str, Any]) -> Text:
        effect, verdict = one["effect"], one["verdict"]
        if effect is None:
            return Text(text("ablate.not_measured", self._lang), style="dim")
        needed = effect["pairs_needed"]
        if verdict == "undecided" and needed and needed > effect["pairs"]:
            return Text(text("ablate.more_seeds", self._lang, n=needed), style=_STYLES[verdict])
        return Text(text(f"ablate.verdict.{verdict}", self._lang), style=_STYLES[verdict])

    def _effects(self) -> Iterator[RenderableType]:
        rows = self._table()
        both = (text(name, self._lang) for name in ("ablate.column.arm", "column.metric"))
        rows.add_column(" / ".join(both), overflow="fold")
        for column in ("baseline", "difference", "interval"):
            rows.add_column(text(f"ablate.column.{column}", self._lang), justify="right", no_wrap=True)
        more = 0
        for arm in self._found["arms"]:
            if arm["arm"] == BASELINE:
                continue
            told = list(arm["effects"].items()) if self._verbose else largest(arm["effects"])
            more += 0 if self._verbose else max(0, len(told) - SHOWN)
            if told:
                rows.add_row(Text(visible(arm["arm"]), style="bold"))
            for name, effect in told if self._verbose else told[:SHOWN]:
                low, high = effect["low"], effect["high"]
                between = "" if low is None else f"{number(low, digits=2)} .. {number(high, digits=2)}"
                middle = f"{'+' if effect['difference'] > 0 else ''}{number(effect['difference'])}"
                rows.add_row(Text(f"  {visible(name)}"), number(effect["baseline"]), middle, between)
        yield rows if rows.row_count else Text(text("ablate.no_effects", self._lang), style="dim")
        if more:
            yield Text(text("ablate.more", self._lang, n=more), style="dim")

    def _remarks(self, seeds: int) -> Iterator[Text]:
        found, lang = self._found, self._lang
        said = [
            text("ablate.one_seed", lang) if seeds == 1 else "",
            "" if found["seeded"] else text("ablate.unseeded", lang),
            text("ablate.alike", lang) if found.get("alike") else "",
            "" if found["conditioned"] or "fixes" in found else text("ablate.unconditioned", lang),
        ]
        for sentence in filter(None, said):
            yield Text("\n" + sentence, style="dim")

    def _table(self, *columns: str) -> Table:
        rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in columns:
            rows.add_column(text(f"ablate.column.{column}", self._lang), overflow="fold")
        return rows
