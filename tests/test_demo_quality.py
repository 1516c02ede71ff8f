"""The demo as a new user runs it: trained in full, and good, by judges that are not the reference system's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import lossdoctor as ld
from lossdoctor.keys import describe
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.report.digest import TROUBLES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    # One thread, as the rest of the suite: two that share a core with another test wait for each other all the time.
    done = subprocess.run(
        [sys.executable, "-m", "lossdoctor", "--lang", "en", "demo", "--out", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def run(demo: Path) -> ld.Run:
    return ld.Run.open(demo)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def training_pictures() -> tuple[np.ndarray, np.ndarray]:
    """The real pictures the demo trained on, in [0, 1]."""
    digits = Trainer(ReferenceConfig()).training_set
    pictures = (digits.pictures.numpy().reshape(-1, 8, 8) + 1) / 2
    return pictures, digits.labels.numpy()


def spread(pictures: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of each pixel within a digit, averaged over pixels and digits."""
    return float(np.mean([pictures[labels == d].std(0).mean() for d in range(10)]))


def test_the_pictures_are_the_digits_asked_for_and_as_varied_as_real_ones(demo: Path) -> None:
    real, real_labels = training_pictures()
    everything = load_digits()
    judge = SVC(gamma=0.06).fit(real.reshape(len(real), -1), real_labels)
    # It must know digits it has not seen: all pictures, a fifth of which were held out.
    assert judge.score(everything.data / 16, everything.target) > 0.97
    with np.load(demo / "samples.npz") as samples:
        images, labels = samples["images"], samples["labels"]
    assert images.shape == (len(labels), 8, 8)
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert np.bincount(labels, minlength=10).min() >= 20
    assert judge.score(images.reshape(len(images), -1), labels) >= 0.95
    assert spread(images, labels) >= 0.65 * spread(real, real_labels)


def test_training_improved_what_it_should(run: ld.Run) -> None:
    cos, nmse = run["eval/flow_cos"].values, run["eval/flow_nmse"].values
    assert cos[-1] > cos[0] + 0.02
    assert nmse[-1] < nmse[0] - 0.02
    assert np.polyfit(np.arange(len(cos)), cos, 1)[0] > 0 > np.polyfit(np.arange(len(nmse)), nmse, 1)[0]
    assert run["eval/cond_ratio"].values[-1] > 1.5, "captions are used"


def test_the_sampler_solves_the_field_at_its_nominal_order(run: ld.Run) -> None:
    assert 0.8 <= run["flow/ode_order"].values[-1] <= 1.2
    assert 1.7 <= run["flow/ode_order_heun"].values[-1] <= 2.3
    errors = [run[f"flow/ode_error@{k}"].values[-1] for k in (8, 16, 32, 64)]
    assert errors == sorted(errors, reverse=True)


def test_posterior_and_teacher_are_alive(run: ld.Run) -> None:
    std = run["std/mean"].values
    assert 0.2 < std[-1] < 1.2
    assert abs(std[-1] - std[0]) > 0.05, "sigma is not stuck where it began"
    assert run["posterior/active_units"].values[-1] > 0.05
    assert run["kl/per_dim"].values[-1] > 0.01
    assert run["kl/ratio"].values == pytest.approx(1.0, abs=1e-3)
    assert run["ent/teacher_mi"].values[-1] > 1.0
    assert run["ent/teacher_norm"].values[-1] < 0.9


def test_gradients_keep_the_methods_band(run: ld.Run) -> None:
    late = run["grad_weighted/flow"].steps >= 500
    flow, dino, kl = (run[f"grad_weighted/{name}"].values[late] for name in ("flow", "dino", "kl"))
    assert 0.2 <= np.median(dino / flow) <= 0.5
    assert 0.1 <= np.median(kl / flow) <= 0.3
    assert ((dino / flow > 0.2) & (dino / flow < 0.5)).mean() > 0.6
    assert ((kl / flow > 0.1) & (kl / flow < 0.3)).mean() > 0.6


def test_everything_was_recorded_and_nothing_failed(run: ld.Run, demo: Path) -> None:
    assert [event for event in run.events if event["kind"] in TROUBLES] == []
    assert run["loss/total"].steps.tolist() == list(range(ReferenceConfig().train.steps))
    assert len(run.steps) >= 50
    unknown = [name for name in run if describe(name) is None and not name.startswith("eval/")]
    assert not unknown, "every metric is in the vocabulary"
    assert {path.name for path in demo.iterdir()} >= {
        "run.db", "meta.json", "events.jsonl", "samples.png", "samples.npz", "summary.md", "curves.png",
    }  # fmt: skip
    assert run["flow/field_mismatch"].values.max() < 1e-4, "inference calls the field that is trained"
    assert run["flow/target_mismatch"].values.max() < 1e-4


def test_a_second_demo_does_not_touch_the_first(demo: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "lossdoctor", "--lang", "en", "demo", "--out", str(demo)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "a new or empty folder" in done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in demo.iterdir()} == before
