from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from lossdoctor import config
from lossdoctor.cli import demo, main
from lossdoctor.keys import describe
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.reference.checkpoint import load as load_checkpoint
from lossdoctor.report import pictures
from lossdoctor.report.digest import TROUBLES
from lossdoctor.store import Run

FILES = {
    "run.db",
    "meta.json",
    "events.jsonl",
    "samples.npz",
    "samples.png",
    "curves.png",
    "report.html",
    "summary.md",
    "config.toml",
    "checkpoint.pt",
}


def call(*arguments: str) -> Result:
    environment = {"LC_ALL": "C", "COLUMNS": "80"}
    return CliRunner(env=environment).invoke(main, ["demo", *arguments], prog_name="lossdoctor")


def names(folder: Path) -> set[str]:
    """What lies in a run folder; SQLite may leave its journal beside an open run."""
    return {path.name for path in folder.iterdir()} - {"run.db-wal", "run.db-shm"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    result = call("--out", str(folder), "--seed", "3", *small)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture
def quick(small: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small demo whose pictures are not really drawn: they take longer than all the rest."""
    for draw, path_at in (("draw_curves", 1), ("draw_samples", 2)):
        monkeypatch.setattr(pictures, draw, lambda *given, at=path_at: given[at].write_bytes(b"a picture"))
    return small


def test_everything_is_there(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert names(folder) == FILES
    last = result.output.splitlines()[-1]
    assert last.startswith(f"The run and its results are in {folder}: ")
    assert all(name in last for name in FILES - {"run.db", "meta.json", "events.jsonl"})


def test_the_run_is_measured_from_end_to_end(finished: tuple[Path, Result]) -> None:
    run = Run.open(finished[0])
    assert run.steps.tolist() == list(range(6)), "a short run is measured at every step"
    assert {"grad/flow", "grad/kl", "grad/dino", "flow/cond_ratio", "ent/teacher", "mu/abs_mean"} <= set(run)
    assert {"step/z_head_update_ratio", "flow/endpt_rmse@64", "ema/distance", "teacher/moved"} <= set(run)
    assert [event for event in run.events if event["kind"] in TROUBLES] == []
    assert run.meta["seed"] == 3
    assert run.meta["config"]["train"]["steps"] == 6


def test_the_vocabulary_knows_every_metric(finished: tuple[Path, Result]) -> None:
    unknown = {name for name in Run.open(finished[0]) if describe(name) is None and not name.startswith("eval/")}
    assert not unknown, "add these to KEYS in keys.py"


def test_samples_are_as_promised(finished: tuple[Path, Result]) -> None:
    with np.load(finished[0] / "samples.npz") as samples:
        images, labels = samples["images"], samples["labels"]
    assert images.dtype == np.float32
    assert images.shape == (len(labels), 8, 8)
    assert 0.0 <= images.min() <= images.max() <= 1.0
    assert labels.dtype == np.int64
    assert np.bincount(labels, minlength=10).min() >= 20
    for name in ("samples.png", "curves.png"):
        assert min(imread(finished[0] / name).shape[:2]) > 500


def test_the_summary_says_what_it_is(finished: tuple[Path, Result]) -> None:
    summary = (finished[0] / "summary.md").read_text(encoding="utf-8")
    for text in (summary, finished[1].output):
        flat = " ".join(text.split())
        assert "lossdoctor check" in flat
        assert "A classifier trained on real digits names the right one in" in flat
        assert "On held-out digits" in flat
    assert "![samples.png](samples.png)" in summary


def test_settings_are_kept_and_can_be_used_again(finished: tuple[Path, Result]) -> None:
    kept = config.load(ReferenceConfig, finished[0] / "config.toml")
    assert (kept.seed, kept.train.steps, kept.velocity.width) == (3, 6, 32)
    again = demo.configured(finished[0] / "config.toml", ("train.steps=9",), {"seed": 4})
    assert (again.seed, again.train.steps, again.velocity.width) == (4, 9, 32)


def test_the_checkpoint_can_be_resumed(finished: tuple[Path, Result]) -> None:
    state = load_checkpoint(finished[0] / "checkpoint.pt")
    assert tomllib.loads(state["config"])["train"]["steps"] == 6
    assert Trainer.resume(finished[0] / "checkpoint.pt").step == 6


def test_an_explicit_folder_with_a_run_is_refused(finished: tuple[Path, Result], small: list[str]) -> None:
    before = (finished[0] / "run.db").read_bytes()
    result = call("--out", str(finished[0]), *small)
    assert result.exit_code == 2
    assert "a new or empty folder" in result.output
    assert (finished[0] / "run.db").read_bytes() == before


def test_the_next_demo_gets_its_own_folder(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "mine").write_text("precious")
    result = call("--lang", "zh-CN", *quick)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "runs" / "demo") == {"mine"}
    assert names(tmp_path / "runs" / "demo-2") == FILES
    assert "规则的判断" in (tmp_path / "runs" / "demo-2" / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_without_the_extra_it_is_one_sentence(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    result = call("--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "pip install 'lossdoctor[demo]'" in result.output
    assert not (tmp_path / "run").exists()


def interrupt_at(phase: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, as the trainer sees it, when `phase` has come to `step`."""
    from lossdoctor.cli.progress import Phases

    shown = Phases.at

    def at(self: Phases, name: str, done: int, *rest: Any) -> None:
        shown(self, name, done, *rest)
        if (name, done) == (phase, step):
            raise KeyboardInterrupt

    monkeypatch.setattr(Phases, "at", at)


def test_ctrl_c_in_the_training_keeps_what_there_is(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at("train", 3, monkeypatch)
    result = call("--out", str(tmp_path / "run"), *quick)
    assert result.exit_code == 130
    assert names(tmp_path / "run") == FILES
    assert f"Stopped early. What there is lies in {tmp_path / 'run'}" in result.output
    run = Run.open(tmp_path / "run")
    assert run.steps.tolist() == [0, 1, 2]
    assert [event["kind"] for event in run.events if event["kind"] in TROUBLES] == ["stopped"]
    assert Trainer.resume(tmp_path / "run" / "checkpoint.pt").step == 3


def test_ctrl_c_before_the_training_draws_nothing(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at("autoencoder", 2, monkeypatch)
    result = call("--out", str(tmp_path / "run"), *small)
    assert result.exit_code == 130
    assert names(tmp_path / "run") == FILES - {"samples.npz", "samples.png", "curves.png"}
    assert "No pictures were drawn" in result.output


def test_ctrl_c_in_the_evaluation_keeps_what_there_is(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at("evaluate", 1, monkeypatch)
    assert call("--out", str(tmp_path / "run"), *quick).exit_code == 130
    assert names(tmp_path / "run") == FILES


def test_ctrl_c_while_laying_out_says_where_things_are(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at("sample", 0, monkeypatch)
    result = call("--out", str(tmp_path / "run"), *quick)
    assert result.exit_code == 130
    assert f"lies in {tmp_path / 'run'}" in result.output
    assert "run.db" in names(tmp_path / "run")


def test_ctrl_c_before_everything_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", stop)
    result = call("--out", str(tmp_path / "run"))
    assert result.exit_code == 130
    assert not (tmp_path / "run").exists()


def test_a_real_ctrl_c(small: list[str], tmp_path: Path) -> None:
    arguments = ["demo", "--out", "run", *small, "--set", "train.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lossdoctor", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not trained(tmp_path / "run"):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert names(tmp_path / "run") == FILES


def trained(folder: Path) -> bool:
    try:
        return len(Run.open(folder).steps) > 0
    except Exception:
        return False  # not there yet


def test_a_full_disk_costs_one_file_and_is_told(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, **_: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    result = call("--out", str(tmp_path / "run"), *quick)
    assert result.exit_code == 2
    assert names(tmp_path / "run") == FILES - {"samples.npz"}
    assert "samples.npz could not be written: No space left on device" in result.output


def test_a_run_that_can_no_longer_be_written_is_told_and_ends(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossdoctor.store.database import Database

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Database, "write", full)
    result = call("--out", str(tmp_path / "run"), *quick)
    assert result.exit_code in (0, 2), result.output
    assert "Warning: " in result.output
    assert "No space left on device" in result.output
    assert "6 steps, 6 measured in full" in result.output, "what could not be written is still reported"


def test_meta_is_json_for_others(finished: tuple[Path, Result]) -> None:
    meta = json.loads((finished[0] / "meta.json").read_text())
    assert meta["kinds"] == {"dino": "distill", "flow": "velocity", "kl": "kl"}
