"""The rounds of a doctor: when a growing run is judged again, and which of the findings are news then.

Whoever follows a run asks the same two questions: the Doctor in the training's own process, a terminal that watches
and the server of live pages in another. The first steps of a run look like many things, so that a finding counts once
two rounds running had it; and rules take time that is the training's, so that rounds become rarer as a run grows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from lossdoctor.rules import Finding
from lossdoctor.rules.view import LEAST

SHARE = 0.01
"""Of the time since the beginning that all rounds may take, the next one included."""

GROWTH = 1.2
"""A run is judged anew when it has this many times the measured steps it had."""

Key = tuple[str, str | None, str | None]


def key(finding: Finding) -> Key:
    """What makes two findings the same one."""
    return finding.code, finding.loss, finding.subject


class Pace:
    """When it is time for the next round. `begin` and `end` stand around each, or `fail` in place of `end`.

    share: of the time since now that all rounds may take; first: seconds the first one is expected to take. judged_at:
    measured steps at the last round, 0 before. clock: monotonic, replaced in tests.
    """

    def __init__(
        self, *, share: float = SHARE, first: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share, self._clock = share, clock
        self._began, self._spent, self._started = clock(), 0.0, 0.0
        self._rest_until = self._began + first / share
        self.judged_at = self._before = 0

    def due(self, measured: int) -> bool:
        """Whether to begin one. measured: steps measured in full so far."""
        enough = measured >= max(LEAST, GROWTH * self.judged_at) and measured != self.judged_at
        return enough and self._clock() >= self._rest_until

    def begin(self, measured: int) -> None:
        """A round begins; none is due until it has ended."""
        self._before, self.judged_at = self.judged_at, measured
        self._started, self._rest_until = self._clock(), math.inf

    def end(self) -> None:
        """The round is over."""
        took = self._clock() - self._started
        self._spent += took
        self._rest_until = self._began + (self._spent + took) / self._share  # the next one takes about as long

    def fail(self) -> None:
        """The round is over and told nothing: it is to be made again."""
        self.end()
        self.judged_at = self._before


class News:
    """Which findings count. standing: those of the last round that do."""

    def __init__(self) -> None:
        self._suspects: set[Key] = set()
        self.standing: set[Key] = set()

    def hear(self, findings: Iterable[Finding], *, sure: bool) -> list[Finding]:
        """What a round found; returns what counts from now on and did not before. sure: count what is there once."""
        now = {key(finding): finding for finding in findings}
        believed = now if sure else now.keys() & self._suspects
        fresh = [one for each, one in now.items() if each in believed and each not in self.standing]
        self.standing = {each for each in self.standing if each in now} | {key(one) for one in fresh}
        self._suspects = set(now)
        return fresh
