"""The page as a whole, and JSON that every program can read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from lossdoctor.clinic import table
from lossdoctor.clinic.case import HEALTHY, Case, Result, Told
from lossdoctor.clinic.faults import FAULTS
from lossdoctor.clinic.table import Clinic, as_json, as_markdown
from lossdoctor.clinic.tuning import LeftOut
from lossdoctor.messages import languages
from lossdoctor.rules import Rule


class WeakGradient(Rule):
    """A rule whose code and name do not change when the real ones do."""

    code, name = "GRD102", "weak-gradient"


class ClipAlwaysActive(Rule):
    """Another."""

    code, name = "GRD107", "clip-always-active"


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rules."""
    monkeypatch.setattr(table, "RULES", (WeakGradient, ClipAlwaysActive))


def result(program: str, fault: str, seed: int, *told: Told, harm: float = 1.0, **rest: Any) -> Result:
    given = {"clear": (), "skipped": (), "after": {}, "steps": 400, "seconds": 2.5, **rest}
    return Result(Case(program, fault, seed), told, harm=harm, **given)


def told(code: str, *causes: str, severity: str = "warning", leads: bool = True) -> Told:
    return Told(code, severity, causes, leads)


WEAK = told("GRD102", "weight-too-small", "detached-branch")
CLIP = told("GRD107", "clip-too-low")
RESULTS = [
    result("ring", HEALTHY, 0),
    result("ring", HEALTHY, 1, told("GRD107", "clip-too-low", severity="info"), harm=1.25),
    result("ring", "weak-kl", 0, WEAK, harm=3.5, after={"GRD102": 200}),
    result("ring", "weak-kl", 1, told("GRD102", "overflow", "weight-too-small"), harm=math.inf, after={"GRD102": 100}),
    result("ring", "weak-velocity", 0, harm=1.0),
    result("ring", "weak-velocity", 1, WEAK, harm=1.1, after={"GRD102": 400}),
    result("vae", HEALTHY, 0, CLIP, skipped=("GRD102",)),
    result("vae", "tight-clip", 0, CLIP, after={"GRD107": 100}),
    result("vae", "tight-clip", 1, told("GRD102", "clip-too-low")),
    result("vae", "tight-clip", 2),
]
FAILED = {
    Case("vae", "diverged", 1): "ValueError: `loss` is <nan> | not a number",
    Case("ring", "huge-rate", 0): "the process was killed by SIGKILL; out of memory is the usual reason",
}
LEFT_OUT = {
    "ring": LeftOut({"GRD102": {"distill": 0.015, "kl": 2.0}, "GRD107": {"share": 0.4}}, RESULTS[:6]),
    "vae": LeftOut({}, RESULTS[6:]),
}
WHOLE = Clinic(RESULTS, FAILED, LEFT_OUT, "lossdoctor clinic --seeds 3", "2 cores x86_64, Python 3.11.7, torch 2.13.0")
EMPTY = Clinic([], {}, {}, "lossdoctor clinic --faults healthy", "a machine")


@pytest.mark.parametrize("lang", languages())
def test_the_page(lang: str, snapshot: SnapshotAssertion) -> None:
    assert as_markdown(WHOLE, lang) == snapshot


@pytest.mark.parametrize("lang", languages())
def test_the_page_of_nothing(lang: str, snapshot: SnapshotAssertion) -> None:
    assert as_markdown(EMPTY, lang) == snapshot


def test_the_page_of_a_perfect_clinic_says_so() -> None:
    page = as_markdown(Clinic([RESULTS[0], RESULTS[2]], {}, {}, "", ""))
    assert page.endswith("## What went wrong\n\n- Nothing.\n")
    assert "| **all** | 1 | 100.0 % | 100.0 % | 100.0 % | 1 | 0.0 % |" in page


def test_tables_are_whole() -> None:
    """Every row has as many cells as its head, and no cell breaks a line."""
    for lang in languages():
        for clinic in (WHOLE, EMPTY):
            rows: list[str] = []
            for line in [*as_markdown(clinic, lang).splitlines(), ""]:
                if line.startswith("|"):
                    rows.append(line)
                elif rows:
                    assert len({row.count("|") for row in rows}) == 1, rows
                    assert set(rows[1]) == {"|", "-"}
                    rows = []


def test_json_is_strict_and_finite(snapshot: SnapshotAssertion) -> None:
    for clinic in (WHOLE, EMPTY):
        assert json.loads(json.dumps(as_json(clinic), allow_nan=False)).keys() == as_json(clinic).keys()
    assert as_json(WHOLE)["cases"][3]["harm"] is None
    assert as_json(WHOLE) | {"version": ""} == snapshot
    strange = Clinic([result("ring", "weak-kl", 0, harm=math.nan)], {}, {}, "", "")
    assert json.loads(json.dumps(as_json(strange), allow_nan=False))["cases"][0]["harm"] is None


def test_a_harmless_fault_is_told_and_left_out_of_the_shares() -> None:
    page = as_markdown(WHOLE)
    assert "ring, weak-velocity: the result is no worse" in page
    assert "ring-weak-velocity-0: not found" not in page
    assert as_json(WHOLE)["score"]["sick"] == 5


def test_every_fault_can_be_told() -> None:
    results = [result("ring", fault.name, 0, harm=9.0) for fault in FAULTS]
    for lang in languages():
        page = as_markdown(Clinic(results, {}, {}, "", ""), lang)
        assert all(f"- `{fault.name}`: " in page for fault in FAULTS)
