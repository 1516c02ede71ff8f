"""The rule and the sink by themselves, as their authors test them: `pytest examples/plugin/tests`, once installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import lossdoctor as ld
from lossdoctor.store import RunWriter


def run(folder: Path, slope: float) -> ld.Run:
    noise = np.random.default_rng(0).normal(size=100) / 1000
    with RunWriter(folder, {"kinds": {"own": "other"}}) as writer:
        writer.append([ld.Record(step, {"loss/own": 1 + slope * step + noise[step]}, full=True) for step in range(100)])
    return ld.Run.open(folder)


def test_a_level_loss_is_found_and_a_falling_one_is_not(tmp_path: Path) -> None:
    level, falling = (ld.diagnose(run(tmp_path / name, slope)) for name, slope in (("level", 0.0), ("falling", -0.005)))
    (finding,) = [finding for finding in level.findings if finding.code == "LAB001"]
    assert finding.loss == "own"
    assert "LAB001" in falling.clear
    (told,) = [one for one in level.to_json("zh-CN")["findings"] if one["code"] == "LAB001"]
    assert "own 只变化了" in told["message"]
    assert told["causes"][0]["text"] == "模型没有从这个损失学到东西。"


def test_the_sink_writes_what_it_is_given(tmp_path: Path) -> None:
    sink = ld.sinks.LabTable(tmp_path / "table.md")
    sink.open({})
    sink.write([ld.Record(3, {"loss/own": 0.5})])
    sink.write([ld.Record(4, {"loss/own": float("nan")})])
    sink.close()
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines == ["| step | metric | value |", "|---|---|---|", "| 3 | loss/own | 0.5 |", "| 4 | loss/own | nan |"]


def test_both_languages_say_the_same() -> None:
    from importlib import resources

    texts = resources.files("lossdoctor_lab.texts")
    en, zh = (json.loads(texts.joinpath(f"{lang}.json").read_text(encoding="utf-8")) for lang in ("en", "zh-CN"))
    assert zh.keys() - en.keys() == {"rule.LAB001.page"}
    assert en.keys() <= zh.keys()
