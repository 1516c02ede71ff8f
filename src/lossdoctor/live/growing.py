"""One run that is served: followed while it grows, and told in pieces that a page can add to what it has."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossdoctor.errors import RunError
from lossdoctor.live.folder import of_other_rank, told_beside
from lossdoctor.live.judging import Judge
from lossdoctor.record import Series
from lossdoctor.report.frame import condition
from lossdoctor.report.page.encoding import sent
from lossdoctor.report.page.markup import each_language
from lossdoctor.report.pulse import RECENT, Pulse, log_of, taken
from lossdoctor.store import Following, Run
from lossdoctor.store.layout import NOTHING, join

Stamp = tuple[int, ...]


class Growing:
    """A run under the folder that is served. `look` is for one thread, `judge` and `curves` may run beside it.

    sound: whether a folder may be read, asked before it is opened, and before each reading beside `look`. pulse: its
    state; judge: asks the rules; changed, judged_at: monotonic time of the last news and of the last diagnosis.
    names: of its metrics, in an order that stays while it is open; opened: how often it was. other: whether it
    is the file of another rank of a run, which no list tells of.
    """

    def __init__(self, name: str, path: Path, sound: Callable[[Path], bool] = Path.is_dir) -> None:
        self.name, self.path = name, path
        self.other = of_other_rank(path)
        self._folder, self._file = (path.parent, path) if self.other else (path, path / "run.db")
        self._sound = sound
        self.judge = Judge(name, share=math.inf)
        self.pulse = Pulse("absent")
        self.measured = self.last_step = 0
        self.losses: dict[str, float] = {}
        self.changed = self.judged_at = 0.0
        self.names: list[str] = []
        self.opened = 0
        self._following: Following | None = None
        self._stamp: Stamp = ()
        self._full = self._clock = NOTHING

    @property
    def open(self) -> bool:
        """Whether it holds its file open."""
        return self._following is not None

    def close(self) -> None:
        """Give the file back; the next look opens it again."""
        if self._following is not None:
            self._following.close()
            self._following = None

    def look(self) -> tuple[bool, dict[str, Series]]:
        """Whether it is another run than before (or was not open), and else the points that have come since."""
        stamp = self._stamped()
        if not stamp:
            self._gone("deleted" if self.pulse.state != "absent" else "absent")
            return False, {}
        if stamp == self._stamp:
            self.pulse = taken(self._full, self._clock, self._file)
            return False, {}
        try:
            another = self._following is None or not self._following.there
            if another:
                if not self._sound(self.path):
                    self._gone("deleted")
                    return False, {}
                self.close()
                news = self._begin()
            else:
                assert self._following is not None
                news = self._following.news()
                self._note(news, self._following.fulls, self._following.clocks)
        except RunError as error:
            self._gone("empty" if str(error).startswith("The run file is empty") else "unreadable", str(error))
            return False, {}
        self._stamp = stamp
        if another or news:
            self.changed = time.monotonic()
        self.pulse = taken(self._full, self._clock, self._file)
        return another, news

    def answered(self) -> Stamp:
        """Changes whenever an event was written, or answers of experiments."""
        return tuple(part for path in told_beside(self._folder) for part in _stamp(path))

    def read(self) -> Run:
        """The run, opened for this reading. Raises RunError."""
        if not self._sound(self.path):
            raise RunError(f"{self.path} is no folder of plain files (any more)")
        return Run.open(self.path)

    def curves(self, places: Sequence[int]) -> bytes:
        """The curves of the metrics in these places of `names`, as `encoding.sent` has them. Raises RunError."""
        run, names = self.read(), self.names
        return sent(run[names[place]] for place in places)

    def state(self) -> dict[str, Any]:
        """What the head of a page says of the run's state; changes at most once a minute while nothing comes."""
        quiet = None if self.pulse.quiet is None else 60 * (self.pulse.quiet // 60)
        pulse = Pulse(self.pulse.state, None, quiet, self.pulse.why)
        return {
            "run": self.name,
            "state": self.pulse.state,
            "html": each_language(lambda lang: condition(pulse, lang)),
            "steps": self.last_step + 1 if self.measured or self.losses else 0,
            "measured": self.measured,
            "rate": None if self.pulse.rate is None else _short(self.pulse.rate),
        }

    def row(self) -> dict[str, Any]:
        """What the list of runs says of it."""
        groups = self.judge.standing()
        counts = Counter(group[0].severity for group in groups)
        losses = {name: _short(value) for name, value in self._losses_shown()}
        judged = self.judge.diagnosis is not None and self.judge.diagnosis.judged
        findings = dict(counts) if judged else None
        state = {key: value for key, value in self.state().items() if key != "html"}
        return state | {"losses": losses, "findings": findings, "codes": [group[0].code for group in groups]}

    def _losses_shown(self) -> list[tuple[str, float]]:
        """The total first, and only as many as fit into a row."""
        return sorted(self.losses.items(), key=lambda item: (item[0] != "total", item[0]))[:4]

    def _begin(self) -> dict[str, Series]:
        """Open, and take everything there is as seen."""
        self._following = Following(self.path)
        self._following.skip()
        run = self._following.run
        self.names, self.opened = list(run), self.opened + 1
        clock, full = run.times, run.steps
        own = Series(full, clock.values[np.searchsorted(clock.steps, full)])
        self._full, self._clock, self.measured = _last(own), _last(clock), len(full)
        self.losses = {}
        last = -1
        at = max(int(clock.steps[-1]) if len(clock) else -1, 0)
        for name in (name for name in self.names if name.startswith("loss/")):
            points = run.thinned(name, 3).series
            if len(points):
                self.losses[name.removeprefix("loss/")] = float(points.values[-1])
                last = max(last, int(points.steps[-1]))
        self.last_step = last if last >= 0 else at
        self.judge = Judge(self.name, share=math.inf)
        return {}

    def _note(self, news: dict[str, Series], fulls: Series, clocks: Series) -> None:
        there_already = set(self.names)
        self.names += [name for name in news if name not in there_already]
        for name, points in news.items():
            if name.startswith("loss/"):
                self.losses[name.removeprefix("loss/")] = float(points.values[-1])
                self.last_step = max(self.last_step, int(points.steps[-1]))
        there = fulls.values != 0
        self.measured += int(there.sum())
        self._full = _last(join((self._full, Series(clocks.steps[there], clocks.values[there]))))
        self._clock = _last(join((self._clock, clocks)))

    def _gone(self, state: str, why: str = "") -> None:
        self.close()
        self._stamp = ()
        self.pulse = Pulse(state, None, None, why.splitlines()[0] if state == "unreadable" else "")  # type: ignore[arg-type]

    def _stamped(self) -> Stamp:
        """Changes whenever a record was written. Empty when there is no run."""
        return (file := _stamp(self._file)) and file + _stamp(log_of(self._file))


def _stamp(file: Path) -> Stamp:
    """Changes when the file does. Empty when there is none."""
    try:
        found = os.stat(file, follow_symlinks=False)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def points(news: dict[str, Series]) -> dict[str, list[list[float | int | None]]]:
    """Points as JSON has them: NaN and infinity, which a chart does not draw, are null."""
    return {
        name: [series.steps.tolist(), [_short(value) for value in series.values.tolist()]]
        for name, series in news.items()
    }


def _short(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _last(series: Series) -> Series:
    return Series(series.steps[-RECENT:], series.values[-RECENT:])
