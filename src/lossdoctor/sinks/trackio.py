"""Records into a run of Trackio."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.record import Record
from lossdoctor.sinks.alerts import alert
from lossdoctor.sinks.naming import escaped
from lossdoctor.sinks.sink import Sink

_REFUSED = re.compile(r"^(?:(?=(?:project|run|timestamp|step|time|metrics)$).|_(?=_))|[\ud800-\udfff]", re.DOTALL)
"""First characters of the names Trackio keeps for itself, and what UTF-8 cannot hold."""

LONGEST = 10_000


class Trackio(Sink):
    """Every metric at its optimizer step, findings as alerts, the report as `lossdoctor/report`.

    run: what `trackio.init(...)` returned; it stays yours and open. Close the Doctor before you finish it. Steps are
    given with every row, so that yours do not matter; rows you log without a step go on after the highest one. The few
    names that Trackio keeps for itself are escaped as `-u73-tep` for `step`. NaN and infinity are kept as "NaN",
    "Infinity" and "-Infinity". Trackio gives rows its own time, a moment later.
    Raises MissingExtraError without trackio, UsageError for anything but a run.
    """

    def __init__(self, run: Any) -> None:
        if importlib.util.find_spec("trackio") is None:
            raise MissingExtraError("trackio", "trackio", "The Trackio sink")
        if not all(callable(getattr(run, method, None)) for method in ("log", "alert")):
            raise UsageError(
                mismatch(
                    "The Trackio sink writes into a run of yours.",
                    "the run that trackio.init returned",
                    f"a {type(run).__name__}",
                    "Trackio(trackio.init(project=...))",
                )
            )
        self._run = run
        self._last = 0

    def write(self, records: Sequence[Record]) -> None:
        """One row per record."""
        for record in records:
            self._run.log({escaped(name, _REFUSED, LONGEST): v for name, v in record.values.items()}, step=record.step)
            self._last = max(self._last, record.step)

    def event(self, event: Mapping[str, Any]) -> None:
        """An alert, which Trackio also prints and sends to its webhook."""
        if (told := alert(event)) is not None:
            from trackio import AlertLevel

            self._run.alert(told.title, told.text, level=AlertLevel[told.level], step=event.get("step"))

    def report(self, path: Path) -> None:
        """The page as it is, at the last step."""
        from trackio import Html

        self._run.log({"lossdoctor/report": Html(str(path), inject=False)}, step=self._last)
