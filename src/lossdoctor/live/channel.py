"""What passes between runs and the pages that look at them: numbered messages, remembered a while, queued for each."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

QUEUE = 32
"""Messages that wait for one page; then they are dropped and the page gets everything anew."""
REMEMBERED = 128
"""Messages of one run that a page which was away can still get."""


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event; seq: its number, 0 for one that a page need not remember."""

    seq: int
    event: str
    data: str

    def wire(self, epoch: str) -> bytes:
        """As it goes over the wire."""
        number = f"id: {epoch}-{self.seq}\n" if self.seq else ""
        return f"{number}event: {self.event}\ndata: {self.data}\n\n".encode("utf-8", "replace")


@dataclass(slots=True)
class Channel:
    """What was told of one topic. floor: the number of the last message that is no longer known.

    parts: of the page of a run, made at judged_at, when so many steps were measured and the answers had this stamp.
    """

    floor: int
    ring: deque[Message] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    parts: dict[str, str] = field(default_factory=dict)
    told_state: dict[str, Any] = field(default_factory=dict)
    judged_at: float = 0.0
    measured: int = -1
    answered: tuple[int, ...] = ()
    left: float = 0.0


class Subscriber:
    """One open page."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)
        self.stale, self.gone = True, False
        self.queue: deque[Message] = deque()
        self.wake = asyncio.Event()

    def put(self, message: Message) -> None:
        """A message to send; too many, and the page gets everything anew instead."""
        if len(self.queue) >= QUEUE:
            self.spoil()
        elif not self.stale:
            self.queue.append(message)
        self.wake.set()

    def spoil(self) -> None:
        """What this page has is not to be built upon."""
        self.queue.clear()
        self.stale = True
        self.wake.set()


def as_json(told: Any) -> str:
    """On one line, and strict: a browser knows no NaN."""
    return json.dumps(told, allow_nan=False, separators=(",", ":"))
