"""Records as scalars of TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.record import Record
from lossdoctor.sinks.sink import Sink


class TensorBoard(Sink):
    """Every metric as a scalar at its step and wall clock, every event as a text `lossdoctor/<kind>`.

    target: a folder, which gets an event file of its own (needs the extra `lossdoctor[tensorboard]`; MissingExtraError
    without it), or your SummaryWriter, of tensorboardX or torch.utils.tensorboard, which stays yours and open.
    TensorBoard keeps float32, and tensorboardX turns characters not allowed in tags into "_"; the run folder has the
    exact numbers and names.
    """

    def __init__(self, target: str | os.PathLike[str] | Any) -> None:
        self._writer: Any = None
        self._folder: str | None = None
        if isinstance(target, str | os.PathLike):
            try:
                import tensorboardX  # noqa: F401
            except ImportError as error:
                raise MissingExtraError("tensorboardX", "tensorboard", "The TensorBoard sink on a folder") from error
            self._folder = os.fspath(target)
        elif all(callable(getattr(target, method, None)) for method in ("add_scalar", "add_text", "flush")):
            self._writer = target
        else:
            raise UsageError(
                mismatch(
                    "The TensorBoard sink writes into a folder or through a SummaryWriter.",
                    "a path, or an object with add_scalar, add_text and flush",
                    f"a {type(target).__name__}",
                    'TensorBoard("runs/exp1/tb"), or TensorBoard(writer) with your own SummaryWriter',
                )
            )

    def open(self, meta: Mapping[str, Any]) -> None:
        """Create the event file, in case of a folder."""
        if self._folder is not None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(self._folder, max_queue=1000)

    def write(self, records: Sequence[Record]) -> None:
        """One scalar per value."""
        for record in records:
            for name, value in record.values.items():
                self._writer.add_scalar(_tag(name), value, record.step, walltime=record.time)
        self._writer.flush()

    def event(self, event: Mapping[str, Any]) -> None:
        """One text: what the event says in words, if it does, and all of it as indented JSON, shown as it is."""
        said = event.get("message")
        text = f"{said}\n\n    " if isinstance(said, str) else "    "
        text += json.dumps(event, indent=4, default=repr).replace("\n", "\n    ")
        tag = _tag(f"lossdoctor/{event.get('kind', 'event')}")
        self._writer.add_text(tag, text, event.get("step"), walltime=event.get("time"))
        self._writer.flush()

    def close(self) -> None:
        """Close what was created here; a writer of the user's is only flushed."""
        if self._writer is None:
            return
        if self._folder is None:
            self._writer.flush()
        else:
            self._writer.close()


def _tag(name: str) -> str:
    """A tag is UTF-8: a lone surrogate is written escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
