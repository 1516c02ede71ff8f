"""Records into a run of SwanLab."""

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

_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|^[ ./]|[ ./]$")
LONGEST = 255


class SwanLab(Sink):
    """Every metric at its optimizer step, findings as texts `lossdoctor/<level>`, the report as `lossdoctor/report`.

    run: what `swanlab.init(...)` returned; it stays yours and open. Close the Doctor before you finish it. Steps are
    given with every row; rows you log without a step go on after the highest one. Control characters, and blanks, dots
    and slashes at the ends of a name, which SwanLab refuses or cuts off, are escaped as `-u<hexadecimal code>-`; names
    over 255 characters are cut. NaN and infinity are handed on as they are. Negative steps are not kept by SwanLab.
    Raises MissingExtraError without swanlab, UsageError for anything but a run.
    """

    def __init__(self, run: Any) -> None:
        if importlib.util.find_spec("swanlab") is None:
            raise MissingExtraError("swanlab", "swanlab", "The SwanLab sink")
        if not all(callable(getattr(run, method, None)) for method in ("log", "log_text", "log_html")):
            raise UsageError(
                mismatch(
                    "The SwanLab sink writes into a run of yours.",
                    "the run that swanlab.init returned",
                    f"a {type(run).__name__}",
                    "SwanLab(swanlab.init(project=...))",
                )
            )
        self._run = run
        self._last = 0

    def write(self, records: Sequence[Record]) -> None:
        """One row per record."""
        for record in records:
            values = {escaped(name, _REFUSED, LONGEST): float(v) for name, v in record.values.items()}
            self._run.log(values, step=record.step)
            self._last = max(self._last, record.step)

    def event(self, event: Mapping[str, Any]) -> None:
        """A text: SwanLab has no alerts of a run."""
        if (told := alert(event)) is not None:
            key = f"lossdoctor/{told.level.lower()}"
            self._run.log_text(key=key, data=told.text, caption=told.title, step=event.get("step"))

    def report(self, path: Path) -> None:
        """The page as it is, at the last step."""
        self._run.log_html(key="lossdoctor/report", data=path, step=self._last)
