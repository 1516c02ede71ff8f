"""The digest as Markdown: `summary.md`, for a file browser, a pull request or a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lossdoctor.keys import FAMILIES
from lossdoctor.messages import text
from lossdoctor.report.digest import Digest, Line, Loss
from lossdoctor.report.grids import GRIDS_AFTER, Grid
from lossdoctor.report.wording import (
    UNICODE,
    broken,
    column_name,
    course,
    facts,
    number,
    percent,
    plain,
    progress,
    small_curve,
    trouble,
    visible,
)


def markdown(
    digest: Digest, *, title: str, lang: str = "en", notes: Sequence[str] = (), pictures: Sequence[str] = ()
) -> str:
    """The digest as one Markdown document.

    title: the name of the run. notes: sentences on what the digest does not know. pictures: files beside the document.
    """
    return "\n".join(_document(digest, title, lang, notes, pictures)).rstrip() + "\n"


def _document(digest: Digest, title: str, lang: str, notes: Sequence[str], pictures: Sequence[str]) -> Iterator[str]:
    say = partial(text, lang=lang)
    yield from ("# " + text("report.title", lang, run=_cell(title)), "")
    yield from (f"**{text('report.no_verdict', lang)}**", "")
    yield progress(digest, lang)
    if digest.facts:
        yield from ("", _cell(facts(digest, lang)))
    for note in notes:
        yield from ("", _cell(note))
    if digest.losses:
        yield from ("", f"## {say('report.losses')}", "", *_losses(digest.losses, lang))
    grids = {grid.code: grid for grid in digest.grids}
    for family in FAMILIES:
        if lines := digest.family(family):
            yield from ("", f"## {text(f'family.{family}', lang)}", "", *_lines(lines, lang))
        for code in GRIDS_AFTER.get(family, ()):
            if code in grids:
                yield from ("", f"### {text(f'grid.{code}', lang)}", "", *_grid(grids[code], lang))
                yield from ("", text(f"grid.{code}.note", lang))
    yield from ("", say("report.reading"))
    if digest.absent:
        yield from ("", f"## {say('report.absent')}", "")
        yield from (
            f"- **{text(f'absent.{code}', lang)}**: {text(f'absent.{code}.todo', lang)}" for code in digest.absent
        )
    if digest.troubles:
        yield from (
            "",
            f"## {say('report.troubles')}",
            "",
            *(f"- {_cell(trouble(event, lang))}" for event in digest.troubles),
        )
    if pictures:
        yield from ("", f"## {say('report.pictures')}", "", *(f"![{name}]({name})" for name in pictures))


def _losses(losses: Sequence[Loss], lang: str) -> Iterator[str]:
    columns = ("loss", "kind", "weight", "gradient", "weighted", "share")
    rows = [
        [
            _code(loss.name),
            text(f"kind.{loss.kind}", lang),
            plain(loss.weight, UNICODE.nothing),
            *(number(value, UNICODE.nothing) for value in (loss.gradient, loss.weighted)),
            percent(loss.share, UNICODE.nothing),
        ]
        for loss in losses
    ]
    yield from _table([text(f"column.{column}", lang) for column in columns], rows, "llrrrr")


def _lines(lines: Sequence[Line], lang: str) -> Iterator[str]:
    columns = ("metric", "start", "end", "curve", "trend", "meaning")
    rows = []
    for line in lines:
        word = " ".join(filter(None, (course(line, UNICODE, lang), broken(line, lang))))
        meaning = _cell(text(f"metric.{line.key.pattern}", lang))
        start, curve = number(line.start) if line.count > 1 else "", small_curve(line.shape, UNICODE)
        rows.append([_code(line.name), start, number(line.end), curve, word, meaning])
    yield from _table([text(f"column.{column}", lang) for column in columns], rows, "lrrlll")


def _grid(grid: Grid, lang: str) -> Iterator[str]:
    header = [text(f"grid.{grid.code}.rows", lang), *(_cell(column_name(grid, c, lang)) for c in grid.columns)]
    rows = [
        [_code(row), *(number(value, UNICODE.nothing) for value in values)]
        for row, values in zip(grid.rows, grid.values, strict=True)
    ]
    yield from _table(header, rows, "l" + "r" * len(grid.columns))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> Iterator[str]:
    """A table; `align` has one letter per column, l for text and r for numbers."""
    rule = ["---" if letter == "l" else "---:" for letter in align]
    yield from (f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _cell(words: str) -> str:
    return visible(words).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(name: str) -> str:
    return f"`{visible(name).replace('|', chr(92) + '|').replace('`', chr(39))}`"
