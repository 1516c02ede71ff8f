"""DST: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Finding, Rule, RunView, Skipped
from lossdoctor.rules.distillation import (
    cold_student,
    log_prototypes,
    log_samples,
    moves,
    temperatures,
    usual_teacher,
    weak_gradient,
)
from lossdoctor.rules.dst201_sharp_teacher import SharpTeacher
from lossdoctor.rules.dst202_saturated_student import SaturatedStudent
from lossdoctor.rules.dst203_uniform_teacher import UniformTeacher
from lossdoctor.rules.dst204_single_prototype import SinglePrototype
from lossdoctor.rules.dst205_frozen_teacher import FrozenTeacher
from lossdoctor.rules.dst206_teacher_is_student import TeacherIsStudent
from lossdoctor.rules.dst207_teacher_learns import TeacherLearns
from lossdoctor.rules.dst208_temperature_order import TemperatureOrder
from lossdoctor.rules.dst209_not_the_cross_entropy import NotTheCrossEntropy
from lossdoctor.store import MemoryWriter, Run

OWN = [rule for rule in RULES if rule.code.startswith("DST")]
KINDS = {"flow": "velocity", "dino": "distill"}
PROTOTYPES, STEPS, EVERY = 64, 60, 10
LOG_K = math.log(PROTOTYPES)
TEACHER = {
    "parameters": 11, "requires_grad": 0, "with_grad": 0, "in_optimizer": 0, "aliased": 0, "training": 0,
    "training_modules": 0, "dtypes": {"float32": 11},
}  # fmt: skip

Curve = list[float]
Curves = dict[str, Curve]


def noisy(level: float, rng: np.random.Generator, spread: float = 0.1, start: float | None = None) -> Curve:
    """A curve as training makes them: from `start` to `level` in a tenth of the run, with noise that remembers."""
    noise = np.zeros(STEPS)
    for i, drawn in enumerate(rng.normal(size=STEPS)):
        noise[i] = 0.6 * (noise[i - 1] if i else 0.0) + 0.8 * drawn
    course = level + ((level if start is None else start) - level) * np.exp(-np.arange(STEPS) / 6)
    return list((course * np.exp(spread * noise)).astype(float))


def distilled(
    *, entropy: float, information: float, left: float, factor: Callable[[np.ndarray], np.ndarray] = np.ones_like
) -> Curves:
    """Entropies in nats that fit together, and a loss that is `factor` times the cross-entropy."""
    rng = np.random.default_rng(3)
    # Near the largest entropy there is no room for noise.
    floor = np.minimum(noisy(entropy, rng, min(0.1, 2 * (1 - entropy / LOG_K))), LOG_K)
    told, rest = np.array(noisy(information, rng)), np.array(noisy(left, rng))
    marginal = np.minimum(floor + told, LOG_K)
    ratio = factor(floor + rest)
    return {
        "ent/teacher": list(floor),
        "ent/teacher_norm": list(floor / LOG_K),
        "ent/teacher_marginal": list(marginal),
        "ent/teacher_marginal_norm": list(marginal / LOG_K),
        "ent/teacher_mi": list(marginal - floor),
        "distill/kl": list(rest),
        "distill/loss_ratio": list(ratio),
        "loss/dino": list(ratio * (floor + rest)),
    }


def healthy(**entropies: Any) -> Curves:
    """The measured steps of a run like the reference system."""
    rng = np.random.default_rng(0)
    given = {"entropy": 0.4, "information": 2.6, "left": 0.9, **entropies}
    return {
        **distilled(**given),
        "ent/student": noisy(1.0, rng, start=4.0),
        "ent/student_norm": noisy(0.24, rng, start=0.95),
        "distill/agreement": noisy(0.69, rng, 0.02),
        "distill/teacher_temp": list(np.minimum(0.04 + np.arange(STEPS) * 0.005, 0.07)),
        "distill/student_temp": [0.1] * STEPS,
        "distill/max_logit_over_temp": noisy(14.0, rng, 0.01),
        "teacher/distance": noisy(0.02, rng, start=0.1),
        "teacher/moved": noisy(6e-4, rng, start=3e-3),
        "teacher/momentum": [0.97] * STEPS,
        "loss/flow": noisy(0.7, rng, 0.05),
        "weight/dino": [0.22] * STEPS,
        "weight/flow": [1.0] * STEPS,
        "grad/dino": noisy(0.5, rng),
        "grad/flow": noisy(0.4, rng),
        "grad_weighted/dino": noisy(0.11, rng),
        "grad_weighted/flow": noisy(0.4, rng),
        "grad/total": noisy(0.41, rng),
    }


def recorded(curves: Mapping[str, Any], *, teacher: Mapping[str, Any] | None = TEACHER, **meta: Any) -> Run:
    shapes = {"prototypes": PROTOTYPES, "batch": 64}
    writer = MemoryWriter({"losses": KINDS, "shapes": shapes, **meta})
    for i in range(max(map(len, curves.values()), default=0)):
        values = {name: curve[i] for name, curve in curves.items() if i < len(curve)}
        writer.append([Record(i * EVERY, values, full=True)])
    if teacher is not None:
        writer.event("audit", step=0, facts={"teacher": dict(teacher)})
    return writer.run()


def ask(rule: Rule, curves: Mapping[str, Any], **more: Any) -> Diagnosis:
    return diagnose(recorded(curves, **more), rules=[rule])


def only(diagnosis: Diagnosis) -> Finding:
    """The one finding, whole: texts in both languages, finite evidence with its steps, causes and fixes."""
    assert not diagnosis.skipped, diagnosis.skipped
    (finding,) = diagnosis.findings
    whole(finding)
    return finding


def whole(finding: Finding) -> None:
    for lang in ("en", "zh-CN"):
        texts = [finding.message.text(lang), *(c.message.text(lang) for c in finding.causes)]
        texts += [fix.message.text(lang) for fix in finding.fixes]
        assert all(texts)
        assert not any(re.search(r"\b(nan|inf)\b|[{}]", text) for text in texts), texts
    assert finding.evidence
    assert finding.causes
    assert finding.fixes
    for evidence in finding.evidence:
        assert math.isfinite(evidence.value)
        assert evidence.threshold is None or math.isfinite(evidence.threshold)
        if not evidence.metric.startswith("audit/"):
            assert evidence.first_step is not None
            assert evidence.last_step is not None
            assert 0 <= evidence.first_step <= evidence.last_step


def assert_clear(rule: Rule, curves: Mapping[str, Any], **more: Any) -> None:
    diagnosis = ask(rule, curves, **more)
    assert diagnosis.clear == (rule.code,), (diagnosis.findings, diagnosis.skipped)


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
def test_a_healthy_run_is_clear(rule: type[Rule]) -> None:
    assert_clear(rule(), healthy())


# DST201


def sharp(**curves: Curve) -> Curves:
    return healthy(entropy=0.01) | curves


def test_one_hot_and_the_same_for_all_is_sharp() -> None:
    finding = only(ask(SharpTeacher(), healthy(entropy=0.01, information=0.01)))
    assert [cause.code for cause in finding.causes] == ["teacher-temperature-low", "no-centering"]
    assert finding.severity == "warning"
    assert finding.p is not None
    assert "says the same" in str(finding.message)


def test_a_temperature_far_below_the_students_is_wrong_however_informative() -> None:
    finding = only(ask(SharpTeacher(), sharp(**{"distill/teacher_temp": [0.001] * STEPS})))
    assert finding.evidence[1].metric == "distill/teacher_temp"
    assert finding.evidence[1].value == pytest.approx(0.001)
    assert finding.evidence[1].threshold == pytest.approx(0.005)
    assert finding.confirm == "knob:teacher_temp=0.05"


def test_one_hot_with_a_gradient_that_died_is_sharp() -> None:
    rng = np.random.default_rng(1)
    dead = {"grad/dino": noisy(0.01, rng), "grad_weighted/dino": noisy(0.0022, rng)}
    finding = only(ask(SharpTeacher(), sharp(**dead)))
    assert finding.evidence[1].metric == "grad_weighted/dino"


def test_the_fix_is_a_knob_where_the_script_has_one() -> None:
    curves = sharp(**{"distill/teacher_temp": [0.001] * STEPS})
    with_knob = only(ask(SharpTeacher(), curves, knobs={"teacher_temp": 0.001}))
    assert [fix.action for fix in with_knob.fixes] == ["set_knob", "edit"]
    assert [fix.action for fix in only(ask(SharpTeacher(), curves)).fixes] == ["edit", "edit"]


def test_healthy_confident_and_informative_teacher() -> None:
    assert_clear(SharpTeacher(), sharp())
    assert_clear(SharpTeacher(), healthy(entropy=1e-6))


def test_healthy_student_that_says_what_its_teacher_says() -> None:
    """The loss stops at its floor, the entropy of the teacher: the gradient dies because nothing is left to learn."""
    rng = np.random.default_rng(1)
    dead = {"grad/dino": noisy(0.01, rng), "grad_weighted/dino": noisy(0.0022, rng)}
    learned = healthy(entropy=0.01, left=0.02) | dead | {"ent/student_norm": noisy(0.01, rng)}
    assert_clear(SharpTeacher(), learned)
    assert_clear(SaturatedStudent(), learned)


def test_healthy_sharp_teacher_under_a_tiny_weight_is_the_weights_fault() -> None:
    rng = np.random.default_rng(1)
    assert_clear(SharpTeacher(), sharp(**{"grad_weighted/dino": noisy(1e-5, rng), "weight/dino": [2e-5] * STEPS}))


def test_healthy_single_sample_per_batch_has_no_information_to_show() -> None:
    curves = healthy(entropy=0.01, information=1e-7)
    only(ask(SharpTeacher(), curves))
    assert_clear(SharpTeacher(), curves, shapes={"prototypes": PROTOTYPES, "batch": 1})


# DST202


def saturated() -> Curves:
    rng = np.random.default_rng(2)
    return healthy() | {
        "ent/student_norm": noisy(0.005, rng),
        "grad/dino": noisy(0.01, rng),
        "grad_weighted/dino": noisy(0.0022, rng),
    }


def test_a_saturated_student() -> None:
    finding = only(ask(SaturatedStudent(), saturated()))
    assert finding.causes[0].code == "student-temperature-low"
    assert finding.loss == "dino"
    assert finding.confirm == "knob:student_temp=0.2"


def test_a_cold_student_is_named_whatever_its_entropy() -> None:
    """Averaged into its own teacher it flattens its logits; so the entropy is high again."""
    curves = healthy(entropy=4.1588, information=1e-5) | {"distill/student_temp": [0.002] * STEPS}
    finding = only(ask(SaturatedStudent(), curves))
    assert [cause.code for cause in finding.causes] == ["student-temperature-low", "teacher-temperature-high"]
    assert finding.p is None


def test_a_cold_student_leads_what_follows_from_it() -> None:
    curves = healthy(entropy=4.1588, information=1e-5) | {"distill/student_temp": [0.002] * STEPS}
    diagnosis = diagnose(recorded(curves), rules=[rule() for rule in OWN])
    assert [finding.code for finding in diagnosis.groups[0]] == ["DST202", "DST208", "DST203"]
    assert len(diagnosis.groups) == 1


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 4.0])
def test_healthy_student_at_a_usual_temperature(temperature: float) -> None:
    curves = healthy() | {
        "distill/student_temp": [temperature] * STEPS,
        "distill/teacher_temp": [temperature / 2] * STEPS,
    }
    assert_clear(SaturatedStudent(), curves)
    assert_clear(TemperatureOrder(), curves)


# DST203


def test_a_uniform_teacher_pins_the_loss_at_ln_k() -> None:
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4, left=1e-4)
    finding = only(ask(UniformTeacher(), curves))
    assert finding.causes[0].code == "teacher-temperature-high"
    assert "pinned at 4.15" in str(finding.message)
    assert "4.1589" in str(finding.message)


def test_a_uniform_teacher_whose_loss_is_elsewhere() -> None:
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4, left=2.0)
    assert "pinned" not in str(only(ask(UniformTeacher(), curves)).message)


def test_without_shapes_the_number_of_prototypes_follows_from_the_entropies() -> None:
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4, left=1e-4)
    assert "4.1589" in str(only(ask(UniformTeacher(), curves, shapes={})).message)


def test_a_uniform_teacher_that_never_moves_was_never_trained() -> None:
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4) | {"teacher/moved": [0.0] * STEPS}
    assert only(ask(UniformTeacher(), curves)).causes[0].code == "teacher-not-updated"


def test_logits_that_shrink_at_usual_temperatures_are_named_before_the_temperature() -> None:
    shrinking = [6.0 * math.exp(-i / 8) + 0.2 for i in range(STEPS)]
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4) | {"distill/max_logit_over_temp": shrinking}
    assert (curves["distill/teacher_temp"][-1], curves["distill/student_temp"][-1]) == (0.07, 0.1)
    finding = only(ask(UniformTeacher(), curves))
    assert finding.causes[0].code == "logits-shrunk"
    assert [fix.params["what"] for fix in finding.fixes] == ["hold_prototype_scale", "freeze_last_layer"]
    hot = curves | {"distill/teacher_temp": [0.2] * STEPS}
    assert only(ask(UniformTeacher(), hot)).causes[0].code == "teacher-temperature-high"


def test_healthy_start_above_ln_k_that_is_being_left() -> None:
    """A start just above ln K is normal, and may fill a short run; what counts is that the teacher leaves it."""
    rng = np.random.default_rng(5)
    growing = [1e-4 * 1.1**i * math.exp(0.05 * rng.normal()) for i in range(STEPS)]
    curves = healthy(entropy=0.9999 * LOG_K, information=1e-4) | {"ent/teacher_mi": growing}
    assert max(growing) < 0.05
    assert_clear(UniformTeacher(), curves)


def test_healthy_soft_but_informative_teacher() -> None:
    assert_clear(UniformTeacher(), healthy(entropy=0.99 * LOG_K) | {"ent/teacher_mi": [0.2] * STEPS})


def test_healthy_first_tenth_is_not_judged() -> None:
    curves = healthy()
    curves["ent/teacher_norm"][: STEPS // 10] = [1.0] * (STEPS // 10)
    curves["ent/teacher_mi"][: STEPS // 10] = [0.0] * (STEPS // 10)
    assert_clear(UniformTeacher(), curves)


# DST204


def test_all_samples_to_one_prototype() -> None:
    finding = only(ask(SinglePrototype(), healthy(entropy=0.02, information=0.25)))
    assert [cause.code for cause in finding.causes] == ["no-centering", "teacher-temperature-low"]
    assert finding.evidence[0].threshold == pytest.approx(math.log(2))


def test_with_a_hopeless_temperature_that_comes_first() -> None:
    curves = healthy(entropy=0.02, information=0.25) | {"distill/teacher_temp": [0.001] * STEPS}
    finding = only(ask(SinglePrototype(), curves))
    assert finding.causes[0].code == "teacher-temperature-low"


def test_the_collapse_leads_the_sharpness() -> None:
    curves = healthy(entropy=0.005, information=0.01)
    diagnosis = diagnose(recorded(curves), rules=[SharpTeacher(), SinglePrototype()])
    assert [finding.code for finding in diagnosis.findings] == ["DST204", "DST201"]
    assert diagnosis.findings[1].explained_by == "DST204"


@pytest.mark.parametrize(
    "shapes", [{"prototypes": 2}, {"prototypes": 65536, "batch": 2}, {"prototypes": 64, "batch": 1}]
)
def test_healthy_teacher_with_little_room(shapes: dict[str, int]) -> None:
    """Of two prototypes, or of two samples, the mean target cannot have more than ln 2."""
    room = math.log(min(shapes.values())) if min(shapes.values()) > 1 else 1.0
    rng = np.random.default_rng(1)
    curves = healthy() | {"ent/teacher_marginal": noisy(0.9 * room, rng, 0.05)}
    assert_clear(SinglePrototype(), curves, shapes=shapes)


# DST205


def left_behind() -> Curves:
    away = [0.01 + 0.2 * (1 - math.exp(-i / 20)) for i in range(STEPS)]
    return healthy() | {"teacher/moved": [0.0] * STEPS, "teacher/distance": away}


def test_a_copy_that_is_left_behind() -> None:
    finding = only(ask(FrozenTeacher(), left_behind()))
    assert finding.causes[0].code == "teacher-not-updated"
    assert finding.depth == "root"


def test_a_frozen_copy_leads_the_uniform_targets_of_an_untrained_network() -> None:
    curves = left_behind() | distilled(entropy=0.999 * LOG_K, information=0.001, left=0.001)
    diagnosis = diagnose(recorded(curves), rules=[FrozenTeacher(), UniformTeacher()])
    assert [finding.code for finding in diagnosis.findings] == ["DST205", "DST203"]
    assert diagnosis.findings[1].explained_by == "DST205"


def test_healthy_frozen_teacher_of_another_architecture() -> None:
    """A pretrained teacher such as DINOv2 never moves, and there is no distance to something of another shape."""
    curves = healthy() | {"teacher/moved": [0.0] * STEPS}
    del curves["teacher/distance"]
    diagnosis = ask(FrozenTeacher(), curves)
    assert [code for code, _ in diagnosis.skipped] == ["DST205"]


def test_healthy_frozen_teacher_with_weights_of_its_own() -> None:
    rng = np.random.default_rng(0)
    far = noisy(1.4, rng, 0.002, start=1.41)
    assert_clear(FrozenTeacher(), healthy() | {"teacher/moved": [0.0] * STEPS, "teacher/distance": far})


def test_healthy_teacher_that_is_renewed_now_and_then() -> None:
    """Copied every tenth measured step; between, it stands still and the student leaves."""
    saw = [0.01 + 0.01 * (i % 10) for i in range(STEPS)]
    moved = [0.05 if i % 10 == 0 else 0.0 for i in range(STEPS)]
    assert_clear(FrozenTeacher(), healthy() | {"teacher/moved": moved, "teacher/distance": saw})


# DST206


def test_all_parameters_shared_is_an_error() -> None:
    finding = only(ask(TeacherIsStudent(), healthy(), teacher={**TEACHER, "aliased": 11}))
    assert finding.severity == "error"
    assert finding.causes[0].code == "teacher-is-student"


def test_some_parameters_shared_is_a_warning() -> None:
    finding = only(ask(TeacherIsStudent(), healthy(), teacher={**TEACHER, "aliased": 2}))
    assert finding.severity == "warning"
    assert "2 of 11" in str(finding.message)


def test_a_copy_that_is_renewed_at_every_step() -> None:
    curves = healthy() | {"teacher/distance": [0.0] * STEPS}
    assert only(ask(TeacherIsStudent(), curves, teacher=None)).severity == "warning"


def test_healthy_copy_of_a_student_that_does_not_learn() -> None:
    still = {"teacher/distance": [0.0] * STEPS, "teacher/moved": [0.0] * STEPS}
    assert_clear(TeacherIsStudent(), healthy() | still)


def test_what_follows_from_being_the_student() -> None:
    facts = {**TEACHER, "aliased": 11, "requires_grad": 11, "in_optimizer": 11, "training": 2}
    diagnosis = diagnose(recorded(healthy(), teacher=facts), rules=[TeacherIsStudent(), TeacherLearns()])
    assert [finding.code for finding in diagnosis.findings] == ["DST206", "DST207", "DST207"]
    assert len(diagnosis.groups) == 1


# DST207


@pytest.mark.parametrize(
    ("facts", "severity", "cause"),
    [
        ({"requires_grad": 11}, "warning", "teacher-trainable"),
        ({"requires_grad": 11, "with_grad": 11}, "warning", "teacher-trainable"),
        ({"requires_grad": 11, "in_optimizer": 11}, "error", "teacher-trainable"),
        ({"training": 3, "training_modules": 20}, "warning", "teacher-in-train-mode"),
    ],
)
def test_a_teacher_set_up_to_learn(facts: dict[str, int], severity: str, cause: str) -> None:
    finding = only(ask(TeacherLearns(), healthy(), teacher={**TEACHER, **facts}))
    assert (finding.severity, finding.causes[0].code) == (severity, cause)


def test_both_at_once_are_two_findings() -> None:
    diagnosis = ask(TeacherLearns(), healthy(), teacher={**TEACHER, "requires_grad": 11, "training": 1})
    assert {finding.subject for finding in diagnosis.findings} == {"requires_grad", "mode"}


def test_healthy_teacher_in_training_mode_without_a_module_that_cares() -> None:
    """As in DINO, whose vision transformer has neither dropout nor batch norm."""
    assert_clear(TeacherLearns(), healthy(), teacher={**TEACHER, "training_modules": 20})


# DST208


def test_a_teacher_softer_than_its_student() -> None:
    finding = only(ask(TemperatureOrder(), healthy() | {"distill/teacher_temp": [0.2] * STEPS}))
    assert finding.severity == "warning"
    assert finding.causes[0].code == "teacher-temperature-high"


def test_equal_temperatures_let_a_following_teacher_collapse() -> None:
    finding = only(ask(TemperatureOrder(), healthy() | {"distill/teacher_temp": [0.1] * STEPS}))
    assert finding.severity == "warning"


@pytest.mark.parametrize("moved", [{"teacher/moved": [0.0] * STEPS}, {"teacher/moved": []}])
def test_healthy_classic_distillation_at_one_temperature(moved: dict[str, Curve]) -> None:
    """A frozen teacher and its student, both at 4: only mentioned."""
    both = {"distill/teacher_temp": [4.0] * STEPS, "distill/student_temp": [4.0] * STEPS}
    assert only(ask(TemperatureOrder(), healthy() | both | moved)).severity == "info"


def test_healthy_schedule_that_passes_the_student_in_its_warm_up() -> None:
    curves = healthy()
    curves["distill/teacher_temp"] = [0.5] * 5 + [0.06] * (STEPS - 5)
    assert_clear(TemperatureOrder(), curves)


def test_temperatures_need_no_long_run() -> None:
    curves = {name: curve[:2] for name, curve in healthy().items()} | {"distill/teacher_temp": [0.2, 0.2]}
    assert only(ask(TemperatureOrder(), curves)).severity == "warning"


# DST209


def test_the_wrong_sign_is_an_error() -> None:
    finding = only(ask(NotTheCrossEntropy(), healthy(factor=lambda cross: -np.ones_like(cross))))
    assert finding.severity == "error"
    assert finding.causes[0].code == "distillation-formula"


def wandering(cross: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * (1 + np.sin(np.arange(len(cross)) / 5)) / 2


@pytest.mark.parametrize(("low", "high"), [(0.83, 1.03), (0.03, 0.3), (0.4, 3.6)])
def test_another_temperature_or_centre(low: float, high: float) -> None:
    finding = only(ask(NotTheCrossEntropy(), healthy(factor=lambda cross: wandering(cross, low, high))))
    assert finding.severity == "warning"


def test_more_in_the_loss_than_was_handed_in_is_only_mentioned() -> None:
    finding = only(ask(NotTheCrossEntropy(), healthy(factor=lambda cross: np.linspace(1.02, 2.2, len(cross)))))
    assert finding.severity == "info"


@pytest.mark.parametrize("factor", [1.0, 16.0, 0.25, 1e-3])
def test_healthy_constant_factor(factor: float) -> None:
    """The square of a temperature, a number of pairs, a weight that is already inside."""
    noise = 1 + 1e-7 * np.random.default_rng(0).normal(size=STEPS)
    assert_clear(NotTheCrossEntropy(), healthy(factor=lambda cross: factor * noise))


@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_healthy_divergence_instead_of_the_cross_entropy(factor: float) -> None:
    """torch's kl_div leaves out the entropy of the teacher, which has no gradient."""
    curves = healthy()
    left, floor = np.array(curves["distill/kl"]), np.array(curves["ent/teacher"])
    assert_clear(NotTheCrossEntropy(), curves | {"distill/loss_ratio": list(factor * left / (left + floor))})


def test_a_mean_over_prototypes_is_mentioned() -> None:
    finding = only(ask(NotTheCrossEntropy(), healthy(factor=lambda cross: np.full_like(cross, 1 / PROTOTYPES))))
    assert finding.severity == "info"
    assert "1/64" in str(finding.message)
    curves = healthy()
    left, floor = np.array(curves["distill/kl"]), np.array(curves["ent/teacher"])
    mean = left / (left + floor) / PROTOTYPES
    assert only(ask(NotTheCrossEntropy(), curves | {"distill/loss_ratio": list(mean)})).severity == "info"


# What all have in common

FIELDS = [
    (SharpTeacher, {"floor": 1e-9}, healthy(entropy=0.01, information=0.01)),
    (SharpTeacher, {"mi_floor": 1e-9}, healthy(entropy=0.01, information=0.01)),
    (SharpTeacher, {"cold": 1e-9}, sharp(**{"distill/teacher_temp": [0.001] * STEPS})),
    (SaturatedStudent, {"floor": 1e-9}, saturated()),
    (SaturatedStudent, {"weak": 1e-9}, saturated()),
    (UniformTeacher, {"ceiling": 1.0}, healthy(entropy=0.999 * LOG_K, information=1e-4)),
    (UniformTeacher, {"mi_floor": 1e-9}, healthy(entropy=0.999 * LOG_K, information=1e-4)),
    (SinglePrototype, {"effective": 1.001}, healthy(entropy=0.02, information=0.25)),
    (SinglePrototype, {"small": 1e-9}, healthy(entropy=0.02, information=0.25)),
    (FrozenTeacher, {"grown": 1e9}, left_behind()),
    (NotTheCrossEntropy, {"erratic": 1e9}, healthy(factor=lambda cross: wandering(cross, 0.4, 3.6))),
    (TemperatureOrder, {"same": 10.0}, healthy() | {"distill/teacher_temp": [0.2] * STEPS}),
]


@pytest.mark.parametrize(("rule", "setting", "curves"), FIELDS, ids=lambda value: getattr(value, "code", None))
def test_thresholds_decide(rule: type[Rule], setting: dict[str, float], curves: Curves) -> None:
    assert ask(rule(), curves).findings
    changed = ask(rule(**setting), curves)
    if rule is TemperatureOrder:  # everything is equal then
        assert "same temperature" in str(changed.findings[0].message)
    else:
        assert changed.clear == (rule.code,)


def test_noise_about_a_threshold_decides_nothing() -> None:
    rng = np.random.default_rng(0)
    curves = healthy(entropy=0.01) | {"ent/teacher_mi": list(0.05 + 0.02 * rng.normal(size=STEPS))}
    assert_clear(SharpTeacher(), curves)


def hostile() -> dict[str, dict[str, Any]]:
    names = list(healthy())
    values = {
        "empty": [], "one": [0.5], "zero": [0.0] * 40, "constant": [0.5] * 40, "nan": [math.nan] * 40,
        "infinite": [math.inf] * 40, "tiny": [1e-300] * 40, "huge": [1e300] * 40, "negative": [-1.0] * 40,
        "mixed": [math.nan, 1e300, -1e300, 0.0, math.inf] * 8,
    }  # fmt: skip
    return {label: dict.fromkeys(names, curve) for label, curve in values.items()}


@pytest.mark.parametrize("curves", hostile().values(), ids=hostile())
@pytest.mark.parametrize("facts", [None, TEACHER, {}, {"aliased": None, "requires_grad": None}])
def test_hostile_runs_are_survived(curves: dict[str, Any], facts: Mapping[str, Any] | None) -> None:
    for shapes in ({}, {"prototypes": 1}, {"prototypes": 64, "batch": 0}):
        run = recorded(curves, teacher=facts, shapes=shapes)
        view = RunView(run)
        for rule in OWN:
            if not rule.needs or all(any(one in run or "audit" in one for one in n.split(" or ")) for n in rule.needs):
                rule().check(view)
        diagnosis = diagnose(run, rules=[rule() for rule in OWN])
        assert not any(skipped.reason.key == "skip.failed" for _, skipped in diagnosis.skipped)
        for finding in diagnosis.findings:
            whole(finding)


@pytest.mark.parametrize("missing", sorted(healthy()))
def test_without_one_metric_the_others_still_judge(missing: str) -> None:
    curves = healthy()
    del curves[missing]
    diagnosis = diagnose(recorded(curves), rules=[rule() for rule in OWN])
    assert not diagnosis.findings
    assert not any(skipped.reason.key == "skip.failed" for _, skipped in diagnosis.skipped)


def test_short_runs_say_what_is_missing() -> None:
    curves = {name: curve[:8] for name, curve in healthy(entropy=0.01, information=0.01).items()}
    for rule in (SharpTeacher, SaturatedStudent, UniformTeacher, SinglePrototype, FrozenTeacher, NotTheCrossEntropy):
        told = rule().check(RunView(recorded(curves)))
        assert isinstance(told, Skipped), rule
        assert told.reason.text("zh-CN")
        assert told.enable is not None
        assert told.enable.text("en")


def test_an_imported_run_without_losses_is_judged_by_its_entropies() -> None:
    entropies = distilled(entropy=0.9999 * LOG_K, information=1e-4, left=1e-4)
    curves = {name: curve for name, curve in entropies.items() if not name.startswith("loss/")}
    writer = MemoryWriter({})
    for i in range(STEPS):
        writer.append([Record(i, {name: curve[i] for name, curve in curves.items()})])
    diagnosis = diagnose(writer.run(), rules=[UniformTeacher(), SaturatedStudent()])
    assert [finding.code for finding in diagnosis.findings] == ["DST203"]
    assert [code for code, _ in diagnosis.skipped] == ["DST202"]


# The shared questions


def view(curves: Mapping[str, Any], **meta: Any) -> RunView:
    return RunView(recorded(curves, **meta))


def test_whose_temperature_is_odd() -> None:
    assert not cold_student(view(healthy()))
    assert cold_student(view(healthy() | {"distill/student_temp": [0.002] * STEPS}))
    assert not cold_student(view(healthy() | {"distill/teacher_temp": [7.0] * STEPS}))
    assert not cold_student(view(healthy() | {"distill/student_temp": [0.0] * STEPS}))
    assert temperatures(view(healthy()))[1] == pytest.approx(0.1)
    assert all(map(math.isnan, temperatures(view({"loss/dino": [1.0]}))))


def test_a_temperature_to_try() -> None:
    assert usual_teacher(view(healthy())) == pytest.approx(0.05)
    assert usual_teacher(view(healthy() | {"distill/student_temp": [1.0] * STEPS})) == pytest.approx(0.5)
    assert usual_teacher(view(healthy() | {"distill/student_temp": [0.002] * STEPS})) == pytest.approx(0.05)
    assert usual_teacher(view({"loss/dino": [1.0]})) == pytest.approx(0.05)


def test_what_the_run_tells_of_sizes() -> None:
    assert log_prototypes(view(healthy(), shapes={})) == pytest.approx(LOG_K)
    assert log_prototypes(view(healthy(), shapes={"prototypes": 4096})) == pytest.approx(8.3178, abs=1e-4)
    assert math.isnan(log_prototypes(view({"loss/dino": [1.0]}, shapes={})))
    assert log_samples(view(healthy())) == pytest.approx(math.log(64))
    assert math.isnan(log_samples(view(healthy(), shapes={})))


def test_whether_the_teacher_moves() -> None:
    assert moves(view(healthy())) is True
    assert moves(view({"teacher/moved": [0.0, 0.0]})) is False
    assert moves(view({"loss/dino": [1.0]})) is None


def test_a_weak_gradient_is_told_only_where_it_says_something() -> None:
    rng = np.random.default_rng(0)
    dead = {"grad/dino": noisy(0.01, rng), "grad_weighted/dino": noisy(0.0022, rng)}
    found = weak_gradient(view(healthy() | dead), 0.05)
    assert found is not None
    assert found[1].share == 1.0
    strong = weak_gradient(view(healthy()), 0.05)
    assert strong is None  # its bare gradient is above the limit: then a faint one is its weight's fault
    two = {"dino": "distill", "ibot": "distill"}
    assert weak_gradient(view(healthy() | dead | {"loss/ibot": [1.0] * STEPS}, losses=two), 0.05) is None
