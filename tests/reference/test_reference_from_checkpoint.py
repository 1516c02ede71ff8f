"""Experiments that begin where the reference system has saved itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lossdoctor as ld
from lossdoctor.errors import UsageError
from lossdoctor.probe import experiment
from lossdoctor.reference import Digits, ReferenceConfig, Trainer

SAVED, MORE = 20, 6


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    experiment._experiment.cache_clear()
    yield
    experiment._experiment.cache_clear()


@pytest.fixture(scope="module")
def saved(tiny: ReferenceConfig, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainer = Trainer(tiny, digits)
    trainer.run(SAVED)
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pt"
    trainer.save(path)
    return path


def script(digits: Digits, config: ReferenceConfig, *, ask: bool = True) -> Trainer:
    """What a user's script does: one line asks where to begin."""
    path = ld.checkpoint(None) if ask else None
    trainer = Trainer(config, digits) if path is None else Trainer.resume(path, digits=digits)
    seed = ld.seed_everything(config.seed)
    if path is not None:
        trainer.loader.generator.manual_seed(seed)
    with ld.Doctor(**trainer.patient(), every=1) as doctor, pytest.raises(SystemExit) as ended:
        trainer.run(doctor=doctor)
    assert ended.value.code == 0
    return trainer


def tried(
    monkeypatch: pytest.MonkeyPatch,
    saved: Path,
    run: Path,
    digits: Digits,
    tiny: ReferenceConfig,
    arm: str,
    seed: int = 5,
) -> tuple[Trainer, ld.Run]:
    told = {"ARM": arm, "STEPS": str(MORE), "SEED": str(seed), "RUN": str(run), "EVERY": "1", "CHECKPOINT": str(saved)}
    for name, value in told.items():
        monkeypatch.setenv(f"LOSSDOCTOR_{name}", value)
    return script(digits, tiny), ld.Run.open(run)


def same(one: Trainer, other: Trainer) -> bool:
    """What the optimizer trains; the teacher is moved after the step in which the experiment ends."""
    sides = zip(one.system.parameters(), other.system.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in sides if a.requires_grad)


def test_the_baseline_goes_on_where_the_script_was(
    saved: Path, tiny: ReferenceConfig, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.resume(saved, digits=digits)
    plain.loader.generator.manual_seed(5)
    plain.run(MORE)
    trainer, run = tried(monkeypatch, saved, tmp_path / "baseline", digits, tiny, "baseline")
    assert same(trainer, plain), "bit for bit"
    assert run["loss/flow"].steps.tolist() == list(range(SAVED, SAVED + MORE)), "measured from there on"
    assert run.meta["experiment"]["checkpoint"] == str(saved)
    other, _ = tried(monkeypatch, saved, tmp_path / "other", digits, tiny, "baseline", seed=6)
    assert not same(trainer, other), "another seed is another"


def test_a_warm_up_begins_with_the_experiment(
    saved: Path, tiny: ReferenceConfig, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = tried(monkeypatch, saved, tmp_path / "baseline", digits, tiny, "baseline")
    _, run = tried(monkeypatch, saved, tmp_path / "warm", digits, tiny, "warmup:kl=10")
    shares = run["weight/kl"].values / before["weight/kl"].values
    assert shares.tolist() == pytest.approx([(step + 1) / 10 for step in range(MORE)], abs=0.11)
    assert shares[0] < 0.2, "although it is step 20 of the training"
    assert (shares[1:] > shares[:-1]).all()


def test_a_script_that_does_not_ask_is_told(
    saved: Path, tiny: ReferenceConfig, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSDOCTOR_CHECKPOINT", str(saved))
    with pytest.raises(UsageError, match=r"(?s)cannot begin from a checkpoint.*lossdoctor\.checkpoint"):
        script(digits, tiny, ask=False)


def test_outside_of_an_experiment_it_is_the_scripts_own() -> None:
    assert ld.checkpoint(None) is None
    assert ld.checkpoint(path := Path("mine.pt")) is path
