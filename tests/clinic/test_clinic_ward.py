"""Many cases in processes: nothing lost, nothing done twice, no failure that spreads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from lossdoctor.clinic.case import HEALTHY, Case, judge, train, trained
from lossdoctor.clinic.processes import Failed, _next, spread
from lossdoctor.clinic.ward import cases, judge_all, train_all
from lossdoctor.errors import RunWriteError, UsageError

HERE = Path(__file__).parent


def log(home: Path) -> list[tuple[str, int]]:
    """Every training that was begun: the case and the process."""
    lines = (home / "trainings.txt").read_text().splitlines()
    return [(name, int(pid)) for name, pid in (line.split() for line in lines)]


def begun(home: Path) -> Counter[str]:
    return Counter(name for name, _ in log(home))


# Which cases


def test_all_cases(fakes: ModuleType) -> None:
    found = cases([fakes.Fake(), fakes.Other()], None, 2)
    assert len(found) == len(set(found)) == 2 * 3 + 2 * 2
    assert found[:3] == [Case("fake", HEALTHY, 0), Case("fake", "weak-kl", 0), Case("fake", "tight-clip", 0)]
    assert len({case.name for case in found}) == len(found)


def test_named_faults_and_the_healthy_program(fakes: ModuleType) -> None:
    programs = [fakes.Fake(), fakes.Other()]
    assert cases(programs, ["tight-clip"], 1) == [Case("fake", "tight-clip", 0)]
    assert cases(programs, [HEALTHY], 1) == [Case("fake", HEALTHY, 0), Case("other", HEALTHY, 0)]
    assert {case.fault for case in cases(programs, [HEALTHY, "weak-kl"], 1)} == {HEALTHY, "weak-kl"}
    assert cases([], None, 3) == []


def test_unknown_faults_are_told(fakes: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"healthy, weak-kl, tight-clip\n.*huge-rate"):
        cases([fakes.Fake()], ["weak-kl", "huge-rate"], 1)

    class Strange(fakes.Fake):  # type: ignore[name-defined, misc]
        name, faults = "strange", ("a fault of its own",)

    with pytest.raises(UsageError, match="The program strange has a fault of its own"):
        cases([Strange()], None, 1)


# Training


def test_what_is_finished_is_not_trained_again(fakes: ModuleType, tmp_path: Path) -> None:
    programs = [fakes.Fake()]
    wanted = cases(programs, None, 1)
    told: list[tuple[Case, str | None]] = []
    assert train_all(wanted[:2], programs, tmp_path, jobs=2, on_done=lambda *done: told.append(done)) == {}
    assert sorted(told) == [(case, None) for case in sorted(wanted[:2])]
    assert train_all(wanted, programs, tmp_path, jobs=2, on_done=lambda *done: told.append(done)) == {}
    assert begun(tmp_path) == {case.name: 1 for case in wanted}
    assert [case for case, _ in told[2:]] == wanted[2:]
    assert os.getpid() not in {pid for _, pid in log(tmp_path)}


def test_failures_are_told_and_do_not_spread(fakes: ModuleType, tmp_path: Path) -> None:
    """One raises, one takes its process with it, one keeps its run elsewhere; all others are trained."""
    programs = [fakes.Dangerous()]
    wanted = cases(programs, None, 1)
    failed = train_all(wanted, programs, tmp_path, jobs=2)
    assert [case.fault for case in failed] == ["diverged", "huge-rate", "slow-ema"]
    assert failed[Case("dangerous", "diverged", 0)] == "UsageError: it cannot be trained"
    assert failed[Case("dangerous", "huge-rate", 0)] == "the process ended by itself, with exit code 3"
    assert all(trained(case, tmp_path) is (case not in failed) for case in wanted)
    results, unread = judge_all([case for case in wanted if case not in failed], tmp_path, jobs=2)
    assert (len(results), unread) == (4, {})
    # Tried again, and only those.
    assert train_all(wanted, programs, tmp_path, jobs=2) == failed
    assert begun(tmp_path) == {case.name: 2 if case in failed else 1 for case in wanted}


def test_two_clinics_in_one_folder(fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "0.1")
    programs = [fakes.Slow(), fakes.Fake()]
    wanted = cases(programs, None, 2)
    failed: list[dict[Case, str]] = []
    threads = [
        threading.Thread(target=lambda: failed.append(train_all(wanted, programs, tmp_path, jobs=2))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [{}, {}]
    assert begun(tmp_path) == {case.name: 1 for case in wanted}
    assert all(judge(case, tmp_path, [fakes.Level()]).steps == fakes.STEPS for case in wanted)


def test_a_folder_that_cannot_be_written(fakes: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunWriteError, match="choose another with --out"):
        train_all(cases([fakes.Fake()], None, 1), [fakes.Fake()], tmp_path / "file", jobs=1)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_program_that_no_process_can_import_is_one_error(tmp_path: Path) -> None:
    """A class of a function, for example."""
    from lossdoctor.clinic.program import Program

    class Local(Program):
        name, faults, steps = "local", (), 1

        def train(self, *_: object) -> None:  # type: ignore[override]
            raise AssertionError

        def harm(self, *_: object) -> float:
            raise AssertionError

    with pytest.raises(UsageError, match="into a module of its own"):
        train_all(cases([Local()], None, 3), [Local()], tmp_path, jobs=2)


SCRIPT = """
import sys
from pathlib import Path
import clinic_fakes as fakes
from lossdoctor.clinic.ward import cases, train_all
programs = [fakes.Slow()]
def main():
    def told(case, why):
        print(case.name, flush=True)
    train_all(cases(programs, None, 1), programs, Path(sys.argv[1]), jobs=2, on_done=told)
"""


def start(home: Path, guard: str, **environment: str) -> subprocess.Popen[str]:
    (home / "script.py").write_text(f"{SCRIPT}\n{guard}main()\n")
    return subprocess.Popen(
        [sys.executable, str(home / "script.py"), str(home / "clinic")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(HERE), **environment},
    )


def wait_until_slow(home: Path) -> int:
    """Until the slow case has begun and the other two are done; returns the process that has it."""
    slow = Case("slow", "stuck-ema", 0).name
    for _ in range(600):
        with contextlib.suppress(OSError):
            others = (trained(Case("slow", fault, 0), home) for fault in (HEALTHY, "weak-kl"))
            if (home / slow / "half.txt").exists() and all(others):
                return dict(log(home))[slow]
        time.sleep(0.05)
    raise AssertionError("it never began")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


GUARD = "if __name__ == '__main__': "


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_after_ctrl_c_it_goes_on_where_it_was(fakes: ModuleType, tmp_path: Path) -> None:
    home = tmp_path / "clinic"
    process = start(tmp_path, GUARD, FAKE_SLEEP="60")
    worker = wait_until_slow(home)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert output.count("Traceback") == 1, "the one of the script itself"
    assert not alive(worker)
    assert not trained(Case("slow", "stuck-ema", 0), home)
    goes_on(home, tmp_path)
    assert begun(home) == {"slow-healthy-0": 1, "slow-weak-kl-0": 1, "slow-stuck-ema-0": 2}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
@pytest.mark.parametrize("all_of_it", [True, False])
def test_after_kill_it_goes_on_where_it_was(all_of_it: bool, fakes: ModuleType, tmp_path: Path) -> None:
    """A training that outlives its clinic is waited for, not trained a second time."""
    home = tmp_path / "clinic"
    process = start(tmp_path, GUARD, FAKE_SLEEP="60" if all_of_it else "2")
    worker = wait_until_slow(home)
    process.kill()
    process.wait()
    if all_of_it:
        os.kill(worker, signal.SIGKILL)
    goes_on(home, tmp_path)
    process.communicate()
    slow = 2 if all_of_it else 1
    assert begun(home) == {"slow-healthy-0": 1, "slow-weak-kl-0": 1, "slow-stuck-ema-0": slow}


def goes_on(home: Path, tmp_path: Path) -> None:
    process = start(tmp_path, GUARD)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert set(output.split()) <= {"slow-stuck-ema-0"}, "the others are there"
    assert judge(Case("slow", "stuck-ema", 0), home, []).steps == 40


def test_a_script_without_a_guard_is_one_error(tmp_path: Path) -> None:
    process = start(tmp_path, "")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "used under if __name__ == '__main__'" in output


# Judging


def test_judged_in_processes_as_here(fakes: ModuleType, tmp_path: Path) -> None:
    programs = [fakes.Fake(), fakes.Other()]
    wanted = cases(programs, None, 2)
    for case in wanted:
        train(case, {program.name: program for program in programs}[case.program], tmp_path)
    rules = {"fake": [fakes.Level(), fakes.Hint()], "other": [fakes.Level(bar=9.0)]}
    told: list[Case] = []
    results, failed = judge_all(wanted, tmp_path, jobs=3, rules=rules, on_done=lambda case, why: told.append(case))
    assert failed == {}
    assert results == [judge(case, tmp_path, rules[case.program]) for case in wanted]
    assert {(result.case.program, result.found) for result in results if result.case.fault == "weak-kl"} == {
        ("fake", True),
        ("other", False),
    }
    assert sorted(told) == sorted(wanted)


def test_a_damaged_run_is_told_and_the_others_are_judged(fakes: ModuleType, tmp_path: Path) -> None:
    wanted = cases([fakes.Fake()], None, 1)
    for case in wanted:
        train(case, fakes.Fake(), tmp_path)
    (tmp_path / wanted[1].name / "run.db").write_bytes(b"\x00\xff" * 4000)
    results, failed = judge_all(wanted, tmp_path, jobs=2)
    assert [result.case for result in results] == [wanted[0], wanted[2]]
    assert list(failed) == [wanted[1]]
    assert failed[wanted[1]].startswith("RunError: ")
    assert "\n" not in failed[wanted[1]]


# Processes


def exits(item: int) -> int:
    if item < 0:
        os._exit(-item)
    if item == 99:
        raise ValueError("no\n99")
    return item * os.getpid()


@pytest.fixture
def work(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """This module, importable for a new process under the name it has here."""
    monkeypatch.setitem(sys.modules, "test_clinic_ward", sys.modules[__name__])
    monkeypatch.setattr(exits, "__module__", "test_clinic_ward")


@pytest.mark.usefixtures("work")
def test_spread_keeps_order_and_forgets_nothing() -> None:
    items = [3, -2, 99, 1, 3, -7, 5]
    told: list[int] = []
    found = spread(exits, items, jobs=2, on_done=lambda item, answer: told.append(item))
    assert list(found) == [3, -2, 99, 1, -7, 5]
    assert sorted(told) == sorted(set(items))
    assert found[-2] == Failed("the process ended by itself, with exit code 2")
    assert found[99] == Failed("ValueError: no 99")
    assert all(isinstance(found[item], int) for item in (1, 3, 5))


@pytest.mark.usefixtures("work")
def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spread(exits, [], jobs=4) == {}


@pytest.mark.usefixtures("work")
def test_more_jobs_than_items() -> None:
    assert len(spread(exits, [1, 2], jobs=50)) == 2


def test_a_process_stays_with_its_group_and_else_takes_the_longest_that_is_free() -> None:
    pending = {"a": [1, 2], "b": [3], "c": [4, 5, 6]}
    assert _next(pending, "b", {"a", "b"}) == ("b", 3)
    assert pending == {"a": [1, 2], "c": [4, 5, 6]}
    assert _next(pending, "b", {"a", "b"}) == ("c", 4)
    assert _next(pending, "c", {"a", "c"}) == ("c", 5)
    assert _next(pending, "d", {"c", "d"}) == ("a", 1)
    assert _next(pending, "d", {"a", "c"}) == ("a", 2), "both are taken: the first of those as long"
    assert _next(pending, "d", {"a", "c"}) == ("c", 6)
    assert pending == {}


@pytest.mark.usefixtures("work")
def test_an_error_here_ends_all_processes() -> None:
    def stop(item: int, answer: object) -> None:
        raise KeyboardInterrupt

    before = os.environ.get("OMP_NUM_THREADS")
    with pytest.raises(KeyboardInterrupt):
        spread(exits, [1, 2, 3], jobs=2, on_done=stop)
    import multiprocessing

    assert multiprocessing.active_children() == []
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
