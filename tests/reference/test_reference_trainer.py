from __future__ import annotations

import math
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossdoctor import Doctor
from lossdoctor.errors import RunError
from lossdoctor.reference import Digits, Progress, ReferenceConfig, Trainer


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from leaves(value, f"{path}/{index}")
    else:
        yield path, state


def everything(trainer: Trainer) -> dict[str, Any]:
    parts = {name: getattr(trainer, name).state_dict() for name in ("system", "ema", "optimizer", "loader")}
    return dict(leaves({**parts, "step": trainer.step, "ready": trainer.autoencoder_ready}))


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    different = [
        name
        for name, value in a.items()
        if not (torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name])
    ]
    assert not different


@pytest.fixture(scope="module")
def straight(tiny: ReferenceConfig, digits: Digits) -> dict[str, Any]:
    trainer = Trainer(tiny, digits)
    trainer.run()
    return everything(trainer)


def test_a_checkpoint_goes_on_bit_for_bit(
    tiny: ReferenceConfig, digits: Digits, straight: dict[str, Any], tmp_path: Path
) -> None:
    first = Trainer(tiny, digits)
    first.run(30)
    first.save(tmp_path / "half.pt")
    del first
    second = Trainer.resume(tmp_path / "half.pt", digits=digits)
    assert second.step == 30
    assert second.config == tiny
    second.run()
    assert_equal(everything(second), straight)


def test_a_checkpoint_holds_the_random_state_of_torch(trainer: Trainer, digits: Digits, tmp_path: Path) -> None:
    trainer.save(tmp_path / "start.pt")
    expected = torch.rand(5)
    Trainer.resume(tmp_path / "start.pt", digits=digits)
    assert torch.equal(torch.rand(5), expected)


def test_the_seed_decides_everything_and_the_global_state_nothing(
    tiny: ReferenceConfig, digits: Digits, straight: dict[str, Any]
) -> None:
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes())
    trainer = Trainer(tiny, digits)
    trainer.run()
    assert_equal(everything(trainer), straight)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before[1:]


def test_another_seed_is_another_run(tiny: ReferenceConfig, digits: Digits, straight: dict[str, Any]) -> None:
    from dataclasses import replace

    trainer = Trainer(replace(tiny, seed=4), digits)
    trainer.run()
    mine = everything(trainer)
    name = "/system/generator.velocity.head.weight"
    assert not torch.equal(mine[name], straight[name])


def test_a_doctor_changes_nothing(tiny: ReferenceConfig, digits: Digits, straight: dict[str, Any]) -> None:
    trainer = Trainer(tiny, digits)
    with Doctor(**trainer.patient(), every=7, strict=True) as doctor:
        trainer.run(doctor=doctor)
    assert_equal(everything(trainer), straight)


def test_progress_tells_both_phases_to_their_ends(trainer: Trainer) -> None:
    told: list[Progress] = []
    summary = trainer.run(on_progress=told.append)
    phases = {phase: [p.step for p in told if p.phase == phase] for phase in ("autoencoder", "train")}
    assert phases == {"autoencoder": list(range(10, 31, 10)), "train": list(range(10, 61, 10))}
    assert {p.total for p in told if p.phase == "train"} == {60}
    assert all(math.isfinite(value) for p in told for value in p.losses.values())
    assert set(told[-1].losses) == {"flow", "dino", "kl"}
    assert (summary.steps, summary.interrupted) == (60, False)


def stop_by_raising(progress: Progress) -> None:
    if progress.step == 20:
        raise KeyboardInterrupt


def stop_by_signal(progress: Progress) -> None:
    if progress.step == 20:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [stop_by_raising, stop_by_signal])
@pytest.mark.parametrize("phase", ["autoencoder", "train"])
def test_an_interrupted_run_can_go_on_as_if_nothing_had_been(
    trainer: Trainer, straight: dict[str, Any], stop: Any, phase: str
) -> None:
    summary = trainer.run(on_progress=lambda progress: stop(progress) if progress.phase == phase else None)
    assert summary.interrupted
    assert summary.steps == trainer.step == (20 if phase == "train" else 0)
    assert not trainer.run().interrupted
    assert_equal(everything(trainer), straight)


def test_a_finished_training_trains_no_further(trainer: Trainer) -> None:
    trainer.run()
    before = everything(trainer)
    assert trainer.run(10).steps == 60
    assert_equal(everything(trainer), before)


def test_an_evaluation_repeats_itself_and_leaves_no_trace(trainer: Trainer) -> None:
    trainer.run(20)
    before = everything(trainer)
    first, again = trainer.evaluate(), trainer.evaluate()
    assert first == again
    assert_equal(everything(trainer), before)


def test_training_helps_on_digits_it_never_saw(trainer: Trainer) -> None:
    trainer.run(1)
    begin = trainer.evaluate()
    end = trainer.run().evaluation
    assert end["eval/flow_nmse"] < 0.9 * begin["eval/flow_nmse"]
    assert end["eval/flow_cos"] > 0.3


def test_a_doctor_gets_the_evaluations_and_the_end_points(trainer: Trainer) -> None:
    with Doctor(**trainer.patient(), every=20, strict=True) as doctor:
        summary = trainer.run(doctor=doctor)
    names = set(doctor.run)
    assert {"eval/flow_nmse", "eval/flow_cos", "eval/cond_ratio", "flow/ode_error@64", "flow/ode_order"} <= names
    assert doctor.run["eval/flow_cos"].steps.tolist() == [25, 50, 60]
    assert summary.evaluation["flow/ode_error@64"] < summary.evaluation["flow/ode_error@8"]


def test_a_doctor_counts_on_after_a_resume(trainer: Trainer, digits: Digits, tmp_path: Path) -> None:
    trainer.run(30)
    trainer.save(tmp_path / "half.pt")
    second = Trainer.resume(tmp_path / "half.pt", digits=digits)
    with Doctor(**second.patient(), every=10, strict=True) as doctor:
        second.run(doctor=doctor)
    assert doctor.run["loss/flow"].steps.tolist() == list(range(30, 60))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"Trainer\.save"):
        Trainer.resume(tmp_path / "a.pt")
