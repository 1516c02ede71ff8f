"""Why a balancer moves a weight, or gives up: one sentence, and what it is made of, for every language."""

from __future__ import annotations

from typing import Any

from lossdoctor.messages import text


class Reason(str):
    """The sentence in English. code: of the message `balance.<code>`; params: what fills its holes, plain JSON."""

    __slots__ = ("code", "params")
    code: str
    params: dict[str, Any]


def reason(code: str, **params: Any) -> Reason:
    """The sentence `balance.<code>`."""
    made = Reason(text(f"balance.{code}", **params))
    made.code, made.params = code, params
    return made


def as_data(sentence: str) -> dict[str, Any] | None:
    """`{"code": ..., "params": ...}` of a reason; None of a sentence of a balancer's own."""
    return {"code": sentence.code, "params": sentence.params} if isinstance(sentence, Reason) else None
