"""Which kind of loss a head belongs to, as far as its name tells."""

from __future__ import annotations

from collections.abc import Collection

from lossdoctor.kinds import guess_kind
from lossdoctor.rules.view import RunView

_OF_DISTILLATION = ("prototype", "prototypes", "proj", "projector", "projection")
_LAST = ("head", *_OF_DISTILLATION)
_WORDS = {
    "distill": _OF_DISTILLATION,
    "kl": ("z", "mu", "logvar", "posterior"),
    "velocity": (),
}
"""Whole words of a head's name, besides those that name a loss of the kind."""


def kind_of_head(head: str) -> str | None:
    """The kind of loss that a head's name stands for; None when it stands for none, or for several."""
    kinds = {kind for kind, known in _WORDS.items() if _has(head, known)}
    guessed = guess_kind(head)
    kinds |= {guessed} if guessed != "other" else set()
    return kinds.pop() if len(kinds) == 1 else None


def heads_of(run: RunView, kind: str) -> tuple[str, ...]:
    """The heads of a run that are named for a kind of loss."""
    return tuple(head for head in run.heads if kind_of_head(head) == kind)


def is_last_part(head: str) -> bool:
    """Whether a head's name says that it is the last part of a network, and not a network: flow_head, projector."""
    return _has(head, _LAST)


def _has(head: str, known: Collection[str]) -> bool:
    """Whether one of these is a whole word of the name."""
    words = "".join(c if c.isalnum() else " " for c in head.lower()).split()
    return any(word in known for word in words)
