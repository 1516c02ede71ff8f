"""A fault is one mistake a person makes in a training script; programs have it as a switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Proof = Literal["construction", "hurts"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake, and what must be said of it. The message `fault.<name>` says what it is.

    rules: codes of the rules any of which finds it. causes: codes of the causes any of which names it. proof: wrong by
    construction, or shown to hurt: then `Program.harm` must get worse, or the fault does not count. edits: those of
    `rules.fixes` whose sentence says how to undo just this mistake, or where exactly it sits; a program without the
    mistake is the program after such an edit.
    """

    name: str
    rules: tuple[str, ...]
    causes: tuple[str, ...]
    proof: Proof
    edits: tuple[str, ...] = ()
