"""`lossdoctor demo --dry-run`: what the training of these settings takes, and what each number rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lossdoctor.messages import text
from lossdoctor.report.wording import number, percent

if TYPE_CHECKING:
    from rich.console import Console

    from lossdoctor.reference import ReferenceConfig
    from lossdoctor.reference.rehearsal import Rehearsal

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_OPERATIONS = ("", "k", "M", "G", "T", "P", "E")

Row = tuple[str, str, str]


def rehearsed(config: ReferenceConfig, processes: int, console: Console, lang: str) -> None:
    """Build without memory, and print."""
    from rich.table import Table
    from rich.text import Text

    from lossdoctor.reference.rehearsal import rehearse

    found = rehearse(config, processes)
    console.print(Text(text("dry.begin", lang, processes=processes)))
    for title, rows in (("parts", _parts), ("memory", _memory), ("work", _work)):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        for row in rows(found, lang):
            table.add_row(*(Text(cell) for cell in row))
        console.print("")
        console.print(Text(text(f"dry.{title}", lang), style="bold"))
        console.print(table)
    console.print("")
    for key in found.untrained:
        console.print(Text(text("demo.untrained", lang, name=key), style="yellow"))
    console.print(Text(text("dry.end", lang)))


def _parts(found: Rehearsal, lang: str) -> Iterator[Row]:
    for part in found.parts:
        how = "trained" if part.trained else "frozen"
        yield text(f"dry.part.{part.name}", lang), f"{part.parameters:,}", text(f"dry.{how}", lang)
    trained = sum(part.trained for part in found.parts)
    yield text("dry.part.all", lang), f"{sum(part.parameters for part in found.parts):,}", ""
    yield text("dry.part.trained", lang), f"{trained:,}", ""


def _memory(found: Rehearsal, lang: str) -> Iterator[Row]:
    memory, rows = found.memory, found.config.train.batch // found.processes
    for name, held in (
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("ema", memory.ema),
        *((("exchange", memory.exchange),) if memory.exchange else ()),
        ("working", memory.working),
        ("peak", memory.peak),
    ):
        yield text(f"dry.memory.{name}", lang), size(held), text(f"dry.memory.{name}.rests", lang, rows=rows)
    if memory.due is None:
        yield text("dry.memory.due", lang), f"< {size(memory.peak // 20)}", text("dry.memory.due.sketched", lang)
    else:
        yield text("dry.memory.due", lang), size(memory.due), text("dry.memory.due.rests", lang)


def _work(found: Rehearsal, lang: str) -> Iterator[Row]:
    train, work = found.config.train, found.work
    yield text("dry.steps", lang), f"{train.steps:,}", text("dry.steps.rests", lang, batch=train.batch)
    yield text("dry.samples", lang), f"{found.samples:,}", text("dry.samples.rests", lang)
    if found.epoch is None:
        yield text("dry.epoch", lang), "?", text("dry.epoch.unknown", lang, path=found.config.pictures.path)
    else:
        told = text("dry.epoch.rests", lang, pictures=f"{found.pictures:,}", epochs=number(train.steps / found.epoch))
        yield text("dry.epoch", lang), f"{found.epoch:,}", told
    yield text("dry.words", lang), f"{found.vocabulary:,}", text("dry.words.rests", lang)
    share = percent(work.frozen / work.step) if work.step else ""
    yield text("dry.flops", lang), operations(work.step), text("dry.flops.rests", lang, share=share)
    if work.due is not None:
        yield text("dry.flops.due", lang), operations(work.due), text("dry.flops.due.rests", lang)
    yield text("dry.flops.all", lang), operations(work.step * train.steps), text("dry.flops.all.rests", lang)


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a whole number: 512 B, 3.40 MiB."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"


def operations(count: int) -> str:
    """Floating-point operations in thousands of thousands: 1.50 GFLOP."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_OPERATIONS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.2f} {_OPERATIONS[unit]}FLOP"
