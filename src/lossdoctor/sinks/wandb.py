"""Records into a run of Weights & Biases."""

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

AXIS = "lossdoctor/step"
"""The metric all others are drawn over: the optimizer step."""
_REFUSED = re.compile(r"^_|\*|[\ud800-\udfff]")
LONGEST = 10_000
TITLE = 64
"""Characters an alert's title may have."""


class WandB(Sink):
    """Every metric over `lossdoctor/step`, findings as alerts, the report as `lossdoctor/report` and as an artifact.

    run: what `wandb.init(...)` returned; it stays yours and open. Close the Doctor before you finish it. Rows have no
    step of W&B's: each moves its counter on by one. If you call `run.log(..., step=n)` yourself, W&B drops what comes
    below that counter; then use an axis of your own as well, or give this sink a second run
    (`wandb.init(reinit="create_new", group=...)`). Names stay as they are, but for stars and a leading underscore,
    which are escaped as `-u2a-` and `-u5f-`. NaN and infinity are kept by W&B as "NaN", "Infinity" and "-Infinity".
    Raises MissingExtraError without wandb, UsageError for anything but a run.
    """

    def __init__(self, run: Any) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise MissingExtraError("wandb", "wandb", "The W&B sink")
        if not all(callable(getattr(run, method, None)) for method in ("log", "define_metric", "alert")):
            raise UsageError(
                mismatch(
                    "The W&B sink writes into a run of yours.",
                    "the run that wandb.init returned",
                    f"a {type(run).__name__}",
                    "WandB(wandb.init(project=...))",
                )
            )
        self._run = run
        self._known: set[str] = set()

    def open(self, meta: Mapping[str, Any]) -> None:
        """Define the axis."""
        self._run.define_metric(AXIS, hidden=True)

    def write(self, records: Sequence[Record]) -> None:
        """One row per record, under the wall clock of its step."""
        for record in records:
            values = {escaped(name, _REFUSED, LONGEST): value for name, value in record.values.items()}
            for name in values.keys() - self._known:
                self._run.define_metric(name.replace(".", "\\."), step_metric=AXIS)
                self._known.add(name)
            self._run.log({**values, AXIS: record.step, "_timestamp": record.time})

    def event(self, event: Mapping[str, Any]) -> None:
        """An alert, which W&B sends to your mail or chat as you told it to."""
        if (told := alert(event)) is not None:
            self._run.alert(title=told.title[:TITLE], text=told.text, level=told.level)

    def report(self, path: Path) -> None:
        """The page among the run's media, and as a file of an artifact."""
        import wandb

        self._run.log({"lossdoctor/report": wandb.Html(str(path), inject=False)})
        artifact = wandb.Artifact(f"lossdoctor-report-{self._run.id}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
