"""Thresholds are chosen on the other programs, and only there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from lossdoctor.clinic.case import HEALTHY, Case, Result, judge
from lossdoctor.clinic.tuning import left_out, tuned
from lossdoctor.rules import Clear, Outcome, Rule, RunView
from lossdoctor.rules.rule import given

Levels = dict[tuple[str, str], float]

# Level's bar is 1. A bar of 0.5 finds the sick runs of a and b, and flags the healthy ones of c.
MIXED: Levels = {
    ("a", HEALTHY): 0.1,
    ("a", "weak-kl"): 0.7,
    ("b", HEALTHY): 0.1,
    ("b", "weak-kl"): 0.7,
    ("c", HEALTHY): 0.7,
    ("c", "weak-kl"): 5.0,
}


def ward(fakes: ModuleType, home: Path, levels: Levels, seeds: int = 1) -> list[Case]:
    """Trained cases whose runs have these levels."""
    cases = []
    for (program, fault), level in levels.items():
        for seed in range(seeds):
            case = Case(program, fault, seed)
            shutil.rmtree(home / case.name, ignore_errors=True)
            fakes.record(home / case.name, level)
            (home / case.name / "clinic.json").write_text(json.dumps({"harm": 2.0 - (fault == HEALTHY), "seconds": 1}))
            cases.append(case)
    return cases


def judged(cases: list[Case], home: Path, rules: list[Rule]) -> list[Result]:
    return [judge(case, home, rules, early=False) for case in cases]


def test_the_program_left_out_has_no_say(fakes: ModuleType, tmp_path: Path) -> None:
    cases = ward(fakes, tmp_path, MIXED)
    # With c in the choice 0.5 would be wrong (a healthy run counts ten); without it, it is right.
    found = tuned(fakes.Level, cases, tmp_path)
    assert found == {"a": {}, "b": {}, "c": {"bar": 0.5}}
    # Whatever c is like, what is chosen for it stays; what is chosen for the others follows c.
    for healthy, sick, others in [(0.1, 5.0, {"bar": 0.5}), (0.1, 0.7, {"bar": 0.5}), (5.0, 0.1, {"bar": 0.5})]:
        cases = ward(fakes, tmp_path, {**MIXED, ("c", HEALTHY): healthy, ("c", "weak-kl"): sick})
        found = tuned(fakes.Level, cases, tmp_path)
        assert found["c"] == {"bar": 0.5}
        assert found["a"] == found["b"] == others


def test_without_its_cases_the_same_is_chosen(fakes: ModuleType, tmp_path: Path) -> None:
    cases = ward(fakes, tmp_path, {key: level for key, level in MIXED.items() if key[0] != "b"})
    alone = {}
    for program in ("a", "c"):
        others = [case for case in cases if case.program != program]
        # One case keeps the name of the program; the rule does not stand for it, and its run is not even there.
        alone[program] = tuned(fakes.Level, [*others, Case(program, "tight-clip", 0)], tmp_path)[program]
    assert alone == tuned(fakes.Level, cases, tmp_path) == {"a": {}, "c": {"bar": 0.5}}


@pytest.mark.parametrize(
    ("healthy", "sick", "expected"),
    [
        (0.1, 5.0, {}),  # all three are right: the default
        (0.1, 0.2, {}),  # none finds it
        (5.0, 9.0, {}),  # all flag the healthy one
        (0.1, 0.7, {"bar": 0.5}),
        (1.5, 5.0, {"bar": 2.0}),
        (1.5, 1.8, {"bar": 2.0}),  # a healthy run unflagged is worth a fault not found
        (0.7, 0.9, {}),  # finding it is not worth flagging
    ],
)
def test_the_default_on_a_tie_else_what_is_right_most_often(
    healthy: float, sick: float, expected: dict[str, float], fakes: ModuleType, tmp_path: Path
) -> None:
    levels = {("a", HEALTHY): healthy, ("a", "weak-kl"): sick, ("b", HEALTHY): healthy, ("b", "weak-kl"): sick}
    assert tuned(fakes.Level, ward(fakes, tmp_path, levels), tmp_path) == {"a": expected, "b": expected}


def test_a_healthy_run_counts_for_ten(fakes: ModuleType, tmp_path: Path) -> None:
    """Twice the bar loses the faults and no longer flags one healthy run: worth it for nine faults."""
    for sick, expected in ((11, {}), (10, {}), (9, {"bar": 2.0})):
        cases = ward(fakes, tmp_path, {("a", "weak-kl"): 1.5}, seeds=sick)
        cases += ward(fakes, tmp_path, {("a", HEALTHY): 1.5, ("b", HEALTHY): 0.1})
        assert tuned(fakes.Level, cases, tmp_path)["b"] == expected


def test_there_is_room_to_spare(fakes: ModuleType, tmp_path: Path) -> None:
    """Half the bar finds the fault; a healthy run that half of that would flag is too near."""
    for healthy, expected in ((0.3, {}), (0.2, {"bar": 0.5}), (0.7, {})):
        cases = ward(fakes, tmp_path, {("a", "weak-kl"): 0.7}, seeds=20)
        cases += ward(fakes, tmp_path, {("a", HEALTHY): healthy, ("b", HEALTHY): 0.1})
        assert tuned(fakes.Level, cases, tmp_path)["b"] == expected


def test_faults_of_other_rules_have_no_say(fakes: ModuleType, tmp_path: Path) -> None:
    cases = ward(fakes, tmp_path, {("a", "tight-clip"): 0.7, ("a", HEALTHY): 0.1, ("b", HEALTHY): 0.1})
    assert tuned(fakes.Level, cases, tmp_path) == {"a": {}, "b": {}}


def test_a_hint_is_no_alarm(fakes: ModuleType, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class LevelHint(fakes.Level):  # type: ignore[name-defined, misc]
        severity = "info"

    assert tuned(LevelHint, ward(fakes, tmp_path, MIXED), tmp_path)["c"] == {}


def test_thresholds_of_all_types(fakes: ModuleType, tmp_path: Path) -> None:
    """Counts stay counts; switches and words are left alone; a rule that fails at a value is not right there."""
    tried: list[tuple[object, ...]] = []

    @dataclass(frozen=True)
    class Strange(Rule):
        """For the test."""

        code, name = "GRD102", "strange"
        count: int = 3
        zero: float = 0.0
        on: bool = True
        word: str = "x"

        def check(self, run: RunView) -> Outcome:
            tried.append((self.count, self.zero, self.on, self.word))
            return Clear((1.0 / (self.count - 1),))

    assert tuned(Strange, ward(fakes, tmp_path, MIXED), tmp_path) == {"a": {}, "b": {}, "c": {}}
    assert set(tried) == {(count, 0.0, True, "x") for count in (1, 3, 6)}
    assert all(type(count) is int for count, *_ in tried)


def test_what_the_method_gives_is_not_chosen(fakes: ModuleType, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Given(fakes.Level):  # type: ignore[name-defined, misc]
        bar: float = given(fakes.Level().bar)

    cases = ward(fakes, tmp_path, MIXED)
    assert tuned(fakes.Level, cases, tmp_path)["c"], "as any other it would be"
    assert tuned(Given, cases, tmp_path) == {"a": {}, "b": {}, "c": {}}
    assert Given.thresholds() == fakes.Level.thresholds(), "a user may still set it"


def test_each_case_is_asked_once_per_setting(fakes: ModuleType, tmp_path: Path) -> None:
    asked: list[float] = []

    @dataclass(frozen=True)
    class Counted(fakes.Level):  # type: ignore[name-defined, misc]
        def check(self, run: RunView) -> Outcome:
            asked.append(self.bar)
            return super().check(run)  # type: ignore[no-any-return]

    tuned(Counted, ward(fakes, tmp_path, {key: level for key, level in MIXED.items() if key[0] != "c"}), tmp_path)
    # Besides the bar, the rule has p = 0.0: the same at half and at twice.
    # Half would be taken, so the healthy ones are asked whether half of that leaves them alone.
    assert sorted(asked) == [0.25] * 2 + [0.5] * 4 + [1.0] * 4 + [2.0] * 4


def test_what_is_chosen_elsewhere_judges_the_program(fakes: ModuleType, tmp_path: Path) -> None:
    cases = ward(fakes, tmp_path, MIXED)
    rules = (fakes.Level, fakes.Hint)
    ticks: list[None] = []
    found = left_out(
        judged(cases, tmp_path, [rule() for rule in rules]),
        tmp_path,
        jobs=2,
        rules=rules,
        on_done=lambda: ticks.append(None),
    )
    assert len(ticks) == len(rules) + len(cases)
    assert {program: one.settings for program, one in found.items()} == {
        "a": {},
        "b": {},
        "c": {"GRD102": {"bar": 0.5}},
    }
    alarms = {program: {r.case.fault: bool(r.alarms) for r in one.results} for program, one in found.items()}
    assert alarms["a"] == {HEALTHY: False, "weak-kl": False}, "missed, as its own thresholds were never asked for"
    assert alarms["c"] == {HEALTHY: True, "weak-kl": True}, "flagged: what suits the others does not suit it"
    assert all(result.case.program == program for program, one in found.items() for result in one.results)
    assert all(result.after == {} for one in found.values() for result in one.results)


def test_faults_that_do_not_hurt_are_not_tuned_for(fakes: ModuleType, tmp_path: Path) -> None:
    cases = ward(fakes, tmp_path, {key: level for key, level in MIXED.items() if key[0] != "c"})
    (tmp_path / "b-weak-kl-0" / "clinic.json").write_text('{"harm": 0.5, "seconds": 1}')
    found = left_out(judged(cases, tmp_path, [fakes.Level()]), tmp_path, jobs=1, rules=(fakes.Level,))
    assert found["a"].settings == {}
    assert found["b"].settings == {"GRD102": {"bar": 0.5}}
