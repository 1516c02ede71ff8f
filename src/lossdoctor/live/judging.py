"""A run in another process, judged: the diagnosis of the last round, and its findings that count.

Once is enough for a finding at the end of a run, when nothing more will come, and in the first diagnosis of one that
has left its first steps behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.rounds import SHARE, News, Pace, key
from lossdoctor.rules import Finding
from lossdoctor.rules.view import LEAST
from lossdoctor.store import Run

SETTLED = 3 * LEAST
"""Measured steps after which the first diagnosis of a run that goes on is believed at once."""


class Judge:
    """Asks the rules about one run. diagnosis: the last one, None before. clock: monotonic, replaced in tests."""

    def __init__(self, name: str, *, share: float = SHARE, clock: Callable[[], float] = time.monotonic) -> None:
        self.diagnosis: Diagnosis | None = None
        self._name = name
        self._pace, self._news = Pace(share=share, clock=clock), News()
        self._sure = False

    def due(self, measured: int, *, sure: bool = False) -> bool:
        """Whether it is time. measured: steps measured in full so far. sure: the run has ended."""
        if sure:
            return not self._sure or measured != self._pace.judged_at
        return self._pace.due(measured)

    def ask(self, run: Run, measured: int, *, sure: bool = False) -> list[Finding]:
        """Judge, and return what is new. sure: tell also what was found only this once."""
        settled = self.diagnosis is None and measured >= SETTLED
        self._pace.begin(measured)
        try:
            self.diagnosis = diagnose(run, name=self._name)
        except BaseException:
            self._pace.fail()
            raise
        self._pace.end()
        self._sure = sure
        return self._news.hear(self.diagnosis.findings, sure=sure or settled)

    def standing(self) -> tuple[tuple[Finding, ...], ...]:
        """The groups of the last diagnosis that count."""
        groups = () if self.diagnosis is None else self.diagnosis.groups
        kept = (tuple(one for one in group if key(one) in self._news.standing) for group in groups)
        return tuple((replace(group[0], explained_by=None), *group[1:]) for group in kept if group)
