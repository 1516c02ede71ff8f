"""What is counted of tried fixes, the page as a whole, and JSON that every program can read."""

from __future__ import annotations

import json

import pytest
from syrupy.assertion import SnapshotAssertion

from lossdoctor.clinic.case import HEALTHY
from lossdoctor.clinic.proof import Attempt, Proven
from lossdoctor.clinic.proof_table import Proofs, Rate, as_json, as_markdown, as_they_are, by_edit, rate
from lossdoctor.messages import languages

EDIT = Attempt("knob:fix.raise_clip=1.5", 0, 3, 3, ())
BALANCE = Attempt("balance:ratio", 1, 0, 3, ())
WEIGHT = Attempt("weight:kl*4", 0, 3, 3, ("GRD103",))
SETTLES = Attempt("weight:kl*2", None, 1, 3, ())
PROVEN = [
    Proven("ring", HEALTHY, 3),
    Proven("ring", "tight-clip", 3, 3, "GRD107", "confirmed", (EDIT, BALANCE)),
    Proven("ring", "weak-kl", 3, 3, "GRD102", "suspected", (WEIGHT, SETTLES)),
    Proven("ring", "strong-kl", 3, 2, "PST306", "suspected", (SETTLES, BALANCE)),
    Proven("ring", "null-rate", 3),
    Proven("vae", HEALTHY, 3, 3, "GRD107", "suspected", (BALANCE,)),
    Proven("vae", "diverged", 3, 3, "NUM901", "likely", (), ("detect_anomaly",)),
    Proven("vae", "huge-rate", 3, 0, "OPT704", "withdrawn", (Attempt("lr:all*0.1", 0, 0, 0, ()),)),
]
FAILED = {("vae", "stuck-ema"): "UsageError: `it` cannot"}
PROOFS = Proofs(PROVEN, FAILED, 200, 9, "lossdoctor clinic --fixes", "2 cores")


def test_what_the_first_fix_does_is_counted_over_every_fault_with_a_finding() -> None:
    assert rate(PROVEN) == Rate(cases=5, own=5, removed=2, clean=1, printed=2, confirmed=1, withdrawn=1)
    assert rate(PROVEN).share == 0.4
    assert rate([]).share is None
    assert rate([Proven("ring", "shuffled-condition", 3, 3, "VEL401", "suspected", (BALANCE,))]).own == 0
    assert rate(PROVEN[:1]) == Rate(0, 0, 0, 0, 0, 0, 0)


def test_fixes_that_any_script_can_have_are_counted_alone() -> None:
    found = as_they_are(PROVEN)
    # A balancer that does nothing is all that is left of the tight clip.
    assert [(one.fault, one.gone) for one in found if one.program == "ring"] == [
        ("tight-clip", False),
        ("weak-kl", True),
        ("strong-kl", False),
    ]
    assert rate(found).cases == 4


def test_edits_are_counted_where_there_is_nothing_else() -> None:
    alone = Proven("ring", "stale-state", 3, 3, "SMP502", "confirmed", (EDIT,))
    assert [one.fault for one in by_edit([*PROVEN, alone]) if one.code] == ["diverged", "stale-state"]
    assert rate(by_edit([*PROVEN, alone])).removed == 1


def test_a_fix_removes_what_is_gone_in_every_seed_that_shows_it() -> None:
    assert (EDIT.gone, SETTLES.gone, Attempt("lr:all*0.1", 0, 0, 0, ()).gone) == (True, False, False)
    assert (EDIT.edit, BALANCE.edit) == (True, False)


def test_json_says_everything() -> None:
    found = json.loads(json.dumps(as_json(PROOFS), allow_nan=False))
    assert found["schema"] == "lossdoctor/clinic-fixes@1"
    assert found["rates"]["all"] == {
        "cases": 5,
        "own": 5,
        "removed": 2,
        "clean": 1,
        "printed": 2,
        "confirmed": 1,
        "withdrawn": 1,
        "share": 0.4,
    }
    assert found["healthy"] == {"runs": 2, "flagged": 1, "confirmed": 0}
    assert [one["removed"] for one in found["cases"]] == [False, True, True, False, False, False, False, False]
    assert found["failed"] == [{"program": "vae", "fault": "stuck-ema", "reason": "UsageError: `it` cannot"}]


@pytest.mark.parametrize("lang", languages())
def test_the_page(lang: str, snapshot: SnapshotAssertion) -> None:
    assert as_markdown(PROOFS, lang) == snapshot


def test_a_page_on_which_nothing_is_wrong() -> None:
    page = as_markdown(Proofs(PROVEN[:2], {}, 200, 1, "lossdoctor clinic --fixes", "2 cores"))
    assert page.endswith("\n## What went wrong\n\n- Nothing.\n")
