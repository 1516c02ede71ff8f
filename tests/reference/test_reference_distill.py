from __future__ import annotations

import copy

import pytest
import torch

from lossdoctor.reference.config import DistillConfig
from lossdoctor.reference.distill import MomentumTeacher, PictureStudent, PrototypeHead

SMALL = DistillConfig(width=16, features=8, bottleneck=6, prototypes=10)


@pytest.fixture
def student() -> PictureStudent:
    torch.manual_seed(0)
    return PictureStudent(SMALL, mean=-0.4, std=0.75)


def moved(student: PictureStudent) -> PictureStudent:
    other = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_logits_are_cosines(size: float) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, SMALL)
    logits = head(torch.randn(50, 2, 2, 2) * size)
    assert logits.shape == (50, 10)
    assert logits.abs().max() <= 1 + 1e-5
    towards = torch.nn.functional.cosine_similarity(
        head.project(torch.ones(1, 8)).unsqueeze(1), head.prototypes.weight.unsqueeze(0), dim=2
    )
    assert torch.allclose(head(torch.ones(1, 8)), towards, atol=1e-6)


def test_a_teacher_begins_as_its_student_and_owns_its_weights(student: PictureStudent) -> None:
    teacher = MomentumTeacher(student, 0.9)
    pictures = torch.rand(4, 1, 8, 8)
    assert torch.equal(teacher(pictures), student(pictures))
    pointers = {p.data_ptr() for p in student.parameters()}
    assert not pointers & {p.data_ptr() for p in teacher.parameters()}


def test_a_teacher_follows_by_the_formula(student: PictureStudent) -> None:
    teacher = MomentumTeacher(student, 0.9)
    expected = [p.detach().clone() for p in student.parameters()]
    for _ in range(3):
        student = moved(student)
        teacher.follow(student)
        expected = [0.9 * old + 0.1 * new.detach() for old, new in zip(expected, student.parameters(), strict=True)]
    for kept, value in zip(teacher.parameters(), expected, strict=True):
        assert torch.allclose(kept, value, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_two_ends_of_momentum(student: PictureStudent, momentum: float) -> None:
    teacher, other = MomentumTeacher(student, momentum), moved(student)
    teacher.follow(other)
    copied = other if momentum == 0.0 else student
    for kept, value in zip(teacher.parameters(), copied.parameters(), strict=True):
        assert torch.equal(kept, value)


def test_a_teacher_never_learns_by_gradient_nor_leaves_evaluation_mode(student: PictureStudent) -> None:
    teacher = MomentumTeacher(student, 0.9)
    torch.nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.rand(4, 1, 8, 8, requires_grad=True)).requires_grad
