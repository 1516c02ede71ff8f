"""The engine ray on a real Ray: what it gives is what processes give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lossdoctor.ablate.ablation import Ablation, ablate
from lossdoctor.ablate.engine import Engine
from lossdoctor.ablate.local import Local
from lossdoctor.ablate.ray import Ray, _running
from lossdoctor.ablate.trial import Plan, Trial
from lossdoctor.errors import MissingExtraError, UsageError

SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from lossdoctor import arms
from lossdoctor.record import Record
from lossdoctor.store import RunWriter

here = Path(__file__).parent
arm, seed = arms.parse(os.environ["LOSSDOCTOR_ARM"]), int(os.environ["LOSSDOCTOR_SEED"])
with open(here / "begun.txt", "a") as begun:
    begun.write(f"{arm}|{seed}|{os.getpid()}|{os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
print("a word of the script")
broken = here / "broken"
if str(arm) == "without:kl" and seed == 1 and broken.exists():
    broken.unlink()
    sys.exit("the reason it broke")
time.sleep(float(os.environ.get("SECONDS", "0")))
random = np.random.default_rng(seed)
x, wanted = random.normal(size=(64, 8)), random.normal(size=8)
y, w = x @ wanted + 0.1 * random.normal(size=64), np.zeros(8)
writer = RunWriter(os.environ["LOSSDOCTOR_RUN"], {
    "losses": {"flow": "velocity", "kl": "kl"},
    "experiment": {"arm": str(arm), "seed": seed, "seeded": True, "conditions": False, "knobs": []},
})
for step in range(int(os.environ["LOSSDOCTOR_STEPS"])):
    error = x @ w - y
    writer.append([Record(step, {"loss/flow": float((error ** 2).mean()), "mu/abs_mean": float(abs(w).mean())})])
    w -= 0.05 * (arm.weight("flow", 1.0, step) * x.T @ error / 64 + arm.weight("kl", 0.1, step) * w)
writer.close()
"""
ARMS = ["without:kl", "weight:kl*10", "only:flow+weight:flow*0.5"]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Engine]:
    with Ray(2, ("3", "5")) as engine:
        yield engine


@pytest.fixture
def place() -> Iterator[str]:
    """For what a killed Ray leaves behind; short, as the names of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "script.py"


def of(script: Path, home: str, engine: Engine) -> Ablation:
    plan = Plan((sys.executable, str(script)), script.with_name(home), 40, 1)
    return ablate(plan, engine, arms=ARMS, seeds=3)


def begun(script: Path) -> list[list[str]]:
    return [line.split("|") for line in script.with_name("begun.txt").read_text().splitlines()]


def test_twelve_trials_on_ray_are_twelve_in_processes(script: Path, on_ray: Engine) -> None:
    script.with_name("broken").touch()
    there = of(script, "there", on_ray)
    assert len(begun(script)) == 13, "twelve, and one again"
    assert {line[3] for line in begun(script)} == {"3", "5"}
    first = script.with_name("there") / Trial("without:kl", 1).name
    assert (first / "output-1.txt").read_text().splitlines() == ["a word of the script", "the reason it broke"]
    assert (first / "output-2.txt").read_text().splitlines() == ["a word of the script"]
    assert json.loads((first / "trial.json").read_text())["run"] == "run-2"
    here = of(script, "here", Local(2))
    assert list(there.runs) == list(here.runs) == ["baseline", *ARMS]
    for arm, seed in ((arm, seed) for arm in here.runs for seed in range(3)):
        one, other = there.runs[arm][seed], here.runs[arm][seed]
        assert list(one) == list(other)
        assert all(one[name].values.tobytes() == other[name].values.tobytes() for name in other), (arm, seed)
        assert one.meta["experiment"] == other.meta["experiment"]
    assert there.as_json("en") == here.as_json("en")
    assert there.effects["without:kl"]["mu/abs_mean"].difference > 0.01, "the arms do something"
    of(script, "there", Local(2))
    assert len(begun(script)) == 13 + 12, "what was finished on Ray counts for processes"


def test_a_ray_of_our_own_keeps_to_itself(on_ray: Engine) -> None:
    import ray

    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")


def test_a_cluster_that_is_joined(script: Path, on_ray: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ray() as joined:
        assert joined.joined
        assert joined.room(30) == 30
        plan = Plan((sys.executable, str(script)), script.with_name("home"), 40, 1)
        (outcome,) = joined.run(plan, [Trial("baseline", 0)], lambda outcome: None)
        assert outcome.failure is None
        (outcome,) = joined.run(Plan(("no-such-program",), script.with_name("none"), 40, 1), [Trial("a", 0)], print)
        assert "no-such-program" in str(outcome.failure)
        monkeypatch.setattr(os, "getcwd", lambda: "/no/such/folder")
        (outcome,) = joined.run(plan, [Trial("baseline", 1)], lambda outcome: None)
        assert "cannot run the script" in str(outcome.failure)
        assert "/no/such/folder" in str(outcome.failure)
    with pytest.raises(UsageError, match=r"(?s)hands out its devices itself.*--devices"), Ray(devices=("0",)):
        pass
    monkeypatch.undo()
    again = Plan((sys.executable, str(script)), script.with_name("again"), 40, 1)
    assert on_ray.run(again, [Trial("baseline", 0)], lambda outcome: None)[0].failure is None, "it goes on"


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match=r"(?s)cannot be joined.*127\.0\.0\.1:9.*RAY_ADDRESS=local"), Ray():
        pass
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    assert not _running(), "what a cluster that is no more has left behind"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[ray\]"), Ray():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])  # Ctrl-C takes the way of SIGTERM
def test_killed_on_ray_it_loses_no_finished_trial(script: Path, number: signal.Signals, place: str) -> None:
    asked = [sys.executable, "-m", "lossdoctor", "ablate", "--lang", "en", "--arms", ",".join(ARMS), "--seeds", "2"]
    asked += ["--jobs", "2", "--steps", "40", "--out", str(script.with_name("home"))]
    train = ["--", sys.executable, str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": place, "TMPDIR": place}
    first = subprocess.Popen(
        [*asked, "--engine", "ray", *train], env={**environment, "SECONDS": "0.5"}, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 150
    while len(list(script.parent.glob("home/*/trial.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(number)
    _, err = first.communicate(timeout=60)
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        assert first.returncode == 143, err
        assert "goes on where this one was" in err
        assert not any(alive(int(line[2])) for line in begun(script)), "nothing trains on"
    kept = {path.parent.name for path in script.parent.glob("home/*/trial.json")}
    engine = "local" if number == signal.SIGTERM else "ray"
    second = subprocess.run(
        [*asked, "--engine", engine, *train], capture_output=True, text=True, timeout=200, env=environment
    )
    assert second.returncode in (0, 1), second.stderr
    names = [Trial(line[0], int(line[1])).name for line in begun(script)]
    assert len(kept) >= 3
    assert all(names.count(name) == 1 for name in kept), "what was finished was trained once"
    assert len(list(script.parent.glob("home/*/trial.json"))) == 8


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
