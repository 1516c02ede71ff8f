"""What a sink is. Write your own by deriving from `Sink`: only `write` is needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lossdoctor.record import Record


class Sink(ABC):
    """Somewhere records go. Used through `Background`: from one thread, in batches, in order.

    Any method may be slow or raise: training does not notice, a sink that raises is switched off. What a sink was given
    by the user, such as a tracker's own run object, stays the user's: never finished or closed here.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def open(self, meta: Mapping[str, Any]) -> None:  # noqa: B027 - most sinks need only some of these
        """Begin. meta: what is known of the run, as plain JSON. Called once, before anything else."""

    @abstractmethod
    def write(self, records: Sequence[Record]) -> None:
        """Take records, oldest first, and bring them where they are seen. NaN and infinity are among their values."""

    def event(self, event: Mapping[str, Any]) -> None:  # noqa: B027
        """Take one event, plain JSON: `kind`, `time` in seconds since the epoch, mostly `step`. By default ignored."""

    def report(self, path: Path) -> None:  # noqa: B027
        """Take the report of the finished run, an HTML file. Called once, before `close`, if it is overridden."""

    def close(self) -> None:  # noqa: B027
        """End. Called once, also after a failure of another method."""
