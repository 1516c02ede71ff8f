"""What `lossdoctor import` tells of a log it has read: which names were guessed, how much there is, what was lost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lossdoctor.exchange import Imported, Written
from lossdoctor.exchange.source import SHOWN
from lossdoctor.keys import describe
from lossdoctor.messages import text
from lossdoctor.report.wording import visible


def tell(console: Console, imported: Imported, written: Written, folder: Path, lang: str) -> None:
    """Print it, the next command last."""
    for part in _names(imported, lang):
        console.print(part, soft_wrap=isinstance(part, Text))
    for sentence in (*_counts(imported, written, folder, lang), *_lost(imported, lang)):
        console.print(Text(sentence), soft_wrap=True)
    command = f"lossdoctor check {shlex.quote(str(folder))}"
    console.print(Text(text("import.next", lang, command=command)), soft_wrap=True)


def _names(imported: Imported, lang: str) -> Iterator[RenderableType]:
    renaming = imported.renaming
    if renaming.guessed:
        yield Text(text("import.guessed", lang))
        yield _table(renaming.guessed, lang)
    for ours, theirs in renaming.undecided.items():
        names = ", ".join(map(visible, theirs))
        mapping = shlex.quote(visible(f"{theirs[0]}={ours}"))
        yield Text(text("import.undecided", lang, names=names, ours=visible(ours), mapping=mapping))
    for pattern in renaming.unmatched:
        yield Text(text("import.unmatched", lang, name=visible(pattern)))


def _table(guessed: Mapping[str, str], lang: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in (text("import.theirs", lang), "", text("import.ours", lang)):
        table.add_column(title, overflow="fold")
    for theirs, ours in guessed.items():
        table.add_row(Text(visible(theirs)), "->", Text(visible(ours)))
    return table


def _counts(imported: Imported, written: Written, folder: Path, lang: str) -> Iterator[str]:
    column = imported.notes.step
    key = "import.read" if column is None else "import.read_by"
    source, column = visible(imported.source), visible(column or "")
    yield text(key, lang, source=source, format=imported.format, column=column)
    yield text(
        "import.counts",
        lang,
        metrics=f"{written.metrics:,}",
        points=f"{written.points:,}",
        first=f"{written.first:,}",
        last=f"{written.last:,}",
        folder=folder,
    )
    known = sum(describe(name) is not None for name in imported.names.values())
    if known < written.metrics:
        yield text("import.known" if known else "import.unknown", lang, known=f"{known:,}")


def _lost(imported: Imported, lang: str) -> Iterator[str]:
    lost, ignored = imported.notes.lost, imported.notes.ignored
    for code, count in lost.items():
        if count:
            yield text(f"import.lost.{code}", lang, count=f"{count:,}")
    if ignored:
        names = [visible(name) for name, _ in ignored.most_common(SHOWN)]
        more = ["..."] if len(ignored) > SHOWN else []
        yield text("import.ignored", lang, count=f"{ignored.total():,}", names=", ".join([*names, *more]))
    elif not lost.total():
        yield text("import.whole", lang)
