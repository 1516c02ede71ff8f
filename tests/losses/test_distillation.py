"""Distillation: cross-entropy against torch, pairs of views, schedule, centre, checkpoints, ranks."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.losses import DINOLoss, distillation_cross_entropy

TEMPS = {"teacher_temp": 0.05, "student_temp": 0.1}


def _logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _views(count: int, rows: int = 6, classes: int = 5, seed: int = 0) -> list[Tensor]:
    return list(_logits(count, rows, classes, seed=seed))


def _probabilities(logits: list[float], temp: float, center: list[float]) -> list[float]:
    """The slow twin of a softmax, in plain numbers."""
    scaled = [(logit - offset) / temp for logit, offset in zip(logits, center, strict=True)]
    powers = [math.exp(value - max(scaled)) for value in scaled]
    return [power / sum(powers) for power in powers]


def _twin(teacher: Tensor, student: Tensor, teacher_temp: float, student_temp: float, center: Tensor) -> float:
    rows = []
    for target, prediction in zip(teacher.tolist(), student.tolist(), strict=True):
        p = _probabilities(target, teacher_temp, center.tolist())
        q = _probabilities(prediction, student_temp, [0.0] * len(prediction))
        rows.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(rows) / len(rows)


@settings(deadline=None)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(1, 6),
    seed=st.integers(0, 1000),
    teacher_temp=st.floats(0.04, 2),
    student_temp=st.floats(0.1, 2),
)
def test_cross_entropy_against_plain_numbers(
    rows: int, classes: int, seed: int, teacher_temp: float, student_temp: float
) -> None:
    teacher, student = _views(2, rows, classes, seed)
    center = _logits(classes, seed=seed + 1)
    temps = {"teacher_temp": teacher_temp, "student_temp": student_temp}
    loss = distillation_cross_entropy(teacher, student, center=center, **temps)
    assert loss.item() == pytest.approx(
        _twin(teacher, student, teacher_temp, student_temp, center), rel=1e-9, abs=1e-12
    )


def test_cross_entropy_against_torch() -> None:
    teacher, student = _views(2, 8, 11)
    expected = torch.nn.functional.cross_entropy(student / 0.1, (teacher / 0.05).softmax(1))
    torch.testing.assert_close(distillation_cross_entropy(teacher, student, **TEMPS), expected)


def test_floor_is_the_entropy_of_the_teacher() -> None:
    teacher, student = _views(2, 8, 11)
    p = (teacher / 0.05).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    perfect = distillation_cross_entropy(teacher, teacher * 2, **TEMPS)  # twice the temperature, twice the logits
    torch.testing.assert_close(perfect, entropy)
    assert distillation_cross_entropy(teacher, student, **TEMPS) > entropy


@pytest.mark.parametrize("classes", [1, 4096, 65_536])
def test_uniform_outputs_cost_ln_k(classes: int) -> None:
    flat = torch.zeros(2, classes)
    assert distillation_cross_entropy(flat, flat, **TEMPS).item() == pytest.approx(math.log(classes), rel=1e-5)


def test_temperature_and_centre_do_what_they_say() -> None:
    teacher, student = _views(2)
    shifted = distillation_cross_entropy(teacher + 3, student - 2, center=torch.full((5,), 3.0).double(), **TEMPS)
    torch.testing.assert_close(shifted, distillation_cross_entropy(teacher, student, **TEMPS))
    centred = distillation_cross_entropy(teacher, student, center=teacher.mean(0), **TEMPS)
    torch.testing.assert_close(centred, distillation_cross_entropy(teacher - teacher.mean(0), student, **TEMPS))
    as_tensor = {name: torch.tensor(temp, dtype=torch.float64) for name, temp in TEMPS.items()}
    torch.testing.assert_close(
        distillation_cross_entropy(teacher, student, **as_tensor), distillation_cross_entropy(teacher, student, **TEMPS)
    )


def test_only_the_student_gets_a_gradient() -> None:
    teacher, student = (view.requires_grad_() for view in _views(2))
    distillation_cross_entropy(teacher, student, **TEMPS).backward()
    assert teacher.grad is None
    assert student.grad is not None
    expected = ((student / 0.1).softmax(1) - (teacher / 0.05).softmax(1)) / 0.1 / len(student)
    torch.testing.assert_close(student.grad, expected.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_do_not_overflow(dtype: torch.dtype) -> None:
    """exp(60,000 / 0.04) overflows every dtype; the log-softmax must not form it."""
    teacher = torch.tensor([[60_000.0, -60_000.0, 0.0]], dtype=dtype)
    student = torch.tensor([[1.0, 2.0, -60_000.0]], dtype=dtype, requires_grad=True)
    loss = distillation_cross_entropy(teacher, student, teacher_temp=0.04, student_temp=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(10 + math.log1p(math.exp(-10)), rel=1e-4)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_give_a_bad_loss(bad: float) -> None:
    teacher, student = _views(2)
    for broken, other in ((teacher, student), (student, teacher)):
        spoiled = broken.clone()
        spoiled[0, 0] = bad
        assert not distillation_cross_entropy(spoiled, other, **TEMPS).isfinite()
        assert not distillation_cross_entropy(other, spoiled, **TEMPS).isfinite()


def test_cross_entropy_refuses_what_cannot_be_meant() -> None:
    teacher, student = _views(2)
    for wrong in (student[:, :4], student[:4], student[0], student[None]):
        with pytest.raises(ShapeError, match="row by row"):
            distillation_cross_entropy(teacher, wrong, **TEMPS)
    for center in (torch.zeros(1, 5), torch.zeros(6, 1), torch.zeros(4)):
        with pytest.raises(ShapeError, match="one number per class"):
            distillation_cross_entropy(teacher, student, center=center, **TEMPS)
    for temp in (0.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="must be positive"):
            distillation_cross_entropy(teacher, student, teacher_temp=temp, student_temp=0.1)
        with pytest.raises(UsageError, match="must be positive"):
            distillation_cross_entropy(teacher, student, teacher_temp=0.1, student_temp=temp)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("teachers", "students"), [(2, 2), (2, 6), (1, 3), (2, 1), (3, 2)])
def test_mean_over_the_pairs_of_views(teachers: int, students: int, skip: bool) -> None:
    teacher, student = _views(teachers), _views(students, seed=1)
    dino = DINOLoss(5, teacher_temp=0.05, skip_same_view=skip)
    pairs = [(i, j) for i, j in itertools.product(range(teachers), range(students)) if not (skip and i == j)]
    expected = sum(distillation_cross_entropy(teacher[i], student[j], **TEMPS) for i, j in pairs) / len(pairs)
    torch.testing.assert_close(dino(teacher, student), expected)


def test_one_view_may_come_without_a_list() -> None:
    """A student that sees only the caption: one view, compared with every view of the teacher."""
    teacher, (student,) = _views(2), _views(1, seed=1)
    dino = DINOLoss(5, skip_same_view=False)
    torch.testing.assert_close(dino(teacher, student), dino(teacher, [student]))
    torch.testing.assert_close(dino(teacher[0], student), dino([teacher[0]], [student]))
    with pytest.raises(UsageError, match="skip_same_view=False"):
        DINOLoss(5)(teacher[0], student)


def test_loss_falls_when_the_student_follows() -> None:
    teacher, student = _views(2), [view.requires_grad_() for view in _views(2, seed=1)]
    dino = DINOLoss(5)
    optimizer = torch.optim.Adam(student, lr=0.1)
    first = dino(teacher, student).item()
    for _ in range(200):
        optimizer.zero_grad()
        dino(teacher, student).backward()
        optimizer.step()
    entropy = torch.stack([torch.special.entr((view / 0.07).softmax(1)).sum(1).mean() for view in teacher]).mean()
    assert dino(teacher, student).item() < first
    assert dino(teacher, student).item() == pytest.approx(entropy.item(), abs=1e-2)


def test_temperature_warms_up_in_a_straight_line() -> None:
    dino = DINOLoss(5, warmup_steps=3)
    temps = []
    for _ in range(6):
        temps.append(dino.teacher_temp.item())
        dino.update(_views(1))
    assert temps == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert DINOLoss(5).teacher_temp.item() == pytest.approx(0.07)


def test_loss_uses_the_temperature_of_the_step() -> None:
    teacher, student = _views(2), _views(2, seed=1)
    dino = DINOLoss(5, warmup_steps=1, center_momentum=1.0)  # a centre that never moves
    early, final = DINOLoss(5, teacher_temp=0.04), DINOLoss(5, teacher_temp=0.07)
    torch.testing.assert_close(dino(teacher, student), early(teacher, student))
    dino.update(teacher)
    torch.testing.assert_close(dino(teacher, student), final(teacher, student))


def test_centre_is_the_running_mean_of_the_teacher() -> None:
    dino, center = DINOLoss(5), torch.zeros(5)
    for seed in range(4):
        views = _views(2, seed=seed)
        before = dino.center.clone()
        dino(views, views)
        assert torch.equal(dino.center, before)  # only update moves it
        dino.update(views)
        center = 0.9 * center + 0.1 * torch.cat(views).mean(0).float()
        torch.testing.assert_close(dino.center, center)
    assert dino.step.item() == 4
    teacher, student = _views(1)[0], _views(1, seed=1)[0]
    expected = distillation_cross_entropy(teacher, student, teacher_temp=0.07, student_temp=0.1, center=center)
    actual = DINOLoss(5, skip_same_view=False)
    actual.center.copy_(center)
    torch.testing.assert_close(actual(teacher, student), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 3.0), (0.5, 1.5), (1.0, 0.0)])
def test_momentum_is_the_share_that_stays(momentum: float, expected: float) -> None:
    dino = DINOLoss(2, center_momentum=momentum)
    dino.update(torch.full((4, 2), 3.0))
    assert dino.center.tolist() == [expected, expected]


def test_centring_removes_a_common_offset() -> None:
    """The force against point collapse: a class all rows prefer alike is taken away by the centre."""
    teacher = 0.01 * _logits(64, 5) + torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0])
    dino = DINOLoss(5, center_momentum=0.0)
    dino.update(teacher)
    targets = ((teacher - dino.center) / dino.teacher_temp).softmax(1)
    assert (teacher / dino.teacher_temp).softmax(1).mean(0).max() > 0.99
    assert targets.mean(0).max() < 0.3


def test_update_keeps_no_graph_and_may_come_before_backward() -> None:
    teacher, student = _views(2), [view.requires_grad_() for view in _views(2, seed=1)]
    dino = DINOLoss(5)
    loss = dino(teacher, student)
    dino.update([view.requires_grad_() for view in teacher])
    assert not dino.center.requires_grad
    loss.backward()
    assert all(view.grad is not None for view in student)
    assert all(view.grad is None for view in teacher)


def test_a_checkpoint_resumes_exactly(tmp_path: Path) -> None:
    straight, interrupted = (DINOLoss(5, warmup_steps=5) for _ in range(2))
    for seed in range(2):
        straight.update(_views(2, seed=seed))
        interrupted.update(_views(2, seed=seed))
    torch.save(interrupted.state_dict(), tmp_path / "loss.pt")
    resumed = DINOLoss(5, warmup_steps=5)
    resumed.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for seed in range(2, 4):
        views = _views(2, seed=seed)
        assert torch.equal(straight(views, views), resumed(views, views))
        straight.update(views)
        resumed.update(views)
    assert torch.equal(straight.center, resumed.center)
    assert torch.equal(straight.teacher_temp, resumed.teacher_temp)
    assert set(straight.state_dict()) == {"center", "step"}
    assert list(straight.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_of_logits_and_module(dtype: torch.dtype) -> None:
    views = [view.to(dtype) for view in _views(2)]
    for dino in (DINOLoss(5), DINOLoss(5).to(dtype)):
        dino.update(views)
        loss = dino(views, views)
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert loss.isfinite()


def test_views_of_tokens() -> None:
    """Leading axes are rows: (B, tokens, K) is (B * tokens, K)."""
    teacher, student = [_logits(2, 3, 4, 5)[0]], [_logits(3, 4, 5, seed=1)]
    flat = [view.reshape(-1, 5) for view in (*teacher, *student)]
    one, other = (DINOLoss(5, skip_same_view=False) for _ in range(2))
    torch.testing.assert_close(one(teacher, student), other(flat[0], flat[1]))
    one.update(teacher)
    other.update(flat[0])
    torch.testing.assert_close(one.center, other.center)


def test_nothing_is_read_from_the_device() -> None:
    dino = DINOLoss(5, warmup_steps=3).to("meta")  # a meta tensor has no data: reading any raises
    views = [view.to("meta") for view in _views(2)]
    assert dino(views, views).is_meta
    dino.update(views)


def test_dino_refuses_what_cannot_be_meant() -> None:
    dino = DINOLoss(5)
    for wrong in (_views(2, classes=4), [torch.tensor(0.0)]):
        with pytest.raises(ShapeError, match="out_dim"):
            dino(wrong, _views(2))
        with pytest.raises(ShapeError, match="out_dim"):
            dino.update(wrong)
    with pytest.raises(ShapeError, match="row by row"):
        dino(_views(2), _views(2, rows=7))
    for views in ([], _views(2)):
        with pytest.raises(UsageError, match="No pair"):
            dino(views, [])


@pytest.mark.parametrize(
    "settings",
    [{"student_temp": 0.0}, {"teacher_temp": -1.0}, {"warmup_teacher_temp": math.nan}, {"warmup_steps": -1}]
    + [{"center_momentum": momentum} for momentum in (-0.1, 1.1, math.nan)],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        DINOLoss(5, **settings)
    with pytest.raises(UsageError, match="out_dim"):
        DINOLoss(0)


def test_printing_shows_the_settings() -> None:
    assert "teacher_temp=0.04->0.07 in 30 steps" in repr(DINOLoss(5, warmup_steps=30))


RANK = """
import sys
import torch
from torch import distributed
from lossdoctor.losses import DINOLoss

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
dino = DINOLoss(3, center_momentum=0.5)
dino.update([torch.full((1, 3), 1.0)] if rank == 0 else [torch.full((3, 3), 5.0)])
torch.save(dino.state_dict(), f"{folder}/rank{rank}.pt")
distributed.destroy_process_group()
"""


def test_centre_is_that_of_the_global_batch(tmp_path: Path) -> None:
    """Two ranks with 1 row of 1.0 and 3 rows of 5.0: the mean is 4, where the mean of the two local means is 3."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), str(rank)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in ranks:
            process.kill()
    for rank in range(2):
        state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert state["center"].tolist() == [2.0, 2.0, 2.0]
        assert state["step"].item() == 1
