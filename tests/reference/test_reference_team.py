"""Several processes train what one does: their shares are its batch, and torchrun's demo is its demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.cli.demo import configured
from lossdoctor.doctor import Doctor
from lossdoctor.errors import UsageError
from lossdoctor.reference import Trainer
from lossdoctor.reference.team import Team, team

STEPS = 12
CHANGES = (
    f"train.steps={STEPS}",
    "train.batch=32",
    "train.warmup=2",
    "train.evaluate_every=100",
    "train.progress_every=1",
    "autoencoder.steps=8",
    "autoencoder.batch=32",
    "autoencoder.width=32",
    "velocity.width=32",
    "velocity.blocks=1",
    "distill.width=32",
    "data.held_out=0.02",
)
CPU = torch.device("cpu")


def tensors(batch: object) -> list[Tensor]:
    found = [batch.pictures, *batch.views, batch.tokens.ids, batch.tokens.mask, batch.t]
    return [*found, batch.source_noise, batch.target_noise]


def test_the_shares_of_all_ranks_are_the_batch(digits, tiny) -> None:
    batch = Trainer(tiny, digits).loader.draw()
    for size in (1, 2, 4):
        loaders = [Trainer(tiny, digits).loader for _ in range(size)]
        rows = [Team(CPU, rank, size).rows(loaders[0].batch) for rank in range(size)]
        shares = [tensors(loader.draw(own)) for loader, own in zip(loaders, rows, strict=True)]
        for whole, *parts in zip(tensors(batch), *shares, strict=True):
            assert torch.equal(torch.cat(parts), whole)


def test_a_batch_that_cannot_be_split_is_refused_with_one_that_can() -> None:
    Team(CPU, 0, 4).check(32)
    with pytest.raises(UsageError, match=r"set train\.batch=32"):
        Team(CPU, 0, 4).check(33)
    with pytest.raises(UsageError, match=r"set train\.batch=4"):
        Team(CPU, 0, 4).check(3)


def test_one_process_needs_nobody(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = team("cpu")
    module = nn.Linear(1, 1)
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    assert alone.wrapped(module) is module
    assert [alone.any(True), alone.any(False)] == [True, False]
    assert alone.told("a folder") == "a folder"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert team("cpu").size == 1


def launched(folder: Path, *arguments: str) -> str:
    """What two processes of the demo print."""
    changes = [part for change in CHANGES for part in ("--set", change)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lossdoctor"]
    whole = [*command, "demo", "--out", str(folder), "--seed", "3", *changes, *arguments]
    environment = {**os.environ, "LC_ALL": "C", "COLUMNS": "200"}
    done = subprocess.run(whole, timeout=240, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("team") / "run"
    return folder, launched(folder)


def test_torchrun_trains_one_run_and_reports_one_diagnosis(together) -> None:
    folder, output = together
    assert output.count(f"The run and its results are in {folder}") == 1
    assert output.count("rules are clear") == 1
    assert {"report.html", "summary.md", "checkpoint.pt", "run.db", "run.rank1.db"} <= {
        p.name for p in folder.iterdir()
    }
    run = ld.Run.open(folder)
    assert run.ranks == (0, 1)
    assert run.steps.tolist() == list(range(STEPS))
    assert {"RNK001", "RNK002", "RNK003"} <= set(ld.diagnose(run).clear)
    assert not run.events or not [event for event in run.events if event["kind"] in ("failure", "ranks_differ")]


def test_two_processes_train_what_one_does(together) -> None:
    folder, _ = together
    trainer = Trainer(configured(None, CHANGES, {"seed": 3}))
    with Doctor(**trainer.patient(), every=1, strict=True, live=False) as doctor:
        trainer.run(doctor=doctor)
    alone, run = doctor.run, ld.Run.open(folder)
    for name in (
        "loss/flow",
        "loss/dino",
        "loss/kl",
        "grad/flow",
        "grad/dino",
        "grad/kl",
        "grad/total",
        "ema/distance",
    ):
        assert run[name].values[:3] == pytest.approx(alone[name].values[:3], rel=1e-3), name
        # Adam makes steps of full size out of gradients that are only rounding.
        assert run[name].values == pytest.approx(alone[name].values, rel=0.05), name
    for name in ("loss/total", "grad/flow", "step/z_head_update_ratio"):
        assert run[name].values.tolist() == ld.Run.open(folder, rank=1)[name].values.tolist()
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    for name, weight in trainer.system.state_dict().items():
        assert torch.allclose(kept["system"][name].float(), weight.float(), atol=0.02), name


def test_a_fault_that_leaves_parameters_out_is_trained_and_found(tmp_path) -> None:
    launched(tmp_path / "run", "--fault", "detached-distillation")
    told = ld.diagnose(ld.Run.open(tmp_path / "run"))
    assert ("GRD101", "dino") in {(finding.code, finding.loss) for finding in told.findings}
