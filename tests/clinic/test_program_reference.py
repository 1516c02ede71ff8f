from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.programs import reference
from lossdoctor.clinic.programs.reference import Reference, grades
from lossdoctor.config import override
from lossdoctor.errors import UsageError
from lossdoctor.keys import describe
from lossdoctor.record import Record
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.store import MemoryWriter, Run

SMALL = {
    **reference.SETTINGS,
    "autoencoder.width": 32,
    "autoencoder.steps": 20,
    "velocity.width": 32,
    "velocity.blocks": 1,
    "distill.width": 32,
    "train.batch": 32,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a second: the wiring is looked at here, and what is learned by `lossdoctor clinic`."""
    monkeypatch.setattr(reference, "SETTINGS", SMALL)
    monkeypatch.setattr(Reference, "steps", 20)


def recorded(run: Run) -> dict[str, Any]:
    """What the training was: which gradients are derived from others is decided by the clock, in the last digits."""
    return {name: run[name].values.tolist() for name in run if name.startswith(("loss/", "weight/", "eval/"))}


def test_it_is_what_the_clinic_asks_for() -> None:
    assert Reference.name == "reference"
    assert len(Reference.faults) >= 20
    assert set(Reference.faults) <= set(BY_NAME)


def test_a_run_is_measured_in_its_folder_and_has_a_harm(tmp_path: Path) -> None:
    program = Reference()
    run = program.train(None, 1, tmp_path / "run")
    assert run.steps.tolist() == list(range(20))
    assert Run.open(tmp_path / "run").meta["seed"] == 1
    assert "fault" not in run.meta
    assert {"flow/endpt_energy@64", "grad_weighted/kl", "teacher/moved", "ema/distance", "flow/field_mismatch"} <= set(
        run
    )
    assert not [name for name in run if describe(name) is None and not name.startswith("eval/")]
    assert 0 < program.harm(run) < math.inf


def test_the_seed_and_the_fault_decide_everything() -> None:
    first, again, other, sick = (
        recorded(Reference().train(fault, seed)) for fault, seed in ((None, 0), (None, 0), (None, 1), ("weak-kl", 0))
    )
    assert first == again
    assert first["loss/flow"] != other["loss/flow"]
    assert first["weight/kl"] != sick["weight/kl"]


def test_an_edit_that_undoes_a_fault_leaves_the_healthy_program(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = recorded(Reference().train(None, 0))
    monkeypatch.setenv("LOSSDOCTOR_ARM", "knob:fix.flip_target=1")
    assert recorded(Reference().train("target-sign", 0)) == healthy


@pytest.mark.parametrize(
    ("fault", "arm"),
    [
        ("tight-clip", "raise_clip=0.5"),
        ("unscaled-latent", "scale_latents=0.2"),
        ("slow-ema", "warm_up_ema=1"),
        ("starved-edges", "mix_uniform_times=1"),
        ("collapsed-teacher", "center_teacher=1"),
    ],
)
def test_an_edit_changes_the_faulty_program(fault: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sick = recorded(Reference().train(fault, 0))
    monkeypatch.setenv("LOSSDOCTOR_ARM", f"knob:fix.{arm}")
    assert recorded(Reference().train(fault, 0)) != sick


def test_the_autoencoder_is_trained_once_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    prepare = Trainer.prepare

    def counted(trainer: Trainer) -> None:
        prepared.append(trainer.config.seed)
        prepare(trainer)

    monkeypatch.setattr(Trainer, "prepare", counted)
    reference._autoencoder.cache_clear()
    for fault, seed in ((None, 4), ("half-precision-ema", 4), ("frozen-teacher", 5)):
        Reference().train(fault, seed)
    assert prepared == [4, 5]


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(UsageError, match="no such fault"):
        Reference().train("healthy", 0)


def told(**grades: float) -> Run:
    writer = MemoryWriter()
    writer.append([Record(0, {f"eval/{name}": value for name, value in grades.items()})])
    return writer.run()


def test_harm_grows_with_everything_that_is_wrong() -> None:
    perfect = {"picture_distance": 1.0, "z0_accuracy": 1.0, "kl_per_dim": 0.0}
    harm = Reference().harm
    assert harm(told(**perfect)) == 0
    for worse in ({"picture_distance": 2.0}, {"z0_accuracy": 0.1}, {"kl_per_dim": 0.5}):
        assert harm(told(**{**perfect, **worse})) > 0.4
    assert harm(told(picture_distance=1.0)) == math.inf


def test_what_is_no_number_has_no_grades() -> None:
    trainer = Trainer(override(ReferenceConfig(), SMALL))
    trainer.run(1)
    assert set(grades(trainer)) == {"eval/picture_distance", "eval/accuracy", "eval/z0_accuracy", "eval/kl_per_dim"}
    trainer.ema.model.velocity.head.bias.fill_(math.nan)
    assert grades(trainer) == {}
