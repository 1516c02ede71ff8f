"""What a balancer did to a run, from its events: every change with its reason, its prediction and its outcome."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lossdoctor.messages import keys
from lossdoctor.rules.finding import Message, say


@dataclass(frozen=True, slots=True)
class Receipt:
    """One change. factors: loss to the factor on its weight before and after, of the losses whose factor moved.

    reasons: loss to why; predicted: loss to how fast it falls along the new gradient over how fast along the old one.
    verdict: "kept" or "rolled back", None before it is judged. measured: loss to its value before and then. hurt: the
    losses for which it was rolled back.
    """

    step: int
    balancer: str
    factors: dict[str, tuple[float, float]]
    reasons: dict[str, Message | str]
    predicted: dict[str, float]
    verdict: str | None = None
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)
    hurt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Treated:
    """What was done to a run. stopped: the step, and why nothing is changed any more; None while it works.

    waits: loss to the step from which on it is left as it is although it should move, and why; those that still are.
    """

    balancer: str
    receipts: tuple[Receipt, ...] = ()
    stopped: tuple[int, Message | str] | None = None
    waits: Mapping[str, tuple[int, Message | str]] = field(default_factory=dict)

    def count(self, verdict: str | None) -> int:
        """The changes with this verdict."""
        return sum(one.verdict == verdict for one in self.receipts)


def treated(events: Iterable[Mapping[str, Any]], name: str | None = None) -> Treated | None:
    """From the events of a run, whatever is in them; None for a run that no balancer took part in.

    name: of the balancer, where the run tells of one although it changed nothing.
    """
    receipts: list[Receipt] = []
    stopped, waits = None, dict[str, tuple[int, Message | str]]()
    for event in events:
        match event.get("kind"):
            case "balance":
                receipts.append(_receipt(event))
            case "balance_outcome" if receipts:
                receipts[-1] = _judged(receipts[-1], event)
            case "balance_stopped":
                stopped = _since(event)
            case "balance_waits":
                waits[str(event.get("loss"))] = _since(event)
            case "balance_waited":
                waits.pop(str(event.get("loss")), None)
            case _:
                continue
        name = str(event.get("balancer") or name or "?")
    return None if name is None else Treated(name, tuple(receipts), stopped, waits)


def words(told: Message | str, lang: str) -> str:
    """A reason in a language; one of a balancer's own as it is."""
    return told.text(lang) if isinstance(told, Message) else told


def to_json(one: Treated | None, lang: str) -> dict[str, Any] | None:
    """As plain JSON, texts in `lang`."""
    if one is None:
        return None
    return {
        "balancer": one.balancer,
        "changes": [
            {
                "step": receipt.step,
                "factors": {
                    loss: {"before": before, "after": after} for loss, (before, after) in receipt.factors.items()
                },
                "reasons": {loss: words(why, lang) for loss, why in receipt.reasons.items()},
                "predicted": receipt.predicted,
                "measured": {
                    loss: {"before": before, "after": after} for loss, (before, after) in receipt.measured.items()
                },
                "verdict": receipt.verdict,
                "hurt": list(receipt.hurt),
            }
            for receipt in one.receipts
        ],
        "stopped": None if one.stopped is None else {"step": one.stopped[0], "reason": words(one.stopped[1], lang)},
        "waits": {loss: {"step": step, "reason": words(why, lang)} for loss, (step, why) in one.waits.items()},
    }


def _receipt(event: Mapping[str, Any]) -> Receipt:
    why, plain = _mapping(event.get("why")), _mapping(event.get("reasons"))
    moved = {loss: pair for loss, pair in _pairs(event.get("before"), event.get("after")).items() if pair[0] != pair[1]}
    return Receipt(
        step=_step(event),
        balancer=str(event.get("balancer") or "?"),
        factors=moved,
        reasons={loss: _sentence(why.get(loss), plain.get(loss)) for loss in moved if loss in why or loss in plain},
        predicted=_numbers(event.get("predicted")),
    )


def _judged(receipt: Receipt, event: Mapping[str, Any]) -> Receipt:
    if receipt.verdict is not None:
        return receipt
    verdict = event.get("verdict")
    return replace(
        receipt,
        verdict=verdict if verdict in ("kept", "rolled back") else None,
        measured=_pairs(event.get("losses_before"), event.get("losses_after")),
        hurt=tuple(str(loss) for loss in event.get("hurt") or ()),
    )


def _since(event: Mapping[str, Any]) -> tuple[int, Message | str]:
    return _step(event), _sentence(event.get("why"), event.get("reason"))


def _sentence(data: Any, plain: Any) -> Message | str:
    """A run may come from another version: a sentence that is not known is told as it was written."""
    code = f"balance.{_mapping(data).get('code')}"
    if code in keys():
        told = say(code, **_mapping(_mapping(data).get("params")))
        with contextlib.suppress(KeyError, ValueError):
            told.text()
            return told
    return "?" if plain is None else str(plain)


def _pairs(before: Any, after: Any) -> dict[str, tuple[float, float]]:
    first, then = _numbers(before), _numbers(after)
    return {loss: (first[loss], then[loss]) for loss in first if loss in then}


def _numbers(told: Any) -> dict[str, float]:
    numbers = {str(name): value for name, value in _mapping(told).items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _mapping(told: Any) -> Mapping[str, Any]:
    return told if isinstance(told, Mapping) else {}


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step")
    return int(step) if isinstance(step, (int, float)) else 0
