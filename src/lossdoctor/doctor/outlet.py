"""Where numbers and troubles go: the run, the sinks, and one warning for everything that is no longer measured."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lossdoctor.diagnose import diagnose
from lossdoctor.errors import LossDoctorWarning, RunWriteError, UsageError
from lossdoctor.record import Record
from lossdoctor.sinks import Background, Sink
from lossdoctor.store import MemoryWriter, Run, RunWriter
from lossdoctor.store.whole import replace_with


class Outlet:
    """The run folder (or memory) and the sinks of one Doctor, and its policy for failures.

    Training goes on whatever happens: a failing measurement is recorded as an event, warned about once and switched off
    (`off`); a folder that cannot be written leaves the records in memory; a failing sink is closed. strict raises
    instead. Wrong use (UsageError) raises too until the first step is complete: nothing is lost yet, and the person who
    can mend it is still there.

    rank: of a training on several; only rank 0 has sinks and warns, the others write their own run file and events.
    """

    def __init__(
        self,
        run: str | Path | None,
        meta: Mapping[str, Any],
        sinks: Sequence[Sink],
        *,
        resume: bool,
        strict: bool,
        rank: int = 0,
    ) -> None:
        self.step = 0
        self.rank = rank
        self.strict = strict
        self.off: set[str] = set()
        self._told: dict[str, dict[str, Any]] = {}
        self._passed_over: set[tuple[str, str]] = set()
        self._writer = self._open(run, meta, resume)
        self._sinks = [Background(sink, on_failure=self._sink_failed) for sink in (sinks if rank == 0 else ())]
        for sink in self._sinks:
            sink.open(self._writer.run().meta)

    def _open(self, run: str | Path | None, meta: Mapping[str, Any], resume: bool) -> RunWriter | MemoryWriter:
        if run is not None:
            try:
                return RunWriter(run, meta, resume=resume, rank=self.rank, on_failure=self._store_failed)
            except RunWriteError as error:
                if self.strict:
                    raise
                self._store_failed(error)
        return MemoryWriter(meta)

    @property
    def run(self) -> Run:
        """Everything recorded so far."""
        return self._writer.run()

    def deliver(self, records: Sequence[Record]) -> None:
        """Hand records to the run and to every sink; never waits for a disk or a network."""
        if records:
            self._writer.append(records)
            for sink in self._sinks:
                sink.write(records)

    def flush(self) -> None:
        """Bring what is delivered to where it is read; waits for the disk, a second at most."""
        self._writer.flush(timeout=1.0)

    def event(self, kind: str, **fields: Any) -> None:
        """Record that something happened, at the current step."""
        event = self._writer.event(kind, step=self.step, **fields)
        for sink in self._sinks:
            sink.event(event)

    def tell(self, part: str, name: str, value: object) -> None:
        """Note a fact in meta.json the first time it is known."""
        known = self._told.setdefault(part, {})
        if name not in known:
            known[name] = value
            self._writer.update_meta(**{part: dict(known)})

    def told(self, part: str, name: str) -> bool:
        """Whether this fact is noted already."""
        return name in self._told.get(part, ())

    def describe(self, **fields: Any) -> None:
        """Put fields into meta.json."""
        self._writer.update_meta(**fields)

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """The policy above, for one measurement."""
        try:
            yield
        except Exception as error:
            if self.strict or (isinstance(error, UsageError) and self.step == 0):
                raise
            self.failed(what, f"{type(error).__name__}: {error}")

    def pass_over(self, what: str, why: str) -> None:
        """Leave a measurement out of one step, with an event and a warning the first time for this reason."""
        if (what, why) not in self._passed_over:
            self._passed_over.add((what, why))
            self.event("passed_over", measurement=what, reason=why)
            self._warn(f"{what} are not measured, training goes on. Step {self.step}, {why}")

    def failed(self, what: str, why: str) -> None:
        """Switch a measurement off, with an event and a warning."""
        self.off.add(what)
        self.event("failure", measurement=what, error=why)
        self._warn(f"{what} is no longer measured, training goes on. Step {self.step}, {why}")

    def close(self) -> None:
        """Flush and close sinks and run; sinks that take a report get one of a run that is in a folder."""
        self._report()
        for sink in self._sinks:
            sink.close()
            if sink.dropped:
                self._writer.event("dropped", step=self.step, sink=sink.name, count=sink.dropped)
        self._writer.close()

    def _report(self) -> None:
        """Write the report into the folder of the run, for the sinks that take it."""
        takers = [sink for sink in self._sinks if sink.takes_report]
        run = self._writer.run()
        if not takers or run.path is None:
            return
        self._writer.flush(timeout=10.0)
        try:
            from lossdoctor.report.page import page

            path = run.path / "report.html"
            replace_with(path, page(run, diagnose(run)))
        except Exception as error:
            self.failed("report", f"{type(error).__name__}: {error}")
        else:
            for sink in takers:
                sink.report(path)

    def _sink_failed(self, name: str, error: BaseException) -> None:
        self._writer.event("failure", step=self.step, measurement=f"sink {name}", error=repr(error))
        self._warn(f"sink {name} failed and is switched off, training goes on: {error!r}")

    def _store_failed(self, error: BaseException) -> None:
        self._warn(f"the run can no longer be written, training goes on and records stay in memory: {error}")

    def _warn(self, text: str) -> None:
        if self.rank == 0:
            warnings.warn(f"lossdoctor: {text}", LossDoctorWarning, stacklevel=4)
