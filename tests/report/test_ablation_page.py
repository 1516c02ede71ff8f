"""What experiments have shown, as a page: whole, closed to the outside, in both languages, whatever names there are."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.diagnose import diagnose
from lossdoctor.record import Record
from lossdoctor.report.page import ablation_page, page
from lossdoctor.report.page.interval import EDGE, WIDE, interval
from lossdoctor.rules.finding import say
from lossdoctor.store import Run, RunWriter

BAD = "</script><img src=x onerror=alert(1)>"


def effect(low: float | None, high: float | None, difference: float = 0.5) -> dict[str, Any]:
    bounds = {"difference": difference, "low": low, "high": high}
    return {"baseline": 0.25, "arm": 0.75, **bounds, "p": 0.25, "pairs": 3, "pairs_needed": 7}


def told(lang: str = "en", **more: Any) -> dict[str, Any]:
    expected = [("only.cos", "yes", effect(0.2, 0.8)), ("shuffle.flow", "undecided", effect(-0.1, 1.1))]
    expected += [("without_kl.mu", "no", effect(-0.8, -0.2, -0.5)), ("shuffle.distill", "undecided", None)]
    asked = [{"arm": "only:flow", "key": key, "text": "", "verdict": v, "effect": one} for key, v, one in expected]
    effects = {"flow/cos": effect(0.2, 0.8), "mu/abs_mean": effect(-1.0, 2.0), "std/mean": effect(None, None)}
    return {
        "schema": "lossdoctor/effects@1", "command": ["python", BAD], "steps": 200, "seeded": False,
        "conditioned": True,
        "expectations": asked,
        "arms": [
            {"arm": "baseline", "seeds": [0, 1, 2], "effects": {}}, {"arm": BAD, "seeds": [0, 1], "effects": effects},
        ],
        "failed": [{"arm": BAD, "seed": 2, "reason": f"exit code 1\n{BAD}"}],
        **more,
    }  # fmt: skip


def proof(certainty: str) -> dict[str, Any]:
    message, fix = say("skip.kind", kind=BAD), say("fix.ablate", target=BAD)
    sentence = {"text": fix.text("en"), "say": {"key": fix.key, "params": fix.params}}
    arm = {"arm": BAD, "removed": 2, "pairs": 2, "alarms": [BAD], "better": ["flow/cos"], "worse": [], "helps": True}
    return {
        "code": "GRD102", "name": "weak-gradient", "loss": BAD, "subject": None, "message": message.text("en"),
        "say": {"key": message.key, "params": message.params}, "was": "likely", "certainty": certainty, "seen": 2,
        "seeds": 2, "tried": [{**arm, **sentence}], "by_hand": [sentence],
    }  # fmt: skip


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") or name == "src" for name, _ in attrs)
        if tag not in ("meta", "input", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def whole(document: str) -> None:
    tags = Tags()
    tags.feed(document)
    assert tags.open == []
    assert BAD not in document
    spans = [document.count(f'<span class="in" lang="{lang}">') for lang in ("en", "zh-CN")]
    assert spans[0] == spans[1] > 10


def words(document: str) -> str:
    """What a reader of English sees."""
    body = re.sub(r"<(script|style).*?</\1>|<span class=\"in\" lang=\"zh-CN\">.*?</span>", "", document, flags=re.S)
    return " ".join(re.sub("<[^>]*>", " ", body).split())


def test_an_ablation() -> None:
    document = ablation_page(told(), "en")
    whole(document)
    said = words(document)
    assert "Expectations: 4; met: 1; not met: 1; undecided: 2" in said
    assert "200 steps, 3 seeds, 2 arms" in said
    assert "about 7 seeds would tell" in said
    assert "not measured" in said
    assert "clear effects: 1; seeds: 2" in said
    assert "Trainings that failed" in said
    assert "its runs are no pairs" in said
    assert "uPlot" not in document.split("<body>")[0], "nothing is drawn by the library"


def test_fixes() -> None:
    document = ablation_page(told(fixes=[proof("confirmed"), proof("withdrawn")], expectations=[]), "zh-CN")
    whole(document)
    said = words(document)
    assert "Findings: 2; confirmed: 1; withdrawn: 1" in said
    assert "removes it in all 2 seeds" in said
    assert "To change: Run the paired experiment" in said
    assert document.startswith('<!doctype html>\n<html lang="zh-CN"')
    unknown = {**proof("likely"), "say": {"key": "of.another.version", "params": {}}, "message": "as it was written"}
    assert "as it was written" in words(ablation_page(told(fixes=[unknown]), "en"))
    assert "Nothing to fix" in words(ablation_page(told(fixes=[]), "en"))


def recorded(tmp_path: Path) -> Path:
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append([Record(0, {"loss/a": 1.0})])
        writer.event(
            "experiment", code="OPT701", loss=None, subject=BAD, certainty="confirmed", seen=2, seeds=3, arm=BAD
        )
        writer.event("experiment", code="KLD", loss=["x"], subject=None, certainty=3, seen="many", seeds=None)
    return tmp_path / "run"


def shown(path: Path) -> str:
    run = Run.open(path)
    document = page(run, diagnose(run))
    whole(document)
    return words(document)


def test_a_run_whose_fixes_were_tried(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    assert "seen in 2 of 3 baselines" in shown(path), "from its events alone"
    (path / "effects.json").write_text(json.dumps(told(fixes=[proof("confirmed")])), encoding="utf-8")
    assert "removes it in all 2 seeds" in shown(path)
    for torn in ("{", "[]", "{}", '{"schema": "lossdoctor/effects@9"}', json.dumps({**told(), "arms": 3})):
        (path / "effects.json").write_text(torn, encoding="utf-8")
        assert "effects.json cannot be read" in shown(path)


@pytest.mark.parametrize(
    ("low", "high", "middle"), [(-1.0, 3.0, 1.0), (2e-30, 4e-30, 3e-30), (0.0, 0.0, 0.0), (None, None, -1.0)]
)
def test_an_interval_is_drawn_beside_its_zero(low: float | None, high: float | None, middle: float) -> None:
    drawn = interval(effect(low, high, middle))
    (dot,) = re.findall(r'cx="([^"]*)"', drawn)
    assert (float(dot) > WIDE / 2) == (middle > 0)
    assert EDGE <= float(dot) <= WIDE - EDGE
    for ends in re.findall(r'x1="([^"]*)" x2="([^"]*)"[^>]*class="(?:clear|open)"', drawn):
        assert float(ends[0]) <= float(dot) <= float(ends[1])
    assert ('class="clear"' in drawn) == (low is not None and low > 0)
