"""What experiments have shown: a section of the page of a run, and the page of an ablation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lossdoctor import __version__
from lossdoctor.arms import BASELINE
from lossdoctor.report.effects import largest
from lossdoctor.report.page.document import document, header
from lossdoctor.report.page.encoding import packed
from lossdoctor.report.page.fixes import STYLES, answer, fixes, noted
from lossdoctor.report.page.interval import interval
from lossdoctor.report.page.markup import element, escaped, say, table
from lossdoctor.report.wording import number
from lossdoctor.store import Run

SCHEMA = "lossdoctor/effects@1"
ANSWERS = "effects.json"
"""The answers of an ablation, in its folder and in that of the run whose findings were tried."""


def experiments(run: Run) -> str:
    """The section of a run: the answers that lie in its folder, else what its events say. Empty when nothing is there.

    Answers that cannot be read are told as such.
    """
    path = None if run.path is None else Path(run.path) / ANSWERS
    if path is not None and path.is_file():
        try:
            return answers(json.loads(path.read_bytes()), heading="h3")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return element("p", say("page.unreadable", path=ANSWERS), class_="quiet")
    events = [event for event in run.events if event.get("kind") == "experiment"]
    return noted(events) if events else ""


def ablation_page(found: Mapping[str, Any], lang: str) -> str:
    """A document of its own. found: `lossdoctor/effects@1`, see `Ablation.as_json`."""
    command = " ".join(found["command"])
    seeds = max((len(arm["seeds"]) for arm in found["arms"]), default=0)
    told = element("h1", escaped(command)) + _verdict(found)
    told += element("p", say("page.extent", steps=found["steps"], seeds=seeds, arms=len(found["arms"])), class_="quiet")
    links = [(say("page.experiments"), "experiments"), (say("page.facts"), "facts")]
    facts = [(say("page.command"), escaped(command)), ("lossdoctor", escaped(__version__))]
    told_facts = element("dl", "".join(element("dt", name) + element("dd", value) for name, value in facts))
    sections = [
        element("section", answers(found), id="experiments"),
        element("section", element("h2", say("page.facts")) + told_facts, id="facts"),
    ]
    places, curves = packed((), 0)
    return document(command, lang, header(lang, told, links), sections, places=places, curves=curves)


def answers(found: Mapping[str, Any], heading: str = "h2") -> str:
    """Fixes, expectations and effects, each where there are any. heading: of each, below that of the section if it has
    one. Raises KeyError and the like for another schema."""
    if found["schema"] != SCHEMA:
        raise ValueError(found["schema"])
    return "".join(line for part in (fixes, _expectations, _effects, _remarks) for line in part(found, heading))


def _verdict(found: Mapping[str, Any]) -> str:
    if "fixes" in found:
        words = [proof["certainty"] for proof in found["fixes"]]
        counts = {word: words.count(word) for word in ("confirmed", "withdrawn")}
        style = "error" if counts["confirmed"] else "good"
        return element("p", say("page.proved", all=len(words), **counts), class_=f"verdict {style}")
    words = [one["verdict"] for one in found["expectations"]]
    counts = {word: words.count(word) for word in ("yes", "no", "undecided")}
    style = "error" if counts["no"] else "warning" if counts["undecided"] else "good"
    return element("p", say("page.met", all=len(words), **counts), class_=f"verdict {style}" if words else "quiet")


# What must be shown, and what was seen


def _expectations(found: Mapping[str, Any], heading: str) -> Iterator[str]:
    if "fixes" in found and not found["expectations"]:
        return
    yield element(heading, say("ablate.expectations"))
    if not found["expectations"]:
        yield element("p", say("ablate.none_expected"), class_="quiet")
        return
    rows = []
    for one in found["expectations"]:
        effect = one["effect"]
        sides = "" if effect is None else f"{number(effect['baseline'])} → {number(effect['arm'])}"
        asked = say(f"expect.{one['key']}")
        between = "" if effect is None else interval(effect)
        rows.append(
            [
                element("code", escaped(one["arm"])),
                asked,
                element("span", escaped(sides), class_="whole"),
                between,
                _answer(one),
            ]
        )
    yield table(
        [say(f"ablate.column.{name}") for name in ("arm", "question", "values", "interval", "answer")], rows, "stack"
    )


def _answer(one: Mapping[str, Any]) -> str:
    effect, verdict = one["effect"], one["verdict"]
    if effect is None:
        return element("span", say("ablate.not_measured"), class_="quiet")
    needed = effect["pairs_needed"]
    if verdict == "undecided" and needed and needed > effect["pairs"]:
        return element("span", say("ablate.more_seeds", n=needed), class_=STYLES[verdict])
    return answer(f"ablate.verdict.{verdict}", verdict)


def _effects(found: Mapping[str, Any], heading: str) -> Iterator[str]:
    arms = [arm for arm in found["arms"] if arm["arm"] != BASELINE and arm["effects"]]
    if not arms:
        return
    yield element(heading, say("ablate.effects"))
    for arm in arms:
        told, whole = largest(arm["effects"]), list(arm["effects"].items())
        head = element("span", escaped(arm["arm"]), class_="code")
        head += element("span", say("page.clear_effects", n=len(told), seeds=len(arm["seeds"])), class_="certainty")
        body = _rows(told) if told else element("p", say("ablate.no_effects"), class_="quiet")
        rest = element("summary", say("page.all_effects", n=len(whole))) + _rows(whole)
        body += element("details", rest, class_="rest")
        yield element("details", element("summary", head) + body, class_="others", open="open" if told else None)


def _rows(effects: list[tuple[str, Mapping[str, Any]]]) -> str:
    head = [say("column.metric")]
    head += [say(f"ablate.column.{name}") for name in ("baseline", "difference", "interval", "p")]
    rows = [
        [
            element("code", escaped(name)),
            escaped(number(one["baseline"])),
            escaped(f"{'+' if one['difference'] > 0 else ''}{number(one['difference'])}"),
            interval(one),
            escaped(number(one["p"], digits=2)),
        ]
        for name, one in effects
    ]
    return table(head, rows, class_="effects")


def _remarks(found: Mapping[str, Any], heading: str) -> Iterator[str]:
    seeds = max((len(arm["seeds"]) for arm in found["arms"]), default=0)
    said = [
        "ablate.one_seed" if seeds == 1 else "",
        "" if found["seeded"] else "ablate.unseeded",
        "ablate.alike" if found.get("alike") else "",
        "" if found["conditioned"] or "fixes" in found else "ablate.unconditioned",
    ]
    yield from (element("p", say(key), class_="quiet") for key in filter(None, said))
    if found["failed"]:
        rows = [
            [element("code", escaped(one["arm"])), escaped(one["seed"]), element("pre", _lines(one["reason"]))]
            for one in found["failed"]
        ]
        head = [say(f"ablate.column.{name}") for name in ("arm", "seed", "reason")]
        yield element(heading, say("page.failed")) + table(head, rows)


def _lines(told: str) -> str:
    return "\n".join(escaped(line) for line in str(told).splitlines())
