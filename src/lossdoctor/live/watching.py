"""A run as the terminal shows it: opened when it is there, read anew at each look, judged at most 1 % of the time."""

from __future__ import annotations

from pathlib import Path

from lossdoctor.errors import RunError
from lossdoctor.live.judging import Judge
from lossdoctor.report.frame import Sight
from lossdoctor.report.pulse import Pulse, pulse
from lossdoctor.report.thin import ThinRun, glance
from lossdoctor.rules import Finding
from lossdoctor.store import Following


class Watched:
    """One run, look by look. `sight` is what was seen last; `look` returns the findings that are new.

    A run that is not there yet is waited for; one that was deleted is `deleted` until another is in its place.
    """

    def __init__(self, path: Path, judge: Judge | None = None) -> None:
        self._path = path
        self._judge = judge or Judge(str(path))
        self._open: Following | None = None
        self.sight = Sight(str(path), Pulse("absent"))

    def look(self, *, sure: bool = False) -> list[Finding]:
        """See what there is now. sure: judge at once, and count what was found only once."""
        try:
            return self._look(sure=sure)
        except RunError as error:
            gone = self._open is not None and not self._open.there
            self.close()
            if gone:
                self._mark(Pulse("deleted"))
            elif (self._path / "run.db").exists():
                self._mark(_begins(error))
            elif self.sight.pulse.state != "deleted":
                self._mark(Pulse("absent"))
            return []

    def close(self) -> None:
        """Give the file back."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _look(self, *, sure: bool) -> list[Finding]:
        if self._open is not None and not self._open.there:
            self.close()
            self._mark(Pulse("deleted"))
            return []
        if self._open is None:
            self._open = Following(self._path)
            if self.sight.pulse.state == "deleted":
                self._judge = Judge(str(self._path))
                self.sight = Sight(self.sight.name, Pulse("empty"))
        run = ThinRun(self._open.run)
        beat = pulse(run)
        measured = len(run.steps)
        sure = sure or beat.state == "ended"
        fresh: list[Finding] = []
        judged = self.sight.judged
        if len(run) and self._judge.due(measured, sure=sure):
            fresh = self._judge.ask(run, measured, sure=sure)
            judged = self._judge.diagnosis.steps if self._judge.diagnosis and self._judge.diagnosis.judged else None
        digest = glance(run) if len(run) else None
        self.sight = Sight(self.sight.name, beat, digest, self._judge.standing(), judged)
        return fresh

    def _mark(self, beat: Pulse) -> None:
        """Another state, with what was seen last."""
        before = self.sight
        self.sight = Sight(before.name, beat, before.digest, before.findings, before.judged)


def _begins(error: RunError) -> Pulse:
    """A file that is there and no run yet is empty for a moment; else it says what is wrong with it."""
    told = str(error)
    return Pulse("empty") if told.startswith("The run file is empty") else Pulse("unreadable", why=told.splitlines()[0])
