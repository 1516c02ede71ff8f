"""CND: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Finding, Rule
from lossdoctor.rules.cnd601_condition_unused import ConditionUnused
from lossdoctor.rules.cnd602_null_rate import KNOBS, NullRate
from lossdoctor.store import MemoryWriter, Run

OWN = [rule for rule in RULES if rule.code.startswith("CND")]
STEPS, EVERY, BATCH = 60, 10, 256
RATE = {"knobs": {"null_rate": 0.1}}

Curves = dict[str, list[float]]


def noisy(level: float, rng: np.random.Generator, spread: float = 0.05) -> list[float]:
    noise = np.zeros(STEPS)
    for i, drawn in enumerate(rng.normal(size=STEPS)):
        noise[i] = 0.5 * (noise[i - 1] if i else 0.0) + 0.85 * drawn
    return list((level * np.exp(spread * noise)).astype(float))


def drawn(rng: np.random.Generator, classes: list[float], null: float) -> Curves:
    """The two counts of conditions, of batches drawn from classes and a null condition."""
    shares = [null, *[(1 - null) * share / sum(classes) for share in classes]]
    samples = rng.multinomial(BATCH, shares, size=STEPS)
    return {
        "flow/cond_mode_share": list((samples.max(1) / BATCH).astype(float)),
        "flow/cond_distinct": list((samples > 0).sum(1).astype(float)),
    }


def healthy(seed: int = 0) -> Curves:
    """The ring of the clinic: eight classes, and one condition in ten is dropped."""
    rng = np.random.default_rng(seed)
    return {
        "loss/flow": noisy(0.5, rng),
        "flow/nmse": noisy(0.22, rng),
        "flow/nmse_mean": noisy(0.995, rng, 0.002),
        "flow/time_ratio": noisy(4.9, rng, 0.3),
        "flow/cond_ratio": noisy(26.0, rng, 0.4),
        "flow/cond_gain_cos": noisy(0.9, rng, 0.2),
        **drawn(rng, [1.0] * 8, 0.1),
    }


def run(curves: Mapping[str, list[float]], **meta: Any) -> Run:
    writer = MemoryWriter({"kinds": {"flow": "velocity"}, **meta})
    longest = max(map(len, curves.values()), default=0)
    writer.append(
        [Record(i * EVERY, {n: c[i] for n, c in curves.items() if i < len(c)}, full=True) for i in range(longest)]
    )
    return writer.run()


def asked(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> Diagnosis:
    told = diagnose(run(curves, **meta), rules=[rule])
    assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
    for finding in told.findings:
        for lang in ("en", "zh-CN"):
            assert finding.message.text(lang)
            assert all(cause.message.text(lang) for cause in finding.causes)
            assert all(fix.message.text(lang) for fix in finding.fixes)
        assert all(math.isfinite(seen.value) for seen in finding.evidence)
    return told


def one(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> Finding:
    told = asked(rule, curves, **meta)
    assert len(told.findings) == 1, (told.clear, [str(s.reason) for _, s in told.skipped])
    return told.findings[0]


def clear(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> bool:
    told = asked(rule, curves, **meta)
    return told.findings == () and told.clear == (rule.code,)


def skipped(rule: Rule, curves: Mapping[str, list[float]], **meta: Any) -> str:
    told = asked(rule, curves, **meta)
    assert [code for code, _ in told.skipped] == [rule.code], told
    return told.skipped[0][1].reason.key


def codes(finding: Finding) -> list[str]:
    return [cause.code for cause in finding.causes]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_clear(seed: int) -> None:
    told = diagnose(run(healthy(seed), **RATE), rules=[rule() for rule in OWN])
    assert (told.findings, told.clear) == ((), ("CND601", "CND602"))


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("points", [0, 1, 11, STEPS])
def test_hostile_runs_do_not_break_a_rule(rule: type[Rule], value: float, points: int) -> None:
    for names in (list(healthy()), ["flow/cond_ratio"], ["flow/cond_distinct", "flow/cond_mode_share"]):
        for knobs in ({"null_rate": value if math.isfinite(value) else 0.1}, {"null_rate": "often"}, {}):
            curves = {**(healthy() if points == STEPS else {}), **{name: [value] * points for name in names}}
            told = diagnose(run(curves, knobs=knobs), rules=[rule()])
            assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
            for lang in ("en", "zh-CN"):
                told.to_json(lang)


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
def test_missing_curves_do_not_break_a_rule(rule: type[Rule]) -> None:
    for name in healthy():
        kept = {other: curve for other, curve in healthy().items() if other != name}
        assert asked(rule(), kept, **RATE).findings == ()


# CND601


def test_no_condition_reaches_the_network() -> None:
    found = one(ConditionUnused(), healthy() | {"flow/cond_ratio": [1.0] * STEPS, "flow/cond_gain_cos": [0.0] * STEPS})
    assert (found.severity, codes(found)[0], found.confirm) == ("error", "condition-not-connected", "shuffle:cond")


def test_permuted_labels_help_nothing() -> None:
    rng = np.random.default_rng(1)
    useless = {"flow/cond_ratio": noisy(1.0, rng, 0.02), "flow/cond_gain_cos": list(rng.normal(0, 0.05, STEPS))}
    found = one(ConditionUnused(), healthy() | useless | {"flow/nmse": noisy(0.9, rng, 0.01)})
    assert (found.severity, codes(found)[0]) == ("warning", "condition-shuffled")
    dropped = healthy() | useless | {"flow/cond_mode_share": [0.97] * STEPS}
    assert codes(one(ConditionUnused(), dropped))[0] == "null-rate"


def test_healthy_weak_conditions() -> None:
    """What helps every time is used, however little: mentioned at most."""
    rng = np.random.default_rng(1)
    weak = {"flow/cond_ratio": noisy(1.08, rng, 0.02), "flow/cond_gain_cos": noisy(0.03, rng, 0.3)}
    assert clear(ConditionUnused(), healthy() | weak)
    little = {"flow/cond_ratio": noisy(1.006, rng, 0.001), "flow/cond_gain_cos": noisy(0.002, rng, 0.3)}
    assert one(ConditionUnused(), healthy() | little).severity == "info"
    late = {"flow/cond_ratio": [1.0] * 30 + [2.0] * 30, "flow/cond_gain_cos": [0.0] * 30 + [0.4] * 30}
    assert clear(ConditionUnused(), healthy() | late), "it came late, and it came"


def test_healthy_unconditional_by_design() -> None:
    single = healthy() | {"flow/cond_distinct": [1.0] * STEPS, "flow/cond_mode_share": [1.0] * STEPS}
    assert skipped(ConditionUnused(), single | {"flow/cond_ratio": [1.0] * STEPS}) == "skip.one_condition"
    none = {name: curve for name, curve in healthy().items() if "cond" not in name}
    assert skipped(ConditionUnused(), none) == "skip.missing"


def test_a_dead_network_does_not_ignore_its_condition() -> None:
    dead = {"flow/cond_ratio": [1.0] * STEPS, "flow/time_ratio": [1.0] * STEPS, "flow/nmse": [1.0] * STEPS}
    assert skipped(ConditionUnused(), healthy() | dead) == "skip.not_learned"
    rng = np.random.default_rng(1)
    slow = {"flow/cond_ratio": noisy(1.0, rng, 0.001), "flow/cond_gain_cos": [0.0] * STEPS, "flow/nmse": [1.0] * STEPS}
    assert clear(ConditionUnused(), healthy() | slow), "it hears the time, and has learned nothing yet"


def test_a_condition_that_hurts_is_another_problem() -> None:
    """A field with the wrong sign scores better with the wrong condition."""
    hurts = {"flow/cond_ratio": [0.69] * STEPS, "flow/cond_gain_cos": [-0.64] * STEPS}
    assert clear(ConditionUnused(), healthy() | hurts)


def test_permuted_labels_explain_a_velocity_that_learns_little() -> None:
    assert {"VEL401", "SMP504"} <= set(ConditionUnused.explains)


def test_what_counts_as_near_can_be_set() -> None:
    rng = np.random.default_rng(1)
    noise = {"flow/cond_ratio": noisy(1.0, rng, 0.02), "flow/cond_gain_cos": [0.03] * STEPS}
    assert clear(ConditionUnused(), healthy() | noise)
    assert one(ConditionUnused(near=0.05), healthy() | noise)


# CND602


def test_too_many_conditions_are_dropped() -> None:
    found = one(NullRate(), healthy() | drawn(np.random.default_rng(2), [1.0] * 8, 0.7), **RATE)
    assert (found.severity, codes(found)) == ("warning", ["null-rate"])
    assert found.p is not None
    assert found.p < 1e-4
    captions = drawn(np.random.default_rng(2), [1.0] * 5000, 0.4)
    assert one(NullRate(), healthy() | captions, **RATE).severity == "warning"


@pytest.mark.parametrize("name", KNOBS)
def test_the_rate_has_many_names(name: str) -> None:
    sick = healthy() | drawn(np.random.default_rng(2), [1.0] * 8, 0.7)
    assert one(NullRate(), sick, knobs={name: 0.1}).evidence[1].metric == f"knob/{name}"


def test_healthy_frequent_classes() -> None:
    rng = np.random.default_rng(2)
    assert clear(NullRate(), healthy() | drawn(rng, [3.0, 2.0, *[1.0] * 6], 0.1), **RATE)
    assert clear(NullRate(), healthy() | drawn(rng, [1.0, 1.0], 0.1), **RATE), "two classes, half of the samples each"
    assert clear(NullRate(), healthy() | drawn(rng, [1.0] * 5000, 0.1), **RATE), "captions, all different"
    assert clear(NullRate(), healthy() | drawn(rng, [1.0] * 10, 0.0), knobs={"null_rate": 0.0})


def test_healthy_dropping_inside_the_network_is_only_mentioned() -> None:
    captions = healthy() | drawn(np.random.default_rng(2), [1.0] * 5000, 0.0)
    found = one(NullRate(), captions, **RATE)
    assert (found.severity, found.message.key) == ("info", "rule.CND602.few")


def test_an_unknown_rate_is_not_judged() -> None:
    sick = healthy() | drawn(np.random.default_rng(2), [1.0] * 8, 0.7)
    assert skipped(NullRate(), sick) == "skip.null_rate"
    assert skipped(NullRate(), sick, knobs={"null_rate": 7}) == "skip.null_rate"
    assert skipped(NullRate(), sick | {"flow/cond_distinct": [1.0] * STEPS}, **RATE) == "skip.one_condition"
    assert skipped(NullRate(), {name: curve[:9] for name, curve in sick.items()}, **RATE) == "skip.short"
