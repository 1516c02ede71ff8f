"""Diagnosis while the training runs: rules are asked again in the background, and what is new is told once."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.diagnose.diagnosis import headline
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.rounds import SHARE, Key, News, Pace, key
from lossdoctor.rules import Finding
from lossdoctor.rules.view import LEAST
from lossdoctor.store import Run

FIRST = 0.2
"""Seconds the first diagnosis is expected to take, so that it comes after 20 s. docs/log.md, 10."""

_log = logging.getLogger("lossdoctor")


class LiveDiagnosis:
    """Asks the rules about a growing run, on a thread of its own.

    A finding is told once, when it first counts (see `News`). `news` gives what is new, on the caller's thread. tell:
    called with every new finding on the worker's thread, to record it. failed: called once if the diagnosis itself
    fails; then it stops. share: of the time since the beginning; clock: monotonic, replaced in tests.
    """

    def __init__(
        self,
        run: Callable[[], Run],
        tell: Callable[[Finding], None],
        failed: Callable[[Exception], None],
        *,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._tell, self._failed = run, tell, failed
        self._measured = 0
        self._pace, self._heard = Pace(share=share, first=FIRST, clock=clock), News()
        self._told: set[Key] = set()
        self._news: queue.SimpleQueue[Finding] = queue.SimpleQueue()
        self._due = threading.Semaphore(0)
        self._ended = False
        self._worker: threading.Thread | None = None

    def measured(self) -> None:
        """One more step was measured in full. Costs a comparison, unless it is time for a diagnosis."""
        self._measured += 1
        if not self._ended and self._pace.due(self._measured):
            self._pace.begin(self._measured)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="lossdoctor-diagnosis", daemon=True)
                self._worker.start()
            self._due.release()

    def news(self) -> list[Finding]:
        """What was found since the last call."""
        found = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    def close(self) -> list[Finding]:
        """End the worker, judge the whole run once more, and return what is new: now once is enough."""
        self._ended = True
        if self._worker is not None:
            self._due.release()
            self._worker.join()
        if self._measured >= LEAST:
            self._judge(sure=True)
        return self.news()

    def _work(self) -> None:
        while True:
            self._due.acquire()
            if self._ended:
                return
            self._judge(sure=False)
            self._pace.end()

    def _judge(self, *, sure: bool) -> None:
        try:
            self._compare(diagnose(self._run()), sure=sure)
        except Exception as error:  # a fault in the doctor never stops a training
            self._ended = True
            self._failed(error)

    def _compare(self, diagnosis: Diagnosis, *, sure: bool) -> None:
        serious = (finding for finding in diagnosis.findings if finding.severity != "info")
        for finding in self._heard.hear(serious, sure=sure):
            if key(finding) not in self._told:  # one that went and came again is no news to who was told
                self._told.add(key(finding))
                self._tell(finding)
                self._news.put(finding)
                _log.warning("%s %s: %s", finding.code, finding.name, finding.message)


class Alerts:
    """The findings of a LiveDiagnosis, handed on: as events of the run and the sinks, and to the user's `on_finding`.

    Events are written by the worker; on_finding is called in the training thread, after a step.
    """

    def __init__(self, out: Outlet, on_finding: Callable[[Finding], object] | None) -> None:
        self._out, self._on_finding = out, on_finding
        self._live = LiveDiagnosis(lambda: out.run, self._found, self._live_failed)

    def measured(self) -> None:
        """One more step was measured in full."""
        self._live.measured()
        self._hand_on(self._live.news())

    def close(self) -> None:
        """Judge what is recorded once more; all of it is delivered."""
        self._out.flush()
        self._hand_on(self._live.close())

    def _found(self, finding: Finding) -> None:
        self._out.event("finding", **headline(finding, "en"))

    def _live_failed(self, error: Exception) -> None:
        self._out.event("failure", measurement="live diagnosis", error=f"{type(error).__name__}: {error}")

    def _hand_on(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if self._on_finding is not None and "on_finding" not in self._out.off:
                with self._out.guard("on_finding"):
                    self._on_finding(finding)
