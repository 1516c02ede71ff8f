from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lossdoctor import config
from lossdoctor.cli import main
from lossdoctor.messages import text
from lossdoctor.reference import ReferenceConfig
from lossdoctor.reference.faults import FAULTS
from lossdoctor.report import pictures
from lossdoctor.store import Run


def call(*arguments: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, ["demo", *arguments], prog_name="lossdoctor")


def flat(told: str) -> str:
    return " ".join(told.split())


@pytest.fixture
def quick(small: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small demo whose pictures are not really drawn: they take longer than all the rest."""
    for draw, path_at in (("draw_curves", 1), ("draw_samples", 2)):
        monkeypatch.setattr(pictures, draw, lambda *given, at=path_at: given[at].write_bytes(b"a picture"))
    return small


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_the_list_says_what_each_fault_is(lang: str) -> None:
    result = call("--fault", "list", "--lang", lang)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines == {name: text(f"fault.{name}", lang) for name in FAULTS}


def test_an_unknown_fault_is_refused_before_anything_is_made(quick: list[str], tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "run"), "--fault", "detached-klm", *quick)
    assert result.exit_code == 2
    assert "got:      detached-klm" in result.output
    assert all(name in result.output for name in (*FAULTS, "--fault list"))
    assert not (tmp_path / "run").exists()


def test_a_sick_demo_gives_everything_and_says_what_was_switched_on(quick: list[str], tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "run"), "--fault", "strong-kl", *quick)
    assert result.exit_code == 0, result.output
    said = flat(text("demo.fault", fault="strong-kl", what=text("fault.strong-kl")))
    assert flat(result.output).endswith(f"{said} {flat(result.output.splitlines()[-1])}")
    assert said in flat((tmp_path / "run" / "summary.md").read_text(encoding="utf-8"))
    kept = config.load(ReferenceConfig, tmp_path / "run" / "config.toml")
    assert kept.weights.kl == pytest.approx(1000 * ReferenceConfig().weights.kl)
    assert Run.open(tmp_path / "run")["weight/kl"].values == pytest.approx(kept.weights.kl)


def test_a_healthy_demo_speaks_of_no_fault(quick: list[str], tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "run"), *quick)
    assert result.exit_code == 0, result.output
    assert "switched on" not in flat(result.output)


def test_a_demo_that_ends_in_nan_ends(quick: list[str], tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "run"), "--fault", "half-precision-overflow", *quick)
    assert result.exit_code == 0, result.output
    assert "names the right one in 0 %" in flat(result.output)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("velocity.blocks=-1", "0 or more, at most 100"),
        ("velocity.frequencies=0", "1 or more, at most 8,192"),
        ("train.steps=0", "1 or more"),
        ("train.lr=nan", "above 0"),
        ("data.held_out=1.5", "0 or more, at most 0.9"),
        ("distill.teacher_temp=0.0", "above 0"),
        ("autoencoder.latent=[8,0,2]", "1 or more, at most 256"),
        ("text.heads=5", "a multiple of text.heads"),
        ("text.width=wide", "int"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_words(setting: str, expected: str, tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "run"), "--set", setting)
    assert result.exit_code == 2
    assert f"expected: {expected}" in result.output
    assert "to do: " in result.output
    assert not (tmp_path / "run").exists()
