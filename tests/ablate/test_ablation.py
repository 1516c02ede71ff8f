"""From a command to its answers, with scripts of every temper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.ablate.ablation import Ablation, ablate
from lossdoctor.ablate.engine import Outcome
from lossdoctor.ablate.local import Local
from lossdoctor.ablate.trial import Plan, Trial, trials
from lossdoctor.errors import UsageError


def run(command: tuple[str, ...], home: Path, *, jobs: int = 2, retries: int = 0, **more: Any) -> Ablation:
    options = {"arms": None, "seeds": 3, **more}
    devices = options.pop("devices", ())
    return ablate(Plan(command, home, 40, 2), Local(jobs, devices, retries), **options)


def calls(script: Path) -> list[str]:
    return script.with_name("calls.txt").read_text(encoding="utf-8").splitlines()


def begun_of(script: Path) -> Counter[str]:
    """How often each trial was begun, by the name of its folder."""
    return Counter(Trial(line.split()[0], int(line.split()[1])).name for line in calls(script))


def set_up(script: Path, **settings: Any) -> None:
    script.with_suffix(".json").write_text(json.dumps(settings), encoding="utf-8")


def test_the_default_set_and_its_verdicts(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(command, tmp_path / "home")
    assert list(done.runs) == ["baseline", "only:flow", "only:kl", "without:flow", "without:kl", "shuffle:cond"]
    assert all(sorted(runs) == [0, 1, 2] for runs in done.runs.values())
    assert sorted(calls(script)) == sorted(f"{arm} {seed} -" for arm in done.runs for seed in range(3))
    found = {(answer.key, answer.metric): answer.verdict for answer in done.answers}
    assert found == {
        ("only.cos", "flow/cos"): "yes",
        ("only.nmse", "flow/nmse"): "yes",
        ("only.endpoint", "flow/endpt_sw@16"): "yes",
        ("without_kl.mu", "mu/abs_mean"): "yes",
        ("without_kl.sigma", "std/mean"): "no",
        ("shuffle.flow", "flow/cos"): "yes",
        ("shuffle.distill", "distill/agreement"): "undecided",
    }
    assert done.seeded
    assert done.effects["shuffle:cond"]["flow/cos"].difference == pytest.approx(-0.5 * 37 / 40, abs=0.05)
    assert set(done.effects["baseline"]["mu/abs_mean"].__slots__) >= {"low", "high", "p"}
    assert json.loads(json.dumps(done.as_json("en"), allow_nan=False))["schema"] == "lossdoctor/effects@1"


def test_nothing_that_is_finished_is_done_again(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    told: list[Outcome] = []
    run(command, tmp_path / "home", arms=["without:kl"])
    again = run(command, tmp_path / "home", arms=["without:kl", "only:flow"], seeds=4, tell=told.append)
    assert list(again.runs) == ["baseline", "without:kl", "only:flow"]
    assert Counter(calls(script)).most_common(1)[0][1] == 1
    assert sum(outcome.kept for outcome in told) == 6
    assert len(told) == 12


def test_a_crash_is_tried_again_and_told(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    set_up(script, **{"fails once": "without:kl"})
    assert not run(command, tmp_path / "a", arms=["without:kl"], retries=1).failed
    assert Counter(calls(script))["without:kl 0 -"] == 2
    set_up(script, fails="without:kl")
    done = run(command, tmp_path / "b", arms=["without:kl", "only:kl"])
    assert [outcome.trial for outcome in done.failed] == [Trial("without:kl", seed) for seed in range(3)]
    assert "exit code 7" in str(done.failed[0].failure)
    assert "the reason it broke" in str(done.failed[0].failure)
    assert sorted(done.runs["only:kl"]) == [0, 1, 2], "the others go on"
    set_up(script)
    assert not run(command, tmp_path / "b", arms=["without:kl", "only:kl"]).failed


def test_without_a_baseline_there_is_nothing_to_compare(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    set_up(script, fails="baseline")
    with pytest.raises(UsageError, match=r"(?s)does not get through its baseline.*the reason it broke"):
        run(command, tmp_path / "home")
    set_up(script, silent=True)
    with pytest.raises(UsageError, match=r"(?s)its Doctor left no run here"):
        run(command, tmp_path / "home")
    with pytest.raises(UsageError, match=r"(?s)no-such-program"):
        run(("no-such-program",), tmp_path / "other")


def test_arms_that_the_script_cannot_have_are_refused_before_any_is_trained(
    script: Path, command: tuple[str, ...], tmp_path: Path
) -> None:
    asked = ["without:kl", "only:flux", "weight:kl*2+lr:z_head*3", "knob:temp=1", "shuffle:cond"]
    with pytest.raises(UsageError, match="does not have what these arms change") as refused:
        run(command, tmp_path / "home", arms=asked, seeds=1)
    assert "losses: flow, kl; heads: all; knobs: none" in str(refused.value)
    assert "only:flux, lr:z_head*3 (in weight:kl*2+lr:z_head*3), knob:temp=1" in str(refused.value)
    assert "shuffle" not in str(refused.value), "this one has a condition"
    assert calls(script) == ["baseline 0 -"]


def test_a_folder_belongs_to_one_ablation(command: tuple[str, ...], tmp_path: Path) -> None:
    run(command, tmp_path / "home", arms=[], seeds=1)
    for plan in (Plan((*command, "--x"), tmp_path / "home", 40, 2), Plan(command, tmp_path / "home", 41, 2)):
        with pytest.raises(UsageError, match=r"(?s)not the folder of this ablation.*--out"):
            plan.claim()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"(?s)other files"):
        Plan(command, tmp_path / "full", 40, 2).claim()
    (tmp_path / "home" / "ablation.json").write_text("{")
    with pytest.raises(UsageError, match=r"(?s)no JSON"):
        Plan(command, tmp_path / "home", 40, 2).claim()
    with pytest.raises(UsageError, match="is no arm"):
        run(command, tmp_path / "third", arms=["drop:kl"])


def test_the_folder_belongs_to_one_checkpoint(command: tuple[str, ...], tmp_path: Path) -> None:
    saved = tmp_path / "checkpoint.pt"
    with pytest.raises(UsageError, match=r"(?s)checkpoint is not there.*--checkpoint"):
        Plan(command, tmp_path / "home", 40, 2, saved).claim()
    saved.write_bytes(b"one")
    plan = Plan(command, tmp_path / "home", 40, 2, saved)
    plan.claim()
    plan.claim()
    told = plan.environment(Trial("baseline", 0), tmp_path / "run")
    assert told["LOSSDOCTOR_CHECKPOINT"] == str(saved)
    os.utime(saved, ns=(1, 1))
    with pytest.raises(UsageError, match="not the folder of this ablation"):
        plan.claim()
    with pytest.raises(UsageError, match="not the folder of this ablation"):
        Plan(command, tmp_path / "home", 40, 2).claim()


def test_seeds_that_change_nothing_are_told(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    assert not run(command, tmp_path / "home", arms=[], seeds=2).alike
    fixed = (
        script.read_text().replace('int(os.environ["LOSSDOCTOR_SEED"])', "0").replace('"mu/abs_mean"', '"loss/flow"')
    )
    script.write_text(fixed)
    assert run(command, tmp_path / "fixed", arms=[], seeds=2).alike


def test_a_device_for_each_that_runs(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    set_up(script, seconds=0.2)
    run(command, tmp_path / "home", arms=["only:kl"], jobs=8, devices=["3", "5"])
    assert {line.rpartition(" ")[2] for line in calls(script)} == {"3", "5"}


def test_a_torn_trial_is_done_again(script: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "home"
    run(command, home, arms=[], seeds=2)
    (home / "baseline-0" / "trial.json").write_text("{")
    (home / "baseline-1" / "run-1" / "meta.json").write_text("no")
    done = run(command, home, arms=[], seeds=2)
    assert sorted(done.runs["baseline"]) == [0, 1]
    assert Counter(calls(script)) == {"baseline 0 -": 2, "baseline 1 -": 2}
    assert (home / "baseline-0" / "run-2").exists()


def test_every_arm_has_a_folder_of_its_own() -> None:
    arms = ["weight:a/b*2", "weight:a_b*2", "weight:a b*2", "lr:all*0.1+wd:all=0", "../../x", "x" * 300]
    names = [Trial(arm, 0).name for arm in arms]
    assert len(set(names)) == len(arms)
    assert all("/" not in name and len(name) < 120 for name in names)
    assert [trial.seed for trial in trials(["a", "b"], 2)] == [0, 0, 1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGKILL,)], ids=["ended", "killed"])
def test_killed_it_loses_no_finished_trial(
    script: Path, command: tuple[str, ...], tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    home = tmp_path / "home"
    asked = [sys.executable, "-m", "lossdoctor", "ablate", "--seeds", "2", "--jobs", "2", "--steps", "40"]
    asked += ["--lang", "en", "--out", str(home), "--", *command]
    kept: dict[str, int] = {}
    set_up(script, seconds=0.4)
    for number in numbers:
        first = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while len(list(home.glob("*/trial.json"))) < len(kept) + 3 and time.monotonic() < until:
            time.sleep(0.05)
        first.send_signal(number)
        _, err = first.communicate(timeout=60)
        assert "Traceback" not in err
        if number != signal.SIGKILL:
            assert first.returncode == 128 + number, err
            assert "goes on where this one was" in err
        done, begun = {path.parent.name for path in home.glob("*/trial.json")}, begun_of(script)
        assert done > set(kept)
        kept = {name: begun[name] for name in done}
    set_up(script)
    second = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert second.returncode in (0, 1), second.stderr
    begun = begun_of(script)
    assert {name: begun[name] for name in kept} == kept, "what was finished is not called again"
    assert len(list(home.glob("*/trial.json"))) == 12
