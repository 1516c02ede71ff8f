"""Records into a run of MLflow."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.record import Record
from lossdoctor.sinks.alerts import alert
from lossdoctor.sinks.naming import escaped
from lossdoctor.sinks.sink import Sink

# Letters of other alphabets are allowed, colons are not on Windows, and a name is a path that must be in its shortest
# form: no empty part, none of dots alone.
_REFUSED = re.compile(r"[^\w./ -]|^/|/$|/(?=/)|^\.(?=\.)|(?:(?<=/)|^)\.(?=\.?(?:/|$))|[\ud800-\udfff]|\n")
LONGEST = 250
BATCH = 1000
"""Values MLflow takes at once."""
TAG = 5000
"""Characters every store of MLflow takes in a tag."""


class MLflow(Sink):
    """Every metric at its optimizer step and wall clock, findings as tags, events and the report as artifacts.

    run: what `mlflow.start_run()` returned, or a run's id; it stays yours and open. client: the MlflowClient to write
    with, by default one for the tracking URI that is set now. A finding is the tag `lossdoctor.<code>`; events are in
    `lossdoctor/events-<milliseconds>.jsonl`, the page in `lossdoctor/report.html`. MLflow allows letters, digits and
    `_-./ ` in names: other characters are escaped as `-u<hexadecimal code>-`, so `grad_cos/a|b` is `grad_cos/a-u7c-b`
    and `flow/endpt_rmse@8` is `flow/endpt_rmse-u40-8`; `lossdoctor import` reads them back. Names over 250 characters
    are cut. NaN is kept; infinity is the largest float64 in MLflow's databases, which `import` turns back.
    A server that does not answer is tried as often as MLFLOW_HTTP_REQUEST_MAX_RETRIES says, in the background.
    Raises MissingExtraError without mlflow, UsageError for anything but a run.
    """

    def __init__(self, run: Any, *, client: Any = None) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise MissingExtraError("mlflow", "mlflow", "The MLflow sink")
        found = run if isinstance(run, str) else getattr(getattr(run, "info", None), "run_id", None)
        if not isinstance(found, str):
            raise UsageError(
                mismatch(
                    "The MLflow sink writes into a run of yours.",
                    "the run that mlflow.start_run returned, or its id",
                    f"a {type(run).__name__}",
                    "MLflow(mlflow.start_run())",
                )
            )
        if client is None:
            from mlflow import MlflowClient

            client = MlflowClient()
        self._run_id, self._client = found, client
        self._events: list[str] = []
        self._opened = 0

    def open(self, meta: Mapping[str, Any]) -> None:
        """Note when, in milliseconds."""
        self._opened = int(time.time() * 1000)

    def write(self, records: Sequence[Record]) -> None:
        """All values, a thousand at once."""
        from mlflow.entities import Metric

        values = [
            Metric(metric_name(name), float(value), int(record.time * 1000), record.step)
            for record in records
            for name, value in record.values.items()
        ]
        for start in range(0, len(values), BATCH):
            self._client.log_batch(self._run_id, values[start : start + BATCH])

    def event(self, event: Mapping[str, Any]) -> None:
        """A tag for a finding; all else waits for the end."""
        self._events.append(json.dumps(event, default=repr))
        if (told := alert(event)) is not None and "code" in event:
            about = event.get("loss") or event.get("subject")
            key = metric_name(f"lossdoctor.{event['code']}" + (f".{about}" if about else ""))
            self._client.set_tag(self._run_id, key, f"{told.level}: {told.text}"[:TAG])

    def report(self, path: Path) -> None:
        """The page as an artifact."""
        self._client.log_artifact(self._run_id, str(path), "lossdoctor")

    def close(self) -> None:
        """Leave the events as an artifact."""
        if self._events:
            # Other Doctors, before and after, may write into the same run.
            file = f"lossdoctor/events-{self._opened}.jsonl"
            self._client.log_text(self._run_id, "\n".join(self._events) + "\n", file)


def metric_name(name: str) -> str:
    """The name MLflow knows a metric by; `sinks.naming.unescaped` gives ours back."""
    return escaped(name, _REFUSED, LONGEST)
