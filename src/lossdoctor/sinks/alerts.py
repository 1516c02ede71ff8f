"""What of a run's events a tracker should call attention to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LEVELS = {"error": "ERROR", "warning": "WARN", "info": "INFO"}


@dataclass(frozen=True)
class Alert:
    """title: short, the same for the same trouble. text: one sentence. level: "ERROR", "WARN" or "INFO"."""

    title: str
    text: str
    level: str


def alert(event: Mapping[str, Any]) -> Alert | None:
    """The alert for an event: findings, and what is no longer measured. None for all else."""
    if event.get("kind") == "finding":
        about = event.get("loss") or event.get("subject")
        title = f"{event['code']} {event['name']}" + (f" ({about})" if about else "")
        return Alert(title, str(event["message"]), _LEVELS.get(event.get("severity", ""), "WARN"))
    if event.get("kind") == "failure":
        return Alert(f"{event.get('measurement')} is no longer measured", str(event.get("error", "")), "WARN")
    return None
