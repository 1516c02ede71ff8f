"""How a long command shows that it lives: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from lossdoctor.messages import text
from lossdoctor.report.wording import duration, number

LOG_SECONDS = 10.0
"""A log gets a line this often at most, and one at the end of each phase."""


class Phases:
    """Shows the phases of one command, one after the other. A context manager: leaving it ends the last phase.

    Drawing happens ten times a second at most, so `at` may be called at every step. clock: replaced in tests.
    """

    def __init__(self, console: Console, lang: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._lang = lang
        self._clock = clock
        self._view: Bars | _Lines = self._bars() if console.is_terminal else _Lines(console, lang, clock)
        self._phase: tuple[str, int] | None = None
        self._began = 0.0

    def __enter__(self) -> Self:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.stop()

    def at(self, phase: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """`done` of `total` steps of a phase are done; a name not seen before begins a new phase.

        phase: a code, `phase.<code>` in the message catalogues. values: current losses by name.
        """
        now = self._clock()
        if self._phase != (phase, total):
            self._phase, self._began = (phase, total), now
            self._view.begin(text(f"phase.{phase}", self._lang), total)
        passed = now - self._began
        rate = done / passed if passed > 0 and done and total > 1 else None
        left = (total - done) / rate if rate else None
        self._view.show(done, self._speed(rate, left), values or {})

    def say(self, sentence: str) -> None:
        """A sentence above the bars, or in the log."""
        self._console.print(Text(sentence), soft_wrap=True)

    def _bars(self) -> Bars:
        return Bars(self._console, self._lang)

    def _speed(self, rate: float | None, left: float | None) -> str:
        if rate is None or left is None:
            return ""
        told = text("progress.rate", self._lang, rate=number(rate))
        return f"{told}, {text('progress.left', self._lang, left=duration(left, self._lang))}" if left else told


def _count(done: int, total: float | None) -> str:
    """How many steps of how many; nothing for a phase that is one step."""
    return f"{done:,}/{total:,.0f}" if total and total > 1 else ""


def _told(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


class Counted(Phases):
    """Phases that count whole things, such as trainings: how many of them a second is nothing to tell."""

    def _speed(self, rate: float | None, left: float | None) -> str:
        return text("progress.left", self._lang, left=duration(left, self._lang)) if left else ""


class Bars(Progress):
    """One bar per phase, the newest losses in a line below. above: what else is to be seen, drawn anew each time."""

    def __init__(
        self, console: Console, lang: str, *, above: Callable[[], Iterable[RenderableType]] = lambda: ()
    ) -> None:
        self._above = above
        self._values: Mapping[str, float] = {}
        self._task: TaskID | None = None
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}", style="dim"),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is above, the bars, and the losses while there are any."""
        yield from self._above()
        yield from super().get_renderables()
        if self._values:
            yield Text(_told(self._values), style="dim")

    def begin(self, name: str, total: int) -> None:
        """A new bar; the one before is as far as it is."""
        self._values = {}
        self._task = self.add_task(name, total=total, speed="", count="")

    def show(self, done: int, speed: str, values: Mapping[str, float]) -> None:
        """The state of the newest bar."""
        assert self._task is not None
        self._values = values
        self.update(self._task, completed=done, speed=speed, count=_count(done, self.tasks[-1].total))


class _Lines:
    """A line when a phase begins to take time, one every while, and one at its end."""

    def __init__(self, console: Console, lang: str, clock: Callable[[], float]) -> None:
        self._console, self._lang, self._clock = console, lang, clock
        self._name, self._total, self._last = "", 0, 0.0

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to end."""

    def begin(self, name: str, total: int) -> None:
        """A new phase."""
        self._name, self._total, self._last = name, total, self._clock()

    def show(self, done: int, speed: str, values: Mapping[str, float]) -> None:
        """A line, if it is time for one."""
        now = self._clock()
        if done < self._total and now - self._last < LOG_SECONDS:
            return
        self._last = now
        told = "; ".join(filter(None, (speed, _told(values))))
        parts = (self._name, _count(done, self._total), told and f"({told})")
        self._console.print(Text(" ".join(filter(None, parts))), soft_wrap=True)
