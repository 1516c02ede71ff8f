"""One case: trained once and whole, or again; what of its findings counts, and when."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lossdoctor.clinic.case import HEALTHY, PREFIXES, Case, Result, Told, judge, train, trained
from lossdoctor.clinic.recorded import Recorded
from lossdoctor.diagnose import diagnose
from lossdoctor.errors import RunError, RunWriteError, UsageError
from lossdoctor.record import Record
from lossdoctor.rules import RunView
from lossdoctor.store import MemoryWriter, Run, UnknownMetricError

SICK, FINE = Case("fake", "weak-kl", 0), Case("fake", HEALTHY, 0)


def trainings(home: Path) -> list[str]:
    return [line.split()[0] for line in (home / "trainings.txt").read_text().splitlines()]


def result(*told: Told, case: Case = SICK, **rest: Any) -> Result:
    given = {"clear": (), "skipped": (), "after": {}, "steps": 100, "harm": 1.0, "seconds": 1.0, **rest}
    return Result(case, told, **given)


def finding(code: str, *causes: str, severity: str = "warning", leads: bool = True) -> Told:
    return Told(code, severity, causes, leads)


# Training


def test_a_case_is_trained_once_and_kept_whole(fakes: ModuleType, tmp_path: Path) -> None:
    assert not trained(SICK, tmp_path)
    train(SICK, fakes.Fake(), tmp_path)
    assert trained(SICK, tmp_path)
    train(SICK, fakes.Fake(), tmp_path)
    assert trainings(tmp_path) == [SICK.name]
    facts = json.loads((tmp_path / SICK.name / "clinic.json").read_text())
    assert facts["harm"] == 2.0
    assert facts["seconds"] > 0
    assert len(Run.open(tmp_path / SICK.name).steps) == fakes.STEPS


def test_an_interrupted_folder_is_removed_and_redone(fakes: ModuleType, tmp_path: Path) -> None:
    fakes.record(tmp_path / SICK.name, 0.0, steps=7)
    (tmp_path / SICK.name / "half.txt").write_text("a beginning")
    (tmp_path / SICK.name / "clinic.json.new").write_text('{"ha')
    assert not trained(SICK, tmp_path)
    train(SICK, fakes.Fake(), tmp_path)
    names = {path.name for path in (tmp_path / SICK.name).iterdir()}
    assert names - {"run.db-wal", "run.db-shm"} == {"run.db", "meta.json", "events.jsonl", "clinic.json", "output.txt"}
    assert len(Run.open(tmp_path / SICK.name).steps) == fakes.STEPS


def test_a_failed_training_leaves_its_traceback_and_is_tried_again(fakes: ModuleType, tmp_path: Path) -> None:
    case = Case("dangerous", "diverged", 0)
    for _ in range(2):
        with pytest.raises(UsageError, match="it cannot"):
            train(case, fakes.Dangerous(), tmp_path)
    assert not trained(case, tmp_path)
    assert trainings(tmp_path) == [case.name] * 2
    output = (tmp_path / case.name / "output.txt").read_text()
    assert output.startswith("about to fail\nTraceback")
    assert "UsageError: it cannot" in output


def test_a_run_that_is_not_in_the_folder_is_no_result(fakes: ModuleType, tmp_path: Path) -> None:
    case = Case("dangerous", "slow-ema", 0)
    with pytest.raises(RunWriteError, match="records its run in the folder it is given"):
        train(case, fakes.Dangerous(), tmp_path)
    assert not trained(case, tmp_path)


def test_a_run_that_is_cut_off_on_disk_is_no_result(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(folder: Path, *_: Any, **__: Any) -> Run:
        fakes_record(folder, 0.0, steps=3)
        whole = MemoryWriter()
        whole.append([Record(step, {"level": 0.0}, full=True, time=1e9) for step in range(9)])
        return whole.run()

    fakes_record = fakes.record
    monkeypatch.setattr(fakes, "record", cut)
    with pytest.raises(RunWriteError, match="3 records there, 9 in the run returned"):
        train(SICK, fakes.Fake(), tmp_path)
    assert not trained(SICK, tmp_path)


@pytest.mark.parametrize("fault", ["frozen-head", "empty-mask"])
def test_a_harm_that_is_no_number_is_infinite_and_the_file_is_json(
    fault: str, fakes: ModuleType, tmp_path: Path
) -> None:
    case = Case("dangerous", fault, 0)
    train(case, fakes.Dangerous(), tmp_path)
    facts = json.loads((tmp_path / case.name / "clinic.json").read_text(), parse_constant=pytest.fail)
    assert facts["harm"] is None
    assert judge(case, tmp_path, []).harm == math.inf


def test_a_healthy_program_must_have_what_its_harm_looks_at(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes.Fake, "final", lambda self, fault: None)
    with pytest.raises(UnknownMetricError):
        train(FINE, fakes.Fake(), tmp_path)


def test_one_case_is_trained_by_one_at_a_time(fakes: ModuleType, tmp_path: Path) -> None:
    threads = [threading.Thread(target=train, args=(SICK, fakes.Fake(), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trainings(tmp_path) == [SICK.name]


# What counts


def test_found_is_an_alarm_of_a_rule_that_stands_for_the_fault() -> None:
    assert result(finding("GRD102")).found
    assert result(finding("GRD102", severity="error")).found
    assert result(finding("VEL401"), finding("BAL801", leads=False)).found
    assert not result(finding("GRD102", severity="info")).found
    assert not result(finding("VEL401")).found
    assert not result().found
    assert not result(finding("GRD102"), case=FINE).found
    assert result(finding("GRD102"), case=FINE).alarms == ("GRD102",)
    assert result(finding("GRD102", severity="info"), case=FINE).alarms == ()


def test_causes_are_met_group_by_group_the_first_ones_first() -> None:
    told = (
        finding("GRD102", "a", "b", "c"),
        finding("BAL801", "follower", leads=False),
        finding("PST301", "hint", severity="info"),
        finding("VEL401", "d", "a", "e"),
    )
    assert result(*told).causes == ("a", "d", "b", "c", "e")


def test_a_hint_that_leads_does_not_hide_the_alarm_below_it() -> None:
    told = (finding("PST301", "hint", severity="info"), finding("GRD102", "weight-too-small", leads=False))
    assert result(*told).causes == ("weight-too-small",)
    assert result(*told).named(1)


def test_named_means_found_and_a_right_cause_among_the_first() -> None:
    third = result(finding("GRD102", "overflow"), finding("VEL401", "clip-too-low"), finding("OPT701", "kl-too-weak"))
    assert (third.named(1), third.named(2), third.named(3)) == (False, False, True)
    assert result(finding("GRD102", "weight-too-small")).named(1)
    assert not result(finding("VEL401", "weight-too-small")).named(3), "named by a rule that does not stand for it"
    assert not result(finding("GRD102", "weight-too-small", severity="info")).named(3)
    assert not result(finding("GRD102")).named(3)
    assert not result(finding("GRD102", "weight-too-small"), case=FINE).named(1)


def test_of_several_rules_the_first_to_fire_has_detected() -> None:
    assert result(after={"GRD102": 50, "BAL801": 25}).detected == 25
    assert result().detected is None


# Judging


def test_a_sick_case_is_found_when_it_first_shows(fakes: ModuleType, tmp_path: Path) -> None:
    train(SICK, fakes.Fake(), tmp_path)
    judged = judge(SICK, tmp_path, [fakes.Level(), fakes.Hint()])
    assert judged.found
    assert judged.named(1)
    assert judged.alarms == ("GRD102",)
    assert judged.steps == fakes.STEPS
    # It begins at 45 %, so the first look after that is the one at half of the run.
    assert judged.after == {"GRD102": fakes.STEPS // 2}
    assert judge(SICK, tmp_path, [fakes.Level(), fakes.Hint()], early=False).after == {}


@pytest.mark.parametrize(("onset", "expected"), [(0, 10), (12, 15), (36, 40)])
def test_time_to_detection(onset: int, expected: int, fakes: ModuleType, tmp_path: Path) -> None:
    fakes.record(tmp_path / SICK.name, 5.0, onset=onset)
    (tmp_path / SICK.name / "clinic.json").write_text('{"harm": 1, "seconds": 2}')
    assert judge(SICK, tmp_path, [fakes.Level(bar=0.5)]).after == {"GRD102": expected}


def test_a_healthy_case_is_not_asked_when_it_was_found(fakes: ModuleType, tmp_path: Path) -> None:
    train(FINE, fakes.Fake(), tmp_path)
    judged = judge(FINE, tmp_path, [fakes.Level(bar=0.01)])
    assert judged.alarms == ("GRD102",)
    assert judged.after == {}


def test_what_only_few_rules_say_of_a_short_run_does_not_count(fakes: ModuleType, tmp_path: Path) -> None:
    """Alone the rule is sure early (p = 0.04); among fifty tests it is sure only of the whole run."""
    fakes.record(tmp_path / SICK.name, 5.0)
    (tmp_path / SICK.name / "clinic.json").write_text('{"harm": 1, "seconds": 2}')
    assert judge(SICK, tmp_path, [fakes.Surer()]).after == {"BAL801": 10}
    assert judge(SICK, tmp_path, [fakes.Surer(), fakes.ManyTests()]).after == {"BAL801": fakes.STEPS}


def test_rules_that_do_not_stand_for_the_fault_are_not_asked_early(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SICK, fakes.Fake(), tmp_path)
    asked: list[int] = []
    check = fakes.ManyTests.check
    monkeypatch.setattr(fakes.ManyTests, "check", lambda self, run: asked.append(len(run.steps)) or check(self, run))
    judge(SICK, tmp_path, [fakes.Level(), fakes.ManyTests()])
    assert asked == [fakes.STEPS, fakes.STEPS // 2], "at the end, and once where the fault seems to show"


@pytest.mark.parametrize("facts", ["", "{", "[]", '{"harm": "x", "seconds": 1}', '{"seconds": 1}', "null"])
def test_unreadable_facts_are_told(facts: str, fakes: ModuleType, tmp_path: Path) -> None:
    fakes.record(tmp_path / SICK.name, 5.0)
    (tmp_path / SICK.name / "clinic.json").write_text(facts)
    with pytest.raises(RunError, match="trains the case again"):
        judge(SICK, tmp_path, [])


# Runs cut short


def test_until_is_the_run_as_it_was(fakes: ModuleType, tmp_path: Path) -> None:
    """Compared with a run that was stopped there."""
    writers = MemoryWriter({"a": 1}), MemoryWriter({"a": 1})
    for steps, writer in zip((60, 25), writers, strict=True):
        for step in range(steps):
            values = {"early": float(step), **({"late": 1.0} if step >= 30 else {})}
            values |= {"broken": math.nan if step % 2 else 1.0} if step % 5 == 0 else {}
            writer.append([Record(step, values, full=step % 5 == 0, time=1e9 + step)])
            if step % 20 == 0:
                writer.event("audit", step=step, facts={"step": step})
    whole, short = (Recorded.of(writer.run()) for writer in writers)
    cut = whole.until(25)
    assert list(cut) == list(short) == ["broken", "early"], "a metric that begins later is not there"
    assert [(e["kind"], e["step"]) for e in cut.events] == [(e["kind"], e["step"]) for e in short.events]
    assert cut.meta == short.meta
    np.testing.assert_array_equal(cut.steps, short.steps)
    np.testing.assert_array_equal(cut.times.steps, short.times.steps)
    for name in cut:
        one, other = cut.thinned(name), short.thinned(name)
        np.testing.assert_array_equal(one.series.values, other.series.values)
        assert (one.count, one.broken, one.first_broken) == (other.count, other.broken, other.first_broken)
    assert diagnose(cut) == diagnose(short)


@pytest.mark.parametrize("count", [0, 1, 60, 1000])
def test_until_at_the_edges(count: int) -> None:
    writer = MemoryWriter()
    writer.append([Record(step, {"x": 1.0}, full=True, time=1e9) for step in range(60)])
    whole = Recorded.of(writer.run())
    assert RunView(whole.until(count)).last_step == min(count, 60) - 1
    assert diagnose(whole.until(count)).steps == min(count, 60)
    assert diagnose(Recorded.of(MemoryWriter().run()).until(count)).steps == 0


def test_looks_are_in_order_and_before_the_end() -> None:
    assert sorted(set(PREFIXES)) == list(PREFIXES)
    assert 0 < min(PREFIXES) < max(PREFIXES) < 1
