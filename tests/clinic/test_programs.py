from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.joint import Joint
from lossdoctor.clinic.programs.noise_to_data import NoiseToData
from lossdoctor.clinic.programs.ring import Ring
from lossdoctor.errors import UsageError
from lossdoctor.probe import ledger
from lossdoctor.store import Run


class ShortJoint(Joint):
    steps, samples = 3, 8


class ShortNoiseToData(NoiseToData):
    steps, samples = 3, 8


class ShortRing(Ring):
    steps, samples = 3, 8


SHORT = {program.name: program for program in (ShortJoint(), ShortNoiseToData(), ShortRing())}
LEAST = {"joint": 20, "noise_to_data": 20, "ring": 18}
PAIRS = [(program.name, fault) for program in SHORT.values() for fault in program.faults]


def facts(run: Run) -> list[Any]:
    return [event["facts"] for event in run.events if event["kind"] == "audit"]


@pytest.fixture(autouse=True, scope="module")
def _no_clock() -> Iterator[None]:
    """The gradient that is derived is the dearest by the clock; without one, every bit of a run is told by its seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        yield


def same(run: Run, other: Run) -> bool:
    """Whether all facts and curves agree, bit by bit."""
    return facts(run) == facts(other) and set(run) == set(other) and all(same_curve(run, other, name) for name in run)


def same_curve(run: Run, other: Run, name: str) -> bool:
    ours, theirs = run[name], other[name]
    return np.array_equal(ours.steps, theirs.steps) and np.array_equal(ours.values, theirs.values, equal_nan=True)


@functools.cache
def short(program: str, fault: str | None = None, seed: int = 0) -> Run:
    return SHORT[program].train(fault, seed)


@functools.cache
def long(program: type[Program]) -> Run:
    """A healthy run as the clinic trains it."""
    return program().train(None, 0)


def late(run: Run, name: str) -> float:
    return float(np.median(run[name].values[-15:]))


def test_faults_are_those_of_the_clinic() -> None:
    for program in SHORT.values():
        assert len(set(program.faults)) == len(program.faults) >= LEAST[program.name]
        assert set(program.faults) <= set(BY_NAME)


@pytest.mark.parametrize("name", SHORT)
def test_the_seed_decides_everything(name: str) -> None:
    again = SHORT[name].train(None, 0)
    assert same(again, short(name))
    assert not same_curve(again, short(name, seed=1), "loss/total")


@pytest.mark.parametrize(("name", "fault"), PAIRS)
def test_a_fault_shows_in_what_is_recorded(name: str, fault: str) -> None:
    assert not same(short(name, fault), short(name))


@pytest.mark.parametrize(
    ("name", "fault"), [("ring", "stale-state"), ("joint", "kl-on-sample"), ("noise_to_data", "teacher-is-student")]
)
def test_an_edit_that_undoes_a_fault_leaves_the_healthy_program(
    name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (edit,) = BY_NAME[fault].edits
    monkeypatch.setenv("LOSSDOCTOR_ARM", "baseline")
    healthy = SHORT[name].train(None, 0)
    monkeypatch.setenv("LOSSDOCTOR_ARM", f"knob:fix.{edit}=1")
    assert same(SHORT[name].train(fault, 0), healthy)


@pytest.mark.parametrize(
    ("name", "fault", "arm"),
    [
        ("ring", "starved-edges", "knob:fix.mix_uniform_times=1"),
        ("joint", "slow-ema", "knob:fix.warm_up_ema=1"),
        ("joint", "slow-ema", "knob:fix.lower_ema_decay=0.5"),
        ("noise_to_data", "unscaled-latent", "knob:fix.scale_latents=0.2"),
        ("noise_to_data", "collapsed-teacher", "knob:fix.center_teacher=1"),
    ],
)
def test_an_edit_does_what_its_sentence_says_and_no_more(
    name: str, fault: str, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick, healthy = short(name, fault), short(name)
    monkeypatch.setenv("LOSSDOCTOR_ARM", arm)
    edited = SHORT[name].train(fault, 0)
    assert not same(edited, sick)
    assert not same(edited, healthy)


@pytest.mark.parametrize("name", SHORT)
def test_an_unknown_fault_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no such fault"):
        SHORT[name].train("healthy", 0)


@pytest.mark.parametrize("name", SHORT)
def test_a_run_goes_to_its_folder_without_a_word_of_the_fault(name: str, tmp_path: Path) -> None:
    program = SHORT[name]
    fault = "target-sign"
    program.train(fault, 3, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.meta["seed"] == 3
    assert fault not in str(run.meta) + str(run.events)
    assert math.isfinite(program.harm(run))
    assert same(run, short(name, fault, 3))


@pytest.mark.parametrize("program", [Joint, NoiseToData, Ring])
def test_a_healthy_program_learns(program: type[Program]) -> None:
    run = long(program)
    assert len(run.steps) == 50
    assert not [event for event in run.events if event["kind"] == "failure"]
    assert 0 < program().harm(run) < math.inf
    assert late(run, "flow/nmse") < 0.6 < run["flow/nmse"].values[0]
    assert late(run, "flow/cos") > 0.6
    assert late(run, "flow/cond_ratio") > 2
    assert late(run, "flow/time_ratio") > 1.2
    assert late(run, "flow/time_reversal") > 1.2
    assert late(run, "flow/endpt_sw@64") < 1.5 * late(run, "flow/endpt_sw_floor")
    assert late(run, "flow/z1_std") == pytest.approx(1, abs=0.2)
    assert late(run, "flow/ode_order") == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("program", [Joint, NoiseToData, Ring])
def test_a_healthy_program_is_wired_as_it_should_be(program: type[Program]) -> None:
    run = long(program)
    told = facts(run)[-1]
    assert told["optimizers"]["missing_count"] == told["optimizers"]["twice_count"] == 0
    assert all(head["weight_decay"] == 0 and not head["frozen"] for head in told["heads"].values())
    assert told["weight_decay"]["default"] > 0
    assert told["ema"]["aliased"] == told["ema"]["requires_grad"] == 0
    assert max(run["flow/target_mismatch"].values) < 1e-5
    assert late(run, "ema/momentum") == pytest.approx(0.98, abs=1e-3)
    assert "grad/clip_ratio" not in run or np.median(run["grad/clip_ratio"].values) > 0.5


def test_the_teacher_of_noise_to_data_teaches() -> None:
    run = long(NoiseToData)
    teacher = facts(run)[-1]["teacher"]
    assert teacher["aliased"] == teacher["requires_grad"] == teacher["training"] == teacher["in_optimizer"] == 0
    assert late(run, "distill/teacher_temp") < late(run, "distill/student_temp")
    assert late(run, "ent/teacher_mi") > 2
    assert late(run, "distill/loss_ratio") == pytest.approx(1, abs=1e-3)
    assert 0.2 < late(run, "grad_weighted/align") / late(run, "grad_weighted/cfm") < 0.5
    assert late(run, "eval/purity") > 0.65


def test_the_posterior_of_joint_is_near_its_prior_and_alive() -> None:
    run = long(Joint)
    assert late(run, "kl/ratio") == pytest.approx(1, abs=1e-3)
    assert late(run, "z_init/var") == pytest.approx(1, abs=0.3)
    assert late(run, "posterior/active_units") > 0.5
    assert late(run, "grad/accumulation") == pytest.approx(1, abs=1e-3)
    assert 0.1 < late(run, "grad_weighted/kl") / late(run, "grad_weighted/flow") < 0.3
    assert late(run, "loss/recon") < run["loss/recon"].values[0] / 5
