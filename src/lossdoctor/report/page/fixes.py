"""Which fix helps: what experiments said of each finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lossdoctor.report.page.markup import each_language, element, escaped, say, table
from lossdoctor.rules.finding import Message

STYLES = {"yes": "good", "no": "bad", "undecided": "unsure", "confirmed": "bad", "withdrawn": "good"}


def fixes(found: Mapping[str, Any], heading: str = "h2") -> Iterator[str]:
    """Every finding with its verdict and its arms; nothing for answers that are not about fixes."""
    if "fixes" not in found:
        return
    yield element(heading, say("page.fixes"))
    if not found["fixes"]:
        yield element("p", say("ablate.nothing_to_fix"), class_="good")
    yield from map(_proof, found["fixes"])


def _proof(proof: Mapping[str, Any]) -> str:
    about = ", ".join(str(proof[name]) for name in ("loss", "subject") if proof[name])
    head = (
        element("span", escaped(proof["code"]), class_="code")
        + element("span", escaped(proof["name"]), class_="name")
        + (element("span", escaped(about), class_="subject") if about else "")
        + answer(f"certainty.{proof['certainty']}", proof["certainty"])
    )
    body = element("p", _sentence(proof, "message"), class_="sentence")
    body += element("p", say("ablate.seen", seen=proof["seen"], seeds=proof["seeds"]), class_="quiet")
    rows = [_tried(one) for one in proof["tried"]]
    head_row = [say(f"ablate.column.{name}") for name in ("arm", "removed", "beside")]
    body += table(head_row, rows, "stack") if rows else element("p", say("ablate.none_tried"), class_="quiet")
    best = next((one for one in proof["tried"] if one["helps"] and one["text"]), None)
    if best is not None:
        body += element("p", element("strong", say("page.do")) + " " + _sentence(best, "text"))
    if proof["by_hand"]:
        edits = "".join(element("li", _sentence(edit, "text")) for edit in proof["by_hand"])
        body += element("h3", say("ablate.by_hand")) + element("ul", edits)
    level = "error" if proof["certainty"] == "confirmed" else "info"
    return element("details", element("summary", head) + body, class_=f"finding {level}", open="open")


def _tried(one: Mapping[str, Any]) -> list[str]:
    key = "ablate.helps" if one["helps"] else "ablate.removes" if one["removed"] else "ablate.leaves"
    verdict = element(
        "span", say(key, removed=one["removed"], pairs=one["pairs"]), class_="good" if one["helps"] else None
    )
    beside = [say(f"ablate.{name}", names=", ".join(one[name])) for name in ("alarms", "better", "worse") if one[name]]
    return [element("code", escaped(one["arm"])), verdict, "<br>".join(beside)]


def noted(events: list[dict[str, Any]]) -> str:
    """What the events of a run say, without the answers they came from."""
    last = {
        " ".join(str(event[part]) for part in ("code", "loss", "subject") if event.get(part)): event for event in events
    }
    rows = []
    for about, event in last.items():
        word = str(event.get("certainty"))
        known = word if word in ("suspected", "likely", "confirmed", "withdrawn") else "suspected"
        seen = say("ablate.seen", seen=_count(event.get("seen")), seeds=_count(event.get("seeds")))
        arm = element("code", escaped(event["arm"])) if event.get("arm") else ""
        rows.append([escaped(about), answer(f"certainty.{known}", known), seen, arm])
    head = [say("page.finding"), say("ablate.column.answer"), say("page.seen"), say("page.helps")]
    return table(head, rows)


def answer(key: str, verdict: str) -> str:
    """A verdict as a word in its colour. key: of the word."""
    return element("span", say(key), class_=f"answer {STYLES.get(verdict, 'quiet')}")


def _sentence(told: Mapping[str, Any], name: str) -> str:
    """In every language, where what it is made of is known here; else as it was written."""
    made: Any = told.get("say")

    def in_language(lang: str) -> str:
        try:
            return Message(str(made["key"]), dict(made["params"])).text(lang)
        except Exception:  # of another version, or with numbers that JSON does not have
            return str(told[name])

    return each_language(in_language if made else lambda lang: str(told[name]))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
