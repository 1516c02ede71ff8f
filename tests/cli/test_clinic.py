"""`lossdoctor clinic` from outside, with programs that do not really train."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main
from lossdoctor.clinic import programs as home_of_programs
from lossdoctor.clinic import proof, ward

FAKES = Path(__file__).parents[1] / "clinic"


@pytest.fixture(scope="module")
def fakes() -> Iterator[ModuleType]:
    """The fake programs, importable for new processes too."""
    sys.path.insert(0, str(FAKES))
    yield importlib.import_module("clinic_fakes")
    sys.path.remove(str(FAKES))


@pytest.fixture(autouse=True)
def programs(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs that go well, and one that fails in three ways."""
    every = (fakes.Fake(), fakes.Other(), fakes.Dangerous())
    monkeypatch.setattr(home_of_programs, "PROGRAMS", every, raising=False)


def call(*arguments: str) -> Result:
    environment = {"LC_ALL": "C", "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(main, ["clinic", *arguments], prog_name="lossdoctor")


def begun(out: Path) -> int:
    return len((out / "trainings.txt").read_text().splitlines())


def read(out: Path) -> dict[str, object]:
    return json.loads((out / "clinic.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)  # type: ignore[no-any-return]


def test_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "clinic"
    arguments = ("--programs", "fake, other", "--seeds", "2", "--jobs", "2", "--out", str(out))
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "training 10/10" in result.output
    assert "asking the rules 10/10" in result.output
    assert "choosing thresholds" in result.output
    assert f"Tables: {out}/clinic.md and {out}/clinic.json" in result.output
    assert "On programs left out of the choice of thresholds" in result.output
    found = read(out)
    assert found["schema"] == "lossdoctor/clinic@1"
    assert found["command"] == "lossdoctor clinic --seeds 2 --programs fake, other"
    assert str(found["machine"]).startswith(f"{os.cpu_count()} cores ")
    assert (len(found["cases"]), found["failed"], list(found["left_out"])) == (10, [], ["fake", "other"])  # type: ignore[arg-type, call-overload]
    page = (out / "clinic.md").read_text(encoding="utf-8")
    assert page in result.output, "short enough to be shown"
    assert "Made by `lossdoctor clinic --seeds 2 --programs fake, other`, " in page

    again = call(*arguments, "--no-left-out")
    assert again.exit_code == 0
    assert "10 of 10 trainings are there from before." in again.output
    assert "choosing thresholds" not in again.output
    assert begun(out) == 10
    assert read(out)["left_out"] == {}
    assert "--no-left-out" in str(read(out)["command"])

    more = call("--programs", "fake, other", "--seeds", "3", "--no-left-out", "--no-train", "--out", str(out))
    assert more.exit_code == 0, more.output
    assert begun(out) == 10
    assert len(read(out)["cases"]) == 10  # type: ignore[arg-type]
    assert "--no-train" in str(read(out)["command"])


def test_nothing_is_there_to_be_judged(tmp_path: Path) -> None:
    result = call("--programs", "fake", "--no-train", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "train first" in result.output


def test_failures_are_shown_and_are_the_exit_code(tmp_path: Path) -> None:
    result = call("--programs", "dangerous", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "dangerous-diverged-0 failed: UsageError: it cannot be trained" in result.output
    assert "dangerous-huge-rate-0 failed: the process ended by itself, with exit code 3" in result.output
    assert "training 7/7" in result.output
    found = read(tmp_path)
    assert [one["fault"] for one in found["failed"]] == ["diverged", "huge-rate", "slow-ema"]  # type: ignore[attr-defined]
    cases = {one["case"]["fault"]: one for one in found["cases"]}  # type: ignore[attr-defined]
    assert cases["frozen-head"]["harm"] is None
    assert cases["healthy"]["harm"] == 1.0


def test_healthy_alone(tmp_path: Path) -> None:
    result = call("--faults", "healthy", "--programs", "fake", "--seeds", "1", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "Of 0 faulty runs - were found" in result.output
    assert begun(tmp_path) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--programs", "fake,nothing"),
            "There is no such program.\n  expected: fake, other, dangerous\n  got:      nothing",
        ),
        (("--faults", "nothing"), "No program has this fault."),
        (("--programs", "other", "--faults", "tight-clip"), "expected: healthy, weak-kl\n  got:      tight-clip"),
        (("--programs", ""), "--programs names nothing."),
        (("--faults", " , "), "--faults names nothing."),
        (("--seeds", "0"), "Invalid value for '--seeds'"),
        (("--jobs", "0"), "Invalid value for '--jobs'"),
    ],
)
def test_wrong_use_is_told_before_anything_is_trained(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = call(*arguments, "--out", str(tmp_path / "clinic"))
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "clinic").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_out_that_is_a_file(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = call("--programs", "fake", "--out", str(tmp_path / "file" / below))
    assert result.exit_code == 2
    assert "choose another with --out" in result.output
    assert (tmp_path / "file").read_text() == "precious"


def test_in_chinese(tmp_path: Path) -> None:
    arguments = ("--programs", "fake", "--seeds", "1", "--out", str(tmp_path), "--lang", "zh-CN")
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "训练 3/3" in result.output
    assert "次有故障的运行中发现了" in result.output
    assert (tmp_path / "clinic.md").read_text(encoding="utf-8").startswith("# 诊所：规则有多准\n")
    assert "3 次训练中有 3 次之前已完成。" in call(*arguments).output


def test_no_more_is_shown_than_can_be_read(tmp_path: Path) -> None:
    result = call("--programs", "fake", "--seeds", "7", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "What went wrong" not in result.output
    assert "What went wrong" in (tmp_path / "clinic.md").read_text(encoding="utf-8")


def test_a_damaged_run_does_not_lose_the_tables(tmp_path: Path) -> None:
    arguments = ("--programs", "fake", "--seeds", "1", "--out", str(tmp_path))
    call(*arguments)
    (tmp_path / "fake-weak-kl-0" / "run.db").write_bytes(b"\x00\xff" * 4000)
    result = call(*arguments)
    assert result.exit_code == 2
    assert "fake-weak-kl-0 failed: RunError: " in result.output
    assert "fake-weak-kl-0: no result: `RunError: " in (tmp_path / "clinic.md").read_text(encoding="utf-8")


def test_ctrl_c_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ward, "train_all", stop)
    result = call("--programs", "fake", "--out", str(tmp_path), "--lang", "en")
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "Stopped. The same command goes on where this one was."


SCRIPT = """
import clinic_fakes as fakes
from lossdoctor.cli import main
from lossdoctor.clinic import programs
if __name__ == "__main__":
    programs.PROGRAMS = (fakes.Slow(),)
    main(["clinic", "--seeds", "1", "--jobs", "2", "--out", "clinic"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(FAKES), "LC_ALL": "C"}

    def start(seconds: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**environment, "FAKE_SLEEP": seconds},
        )

    process = start("60")
    while process.poll() is None and not (tmp_path / "clinic" / "slow-stuck-ema-0" / "half.txt").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "Stopped. The same command goes on where this one was."
    assert not (tmp_path / "clinic" / "clinic.json").exists()
    process = start("0")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert len(json.loads((tmp_path / "clinic" / "clinic.json").read_text())["cases"]) == 3


# Fixes


def test_fixes_are_tried_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def prove_all(seeds: dict[tuple[str, str], int], programs: Any, home: Path, **options: Any) -> Any:
        asked.update(options, seeds=seeds, home=home)
        wanted = list(seeds)
        options["on_done"](wanted[0], None)
        options["on_done"](wanted[1], "UsageError: it cannot")
        attempt = proof.Attempt("weight:kl*4", 0, 3, 3, ())
        found = [
            proof.Proven("other", "healthy", 3),
            proof.Proven("other", "weak-kl", 3, 3, "GRD102", "confirmed", (attempt,)),
        ]
        return found, {wanted[1]: "UsageError: it cannot"}

    monkeypatch.setattr(proof, "prove_all", prove_all)
    result = call("--fixes", "--programs", "other", "--steps", "80", "--jobs", "1", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "other-weak-kl failed: UsageError: it cannot" in result.output
    assert "trying fixes 2/2" in result.output
    assert "Of 1 faulty programs with a finding the fix ranked first removes it in 1 (100.0 %)." in result.output
    assert "Confirmed: 1; of 1 healthy programs 0." in result.output
    assert asked["seeds"] == {("other", "healthy"): 3, ("other", "weak-kl"): 3}
    assert (asked["steps"], asked["jobs"], asked["home"]) == (80, 1, tmp_path / "fixes")
    page = (tmp_path / "fixes.md").read_text(encoding="utf-8")
    assert "Made by `lossdoctor clinic --fixes --steps 80 --programs other`, " in page
    assert page in result.output
    told = json.loads((tmp_path / "fixes.json").read_text(encoding="utf-8"))
    assert (told["schema"], told["rates"]["all"]["share"]) == ("lossdoctor/clinic-fixes@1", 1.0)


def test_fixes_of_before_are_judged_again(tmp_path: Path) -> None:
    result = call("--fixes", "--no-train", "--out", str(tmp_path / "clinic"))
    assert result.exit_code == 2
    assert "train first" in result.output


def test_steps_without_fixes_mean_nothing(tmp_path: Path) -> None:
    result = call("--steps", "80", "--out", str(tmp_path / "clinic"))
    assert result.exit_code == 2
    assert "--steps is for --fixes." in result.output
    assert not (tmp_path / "clinic").exists()
