"""`lossdoctor ablate` as a person calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from lossdoctor.cli import main
from lossdoctor.report.ablation_text import Answers

TRAIN = """
import torch
import lossdoctor as ld

ld.seed_everything(0)
model = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 16), "flow_head": torch.nn.Linear(16, 2)})
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
doctor = ld.Doctor(model, optimizer, heads={"flow_head": model["flow_head"]})
while True:
    cond = ld.condition(torch.randn(64, 1))
    z1 = torch.cat([cond, cond * 2], 1)
    z0, t = 0.1 * torch.randn(64, 2), torch.rand(64, 1)
    x_t, target = (1 - t) * z0 + t * z1, z1 - z0
    v = model["flow_head"](model["body"](torch.cat([x_t, cond], 1)).relu())
    ld.flow(v, target, t, x_t=x_t, z0=z0, z1=z1, cond=cond)
    losses = {"flow": (v - target).square().mean(), "size": v.square().mean()}
    doctor.backward(losses, {"size": ld.knob("w_size", 0.01)})
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_real_training(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    asked = [
        "ablate",
        "--lang",
        "en",
        "--arms",
        "only:flow,without:flow,knob:w_size*100",
        "--seeds",
        "2",
        "--jobs",
        "2",
    ]
    asked += ["--steps", "60", "--out", str(tmp_path / "out"), "--format", "json"]
    done = CliRunner().invoke(main, [*asked, "--", sys.executable, str(tmp_path / "train.py")])
    assert done.exit_code in (0, 1), done.output
    found = json.loads(done.stdout)
    assert (found["seeded"], found["conditioned"], found["failed"]) == (True, True, [])
    cos = {arm["arm"]: arm["effects"]["flow/cos"] for arm in found["arms"]}
    assert cos["baseline"]["difference"] == 0
    assert cos["without:flow"]["high"] < -0.2, "without its loss the velocity does not learn"
    assert abs(cos["only:flow"]["difference"]) < 0.1
    assert found["expectations"][0]["verdict"] in ("yes", "undecided")
    assert json.loads((tmp_path / "out" / "effects.json").read_text()) == found
    shown = (tmp_path / "out" / "ablation.html").read_text(encoding="utf-8")
    again = CliRunner().invoke(main, ["report", "--lang", "en", str(tmp_path / "out"), "-o", str(tmp_path / "a.html")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == shown
    (tmp_path / "out" / "effects.json").write_text("{")
    torn = CliRunner().invoke(main, ["report", "--lang", "en", str(tmp_path / "out")])
    assert (torn.exit_code, "The answers of the ablation cannot be read" in torn.output) == (2, True)


FOUND: dict[str, Any] = {
    "schema": "lossdoctor/effects@1",
    "command": ["python", "train.py"],
    "steps": 200,
    "seeded": False,
    "conditioned": False,
    "expectations": [
        {"arm": "only:flow", "text": "alone, the velocity loss raises the cosine over the run", "verdict": "yes",
         "effect": {"baseline": 0.01, "arm": 0.84, "pairs": 3, "pairs_needed": 3}},
        {"arm": "without:kl", "text": "without the KL, sigma stays farther from 1", "verdict": "no",
         "effect": {"baseline": 0.373, "arm": 0.375, "pairs": 3, "pairs_needed": None}},
        {"arm": "shuffle:cond", "text": "with a shuffled condition, the velocity gets worse", "verdict": "undecided",
         "effect": {"baseline": 0.89, "arm": 0.3, "pairs": 3, "pairs_needed": 5}},
        {"arm": "shuffle:cond", "text": "student and teacher agree less", "verdict": "undecided", "effect": None},
    ],
    "arms": [
        {"arm": "baseline", "seeds": [0, 1, 2], "effects": {}},
        {"arm": "without:[bold]kl", "seeds": [0, 1, 2], "effects": {
            **{f"mu/{name}": {"baseline": 0.2, "arm": 0.9, "difference": 0.7, "low": 0.5, "high": 0.9}
               for name in ("abs_mean", "rms")},
            "flow/endpt_sw@8": {"baseline": 1.0, "arm": 2.0, "difference": 1.0, "low": 0.5, "high": 1.5},
            "flow/endpt_sw@64": {"baseline": 1.0, "arm": 2.0, "difference": 1.0, "low": 0.5, "high": 1.5},
            "flow/cos": {"baseline": 0.8, "arm": 0.7, "difference": -0.1, "low": -0.2, "high": 0.0},
            "std/mean": {"baseline": 0.8, "arm": 0.7, "difference": -0.1, "low": None, "high": None},
            "grad/total": {"baseline": 0.8, "arm": 9.0, "difference": 8.2, "low": 8.0, "high": 8.4},
        }},
    ],
    "failed": [],
}  # fmt: skip


def shown(lang: str, verbose: bool, width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False, force_terminal=False)
    with console.capture() as got:
        console.print(Answers(FOUND, lang, verbose=verbose))
    return "\n".join(line.rstrip() for line in got.get().splitlines())


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_the_answers_as_a_whole(lang: str, verbose: bool, snapshot: SnapshotAssertion) -> None:
    assert shown(lang, verbose) == snapshot


def test_names_are_told_as_they_are() -> None:
    assert "without:[bold]kl" in shown("en", False)
    assert max(map(len, shown("en", True).splitlines())) <= 80


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "lossdoctor ablate -- python train.py"),
        (["--arms", "drop:kl", "--", "true"], "is no arm"),
        (["--", "no-such-program"], "does not get through its baseline"),
    ],
)
def test_wrong_use(asked: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["ablate", "--lang", "en", "--out", str(tmp_path / "out"), *asked])
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = CliRunner().invoke(main, ["ablate", "--lang", "en", "--out", str(tmp_path / "file"), "--", "true"])
    assert done.exit_code == 2
    assert "The folder of an ablation cannot be written" in done.output
    assert (tmp_path / "file").read_text() == "mine"
    nowhere = tmp_path / "file" / "below"
    assert CliRunner().invoke(main, ["ablate", "--lang", "en", "--out", str(nowhere), "--", "true"]).exit_code == 2
