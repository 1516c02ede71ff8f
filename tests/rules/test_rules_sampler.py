"""SMP: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Finding, Rule, RunView
from lossdoctor.rules.cnd601_condition_unused import ConditionUnused
from lossdoctor.rules.endpoints import by_steps, nominal_order, own_sampler, seen
from lossdoctor.rules.smp501_endpoint_not_improving import EndpointNotImproving
from lossdoctor.rules.smp502_wrong_order import WrongOrder
from lossdoctor.rules.smp503_endpoint_off_scale import EndpointOffScale
from lossdoctor.rules.smp504_endpoint_off_distribution import EndpointOffDistribution
from lossdoctor.rules.smp505_missing_path_derivative import MissingPathDerivative
from lossdoctor.rules.smp506_inference_field_differs import InferenceFieldDiffers
from lossdoctor.rules.vel406_time_reversed import TimeReversed
from lossdoctor.store import MemoryWriter, Run

OWN = [rule for rule in RULES if rule.code.startswith("SMP")]
STEPS, EVERY = 60, 10
GRIDS = (8, 16, 32, 64)

Curves = dict[str, list[float]]


def noisy(level: float, rng: np.random.Generator, spread: float = 0.05) -> list[float]:
    noise = np.zeros(STEPS)
    for i, drawn in enumerate(rng.normal(size=STEPS)):
        noise[i] = 0.5 * (noise[i - 1] if i else 0.0) + 0.85 * drawn
    return list((level * np.exp(spread * noise)).astype(float))


def over_steps(metric: str, *values: float) -> Curves:
    """A metric of the end points, measured once, at the end."""
    return {f"flow/{metric}@{k}": [value] for k, value in zip(GRIDS, values, strict=True)}


def healthy(seed: int = 0) -> Curves:
    """The ring of the clinic, sampled by a loop of its own. The distance to the own target rises with K."""
    rng = np.random.default_rng(seed)
    return {
        "loss/flow": noisy(0.5, rng),
        "flow/nmse": noisy(0.22, rng),
        "flow/z0_std": noisy(1.0, rng, 0.02),
        "flow/z1_std": noisy(1.0, rng, 0.02),
        "flow/mse_zero": noisy(2.47, rng, 0.02),
        "flow/field_mismatch": [0.0] * STEPS,
        "flow/field_scale": [1.0] * STEPS,
        "flow/field_reversed": noisy(1.5, rng),
        "flow/field_other_cond": noisy(2.7, rng),
        **over_steps("ode_error", 0.0465, 0.019, 0.0089, 0.0043),
        **over_steps("ode_error_euler", 0.0465, 0.019, 0.0089, 0.0043),
        "flow/ode_order": [1.13],
        "flow/ode_order_euler": [1.13],
        **over_steps("endpt_rmse", 0.127, 0.139, 0.144, 0.147),
        **over_steps("endpt_rmse_shuffled", 0.124, 0.136, 0.141, 0.143),
        **over_steps("endpt_sw", 0.1, 0.089, 0.086, 0.085),
        **over_steps("endpt_energy", 0.0049, 0.0031, 0.0029, 0.0028),
        "flow/endpt_sw_floor": [0.0867],
        "flow/endpt_energy_floor": [0.0031],
        "flow/endpt_std_ratio": [1.0],
        "flow/straightness": [0.23],
    }


def run(curves: Mapping[str, list[float]], events: list[dict[str, Any]] | None = None, **meta: Any) -> Run:
    """Curves end at the last step, however few points they have."""
    writer = MemoryWriter({"kinds": {"flow": "velocity"}, **meta})
    for event in events or []:
        writer.event(**event)
    records = []
    for i in range(STEPS):
        here = {name: c[i - STEPS] for name, c in curves.items() if i >= STEPS - len(c)}
        records.append(Record(i * EVERY, here, full=True))
    writer.append(records)
    return writer.run()


def asked(rule: Rule, there: Run) -> Diagnosis:
    told = diagnose(there, rules=[rule])
    assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
    for finding in told.findings:
        for lang in ("en", "zh-CN"):
            assert finding.message.text(lang)
            assert all(cause.message.text(lang) for cause in finding.causes)
            assert all(fix.message.text(lang) for fix in finding.fixes)
        assert all(math.isfinite(seen.value) for seen in finding.evidence)
        assert all(seen.last_step is not None for seen in finding.evidence)
    return told


def one(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> Finding:
    told = asked(rule, run(curves, **meta))
    assert len(told.findings) == 1, (told.clear, [str(s.reason) for _, s in told.skipped])
    return told.findings[0]


def clear(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> bool:
    told = asked(rule, run(curves, **meta))
    return told.findings == () and told.clear == (rule.code,)


def skipped(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> str:
    told = asked(rule, run(curves, **meta))
    assert [code for code, _ in told.skipped] == [rule.code], told
    return told.skipped[0][1].reason.key


def codes(finding: Finding) -> list[str]:
    return [cause.code for cause in finding.causes]


def without(curves: Curves, *beginnings: str) -> Curves:
    return {name: curve for name, curve in curves.items() if not name.startswith(beginnings)}


# The healthy twin


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_clear(seed: int) -> None:
    told = diagnose(run(healthy(seed)), rules=[rule() for rule in OWN])
    assert told.findings == ()
    assert [code for code, _ in told.skipped] == ["SMP505"]


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("points", [0, 1, STEPS])
def test_hostile_runs_do_not_break_a_rule(rule: type[Rule], value: float, points: int) -> None:
    for curves in (
        {name: [value] * points for name in healthy()},
        {**healthy(), **{name: [value] * points for name in healthy() if "@64" in name or "floor" in name}},
        {**healthy(), **{name: [value] * points for name in healthy() if "field" in name or "@8" in name}},
    ):
        told = diagnose(run(curves), rules=[rule()])
        assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
        for lang in ("en", "zh-CN"):
            told.to_json(lang)


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
def test_missing_curves_do_not_break_a_rule(rule: type[Rule]) -> None:
    for name in healthy():
        told = diagnose(run(without(healthy(), name)), rules=[rule()])
        assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
        assert told.findings == ()


@pytest.mark.parametrize("meta", [{}, {"endpoint": None}, {"endpoint": {"order": "high"}}, {"endpoint": {"order": -1}}])
def test_the_nominal_order_is_1_where_it_is_not_told(meta: dict[str, Any]) -> None:
    assert nominal_order(RunView(run({}, **meta))) == 1.0
    assert nominal_order(RunView(run({}, endpoint={"order": 4}))) == 2.0, "networks with kinks show no more"


def test_what_is_shared_reads_metrics_by_their_steps() -> None:
    view = RunView(run({"flow/ode_error@8": [0.5, 0.4], "flow/ode_error@16": [math.nan], "flow/ode_error@x": [1.0]}))
    assert by_steps(view, "ode_error").keys() == {8}
    assert not own_sampler(view)
    assert own_sampler(RunView(run(healthy())))
    assert seen(view, "flow/nothing@8") == ()
    assert seen(view, "flow/ode_error@8")[0].last_step == (STEPS - 1) * EVERY


# SMP501


def test_a_solver_error_that_does_not_fall() -> None:
    found = one(EndpointNotImproving(), healthy() | over_steps("ode_error", 0.5, 0.48, 0.47, 0.46))
    assert (found.message.key, found.depth) == ("rule.SMP501", "consequence")
    assert codes(found)[:2] == ["sampler-grid", "sampler-state"]
    settled = healthy() | over_steps("ode_error", 0.012, 0.011, 0.011, 0.011)
    assert clear(EndpointNotImproving(), settled), "it has settled at an error that hardly matters"


def test_end_points_that_leave_the_data() -> None:
    far = over_steps("endpt_sw", 4.68, 5.2, 5.6, 5.92) | over_steps("endpt_energy", 3.1, 3.8, 4.3, 4.6)
    found = one(EndpointNotImproving(), healthy() | far)
    assert found.message.key == "rule.SMP501.distribution"
    one_agrees = healthy() | over_steps("endpt_sw", 4.68, 5.2, 5.6, 5.92)
    assert clear(EndpointNotImproving(), one_agrees), "the energy distance does not agree"


def test_end_points_that_leave_their_own_targets() -> None:
    paired = over_steps("endpt_rmse", 0.1, 0.15, 0.2, 0.25) | over_steps("endpt_rmse_shuffled", 1.4, 1.4, 1.4, 1.4)
    assert one(EndpointNotImproving(), healthy() | paired).message.key == "rule.SMP501.pairs"


def test_healthy_the_distance_to_the_own_target_rises_under_independent_pairs() -> None:
    """Measured on digits with a healthy model: 0.90, 0.94, 0.97, 0.98."""
    independent = over_steps("endpt_rmse", 0.9, 0.94, 0.97, 0.98) | over_steps(
        "endpt_rmse_shuffled", 0.9, 0.95, 0.97, 0.98
    )
    assert clear(EndpointNotImproving(), healthy() | independent)
    sharp = over_steps("endpt_rmse", 0.3, 0.4, 0.7, 2.0) | over_steps("endpt_rmse_shuffled", 0.3, 0.4, 0.7, 2.0)
    assert clear(EndpointNotImproving(), healthy() | sharp), "however much it rises"
    partly = over_steps("endpt_rmse", 0.5, 0.6, 0.66, 0.69) | over_steps("endpt_rmse_shuffled", 1.2, 1.3, 1.35, 1.4)
    assert clear(EndpointNotImproving(), healthy() | partly), "what the pairing leaves open rises by up to 1.41"


def test_the_cause_of_bad_end_points_is_the_field() -> None:
    far = over_steps("endpt_sw", 4.68, 5.2, 5.6, 5.92) | over_steps("endpt_energy", 3.1, 3.8, 4.3, 4.6)
    sign = {"flow/field_mismatch": [2.0] * STEPS, "flow/field_scale": [-1.0] * STEPS}
    assert codes(one(EndpointNotImproving(), healthy() | far | sign)) == ["inference-sign"]
    told = asked(EndpointNotImproving(), run(healthy() | far | sign))
    both = diagnose(run(healthy() | far | sign), rules=[EndpointNotImproving(), InferenceFieldDiffers()])
    assert told.findings[0].explained_by is None
    assert [(f.code, f.explained_by) for f in both.findings] == [("SMP506", None), ("SMP501", "SMP506")]


def test_one_number_of_steps_says_nothing() -> None:
    single = {name: curve for name, curve in healthy().items() if "@" not in name or "@8" in name}
    assert skipped(EndpointNotImproving(), single) == "skip.one_count"
    assert skipped(WrongOrder(), single) == "skip.one_count"


# SMP502


@pytest.mark.parametrize(
    ("errors", "first"),
    [((0.097, 0.046, 0.024, 0.0129), "sampler-grid"), ((0.281, 0.093, 0.042, 0.0215), "sampler-state")],
    ids=["short grid", "stale state"],
)
def test_a_sampler_worse_than_euler(errors: tuple[float, ...], first: str) -> None:
    found = one(WrongOrder(), healthy() | over_steps("ode_error", *errors), endpoint={"order": 1})
    assert (found.severity, found.message.key, codes(found)[0]) == ("warning", "rule.SMP502.worse", first)


@pytest.mark.parametrize(
    ("gap", "lag", "severity", "first"),
    [
        (0.11, 1e-7, "warning", "sampler-grid"),
        (1e-7, 0.13, "warning", "sampler-state"),
        (1e-7, 1e-7, "info", "sampler-grid"),
    ],
    ids=["short grid", "stale state", "uneven grid"],
)
def test_recorded_calls_tell_a_grid_from_a_state(gap: float, lag: float, severity: str, first: str) -> None:
    calls = over_steps("sampler_gap", *[gap / 2**i for i in range(4)])
    calls |= over_steps("sampler_lag", *[lag / 2**i for i in range(4)])
    worse = healthy() | over_steps("ode_error", 0.13, 0.06, 0.03, 0.015) | calls
    found = one(WrongOrder(), worse)
    assert (found.severity, codes(found)[0]) == (severity, first)


def test_a_sampler_that_does_not_solve_its_field() -> None:
    flat = healthy() | over_steps("ode_error", 0.3, 0.29, 0.28, 0.28) | {"flow/ode_order": [0.03]}
    found = one(WrongOrder(), flat)
    assert (found.severity, found.message.key) == ("warning", "rule.SMP502")
    rough = one(WrongOrder(), flat | {"flow/ode_order_euler": [0.1]})
    assert (rough.severity, rough.message.key) == ("info", "rule.SMP502.rough"), "Euler's method does no better"
    solver = without(flat, "flow/ode_error_euler", "flow/ode_order_euler")
    assert one(WrongOrder(), solver).severity == "info", "the solver is right, so it is the field"


def test_healthy_orders() -> None:
    heun = over_steps("ode_error", 0.0175, 0.0041, 0.00097, 0.00024) | {"flow/ode_order": [2.05]}
    assert clear(WrongOrder(), healthy() | heun, endpoint={"order": 2})
    rk4 = over_steps("ode_error", 0.004, 0.0012, 0.00041, 0.00015) | {"flow/ode_order": [1.6]}
    assert clear(WrongOrder(), healthy() | rk4, endpoint={"order": 4}), "a network with kinks"
    exact = without(healthy(), "flow/ode_order") | over_steps("ode_error", 4e-7, 4e-7, 5e-7, 5e-7)
    assert clear(WrongOrder(), exact), "rounding has no order"
    fewer = healthy() | over_steps("ode_error", 0.0558, 0.0203, 0.0092, 0.0044)
    assert clear(WrongOrder(), fewer), "one step less than asked for is no other method"


def test_the_threshold_of_a_worse_sampler_can_be_set() -> None:
    slightly = healthy() | over_steps("ode_error", 0.0558, 0.0228, 0.0107, 0.0052)
    assert clear(WrongOrder(), slightly)
    assert one(WrongOrder(worse=1.1), slightly)


# SMP503, SMP504


@pytest.mark.parametrize(("ratio", "severity"), [(6.9, "warning"), (0.3, "warning"), (1.45, "info"), (0.6, "info")])
def test_samples_of_another_size(ratio: float, severity: str) -> None:
    assert one(EndpointOffScale(), healthy() | {"flow/endpt_std_ratio": [ratio]}).severity == severity


@pytest.mark.parametrize("ratio", [0.75, 0.97, 1.0, 1.3])
def test_healthy_samples_of_about_the_size_of_the_data(ratio: float) -> None:
    assert clear(EndpointOffScale(), healthy() | {"flow/endpt_std_ratio": [ratio]})


def test_the_size_of_samples_says_what_is_behind_it() -> None:
    off = healthy() | {"flow/endpt_std_ratio": [3.0]}
    target = {"flow/target_mismatch": [2.0] * STEPS, "flow/target_scale": [-1.0] * STEPS}
    assert codes(one(EndpointOffScale(), off | target))[0] == "target-sign"
    assert codes(one(EndpointOffScale(), off | {"flow/nmse": [1.0] * STEPS})) == ["velocity-not-learned"]
    assert codes(one(EndpointOffScale(), off | {"ema/momentum": [1.0] * STEPS})) == ["ema-not-updated"]
    assert codes(one(EndpointOffScale(), off | {"ema/momentum": [0.9999] * STEPS})) == ["ema-too-slow"]
    assert codes(one(EndpointOffScale(), off | {"ema/momentum": [0.99] * STEPS}))[0] == "inference-scale"


def test_good_training_and_bad_samples() -> None:
    far = over_steps("endpt_sw", 1.38, 1.36, 1.35, 1.34) | over_steps("endpt_energy", 1.7, 1.66, 1.64, 1.62)
    found = one(EndpointOffDistribution(), healthy() | far)
    assert (found.depth, found.severity) == ("consequence", "warning")
    unlearned = healthy() | far | {"flow/nmse": [0.9] * STEPS}
    assert skipped(EndpointOffDistribution(), unlearned) == "skip.not_learned", "the training is to blame first"
    only_energy = without(healthy() | far, "flow/endpt_sw")
    assert one(EndpointOffDistribution(), only_energy).evidence[0].metric == "flow/endpt_energy@64"


def test_healthy_distances_below_and_near_their_floor() -> None:
    below = over_steps("endpt_sw", 0.18, 0.177, 0.178, 0.18) | {"flow/endpt_sw_floor": [0.187]}
    assert clear(EndpointOffDistribution(), healthy() | below)
    assert clear(EndpointNotImproving(), healthy() | below)
    small = over_steps("endpt_sw", 0.1, 0.09, 0.09, 0.09) | over_steps("endpt_energy", 0.02, 0.02, 0.02, 0.02)
    tiny = {"flow/endpt_sw_floor": [0.01], "flow/endpt_energy_floor": [1e-4]}
    assert clear(EndpointOffDistribution(), healthy() | small | tiny), "a floor of very many samples"
    one_of_two = over_steps("endpt_sw", 1.4, 1.4, 1.4, 1.4)
    assert clear(EndpointOffDistribution(), healthy() | one_of_two), "the energy distance does not agree"


def test_the_last_of_many_measurements_counts() -> None:
    early = {"flow/endpt_std_ratio": [*np.linspace(0.1, 1.0, 10)]}
    assert clear(EndpointOffScale(), healthy() | early)


# SMP505


def preflight(outcome: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"kind": "preflight", "check": "sampler", "code": "SMP505", "outcome": outcome, **fields}]


def test_a_missing_derivative_is_what_the_preflight_said() -> None:
    told = asked(MissingPathDerivative(), run(healthy(), preflight("fired")))
    assert [(f.severity, f.certainty, codes(f)[0]) for f in told.findings] == [
        ("error", "confirmed", "path-derivative-missing")
    ]
    named = asked(MissingPathDerivative(), run(healthy(), preflight("fired", causes=["inference-scale", "nonsense"])))
    assert codes(named.findings[0])[0] == "inference-scale"
    again = run(healthy(), preflight("fired") + preflight("clear"))
    assert asked(MissingPathDerivative(), again).clear == ("SMP505",), "the last one counts"


@pytest.mark.parametrize(
    "events", [[], [{"kind": "preflight", "code": "OTHER", "outcome": "fired"}], [{"kind": "audit"}]]
)
def test_without_a_preflight_nothing_is_said(events: list[dict[str, Any]]) -> None:
    told = asked(MissingPathDerivative(), run(healthy(), events))
    assert [s.reason.key for _, s in told.skipped] == ["skip.preflight"]
    assert told.skipped[0][1].enable is not None


def test_odd_events_do_not_break_it() -> None:
    for causes in (None, 3, "inference-sign", [None, 4]):
        assert asked(MissingPathDerivative(), run(healthy(), preflight("fired", causes=causes))).findings


# SMP506


def fields(mismatch: float, scale: float, reversed_: float, other: float) -> Curves:
    rng = np.random.default_rng(3)
    levels = {"mismatch": mismatch, "scale": abs(scale), "reversed": reversed_, "other_cond": other}
    found = {f"flow/field_{name}": noisy(level, rng, 0.002) for name, level in levels.items()}
    found["flow/field_scale"] = [math.copysign(value, scale) for value in found["flow/field_scale"]]
    return found


@pytest.mark.parametrize(
    ("field", "sentence", "named"),
    [
        ((2.0, -1.0, 2.8, 2.6), "rule.SMP506.sign", ["inference-sign"]),
        ((0.3634, 0.6366, 0.91, 1.92), "rule.SMP506.scale", ["inference-scale", "path-derivative-missing"]),
        ((0.82, 0.18, 0.85, 0.98), "rule.SMP506.scale", ["inference-scale", "inference-formula"]),
        ((1.47, 1.35, 0.0, 2.65), "rule.SMP506.time", ["inference-time", "time-reversed"]),
        ((2.94, -0.075, 2.79, 2.94), "rule.SMP506.condition", ["inference-condition", "inference-formula"]),
        ((1.334, 5.4, 1.49, 1.33), "rule.SMP506.condition", ["inference-condition", "inference-formula"]),
        (
            (0.464, 0.83, 0.87, 2.15),
            "rule.SMP506",
            ["inference-formula", "path-derivative-missing", "inference-condition"],
        ),
    ],
    ids=["sign", "quarter turn", "factor", "time", "condition", "condition, with dropout", "formula"],
)
def test_another_field_is_named(field: tuple[float, float, float, float], sentence: str, named: list[str]) -> None:
    found = one(InferenceFieldDiffers(), healthy() | fields(*field))
    assert (found.message.key, codes(found)) == (sentence, named)
    assert found.severity == ("warning" if sentence == "rule.SMP506" else "error")
    assert found.p is not None


def test_healthy_dropout_and_an_average_that_catches_up() -> None:
    rng = np.random.default_rng(3)
    assert clear(InferenceFieldDiffers(), healthy() | {"flow/field_mismatch": noisy(0.02, rng, 0.3)})
    catches_up = list(0.25 * np.exp(-np.arange(STEPS) / 40) * np.array(noisy(1.0, rng, 0.03)))
    average = healthy() | fields(0.2, 0.98, 0.9, 0.9) | {"flow/field_mismatch": catches_up}
    assert one(InferenceFieldDiffers(), average).severity == "info"
    known = healthy() | fields(0.2, 0.98, 0.9, 0.9) | {"ema/distance": [0.05] * STEPS}
    assert one(InferenceFieldDiffers(), known).severity == "info"


def test_a_wrong_field_explains_what_was_asked_of_it() -> None:
    rng = np.random.default_rng(3)
    curves = healthy() | fields(1.47, 1.35, 0.0, 2.65)
    curves |= {
        "flow/time_reversal": noisy(0.11, rng),
        "flow/cond_ratio": [1.0] * STEPS,
        "flow/cond_distinct": [9.0] * STEPS,
    }
    told = diagnose(run(curves), rules=[InferenceFieldDiffers(), TimeReversed(), ConditionUnused()])
    assert [(f.code, f.explained_by) for f in told.findings] == [
        ("SMP506", None),
        ("CND601", "SMP506"),
        ("VEL406", "SMP506"),
    ]


def test_a_field_that_was_asked_too_seldom() -> None:
    assert skipped(InferenceFieldDiffers(), healthy() | {"flow/field_mismatch": [2.0] * 8}) == "skip.short"
