"""NUM and RUN: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from asking import Asking, Curve, Curves, codes, record, told

from lossdoctor.diagnose import diagnose
from lossdoctor.rules import RULES, Rule, RunView
from lossdoctor.rules.num901_non_finite import NonFinite
from lossdoctor.rules.num902_exact_zero_loss import ExactZeroLoss
from lossdoctor.rules.num903_half_precision_overflow import HalfPrecisionOverflow
from lossdoctor.rules.run001_too_short import TooShort
from lossdoctor.rules.run002_steps_go_back import StepsGoBack
from lossdoctor.rules.run003_never_measured_in_full import NeverMeasuredInFull

OWN = [rule for rule in RULES if rule.code[:3] in ("NUM", "RUN")]
KINDS = {"flow": "velocity", "dino": "distill", "kl": "kl"}
EVERY, STEPS = 10, 60
FLOAT32: dict[str, Any] = {"dtypes": {"float32": 9}, "autocast": None}
AUTOCAST: dict[str, Any] = {"dtypes": {"float32": 9}, "autocast": "float16"}
HALF: dict[str, Any] = {"dtypes": {"float16": 9}, "autocast": None}


def healthy(seed: int = 0) -> Curves:
    """Three losses with noise, their gradients, and the logits of a distillation in float32."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.arange(STEPS) / 6)

    def noisy(level: float, spread: float = 0.05) -> Curve:
        return list(level * (1 + decay) * np.exp(spread * rng.normal(size=STEPS)))

    curves: Curves = {"loss/total": noisy(1.0), "grad/total": noisy(0.4, 0.2), "std/max": noisy(1.2)}
    for loss in KINDS:
        curves |= {f"loss/{loss}": noisy(0.7), f"grad/{loss}": noisy(0.3, 0.2), f"weight/{loss}": [1.0] * STEPS}
    curves["distill/max_logit_over_temp"] = noisy(7.0, 0.02)
    return curves


recorded = functools.partial(record, every=EVERY, losses=KINDS)
ASKING = Asking(recorded)
ask, fired, one, clear = ASKING.ask, ASKING.fired, ASKING.one, ASKING.clear


def broken(curve: Curve, *where: int, value: float = math.nan) -> Curve:
    return [value if i in where else x for i, x in enumerate(curve)]


def from_step(i: int) -> range:
    return range(i, STEPS)


# All rules at once


def test_a_healthy_run_is_clear() -> None:
    for seed in range(5):
        diagnosis = diagnose(recorded(healthy(seed), facts=FLOAT32), rules=[rule() for rule in OWN])
        assert not diagnosis.findings, [str(finding.message) for finding in diagnosis.findings]
        assert not diagnosis.skipped


HOSTILE: dict[str, Callable[[Curves], Curves]] = {
    "empty": lambda curves: {},
    "one step": lambda curves: {name: curve[:1] for name, curve in curves.items()},
    "all NaN": lambda curves: {name: [math.nan] * STEPS for name in curves},
    "all infinite": lambda curves: {name: [-math.inf] * STEPS for name in curves},
    "every other infinite": lambda curves: {
        name: broken(c, *range(0, STEPS, 2), value=math.inf) for name, c in curves.items()
    },
    "zero": lambda curves: {name: [0.0] * STEPS for name in curves},
    "huge": lambda curves: {name: [(-1) ** i * 1e308 for i in range(STEPS)] for name in curves},
    "tiny": lambda curves: {name: [(-1) ** i * 1e-308 for i in range(STEPS)] for name in curves},
    "only losses": lambda curves: {name: curve for name, curve in curves.items() if name.startswith("loss/")},
    "own names": lambda curves: {"val": [math.nan] * STEPS, "": [math.inf, *[1.0] * STEPS]},
    "absent now and then": lambda curves: {
        n: [None if i % 3 else x for i, x in enumerate(c)] for n, c in curves.items()
    },
}


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("hurt", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_runs_do_not_hurt(rule: type[Rule], hurt: Callable[[Curves], Curves]) -> None:
    for facts in (None, {}, {"dtypes": None}, HALF):
        run = recorded(hurt(healthy()), facts=facts)
        rule().check(RunView(run))
        told(diagnose(run, rules=[rule()]))


# NUM901


def test_the_first_non_finite_metric_is_named_with_its_step() -> None:
    curves = healthy()
    curves["loss/flow"] = broken(curves["loss/flow"], *from_step(30))
    curves["loss/total"] = broken(curves["loss/total"], *from_step(30))
    curves["grad/total"] = broken(curves["grad/total"], *from_step(31), value=math.inf)
    finding = one(NonFinite(), curves)
    assert (finding.subject, finding.loss, finding.severity) == ("loss/flow", "flow", "error")
    assert "at step 300" in str(finding.message)
    assert "3 metrics" in str(finding.message)
    assert codes(finding) == ["unstable-training", "overflow"]


def test_of_one_step_the_metric_that_is_computed_first_is_named() -> None:
    curves = {name: broken(curve, *from_step(30)) for name, curve in healthy().items() if "weight" not in name}
    assert one(NonFinite(), curves | {"flow/loss_ratio": broken([1.0] * STEPS, *from_step(30))}).subject == "std/max"


def test_what_came_before_points_to_the_cause() -> None:
    curves = healthy()
    curves["loss/total"] = broken(curves["loss/total"], *from_step(30))
    calm = curves["grad/total"]
    spike = one(NonFinite(), curves | {"grad/total": [100.0 if i == 29 else x for i, x in enumerate(calm)]})
    assert codes(spike)[0] == "unstable-training"
    assert "at step 290, grad/total was 100" in str(spike.message)
    logvar = one(NonFinite(), curves | {"std/max": [1e8 if i > 27 else 1.0 for i in range(STEPS)]})
    assert codes(logvar)[0] == "logvar-unclamped"
    logits = curves | {"distill/max_logit_over_temp": [20.0] * STEPS}
    assert codes(one(NonFinite(), logits, facts=AUTOCAST))[0] == "overflow"
    assert codes(one(NonFinite(), logits, facts=FLOAT32))[0] == "unstable-training"


def test_a_distillation_that_breaks_first_may_hide_a_part_in_half_precision() -> None:
    curves = healthy() | {"distill/max_logit_over_temp": [12.0] * STEPS}
    curves["loss/dino"] = broken(curves["loss/dino"], *from_step(30))
    assert codes(one(NonFinite(), curves, facts=FLOAT32))[0] == "overflow"


def test_a_loss_that_recovers_is_a_warning() -> None:
    curves = healthy()
    curves["loss/kl"] = broken(curves["loss/kl"], 17)
    assert one(NonFinite(), curves).severity == "warning"
    curves["loss/kl"] = broken(curves["loss/kl"], 17, 20)
    assert one(NonFinite(), curves).severity == "error", "twice in sixty is more than now and then"
    assert one(NonFinite(tolerated=0.1), curves).severity == "warning"


def test_healthy_a_single_infinite_gradient_under_grad_scaler_is_a_remark() -> None:
    curves = healthy()
    curves["grad/total"] = broken(curves["grad/total"], 3, value=math.inf)
    assert one(NonFinite(), curves, facts=AUTOCAST).severity == "info"


def test_healthy_a_curve_of_ones_own_may_be_nan_where_it_has_no_value() -> None:
    curves = healthy() | {"val/accuracy": broken([0.5] * STEPS, *range(0, STEPS, 2))}
    assert one(NonFinite(), curves).severity == "info"


def test_values_between_the_points_of_a_thinned_curve_count() -> None:
    long = [1.0 + 0.1 * (i % 7) for i in range(20_000)]
    long[12_345] = math.nan
    finding = one(NonFinite(), {"loss/flow": long}, every=1)
    assert "at step 12,345" in str(finding.message)


def test_an_empty_run_is_not_called_clear() -> None:
    assert ask(NonFinite(), {}).skipped
    assert ask(NeverMeasuredInFull(), {}).skipped


# NUM902


def test_an_empty_mask_is_a_loss_of_exactly_zero() -> None:
    empty = {"loss/dino": [0.0] * STEPS, "grad/dino": [0.0] * STEPS}
    finding = one(ExactZeroLoss(), healthy() | empty)
    assert (finding.loss, finding.severity, codes(finding)[0]) == ("dino", "warning", "constant-loss")
    assert "exactly 0" in str(finding.message)


def test_a_constant_is_told_with_its_value() -> None:
    assert "exactly 2.5" in str(one(ExactZeroLoss(), healthy() | {"loss/kl": [2.5] * STEPS}).message)


def test_a_loss_that_is_mostly_zero_or_stops() -> None:
    curves = healthy()
    mostly = curves | {"loss/flow": [x if i % 6 == 0 else 0.0 for i, x in enumerate(curves["loss/flow"])]}
    assert "exactly 0 in 8" in str(one(ExactZeroLoss(), mostly).message)
    assert clear(ExactZeroLoss(share=0.9), mostly)
    stopped = curves | {"loss/flow": curves["loss/flow"][:6] + [0.5] * (STEPS - 6)}
    assert "stood still since step 60" in str(one(ExactZeroLoss(), stopped).message)


def test_a_loss_of_ones_own_that_never_began_is_a_remark() -> None:
    curves = {name.replace("kl", "gan"): curve for name, curve in healthy().items() if name != "grad/kl"}
    finding = one(ExactZeroLoss(), curves | {"loss/gan": [0.0] * STEPS})
    assert (finding.loss, finding.severity) == ("gan", "info")


def test_healthy_a_loss_that_is_constant_before_its_start_step() -> None:
    curves = healthy()
    for loss in KINDS:
        late = curves | {f"loss/{loss}": [0.0] * 45 + curves[f"loss/{loss}"][45:]}
        assert clear(ExactZeroLoss(), late)


def test_healthy_a_kl_on_its_free_bits_and_a_hinge_that_is_satisfied() -> None:
    curves = healthy()
    assert clear(ExactZeroLoss(), curves | {"loss/kl": curves["loss/kl"][:5] + [3.0] * (STEPS - 5)})
    hinge = {name.replace("kl", "margin"): curve for name, curve in curves.items()}
    hinge["loss/margin"] = [x if i % 8 == 0 else 0.0 for i, x in enumerate(hinge["loss/margin"])]
    assert clear(ExactZeroLoss(), hinge)


def test_healthy_a_loss_without_weight_may_be_anything() -> None:
    off = {"loss/dino": [0.0] * STEPS, "weight/dino": [0.0] * STEPS}
    assert clear(ExactZeroLoss(), healthy() | off)


# NUM903


@pytest.mark.parametrize(
    ("level", "facts", "severity"),
    [(20.0, HALF, "error"), (20.0, AUTOCAST, "info"), (100.0, FLOAT32, "info"), (100.0, None, "info")],
)
def test_logits_that_overflow_an_exp(level: float, facts: dict[str, Any] | None, severity: str) -> None:
    finding = one(HalfPrecisionOverflow(), healthy() | {"distill/max_logit_over_temp": [level] * STEPS}, facts=facts)
    assert (finding.severity, codes(finding)) == (severity, ["overflow"])


def test_a_distillation_that_broke_first_makes_it_an_error_that_leads() -> None:
    curves = healthy() | {"distill/max_logit_over_temp": [12.0] * STEPS}
    curves["loss/dino"] = broken(curves["loss/dino"], *from_step(30))
    curves["loss/flow"] = broken(curves["loss/flow"], *from_step(31))
    diagnosis = diagnose(recorded(curves, facts=FLOAT32), rules=[HalfPrecisionOverflow(), NonFinite()])
    told(diagnosis)
    assert [(f.code, f.severity, f.explained_by) for f in diagnosis.findings] == [
        ("NUM903", "error", None),
        ("NUM901", "error", "NUM903"),
    ]
    curves["loss/flow"] = broken(curves["loss/flow"], *from_step(30))
    assert clear(HalfPrecisionOverflow(), curves, facts=FLOAT32), "all at once is a divergence"


def test_a_cold_teacher_is_named() -> None:
    sharp = {"distill/max_logit_over_temp": [1000.0] * STEPS, "distill/teacher_temp": [0.001] * STEPS}
    finding = one(HalfPrecisionOverflow(), healthy() | sharp, knobs={"teacher_temp": 0.001})
    assert codes(finding)[0] == "teacher-temperature-low"
    assert any(fix.action == "scale_knob" for fix in finding.fixes)


@pytest.mark.parametrize(
    ("level", "facts"), [(25.0, FLOAT32), (25.0, {"dtypes": {"bfloat16": 3}, "autocast": "bfloat16"})]
)
def test_healthy_logits_of_a_usual_temperature_in_a_wide_range(level: float, facts: dict[str, Any]) -> None:
    assert clear(HalfPrecisionOverflow(), healthy() | {"distill/max_logit_over_temp": [level] * STEPS}, facts=facts)


def test_healthy_a_single_outlier() -> None:
    curves = healthy()
    curves["distill/max_logit_over_temp"] = broken(curves["distill/max_logit_over_temp"], 7, value=200.0)
    assert clear(HalfPrecisionOverflow(), curves, facts=FLOAT32)


# RUN


def test_a_short_run_says_so() -> None:
    finding = one(TooShort(), {name: curve[:9] for name, curve in healthy().items()})
    assert (finding.severity, codes(finding)) == ("info", ["too-few-measurements"])
    assert "8 measured steps" in str(finding.message)
    assert one(TooShort(), {}).severity == "info"
    assert clear(TooShort(least=5), {name: curve[:9] for name, curve in healthy().items()})
    assert clear(TooShort(), healthy(), full=False), "a run that was imported has no full steps"


def test_records_older_than_those_before_them_are_a_seam() -> None:
    """Trained to step 590, taken back to 300, and on to 400."""
    finding = one(StepsGoBack(), healthy(), times=lambda i: 1000.0 + i if 30 <= i <= 40 else 60.0 * (i / STEPS))
    assert (finding.severity, codes(finding)) == ("info", ["resumed-run"])
    assert "19 steps between 410 and 590" in str(finding.message)


def test_healthy_clocks_that_stand_still_or_are_put_right() -> None:
    assert clear(StepsGoBack(), healthy(), times=lambda i: 0.0)
    assert clear(StepsGoBack(), healthy(), times=lambda i: i - (0.5 if i % 10 == 0 else 0.0))
    assert ask(StepsGoBack(), {}).skipped


def test_a_run_of_scalars_is_told_how_to_get_more() -> None:
    scalars = {name: curve for name, curve in healthy().items() if name.startswith("loss/")}
    finding = one(NeverMeasuredInFull(), scalars, full=False)
    assert finding.severity == "info"
    assert "doctor.backward" in finding.fixes[0].message.text()
