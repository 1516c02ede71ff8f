"""Entropies, divergence and rank against plain loops and theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import ShapeError
from lossdoctor.losses.distillation import distillation_cross_entropy
from lossdoctor.metrics import distillation
from lossdoctor.probe.snapshot import DistillBatch


def drawn(rows: int, classes: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * scale


def entropy(p: np.ndarray) -> float:
    return -sum(float(x) * math.log(x) for x in p if x > 0)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def twin(teacher: Tensor, student: Tensor, t_t: float, t_s: float, center: Tensor, loss: float) -> dict[str, float]:
    t = (teacher.double().numpy() - center.double().numpy()) / t_t
    s = student.double().numpy() / t_s
    p, q = softmax(t), softmax(s)
    log_q = s - s.max(1, keepdims=True)
    log_q = log_q - np.log(np.exp(log_q).sum(1, keepdims=True))
    rows, classes = t.shape
    out = {
        "ent/teacher": np.mean([entropy(row) for row in p]),
        "ent/student": np.mean([entropy(row) for row in q]),
        "ent/teacher_marginal": entropy(p.mean(0)),
        "distill/agreement": sum(a.argmax() == b.argmax() for a, b in zip(t, s, strict=True)) / rows,
        "distill/max_logit_over_temp": max(np.abs(t).max(), np.abs(s).max()),
        "distill/teacher_temp": t_t,
        "distill/student_temp": t_s,
    }
    if classes > 1:
        out["ent/teacher_norm"] = out["ent/teacher"] / math.log(classes)
        out["ent/student_norm"] = out["ent/student"] / math.log(classes)
        out["ent/teacher_marginal_norm"] = out["ent/teacher_marginal"] / math.log(classes)
    out["ent/teacher_mi"] = out["ent/teacher_marginal"] - out["ent/teacher"]
    cross = -np.mean((p * log_q).sum(1))
    out["distill/kl"] = cross - out["ent/teacher"]
    if cross > 1e-5:
        out["distill/loss_ratio"] = loss / cross
    singular = np.linalg.svd(student.double().numpy(), compute_uv=False)
    if singular.sum():
        out["distill/feature_rank"] = math.exp(entropy(singular / singular.sum()))
    return out


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from([0.0, 1e-6, 1.0, 50.0]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_everything_matches_plain_loops(rows: int, classes: int, scale: float, dtype: torch.dtype, seed: int) -> None:
    teacher, student = (drawn(rows, classes, seed + i, scale).to(dtype) for i in (0, 1))
    center = drawn(1, classes, seed + 2, 0.1)[0]
    batch = DistillBatch(teacher, student, 0.07, torch.tensor(0.1), center)
    found = distillation.measure(batch, loss=torch.tensor(2.0))
    expected = twin(teacher, student, 0.07, 0.1, center, 2.0)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = 1e-7 * value**2 if key == "distill/loss_ratio" else 1e-4  # the loss itself is known to 1e-7
        assert float(found[key]) == pytest.approx(value, rel=1e-4, abs=tolerance), key
        assert found[key].ndim == 0
    assert float(found["ent/teacher_mi"]) >= -1e-5
    assert float(found["distill/kl"]) >= -1e-4


@pytest.mark.parametrize("classes", [2, 10, 4096])
def test_a_uniform_teacher_has_entropy_ln_k_and_carries_nothing(classes: int) -> None:
    logits = torch.full((16, classes), 3.0)
    found = distillation.entropies(logits, drawn(16, classes, 0), 0.04, 0.1)
    assert float(found["ent/teacher"]) == pytest.approx(math.log(classes), rel=1e-5)
    assert float(found["ent/teacher_norm"]) == pytest.approx(1, rel=1e-5)
    assert float(found["ent/teacher_mi"]) == pytest.approx(0, abs=1e-4)


def test_one_prototype_per_sample_is_sharp_and_informative() -> None:
    found = distillation.entropies(torch.eye(8), torch.eye(8), 0.01, 0.1)
    assert float(found["ent/teacher"]) == pytest.approx(0, abs=1e-6)
    assert float(found["ent/teacher_mi"]) == pytest.approx(math.log(8), rel=1e-5)


def test_collapse_to_a_point_has_no_marginal_entropy() -> None:
    found = distillation.entropies(torch.eye(8)[[3] * 5], torch.eye(8)[:5], 0.01, 0.1)
    assert float(found["ent/teacher_marginal"]) == pytest.approx(0, abs=1e-6)


def test_the_loss_itself_has_ratio_one_and_its_floor_is_the_teachers_entropy() -> None:
    teacher, student, center = drawn(32, 10, 0, 0.3), drawn(32, 10, 1, 0.3), drawn(1, 10, 2, 0.1)
    loss = distillation_cross_entropy(teacher, student, teacher_temp=0.07, student_temp=0.1, center=center[0])
    found = distillation.entropies(teacher, student, 0.07, 0.1, center, loss=loss)
    assert float(found["distill/loss_ratio"]) == pytest.approx(1, rel=1e-5)
    assert float(found["distill/kl"]) == pytest.approx(float(loss - found["ent/teacher"]), abs=1e-5)
    perfect = distillation.entropies(teacher, (teacher - center) / 0.7, 0.07, 0.1, center)
    assert float(perfect["distill/kl"]) == pytest.approx(0, abs=1e-5)


def test_one_class_has_no_normalised_entropy_and_no_ratio() -> None:
    found = distillation.measure(DistillBatch(drawn(4, 1, 0), drawn(4, 1, 1), 0.1, 0.1), loss=0.5)
    normalised = {"ent/teacher_norm", "ent/student_norm", "ent/teacher_marginal_norm"}
    assert {*normalised, "distill/loss_ratio"}.isdisjoint(found)
    assert float(found["ent/teacher"]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_broken_logits_do_not_raise_and_show(bad: float, side: str) -> None:
    logits = {"teacher": drawn(6, 4, 0), "student": drawn(6, 4, 1)}
    logits[side][2, 1] = bad
    found = distillation.measure(DistillBatch(logits["teacher"], logits["student"], 0.1, 0.1), loss=1.0)
    assert not math.isfinite(float(found[f"ent/{side}"]))
    assert not math.isfinite(float(found["distill/max_logit_over_temp"]))
    assert math.isnan(float(found["distill/feature_rank"])) == (side == "student")
    assert math.isfinite(float(found["ent/student" if side == "teacher" else "ent/teacher"]))


def test_masked_classes_cost_nothing() -> None:
    teacher, student = drawn(6, 4, 0), drawn(6, 4, 1)
    masked = [torch.cat([logits, torch.full((6, 1), -math.inf)], 1) for logits in (teacher, student)]
    plain = distillation.entropies(teacher, student, 0.1, 0.2, loss=1.0)
    found = distillation.entropies(*masked, 0.1, 0.2, loss=1.0)
    for key in plain.keys() - {"ent/teacher_norm", "ent/student_norm", "ent/teacher_marginal_norm"}:
        assert float(found[key]) == pytest.approx(float(plain[key]), rel=1e-5), key
    ruled_out = distillation.entropies(teacher, student.index_fill(1, torch.tensor([0]), -math.inf), 0.1, 0.2)
    assert float(ruled_out["distill/kl"]) == math.inf


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_singular_values_count_one_each(rank: int, scale: float) -> None:
    q, _ = torch.linalg.qr(drawn(20, 8, 0).double())
    logits = (q[:, :rank] @ torch.linalg.qr(drawn(8, 8, 1).double())[0][:rank]) * scale
    for view in (logits, logits.T):
        assert float(distillation.feature_rank(view)["distill/feature_rank"]) == pytest.approx(rank, rel=1e-5)


def test_all_rows_equal_is_rank_one_in_float32_too() -> None:
    row = drawn(1, 300, 0)
    assert float(distillation.feature_rank(row.repeat(200, 1))["distill/feature_rank"]) == pytest.approx(1, abs=1e-3)
    assert distillation.feature_rank(torch.zeros(5, 3)) == {}


def test_many_rows_are_thinned_evenly() -> None:
    logits = drawn(257, 300, 0)
    kept = torch.arange(256) * 257 // 256
    expected = distillation.feature_rank(logits[kept])
    assert distillation.feature_rank(logits) == expected


def test_logits_of_any_rank_are_rows() -> None:
    teacher, student = drawn(12, 5, 0), drawn(12, 5, 1)
    flat = distillation.entropies(teacher, student, 0.1, 0.1)
    nested = distillation.entropies(teacher.reshape(3, 4, 5), student.reshape(3, 4, 5), 0.1, 0.1)
    assert flat == nested
    assert distillation.outputs(teacher, student, 0.1, 0.1) == distillation.outputs(
        teacher.reshape(3, 4, 5), student.reshape(3, 4, 5), 0.1, 0.1
    )


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"teacher_logits \(4, 8\), student_logits \(8, 8\)"):
        distillation.check(torch.zeros(4, 8), torch.zeros(8, 8))
    with pytest.raises(ShapeError, match="centre"):
        distillation.check(torch.zeros(4, 8), torch.zeros(4, 8), center=torch.zeros(4))
    with pytest.raises(ShapeError):
        distillation.entropies(torch.zeros(4, 8), torch.zeros(4, 1), 0.1, 0.1)
    distillation.check(torch.zeros(4, 8), torch.zeros(4, 8), center=torch.zeros(1, 8))


@pytest.mark.parametrize("given", [0.07, 1, torch.tensor(0.07), torch.tensor([0.07], dtype=torch.float16)])
def test_temperatures_are_told_as_handed_in(given: float | Tensor) -> None:
    found = distillation.temperatures(given, 2.0)
    assert float(found["distill/teacher_temp"]) == float(given)
    assert float(found["distill/student_temp"]) == 2.0
    assert all(value.ndim == 0 for value in found.values())


def test_a_teacher_that_uses_every_class_alike_has_a_full_marginal() -> None:
    one_each = distillation.entropies(torch.eye(8), torch.eye(8), 0.01, 0.1)
    assert float(one_each["ent/teacher_marginal_norm"]) == pytest.approx(1, rel=1e-5)
    one_for_all = distillation.entropies(torch.eye(8)[[3] * 5], torch.eye(8)[:5], 0.01, 0.1)
    assert float(one_for_all["ent/teacher_marginal_norm"]) == pytest.approx(0, abs=1e-6)


def test_an_empty_batch_has_no_metrics() -> None:
    empty = torch.zeros(0, 5)
    assert distillation.measure(DistillBatch(empty, empty, 0.1, 0.1)) == {}
    assert distillation.entropies(empty, empty, 0.1, 0.1) == {}
    assert distillation.outputs(empty, empty, 0.1, 0.1) == {}
