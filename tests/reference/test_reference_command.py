"""`lossdoctor demo` on a folder of pictures, with the networks of others: rehearsed, refused, trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from lossdoctor import config as settings
from lossdoctor.cli import main
from lossdoctor.cli.demo_pictures import drawn
from lossdoctor.cli.dry_run import operations, size
from lossdoctor.cli.results import Results
from lossdoctor.config import override
from lossdoctor.messages import text
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.report import pictures
from lossdoctor.store import Run


def call(*arguments: str) -> Result:
    environment = {"LC_ALL": "C.UTF-8", "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(main, ["demo", *arguments], prog_name="lossdoctor")


@pytest.fixture(scope="module")
def file(twin: ReferenceConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings in a file beside the folders, with paths relative to it."""
    root = Path(str(twin.pictures.path)).parent
    own = override(twin, {f"{part}.path": name for part, name in (("pictures", "pictures"), ("vae", "vae"))})
    path = root / "twin.toml"
    path.write_text(settings.dump(override(own, {"teacher.path": "dino"})), encoding="utf-8")
    return path


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_a_dry_run_says_what_everything_takes_and_leaves_nothing(
    lang: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--config", str(file), "--dry-run", "--processes", "2", "--lang", lang)
    assert result.exit_code == 0, result.output
    assert not list(tmp_path.iterdir())
    for part in ("text", "z_head", "velocity", "dino_head", "teacher", "autoencoder"):
        assert text(f"dry.part.{part}", lang) in result.output
    for held in ("weights", "gradients", "optimizer", "ema", "exchange", "working", "peak", "due"):
        assert text(f"dry.memory.{held}", lang) in result.output
    assert text("dry.epoch.rests", lang, pictures="96", epochs="1.00") in result.output
    assert text("demo.untrained", lang, name="vae.path") in result.output
    assert "GFLOP" in result.output or "MFLOP" in result.output


def test_a_training_gives_everything_and_says_what_it_rests_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw_curves", lambda run, path, *_: path.write_bytes(b"a picture"))
    result = call("--config", str(file), "--out", str(tmp_path / "run"), "--lang", "en")
    assert result.exit_code == 0, result.output
    flat = " ".join(result.output.split())
    assert flat.count("has no weights: that network is built from its config.json with random ones") == 2
    assert "A classifier trained on real pictures names the class asked for in" in flat
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["images"].shape == (120, 8, 8, 3)
        assert np.bincount(samples["labels"]).tolist() == [12] * 10
    assert imread(tmp_path / "run" / "samples.png").ndim == 3
    run = Run.open(tmp_path / "run")
    assert run.steps.tolist() == list(range(6))
    assert [event for event in run.events if event["kind"] == "preflight"]
    assert run.meta["config"]["autoencoder"]["latent"] == [4, 4, 4]
    assert Trainer.resume(tmp_path / "run" / "checkpoint.pt").step == 6


def test_a_scale_of_other_latents_is_named_and_nothing_trained(file: Path, tmp_path: Path) -> None:
    result = call("--config", str(file), "--out", str(tmp_path / "run"), "--lang", "en", "--set", "vae.scale=config")
    assert result.exit_code == 1, result.output
    assert "VEL407" in result.output
    assert text("demo.unfit") in result.output
    assert not (tmp_path / "run").exists()


def test_captions_of_their_own_are_not_judged_and_it_says_so(twin: ReferenceConfig, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = sorted(Path(str(twin.pictures.path)).rglob("*.png"))[:40]
    lines = [json.dumps({"file_name": path.name, "text": f"{path.parent.name} by hand"}) for path in files]
    for path in files:
        shutil.copy(path, folder / path.name)
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    changes = {"pictures.path": str(folder), "pictures.mode": "L", "train.steps": 1, "train.batch": 8}
    trainer = Trainer(override(twin, changes))
    trainer.run()
    [told] = drawn(trainer, {"flow/endpt_sw@64": 0.5, "flow/endpt_sw_floor": 0.25}, Results(tmp_path), "en")
    assert "was not judged" in told
    assert "distance 0.500 (real from real 0.250)" in told
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["images"].shape == (8, 8, 8, 3)
        assert (samples["images"][..., 0] == samples["images"][..., 2]).all(), "grey stays grey"


def test_sizes_are_told_in_units_people_read() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**29)] == ["0 B", "1023 B", "1.00 KiB", "2.50 GiB"]
    assert [operations(n) for n in (12, 1_500_000_000)] == ["12.00 FLOP", "1.50 GFLOP"]
