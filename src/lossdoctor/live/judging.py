"""When to ask the rules about a growing run again, and which of their findings are news.

The first steps of a run look like many things: a finding counts once two diagnoses running had it. Once is enough at
the end of a run, when nothing more will come, and in the first diagnosis of one that has left its first steps behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.rules import Finding
from lossdoctor.rules.view import LEAST
from lossdoctor.store import Run

SHARE = 0.01
"""Of the time since the beginning that all diagnoses may take, the next one included."""

GROWTH = 1.2
"""A run is judged anew when it has this many times the measured steps it had."""

SETTLED = 3 * LEAST
"""Measured steps after which the first diagnosis of a run that goes on is believed at once."""

Key = tuple[str, str | None, str | None]


def key(finding: Finding) -> Key:
    """What makes two findings the same one."""
    return finding.code, finding.loss, finding.subject


class Judge:
    """Asks the rules about one run. diagnosis: the last one, None before. clock: monotonic, replaced in tests."""

    def __init__(self, name: str, *, share: float = SHARE, clock: Callable[[], float] = time.monotonic) -> None:
        self.diagnosis: Diagnosis | None = None
        self._name, self._share, self._clock = name, share, clock
        self._began, self._spent, self._rest_until = clock(), 0.0, 0.0
        self._judged_at = -1
        self._sure = False
        self._suspects: set[Key] = set()
        self.known: set[Key] = set()

    def due(self, measured: int, *, sure: bool = False) -> bool:
        """Whether it is time. measured: steps measured in full so far. sure: the run has ended."""
        if sure:
            return not self._sure or measured != self._judged_at
        enough = measured >= LEAST and measured >= GROWTH * max(self._judged_at, 0)
        return enough and measured != self._judged_at and self._clock() >= self._rest_until

    def ask(self, run: Run, measured: int, *, sure: bool = False) -> list[Finding]:
        """Judge, and return what is new. sure: tell also what was found only this once."""
        started = self._clock()
        self.diagnosis = diagnose(run, name=self._name)
        took = self._clock() - started
        self._spent += took
        self._rest_until = self._began + (self._spent + took) / self._share  # the next one takes about as long
        now = {key(finding): finding for finding in self.diagnosis.findings}
        believed = sure or (self._judged_at < 0 and measured >= SETTLED)
        fresh = [one for each, one in now.items() if (believed or each in self._suspects) and each not in self.known]
        self._suspects = set(now)
        self.known = {each for each in self.known if each in now} | {key(one) for one in fresh}
        self._judged_at, self._sure = measured, sure
        return fresh

    def standing(self) -> tuple[tuple[Finding, ...], ...]:
        """The groups of the last diagnosis that count."""
        groups = () if self.diagnosis is None else self.diagnosis.groups
        kept = (tuple(one for one in group if key(one) in self.known) for group in groups)
        return tuple((replace(group[0], explained_by=None), *group[1:]) for group in kept if group)
