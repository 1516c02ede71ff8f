"""Shares over hand-made results."""

from __future__ import annotations

import math

import pytest

from lossdoctor.clinic.case import HEALTHY, Case, Result, Told
from lossdoctor.clinic.score import Harm, Score, by_rule, counted, harmful, harms, score

NAN, INF = math.nan, math.inf


def result(
    fault: str = HEALTHY,
    *codes: str,
    program: str = "p",
    seed: int = 0,
    cause: str = "weight-too-small",
    severity: str = "warning",
    harm: float = 1.0,
    after: dict[str, int] | None = None,
    skipped: tuple[str, ...] = (),
) -> Result:
    told = tuple(Told(code, severity, (cause,), leads=True) for code in codes)
    return Result(Case(program, fault, seed), told, (), skipped, after or {}, 100, harm, 1.0)


def test_of_nothing_nothing_is_said() -> None:
    assert score([]) == Score(sick=0, healthy=0, found=None, first=None, top3=None, flagged=None)
    (one,) = by_rule([], ["GRD102"])
    assert (one.asked, one.sick, one.sensitivity, one.first, one.false_alarms, one.delay) == (0, 0, None, None, 0, None)
    assert harms([]) == harmful([]) == {}
    assert counted([]) == []


def test_only_healthy_or_only_sick() -> None:
    healthy = score([result(), result(HEALTHY, "GRD102"), result(HEALTHY, "GRD102", severity="info")])
    assert (healthy.sick, healthy.found, healthy.first, healthy.top3) == (0, None, None, None)
    assert (healthy.healthy, healthy.flagged) == (3, pytest.approx(1 / 3))
    sick = score([result("tight-clip", "GRD107", cause="clip-too-low"), result("tight-clip")])
    assert (sick.sick, sick.found, sick.first, sick.top3) == (2, 0.5, 0.5, 0.5)
    assert (sick.healthy, sick.flagged) == (0, None)


def test_shares() -> None:
    results = [
        result("tight-clip", "GRD107", cause="clip-too-low"),
        result("tight-clip", "GRD107", cause="overflow"),
        result("tight-clip", "VEL401", cause="clip-too-low"),
        result("tight-clip", "GRD107", cause="clip-too-low", severity="info"),
        result(),
        result(HEALTHY, "NUM901", severity="error"),
    ]
    assert score(results) == Score(sick=4, healthy=2, found=0.5, first=0.25, top3=0.25, flagged=0.5)


def test_a_right_cause_that_comes_second_is_not_first() -> None:
    told = (
        Told("NUM901", "error", ("overflow",), leads=True),
        Told("GRD107", "warning", ("clip-too-low",), leads=True),
    )
    found = score([Result(Case("p", "tight-clip", 0), told, (), (), {}, 100, 1.0, 1.0)])
    assert (found.found, found.first, found.top3) == (1.0, 0.0, 1.0)


def test_by_rule() -> None:
    results = [
        result("tight-clip", "GRD107", cause="clip-too-low", after={"GRD107": 25}),
        result("tight-clip", "GRD107", cause="overflow", after={"GRD107": 50}),
        result("tight-clip", "VEL401", skipped=("GRD107",)),
        result("slow-head", "GRD107"),
        result(HEALTHY, "GRD107"),
        result(),
        result(skipped=("GRD107",)),
    ]
    clip, velocity = by_rule(results, ["GRD107", "VEL405"])
    assert (clip.code, clip.asked, clip.sick, clip.healthy, clip.false_alarms) == ("GRD107", 5, 3, 2, 1)
    assert clip.sensitivity == pytest.approx(2 / 3)
    assert clip.first == pytest.approx(1 / 3)
    assert clip.delay == 0.375
    assert (velocity.asked, velocity.sick, velocity.sensitivity, velocity.false_alarms) == (7, 0, None, 0)


def test_the_delay_of_a_rule_is_its_own() -> None:
    results = [result("weak-kl", "GRD102", "BAL801", harm=9, after={"GRD102": 25, "BAL801": 100}), result(harm=1)]
    assert [one.delay for one in by_rule(results, ["GRD102", "BAL801", "PST301"])] == [0.25, 1.0, None]


@pytest.mark.parametrize(
    ("sick", "healthy", "expected"),
    [
        ([2.0], [1.0, 1.5], True),
        ([1.2], [1.0, 1.5], False),
        ([1.5], [1.5], False),
        ([9.0, 1.0, 1.0], [1.5], False),
        ([9.0, 9.0, 1.0], [1.5], True),
        ([NAN], [1.0], True),
        ([INF], [1.0], True),
        ([1.0, NAN, 1.0], [2.0], False),
        ([NAN, NAN, 1.0], [2.0], True),
        ([NAN, 1.0, NAN], [2.0], True),
        ([5.0], [NAN], False),
        ([5.0], [1.0, NAN], False),
        ([5.0], [NAN, 1.0], False),
        ([NAN], [NAN], False),
        ([-1.0], [-2.0], True),
    ],
)
def test_a_fault_hurts_when_its_median_is_worse_than_every_healthy_run(
    sick: list[float], healthy: list[float], expected: bool
) -> None:
    results = [result("weak-kl", seed=seed, harm=harm) for seed, harm in enumerate(sick)]
    results += [result(seed=seed, harm=harm) for seed, harm in enumerate(healthy)]
    assert harmful(results) == {("p", "weak-kl"): expected}
    assert harmful(results[::-1]) == {("p", "weak-kl"): expected}


def test_programs_are_held_against_their_own_healthy_runs() -> None:
    results = [
        result("weak-kl", harm=2.0),
        result(harm=1.0),
        result("weak-kl", program="q", harm=2.0),
        result(program="q", harm=3.0),
        result("weak-kl", program="r", harm=2.0),
        result("tight-clip", harm=0.0),
    ]
    assert harmful(results) == {("p", "weak-kl"): True, ("q", "weak-kl"): False}, "r has no healthy run to compare with"
    assert harms(results)["r", "weak-kl"] == Harm(sick=2.0, healthy=None)
    assert harms(results)["p", "tight-clip"] == Harm(sick=0.0, healthy=1.0)
    assert harms(results)["p", "tight-clip"].shown is False


def test_a_fault_that_does_not_hurt_does_not_count_either_way() -> None:
    harmless = [result("weak-kl", "GRD102", harm=1.0), result("weak-kl", seed=1, harm=1.0)]
    rest = [result("tight-clip", harm=0.0), result(harm=1.0), result("strong-kl", "PST306", harm=2.0)]
    assert counted([*harmless, *rest]) == rest
    assert score([*harmless, *rest]) == score(rest)
    assert score(rest).sick == 2, "what is wrong by construction counts whether it hurts or not"
    assert by_rule([*harmless, *rest], ["GRD102"])[0].sick == 0
    assert score(harmless).sick == 2, "without a healthy run nothing is taken out"
