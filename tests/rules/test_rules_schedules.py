"""What is on its way by intention is not judged: declared schedules, weights that still rise, balancers at work.

Every healthy run here has a sick twin: the same schedule, and after its end what the rule is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record, Series
from lossdoctor.report.receipts import standing
from lossdoctor.rules import RunView
from lossdoctor.rules.bal801_ratio_out_of_band import RatioOutOfBand
from lossdoctor.rules.bal802_balancer_stopped import BalancerStopped
from lossdoctor.rules.dst201_sharp_teacher import SharpTeacher
from lossdoctor.rules.dst208_temperature_order import TemperatureOrder
from lossdoctor.rules.grd102_weak_gradient import WeakGradient
from lossdoctor.rules.pst301_prior_not_approached import PriorNotApproached
from lossdoctor.rules.pst306_posterior_collapse import PosteriorCollapse
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.schedules import ends_of, full_from, near_from, still_rises
from lossdoctor.store import MemoryWriter, Run

EVERY, STEPS = 10, 100
KINDS = {"flow": "velocity", "dino": "distill", "kl": "kl"}
Curves = dict[str, Sequence[float]]


def constant(level: float) -> list[float]:
    return [level * (1 + 0.01 * math.sin(i)) for i in range(STEPS)]


def healthy() -> Curves:
    """A flow that starts from a posterior, weighted gradients 0.3 : 1 : 0.2, a teacher at DINO's temperatures."""
    curves: Curves = {"grad/total": constant(1.1)}
    for loss, weight, norm in (("flow", 1.0, 1.0), ("dino", 0.5, 0.6), ("kl", 0.01, 20.0)):
        curves |= {f"loss/{loss}": constant(1.0), f"weight/{loss}": [weight] * STEPS}
        curves |= {f"grad/{loss}": constant(norm), f"grad_weighted/{loss}": constant(weight * norm)}
    posterior = {"mu/abs_mean": 0.3, "mu/rms": 0.4, "std/mean": 0.9, "std/rms": 0.9, "logvar/mean": -0.2}
    latent = {"z_init/var": 1.0, "z_init/mean": 0.0, "flow/z0_std": 1.0, "kl/per_dim": 0.09, "posterior/snr": 0.2}
    teacher = {
        "ent/teacher_norm": 0.3,
        "ent/teacher_mi": 2.0,
        "distill/teacher_temp": 0.07,
        "distill/student_temp": 0.1,
    }
    return curves | {
        name: constant(level) for name, level in {**posterior, **latent, **teacher, "distill/kl": 0.9}.items()
    }


def until(step: int, before: Curves, after: Curves) -> Curves:
    """One run before a step, and another one from it on."""
    cut = step // EVERY
    return {name: [*before[name][:cut], *after[name][cut:]] for name in after}


def weighted(curves: Curves, loss: str, factors: Sequence[float]) -> Curves:
    """The run with the weight of a loss on a schedule."""
    names = (f"weight/{loss}", f"grad_weighted/{loss}")
    return curves | {name: list(np.array(curves[name]) * np.array(factors)) for name in names}


def ramp(steps: int) -> list[float]:
    return [min(1.0, i * EVERY / steps) for i in range(STEPS)]


def recorded(curves: Curves, *events: Mapping[str, Any]) -> Run:
    writer = MemoryWriter({"losses": KINDS})
    for i in range(STEPS):
        writer.append([Record(i * EVERY, {name: curve[i] for name, curve in curves.items()}, full=True)])
    for event in events:
        writer.event(**event)
    return writer.run()


def schedule(target: str, step: float | None) -> dict[str, Any]:
    return {"kind": "schedule", "step": 0, "target": target, "schedule": "a ramp", "until": step}


def asked(rule: Rule, curves: Curves, *events: Mapping[str, Any]) -> Diagnosis:
    return diagnose(recorded(curves, *events), rules=[rule])


def reason(diagnosis: Diagnosis) -> tuple[str, str]:
    ((_, skipped),) = diagnosis.skipped
    return skipped.reason.key, str(skipped.reason)


FAINT = weighted(healthy(), "kl", [1e-5] * STEPS) | {"kl/per_dim": constant(2.0)}


@pytest.mark.parametrize("rule", [WeakGradient(), PriorNotApproached()])
def test_a_weak_kl_during_its_warm_up_and_after_it(rule: Rule) -> None:
    """Faint for 600 of 1,000 steps: healthy while a schedule says so, a finding where it stays so after."""
    declared = schedule("weight/kl", 600)
    warming = until(600, FAINT, healthy()) | {"weight/kl": [0.01] * STEPS}  # the weight alone does not tell
    assert asked(rule, warming, declared).clear == (rule.code,)
    (found, *_) = asked(rule, FAINT, declared).findings
    assert found.code == rule.code
    assert {evidence.first_step for evidence in found.evidence} == {600}
    assert asked(rule, FAINT).findings, "without a schedule it is judged from the warm-up of the run on"
    assert reason(asked(rule, FAINT, schedule("weight/kl", 950))) == (
        "skip.scheduled",
        "weight/kl follows a schedule up to step 950, and the run ends at 990: too little of it comes after",
    )
    assert reason(asked(rule, FAINT, schedule("weight/kl", None)))[0] == "skip.endless"


def test_a_loss_is_judged_whatever_the_schedule_of_another() -> None:
    weak_dino = weighted(healthy(), "dino", [1e-3] * STEPS)
    assert [f.loss for f in asked(WeakGradient(), weak_dino, schedule("weight/kl", 5000)).findings] == ["dino"]
    assert asked(PosteriorCollapse(), healthy(), schedule("weight/dino", 5000)).clear == ("PST306",)


@pytest.mark.parametrize("rule", [WeakGradient(), RatioOutOfBand(), PriorNotApproached(), PosteriorCollapse()])
def test_a_ramp_without_a_schedule_is_seen_in_the_weight(rule: Rule) -> None:
    """Linear over 3,000 steps, of which 1,000 were made: the KL is not judged."""
    collapsed = {"kl/per_dim": constant(0.001), "posterior/snr": constant(0.001), "mu/abs_mean": constant(0.01)}
    curves = FAINT if rule.code != "PST306" else healthy() | collapsed
    rising = weighted(curves, "kl", ramp(3000))
    told = asked(rule, rising)
    sentence = "the weight of kl was still rising at the end of the run, or has only just reached its full size"
    assert reason(told) == ("skip.ramping", sentence)
    assert asked(rule, weighted(curves, "kl", ramp(300))).findings, "its sick twin, which ended early"


def test_a_weight_that_has_not_begun_is_a_schedule_too() -> None:
    """The weight is 0 to the end of the run: no KL at all, were it not for the schedule."""
    off = weighted(healthy(), "kl", [0.0] * STEPS)
    assert reason(asked(PriorNotApproached(), off))[0] == "skip.kl_off"
    assert reason(asked(PriorNotApproached(), off, schedule("weight/kl", 4000)))[0] == "skip.scheduled"


@pytest.mark.parametrize("name", ["teacher_temp", "student_temp"])
def test_temperatures_during_their_warm_up_and_after_it(name: str) -> None:
    """One-hot targets of a cold teacher for 400 of 1,000 steps, and then for all of them."""
    cold = healthy() | {"ent/teacher_norm": constant(0.001), "distill/teacher_temp": constant(0.001)}
    declared = schedule(name, 400)
    assert asked(SharpTeacher(), until(400, cold, healthy()), declared).clear == ("DST201",)
    (found,) = asked(SharpTeacher(), cold, declared).findings
    assert found.evidence[0].first_step == 400
    swapped = healthy() | {"distill/teacher_temp": constant(0.3)}
    assert asked(TemperatureOrder(), until(400, swapped, healthy()), declared).clear == ("DST208",)
    assert asked(TemperatureOrder(), swapped, declared).findings
    for rule in (SharpTeacher(), TemperatureOrder()):
        key, told = reason(asked(rule, cold, schedule(name, 2000)))
        assert key == "skip.scheduled"
        assert told.startswith(f"{name} follows a schedule up to step 2,000")


# Balancers


def change(step: int, **more: Any) -> dict[str, Any]:
    factors = {"before": {"flow": 1.0, "dino": 1.0}, "after": {"flow": 1.0, "dino": 0.25}}
    return {"kind": "balance", "step": step, "balancer": "ratio", **factors, **more}


def balanced(curves: Curves, factors: Sequence[float] = (0.25,) * STEPS) -> Curves:
    return curves | {"balance/dino": factors, "balance/flow": [1.0] * STEPS, "balance/age": constant(5.0)}


def arriving(step: int) -> list[float]:
    """A factor on its way from 1 to 1/1024, with small changes after it has arrived."""
    return [max(1 / 1024, 2.0 ** -(10 * i * EVERY / step)) * (1 + 0.2 * (i % 7 == 0)) for i in range(STEPS)]


def test_a_controller_on_its_way_is_not_judged_and_judged_after() -> None:
    """The distillation is 30 times too strong for 850 of 1,000 steps, while the controller moves it."""
    sick = weighted(healthy(), "dino", [30.0] * STEPS)
    moved = balanced(until(850, sick, healthy()), arriving(950))
    assert asked(RatioOutOfBand(), moved, change(200)).clear == ("BAL801",)
    assert asked(RatioOutOfBand(), until(850, sick, healthy())).findings, "the same, were it not for the controller"
    assert asked(RatioOutOfBand(), balanced(sick, arriving(500)), change(200)).findings, "it never got there"
    late = asked(RatioOutOfBand(), balanced(sick, arriving(1050)), change(200))
    assert reason(late)[0] == "skip.balancing"
    assert reason(late)[1].startswith("the balancer brought the weight of dino near its last value only at step 9")
    never_done = asked(RatioOutOfBand(), balanced(sick, arriving(1050)), change(200, balancer="gradnorm"))
    assert never_done.findings, "GradNorm moves for ever"


def test_a_balancer_that_stopped_is_told_with_its_reason() -> None:
    stopped = {"kind": "balance_stopped", "step": 130, "balancer": "ratio", "reason": "dino is at the limit"}
    why = {"why": {"code": "at_limit", "params": {"loss": "dino", "factor": 1e4}}}
    (found,) = asked(BalancerStopped(), balanced(healthy()), {**stopped, **why}).findings
    assert (found.severity, found.certainty) == ("warning", "confirmed")
    assert str(found.message) == (
        "The balancer ratio stopped at step 130: dino is at the limit of its factor, 10000, and still not in its band. "
        "The weights stay as they are."
    )
    assert "dino 的系数已到极限" in found.message.text("zh-CN")
    assert [(e.metric, e.value, e.first_step) for e in found.evidence] == [
        ("balance/dino", 0.25, 130), ("balance/flow", 1.0, 130),
    ]  # fmt: skip
    (own,) = asked(BalancerStopped(), balanced(healthy()), stopped).findings
    assert "dino is at the limit" in own.message.text("zh-CN"), "a sentence of its own is told as it is"
    assert asked(BalancerStopped(), balanced(healthy()), change(100)).clear == ("BAL802",)
    assert reason(asked(BalancerStopped(), healthy()))[0] == "skip.not_balanced"


def test_a_loss_that_is_still_waited_for_is_told_at_the_end_in_both_languages() -> None:
    facts = {"loss": "kl", "ratio": 0.01, "anchor": "flow", "low": 0.1, "high": 0.3, "nats": 0.04, "knows": 1.0}
    waits = {"kind": "balance_waits", "step": 130, "balancer": "ratio", "loss": "kl", "reason": "it is weak"}
    waited = {"kind": "balance_waited", "step": 200, "balancer": "ratio", "loss": "kl"}
    why = {"why": {"code": "waits", "params": facts}}

    def told(lang: str, *events: dict[str, Any]) -> list[str]:
        treated = RunView(recorded(healthy(), *events)).treated
        assert treated is not None
        return standing(treated, lang)

    (english,) = told("en", waits | why)
    assert english.startswith("Waiting since step 130: kl is weak (0.01 of flow even if its posterior knew 1 nat")
    assert "后验现在只知道 0.04 nat" in told("zh-CN", waits | why)[0]
    assert told("zh-CN", waits) == ["自第 130 步起等待：it is weak。"], "a sentence of its own is told as it is"
    assert told("en", waits | why, waited) == []
    stopped = {"kind": "balance_stopped", "step": 300, "balancer": "ratio", "reason": "enough"}
    assert told("en", waits | why, stopped) == ["Stopped at step 300: enough."]


# The parts


@pytest.mark.parametrize(
    ("values", "rises"),
    [
        (np.linspace(0, 1, 50), True), ((1 - np.cos(np.linspace(0, np.pi, 50))) / 2, True),
        (np.minimum(1, np.linspace(0, 1.3, 50)), False), (np.ones(50), False), (np.linspace(1, 0, 50), False),
        (np.linspace(0.95, 1, 50), False), (1 + 0.3 * np.sin(np.arange(50)), False), (np.array([0.0, 1.0]), False),
        (np.linspace(0, -1, 50), True), (np.array([]), False), (np.zeros(50), False),
        (np.tile(np.minimum(1, np.linspace(0, 2, 25)), 2), False),
    ],
)  # fmt: skip
def test_what_still_rises(values: np.ndarray, rises: bool) -> None:
    assert still_rises(Series(np.arange(len(values)), np.asarray(values, np.float64))) is rises


def test_full_from_is_after_the_last_small_weight() -> None:
    def of(*values: float) -> int:
        return full_from(Series(np.arange(len(values)) * 10, np.array(values)))

    assert of(0, 0.5, 0.95, 1) == 20
    assert of(0, 1, 0, 1, 1) == 30
    assert of(2, 1) == of(1, 1) == 0
    assert full_from(Series(np.empty(0, np.int64), np.empty(0))) == 0


def test_events_of_any_kind_are_borne() -> None:
    odd = [
        {},
        {"kind": "schedule"},
        {"kind": "schedule", "target": 3},
        {"kind": "schedule", "target": "x", "until": "?"},
    ]
    assert ends_of(odd) == {"x": math.inf}
    assert near_from(Series(np.empty(0, np.int64), np.empty(0))) == 0
    odd_receipts = [
        {"kind": "balance"}, {"kind": "balance_outcome"}, {"kind": "balance", "before": 3, "after": {"a": "x"}},
        {"kind": "balance_stopped", "why": {"code": "at_limit", "params": {"loss": "a"}}, "reason": None},
    ]  # fmt: skip
    told = RunView(recorded(healthy(), *odd_receipts)).treated
    assert told is not None
    assert (len(told.receipts), told.stopped) == (2, (0, "?"))
