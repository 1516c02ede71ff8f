"""Fixes as arms, and what experiments say of a finding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lossdoctor.ablate.effects import Effect
from lossdoctor.ablate.fixes import MOST, Proof, arm_of, arms_for, chance, proofs, to_try
from lossdoctor.ablate.script import Script
from lossdoctor.arms import BASELINE, parse
from lossdoctor.cli import main
from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.messages import text
from lossdoctor.record import Record
from lossdoctor.rules import Finding, fixes
from lossdoctor.rules.finding import say
from lossdoctor.store import Run, RunWriter

SCRIPT = Script(losses=("flow", "kl"), heads=("z_head",), knobs=("teacher_temp",), conditioned=False)
WEAK = Finding(
    "GRD102", "weak-gradient", "warning", "suspected", "mechanism", say("skip.withdrawn"), loss="kl",
    fixes=(fixes.scale_weight("kl", 4.0), fixes.edit("copy_ema"), fixes.balance("pcgrad")), confirm="weight:kl*2",
)  # fmt: skip
SLOW = replace(
    WEAK, code="OPT701", loss=None, subject="z_head", fixes=(fixes.scale_rate("z_head", 3.0),), confirm="x/y"
)


def diagnosis(*findings: Finding) -> Diagnosis:
    return Diagnosis("", 10, 10, findings, (), ())


@pytest.mark.parametrize(
    ("fix", "arm"),
    [
        (fixes.scale_weight("dino", 2.0), "weight:dino*2"),
        (fixes.warm_up_weight("kl", 1000), "warmup:kl=1000"),
        (fixes.scale_rate("z_head", 0.3), "lr:z_head*0.3"),
        (fixes.set_decay("z_head"), "wd:z_head=0"),
        (fixes.scale_knob("t", 2.0), "knob:t*2"),
        (fixes.set_knob("t", 0.07), "knob:t=0.07"),
        (fixes.balance("pcgrad"), "balance:pcgrad"),
        (fixes.ablate("without:kl"), None),
        (fixes.edit("copy_ema"), "knob:fix.copy_ema=1"),
        (fixes.edit("raise_clip", "grad/total", value=1.5), "knob:fix.raise_clip=1.5"),
        (fixes.edit("scale_latents", factor=0.2), "knob:fix.scale_latents=0.2"),
    ],
)
def test_a_fix_is_an_arm_that_can_be_parsed(fix: fixes.Fix, arm: str | None) -> None:
    assert arm_of(fix) == arm
    assert arm is None or str(parse(arm)) == arm


def test_only_what_the_script_has_is_tried() -> None:
    assert arms_for(WEAK, SCRIPT) == ["weight:kl*4", "balance:pcgrad", "weight:kl*2"]
    assert arms_for(WEAK, replace(SCRIPT, losses=("flow",))) == ["balance:pcgrad"]
    assert arms_for(replace(WEAK, fixes=(fixes.set_knob("other", 1.0),), confirm="without:kl"), SCRIPT) == []
    behind_a_knob = replace(SCRIPT, knobs=("fix.copy_ema",))
    assert arms_for(WEAK, behind_a_knob) == ["weight:kl*4", "knob:fix.copy_ema=1", "balance:pcgrad", "weight:kl*2"]
    heads = ("a", "b", "c", "d")
    several = replace(
        WEAK, fixes=tuple(map(fixes.set_decay, heads)), confirm="+".join(f"wd:{head}=0" for head in heads)
    )
    assert arms_for(several, replace(SCRIPT, heads=tuple(heads)))[0] == "wd:a=0+wd:b=0+wd:c=0+wd:d=0", (
        "all of them at once"
    )
    everywhere = replace(WEAK, fixes=(fixes.scale_rate("all", 0.1), fixes.set_decay("all")), confirm=None)
    assert arms_for(everywhere, SCRIPT) == ["lr:all*0.1"]


def test_the_first_fix_of_every_finding_comes_before_second_ones() -> None:
    assert to_try([WEAK, SLOW], SCRIPT) == ["weight:kl*4", "lr:z_head*3", "balance:pcgrad", "weight:kl*2"]
    many = [replace(WEAK, fixes=(fixes.scale_weight("kl", float(n)),), confirm=None) for n in range(2, 40)]
    assert len(to_try(many, SCRIPT)) == MOST
    assert to_try([WEAK, SLOW], SCRIPT, most=2) == ["weight:kl*4", "lr:z_head*3"]
    assert to_try([], SCRIPT) == []


def one(found: list[Proof]) -> Proof:
    (proof,) = found
    return proof


def test_a_fix_that_removes_it_everywhere_confirms_it() -> None:
    runs = {
        BASELINE: dict.fromkeys(range(3), diagnosis(WEAK)),
        "weight:kl*4": dict.fromkeys(range(3), diagnosis()),
        "weight:kl*2": {0: diagnosis(), 1: diagnosis(WEAK), 2: diagnosis()},
    }
    proof = one(proofs([WEAK], runs, {}, SCRIPT))
    assert (proof.certainty, proof.seen, proof.seeds) == ("confirmed", 3, 3)
    assert [(tried.arm, tried.removed, tried.helps) for tried in proof.tried] == [
        ("weight:kl*4", 3, True),
        ("weight:kl*2", 2, False),
    ]
    assert [fix.params["what"] for fix in proof.by_hand] == ["copy_ema"]
    assert proof.p == chance(3, 2) < 0.05
    assert proof.seeds_needed() is None


def test_an_edit_that_was_tried_is_not_left_to_do_by_hand() -> None:
    script = replace(SCRIPT, knobs=("fix.copy_ema",))
    runs = {
        BASELINE: dict.fromkeys(range(3), diagnosis(WEAK)),
        "knob:fix.copy_ema=1": dict.fromkeys(range(3), diagnosis()),
    }
    proof = one(proofs([WEAK], runs, {}, script))
    assert (proof.certainty, proof.by_hand) == ("confirmed", ())


def test_what_could_be_chance_confirms_nothing_and_more_seeds_would() -> None:
    runs = {BASELINE: dict.fromkeys(range(2), diagnosis(WEAK)), "weight:kl*4": dict.fromkeys(range(2), diagnosis())}
    proof = one(proofs([WEAK], runs, {}, SCRIPT))
    assert proof.tried[0].helps
    assert (proof.certainty, proof.seeds_needed()) == ("suspected", 3)
    assert proof.p == chance(2, 1) > 0.05


def test_findings_are_corrected_for_each_other() -> None:
    rates = {f"lr:z_head*{n}": n for n in (3, 5)}
    slow = replace(SLOW, fixes=tuple(fixes.scale_rate("z_head", float(n)) for n in rates.values()))
    cured = {
        **dict.fromkeys(rates, dict.fromkeys(range(3), diagnosis(slow))),
        "weight:kl*4": dict.fromkeys(range(3), diagnosis(slow)),
    }
    runs = {BASELINE: dict.fromkeys(range(3), diagnosis(WEAK, slow)), **cured, "weight:kl*2": cured["weight:kl*4"]}
    both = proofs([WEAK, slow], runs, {}, SCRIPT)
    assert [proof.certainty for proof in both] == ["suspected", "suspected"]
    assert both[0].p == pytest.approx(2 * chance(3, 2))
    assert both[0].seeds_needed() == 4
    assert both[1].seeds_needed() is None
    assert one(proofs([WEAK], runs, {}, SCRIPT)).certainty == "confirmed"


@pytest.mark.parametrize(("seeds", "arms"), [(2, 1), (2, 3), (3, 1), (3, 3), (4, 8)])
@pytest.mark.parametrize("often", [0.1, 0.35, 0.5, 0.8])
def test_a_finding_that_comes_and_goes_is_confirmed_no_oftener_than_said(seeds: int, arms: int, often: float) -> None:
    there = np.random.default_rng(seeds * arms).random((20_000, arms + 1, seeds)) < often
    agreed = there[:, 0].all(1) & (~there[:, 1:]).all(2).any(1)
    spread = 4 * np.sqrt(agreed.mean() / len(agreed)) + 1e-4
    assert agreed.mean() <= chance(seeds, arms) + spread
    if often == 0.5 and arms == 1:  # where it is highest, 4^-n
        assert chance(seeds, arms) == pytest.approx(0.25**seeds)
        assert agreed.mean() == pytest.approx(0.25**seeds, abs=spread)


def test_a_finding_that_moves_to_another_metric_is_not_gone() -> None:
    moved = replace(SLOW, subject="another")
    runs = {
        BASELINE: dict.fromkeys(range(3), diagnosis(SLOW)),
        "lr:z_head*3": dict.fromkeys(range(3), diagnosis(moved)),
    }
    proof = one(proofs([SLOW], runs, {}, SCRIPT))
    assert (proof.tried[0].removed, proof.certainty) == (0, "suspected")
    both = {BASELINE: dict.fromkeys(range(3), diagnosis(SLOW, moved)), "lr:z_head*3": runs["lr:z_head*3"]}
    assert one(proofs([SLOW], both, {}, SCRIPT)).certainty == "confirmed"


def test_one_seed_confirms_and_withdraws_nothing() -> None:
    runs = {BASELINE: {0: diagnosis(WEAK)}, "weight:kl*4": {0: diagnosis()}}
    assert one(proofs([WEAK], runs, {}, SCRIPT)).certainty == "suspected"
    assert one(proofs([WEAK], {BASELINE: {0: diagnosis()}}, {}, SCRIPT)).certainty == "suspected"


def test_what_no_baseline_shows_is_withdrawn() -> None:
    runs = {BASELINE: dict.fromkeys(range(2), diagnosis(SLOW)), "weight:kl*4": dict.fromkeys(range(2), diagnosis())}
    proof = one(proofs([WEAK], runs, {}, SCRIPT))
    assert (proof.certainty, proof.seen) == (None, 0)
    assert not proof.tried[0].helps


def test_seen_in_some_seeds_only_it_stays_suspected() -> None:
    runs = {BASELINE: {0: diagnosis(WEAK), 1: diagnosis()}, "weight:kl*4": dict.fromkeys(range(2), diagnosis())}
    assert one(proofs([WEAK], runs, {}, SCRIPT)).certainty == "suspected"


def test_a_cure_that_makes_something_else_ill_does_not_help() -> None:
    runs = {
        BASELINE: dict.fromkeys(range(2), diagnosis(WEAK)),
        "weight:kl*4": dict.fromkeys(range(2), diagnosis(SLOW)),
        "weight:kl*2": dict.fromkeys(range(2), diagnosis(replace(SLOW, severity="info"))),
    }
    proof = one(proofs([WEAK], runs, {}, SCRIPT))
    assert [(tried.arm, tried.alarms, tried.helps) for tried in proof.tried] == [
        ("weight:kl*2", (), True),
        ("weight:kl*4", ("OPT701",), False),
    ]


def test_of_two_that_help_the_one_that_does_more_good_comes_first() -> None:
    runs = {BASELINE: dict.fromkeys(range(2), diagnosis(WEAK)), **{
        arm: dict.fromkeys(range(2), diagnosis()) for arm in ("weight:kl*4", "weight:kl*2")
    }}  # fmt: skip
    up, down = Effect(0.5, 0.7, 0.1, 0.3, 0.1, 2), Effect(0.7, 0.5, -0.3, -0.1, 0.1, 2)
    effects = {"weight:kl*4": {"flow/cos": down, "mu/rms": up}, "weight:kl*2": {"flow/nmse": down, "flow/cos": up}}
    proof = one(proofs([WEAK], runs, effects, SCRIPT))
    assert [(tried.arm, tried.better, tried.worse) for tried in proof.tried] == [
        ("weight:kl*2", ("flow/nmse", "flow/cos"), ()),
        ("weight:kl*4", (), ("flow/cos",)),
    ]


# What a run remembers


def slow_head(folder: Path) -> Run:
    """A run whose head hardly moves."""
    writer = RunWriter(folder, {"heads": ["z_head"], "losses": {"flow": "velocity"}})
    for step in range(40):
        values = {"step/z_head_update_ratio": 5e-6, "lr/z_head": 1e-6, "loss/flow": 1.0 / (step + 1)}
        writer.append([Record(step, values, full=True)])
    writer.close()
    return Run.open(folder)


@pytest.mark.parametrize("certainty", ["confirmed", "withdrawn", "suspected", "nonsense", None])
def test_a_diagnosis_knows_what_experiments_said(certainty: str | None, tmp_path: Path) -> None:
    before = diagnose(slow_head(tmp_path / "run"))
    assert {finding.code: finding.certainty for finding in before.findings}["OPT701"] == "suspected"
    writer = RunWriter(tmp_path / "run", resume=True)
    writer.event("experiment", code="OPT701", loss=None, subject="z_head", certainty=certainty, arm="lr:z_head*9")
    writer.event("experiment", code="OPT701", loss=None, subject="other", certainty="confirmed")
    writer.close()
    after = diagnose(Run.open(tmp_path / "run"))
    found = {finding.code: finding.certainty for finding in after.findings}
    if certainty in ("confirmed", "suspected"):
        assert found["OPT701"] == certainty
    else:
        assert "OPT701" not in found
        assert dict(after.skipped)["OPT701"].reason.text("en") == text("skip.withdrawn", "en")
    codes = [*found, *after.clear, *(code for code, _ in after.skipped)]
    assert (
        len(codes)
        == len(set(codes))
        == len({f.code for f in before.findings}) + len(before.clear) + len(before.skipped)
    )


HEAD = """
import os
from lossdoctor import arms
from lossdoctor.record import Record
from lossdoctor.store import RunWriter

arm = arms.parse(os.environ["LOSSDOCTOR_ARM"])
ratio, experiment = 5e-6, {"arm": str(arm), "seeded": True, "conditions": False, "knobs": []}
for change in arm.of("lr"):
    ratio = change.applied(ratio)
meta = {"heads": ["z_head"], "losses": {"flow": "velocity"}, "experiment": experiment}
writer = RunWriter(os.environ["LOSSDOCTOR_RUN"], meta)
for step in range(0, int(os.environ["LOSSDOCTOR_STEPS"]), int(os.environ["LOSSDOCTOR_EVERY"])):
    values = {"step/z_head_update_ratio": ratio, "lr/z_head": ratio / 10, "loss/flow": 1.0 / (step + 1)}
    writer.append([Record(step, values, full=True)])
writer.close()
"""


def test_from_a_run_to_its_proof(tmp_path: Path, command: tuple[str, ...], script: Path) -> None:
    slow_head(tmp_path / "run")
    script.write_text(HEAD, encoding="utf-8")
    asked = ["ablate", "--lang", "en", "--fixes", "--run", str(tmp_path / "run"), "--seeds", "3", "--jobs", "2"]
    done = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "out"), "--", *command])
    assert done.exit_code == 1, done.output
    assert "OPT701 head-not-moving (z_head)  confirmed" in done.output
    assert "seen in 3 of 3 baselines" in done.output
    assert "removes it in all 3 seeds" in done.output
    found = json.loads((tmp_path / "out" / "effects.json").read_text(encoding="utf-8"))
    (proof,) = found["fixes"]
    assert proof["tried"][0]["helps"]
    assert (proof["p"], proof["seeds_needed"]) == (chance(3, 2), None)
    told = json.loads(CliRunner().invoke(main, ["check", str(tmp_path / "run"), "--format", "json"]).stdout)
    certainty = {one["code"]: one["certainty"] for one in told["findings"]}
    assert certainty["OPT701"] == "confirmed"
    assert CliRunner().invoke(main, ["report", str(tmp_path / "run")]).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "removes it in all 3 seeds" in page
    assert text("ablate.helps", "zh-CN", pairs=3) in page
    sentence = proof["say"]
    assert text(sentence["key"], "zh-CN", **sentence["params"]) in page, "what was found, in the other language too"


@pytest.mark.parametrize(
    ("asked", "said"), [(["--run", "x"], "--run without --fixes"), (["--fixes", "--arms", "a"], "--fixes with --arms")]
)
def test_options_that_do_not_go_together(asked: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["ablate", "--lang", "en", *asked, "--", "true"])
    assert done.exit_code == 2
    assert said in done.output
