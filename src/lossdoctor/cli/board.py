"""The trainings of an ablation as a table that lives on a terminal: an arm a row, a seed a column."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lossdoctor.ablate.trial import Trial
from lossdoctor.cli.progress import Bars, Counted
from lossdoctor.messages import text
from lossdoctor.report.wording import visible

_MARKS = {"done": ("\u2713", "+", "green"), "running": ("\u25b6", ">", "bold"), "failed": ("\u2717", "x", "bold red"),
          "waiting": ("\u00b7", ".", "dim")}  # fmt: skip
"""Of every state: its mark, the one where only ASCII can be shown, and its style."""


class Board(Counted):
    """Bars that count trainings, under a table of them; in a log lines alone, as of any phase."""

    def __init__(self, console: Console, lang: str) -> None:
        self._states: dict[Trial, str] = {}
        self._guard = threading.Lock()
        super().__init__(console, lang)

    def expect(self, trials: Sequence[Trial]) -> None:
        """Trials that wait."""
        with self._guard:
            self._states |= {trial: self._states.get(trial, "waiting") for trial in trials}

    def began(self, trial: Trial) -> None:
        """One is being trained. From any thread."""
        self._put(trial, "running")

    def ended(self, trial: Trial, *, whole: bool) -> None:
        """One has ended."""
        self._put(trial, "done" if whole else "failed")

    def _put(self, trial: Trial, state: str) -> None:
        with self._guard:
            self._states[trial] = state

    def _bars(self) -> Bars:
        return Bars(self._console, self._lang, above=self._table)

    def _table(self) -> Iterable[RenderableType]:
        with self._guard:
            states = dict(self._states)
        if not states:
            return
        seeds = sorted({trial.seed for trial in states})
        plain = int(self._console.options.ascii_only)
        rows = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        marks = sum(1 + len(str(seed)) for seed in seeds)
        widest = max(8, self._console.width - marks - 1)
        rows.add_column(text("ablate.column.arm", self._lang), overflow="ellipsis", no_wrap=True, max_width=widest)
        for seed in seeds:
            rows.add_column(str(seed), no_wrap=True)
        for arm in dict.fromkeys(trial.arm for trial in states):
            shown = [_MARKS[state] if (state := states.get(Trial(arm, seed))) else None for seed in seeds]
            rows.add_row(Text(visible(arm)), *(Text(one[plain], style=one[2]) if one else Text() for one in shown))
        yield rows
        told = [f"{one[plain]} {text(f'ablate.state.{state}', self._lang)}" for state, one in _MARKS.items()]
        yield Text("  ".join(told), style="dim")
