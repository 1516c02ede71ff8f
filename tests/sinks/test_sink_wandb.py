"""A W&B run without a network, read back from the file it leaves."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.conftest import FINDING, RECORDS, expected

from lossdoctor.errors import MissingExtraError, UsageError
from lossdoctor.exchange import read
from lossdoctor.sinks import Background, Sink, WandB


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True)
    run = wandb.init(mode="offline", dir=tmp_path, project="p", settings=settings, reinit="create_new")
    yield run
    run.finish()
    wandb.teardown()


def test_all_arrives(run: Any, given: Callable[[Sink], None], trained: Callable[[Sink], Path], tmp_path: Path) -> None:
    import wandb

    run.log({"mine": 1.0})
    given(WandB(run))
    report = trained(WandB(run))
    run.log({"mine": 2.0})
    run.finish()
    wandb.teardown()  # its own process writes the file, and ends with it
    imported = read(tmp_path / "wandb", step="lossdoctor/step", guess=False)
    found = {name: list(imported.run[name]) for name in imported.run}
    assert repr({name: found[name][: len(points)] for name, points in expected().items()}) == repr(expected())
    assert [value for _, value in read(tmp_path / "wandb").run["mine"]] == [1.0, 2.0]
    assert found["loss/kl"][-1][0] == 3, "the steps are those of the optimizer"
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert FINDING["message"].encode() in file.read_bytes()
    assert b"GRD102 weak-gradient (a|b)" in file.read_bytes()
    (page,) = (tmp_path / "wandb").glob("offline-run-*/files/media/html/lossdoctor/report*.html")
    assert page.read_text("utf-8") == report.read_text("utf-8")
    assert wandb.run is None, "no run was begun behind the user's back"


def test_a_finished_run_switches_the_sink_off(run: Any) -> None:
    run.finish()
    background = Background(WandB(run))
    background.open({})
    background.write(RECORDS)
    assert background.close(timeout=60)
    assert background.failure is not None


def test_only_a_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (None, "project", logging):
        with pytest.raises(UsageError, match=r"wandb\.init returned"):
            WandB(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[wandb\]"):
        WandB(None)
