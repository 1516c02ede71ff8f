"""What preflight has found, as events of a run, and back: curves cannot show it, and no later diagnosis loses it.

One event for every rule that preflight asked: `code`, `outcome` ("fired", "clear", "skipped"), `causes` and, where it
fired, `findings` as plain JSON. Of several the last counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from lossdoctor.rules.finding import (
    CERTAINTIES,
    DEPTHS,
    SEVERITIES,
    Cause,
    Clear,
    Evidence,
    Finding,
    Fired,
    Fix,
    Message,
    Outcome,
    Reach,
)
from lossdoctor.rules.rule import Rule

KIND = "preflight"
_UNWRITTEN = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""What `store.plain` writes for numbers that JSON does not have."""


def events_of(findings: Sequence[Finding], clear: Iterable[str], skipped: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The fields of the events that keep a diagnosis of preflight; their kind is KIND."""
    fired: dict[str, list[Finding]] = {}
    for finding in findings:
        fired.setdefault(finding.code, []).append(finding)
    for code, own in fired.items():
        causes = list(dict.fromkeys(cause.code for finding in own for cause in finding.causes))
        yield {"code": code, "outcome": "fired", "causes": causes, "findings": [asdict(finding) for finding in own]}
    yield from ({"code": code, "outcome": "clear"} for code in clear)
    yield from ({"code": code, "outcome": "skipped"} for code in skipped)


def with_preflight(
    outcomes: Mapping[str, tuple[Rule, Outcome]], events: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[Rule, Outcome]]:
    """The outcomes of a run, with what preflight noted in it: its findings beside those of the curves, and clear rules
    that the curves alone could not judge. What cannot be read back is passed over."""
    told = {str(event.get("code")): event for event in events if event.get("kind") == KIND}
    joined = dict(outcomes)
    for code, event in told.items():
        if code not in outcomes:
            continue
        rule, own = outcomes[code]
        found = [finding for one in _listed(event.get("findings")) if (finding := _read(rule, one)) is not None]
        if event.get("outcome") == "fired" and found:
            known = {(finding.loss, finding.subject) for finding in found}
            # A rule that needs nothing measured has said no more than that there is such an event.
            others = own.findings if isinstance(own, Fired) and rule.needs else ()
            kept = (one for one in others if (one.loss, one.subject) not in known)
            joined[code] = (rule, Fired((*found, *kept), () if not isinstance(own, (Fired, Clear)) else own.p))
        elif event.get("outcome") == "clear" and not isinstance(own, (Fired, Clear)):
            joined[code] = (rule, Clear())
    return joined


def _read(rule: Rule, told: Any) -> Finding | None:
    try:
        finding = Finding(
            rule.code,
            rule.name,
            _among(SEVERITIES, told["severity"]),
            _among(CERTAINTIES, told["certainty"]),
            _among(DEPTHS, told["depth"]),
            _message(told["message"]),
            evidence=tuple(_evidence(one) for one in told["evidence"]),
            causes=tuple(Cause(str(one["code"]), _params(one["params"])) for one in told["causes"]),
            fixes=tuple(_fix(one) for one in told["fixes"]),
            loss=_optional(told["loss"]),
            subject=_optional(told["subject"]),
            confirm=_optional(told["confirm"]),
        )
        messages = [finding.message, *(cause.message for cause in finding.causes)]
        for message in (*messages, *(fix.message for fix in finding.fixes)):
            message.text("en")
    except Exception:  # written by another version, or by hand
        return None
    return finding


def _message(told: Any) -> Message:
    return Message(str(told["key"]), _params(told["params"]))


def _params(told: Any) -> dict[str, Any]:
    return {
        str(name): _UNWRITTEN.get(value, value) if isinstance(value, str) else value for name, value in told.items()
    }


def _evidence(told: Any) -> Evidence:
    value, threshold = (_UNWRITTEN.get(told[name], told[name]) for name in ("value", "threshold"))
    steps = (None if told[name] is None else int(told[name]) for name in ("first_step", "last_step"))
    return Evidence(str(told["metric"]), float(value), None if threshold is None else float(threshold), *steps)


def _fix(told: Any) -> Fix:
    reach: Reach = _among(get_args(Reach), told["reach"])
    return Fix(str(told["action"]), str(told["target"]), dict(told["params"]), reach, _message(told["message"]))


def _among(known: Sequence[Any], told: Any) -> Any:
    if told not in known:
        raise ValueError(told)
    return told


def _optional(told: Any) -> str | None:
    return None if told is None else str(told)


def _listed(told: Any) -> list[Any]:
    return told if isinstance(told, list) else []
