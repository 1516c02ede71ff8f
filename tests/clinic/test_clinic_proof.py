"""Fixes tried at the bedside: what counts as removed, what may be switched off, and that it is the user's machinery."""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from types import ModuleType

import pytest

from lossdoctor.ablate.fixes import arm_of
from lossdoctor.ablate.trial import Trial
from lossdoctor.clinic import proof
from lossdoctor.clinic.case import HEALTHY
from lossdoctor.clinic.faults import FAULTS
from lossdoctor.clinic.programs.ring import Ring
from lossdoctor.clinic.proof import Attempt, Proven, kept, pairs, prove, prove_all
from lossdoctor.clinic.proof_table import LOOK
from lossdoctor.messages import text
from lossdoctor.rules import RULES, fixes
from lossdoctor.store import Run

BY_CODE = {rule.code: rule for rule in RULES}


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.edits], ids=lambda fault: fault.name)
def test_an_edit_that_undoes_a_fault_is_one_that_its_own_rules_propose(fault: object) -> None:
    source = "".join(inspect.getsource(inspect.getmodule(BY_CODE[code])) for code in fault.rules)  # type: ignore[arg-type, attr-defined]
    for edit in fault.edits:  # type: ignore[attr-defined]
        assert f'"{edit}"' in source
        # The sentence exists in both languages.
        assert all(text(f"fix.{edit}", lang, target="x") for lang in ("en", "zh-CN"))


def test_where_to_look_is_said_by_edits_that_are_on_the_sheet() -> None:
    assert set(LOOK) <= {edit for fault in FAULTS for edit in fault.edits}


def test_every_program_is_tried_healthy_too(fakes: ModuleType) -> None:
    every = pairs([fakes.Curable(), fakes.Other()], None)
    assert every[:2] == [("curable", HEALTHY), ("curable", "slow-head")]
    assert pairs([fakes.Curable(), fakes.Other()], ["weak-kl"]) == [
        ("curable", HEALTHY),
        ("other", HEALTHY),
        ("other", "weak-kl"),
    ]


def test_from_programs_to_what_their_fixes_do(fakes: ModuleType, tmp_path: Path) -> None:
    programs = [fakes.Curable()]
    asked = functools.partial(prove, programs[0], home=tmp_path / "home", seeds=3, steps=80)
    by_fault = {fault: asked(fault) for _, fault in pairs(programs, None)}
    assert by_fault[HEALTHY] == Proven("curable", HEALTHY, 3)
    assert by_fault["null-rate"] == Proven("curable", "null-rate", 3)
    slow = by_fault["slow-head"]
    assert (slow.code, slow.seen, slow.certainty, slow.gone) == ("OPT701", 3, "confirmed", True)
    assert slow.attempts[0] == Attempt("lr:z_head*2", 0, 3, 3, ())
    mask = by_fault["empty-mask"]
    assert (mask.code, mask.certainty) == ("NUM902", "confirmed")
    assert mask.attempts == (Attempt("knob:fix.look_at_mask=1", 0, 3, 3, ()),)
    broken = by_fault["diverged"]
    assert (broken.code, broken.certainty, broken.gone) == ("NUM901", "likely", False)
    assert broken.untried == ("clip_gradients", "detect_anomaly")

    log = (tmp_path / "home" / fakes.LOG).read_text().splitlines()
    assert "curable-slow-head lr:z_head*2 1 80" in log
    # The edit leaves the healthy program, which has been trained.
    assert not [line for line in log if "fix." in line]
    run = tmp_path / "home" / "curable-empty-mask" / Trial("knob:fix.look_at_mask=1", 2).name / "run-1"
    assert list(Run.open(run)["loss/flow"].values) == [1 / (step + 1) for step in range(0, 80, 2)]
    assert {fault: asked(fault) for fault in by_fault} == by_fault
    assert (tmp_path / "home" / fakes.LOG).read_text().splitlines() == log


def test_a_training_that_fails_is_told(fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "1")
    programs = [fakes.Curable()]
    told: list[tuple[str, str]] = []
    found, failed = prove_all(
        dict.fromkeys(pairs(programs, ["null-rate"]), 1),
        programs,
        tmp_path / "home",
        steps=40,
        on_done=lambda pair, why: told.append(pair),
    )
    assert [one.fault for one in found] == [HEALTHY]
    assert told == [("curable", HEALTHY), ("curable", "null-rate")]
    assert "it cannot be trained" in failed["curable", "null-rate"]
    assert kept(pairs(programs, None), tmp_path / "home") == {("curable", HEALTHY): 1}
    assert "LOSSDOCTOR_ARM" not in os.environ


class SmallRing(Ring):
    samples = 64


def test_a_real_program_gets_the_number_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "TRIED", 1)
    ring = SmallRing()
    proven = prove(ring, "tight-clip", tmp_path, seeds=1, steps=160)
    assert ring.steps == Ring.steps
    assert (proven.code, proven.seen, proven.gone) == ("GRD107", 1, True)
    best = proven.attempts[0]
    assert (best.edit, best.place, best.alarms) == (True, 0, ())
    clip = float(best.arm.partition("=")[2])
    assert arm_of(fixes.edit("raise_clip", "grad/total", value=clip)) == best.arm
    before, after = (
        Run.open(tmp_path / "ring-tight-clip" / Trial(arm, 0).name / "run-1") for arm in ("baseline", best.arm)
    )
    assert before["grad/clip_ratio"].values.max() < 0.1
    assert after["grad/clip_ratio"].values.max() > 0.9
    assert after.meta["experiment"]["arm"] == best.arm
    # With one seed nothing is confirmed.
    assert (proven.certainty, proven.needed) == ("suspected", None)
