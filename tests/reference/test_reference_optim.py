from __future__ import annotations

import pytest
from torch import nn

from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.reference.optim import set_rate


def test_every_trainable_parameter_is_in_exactly_one_group(trainer: Trainer) -> None:
    grouped = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in trainer.system.parameters() if p.requires_grad}


def test_heads_learn_faster_and_nothing_small_decays(trainer: Trainer, tiny: ReferenceConfig) -> None:
    rule = {
        id(p): (group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups for p in group["params"]
    }
    train, system = tiny.train, trainer.system
    for head in system.heads().values():
        assert {rule[id(p)] for p in head.parameters()} == {(train.lr * train.head_lr_scale, 0.0)}
    assert rule[id(system.generator.text.words.weight)] == (train.lr, 0.0)
    assert rule[id(system.generator.velocity.inlet.weight)] == (train.lr, train.weight_decay)
    assert rule[id(system.generator.velocity.inlet.bias)] == (train.lr, 0.0)
    students = {rule[id(p)][0] for p in system.student.parameters()}
    assert students == {train.lr * tiny.distill.lr_scale}


def test_the_groups_are_those_of_the_slow_way_and_in_its_order(trainer: Trainer, tiny: ReferenceConfig) -> None:
    """Clipping adds up norms in this order, so that another one would change the last bits of a training."""
    system, settings = trainer.system, tiny.train
    heads = {id(p) for head in system.heads().values() for p in head.parameters()}
    embeddings = {id(m.weight) for m in system.modules() if isinstance(m, nn.Embedding)}
    student = {id(p) for p in system.student.parameters()}
    expected: dict[tuple[float, float], list[int]] = {}
    for p in (p for p in system.parameters() if p.requires_grad):
        head, small = id(p) in heads, p.ndim < 2 or id(p) in embeddings
        scale = settings.head_lr_scale if head else tiny.distill.lr_scale if id(p) in student else 1.0
        decay = 0.0 if head or small else settings.weight_decay
        expected.setdefault((settings.lr * scale, decay), []).append(id(p))
    found: dict[tuple[float, float], list[int]] = {}
    for group in trainer.optimizer.param_groups:
        assert group["peak_lr"] == group["lr"]
        found.setdefault((group["lr"], group["weight_decay"]), []).extend(id(p) for p in group["params"])
    assert list(found.items()) == list(expected.items())
    flat = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert flat == [one for members in expected.values() for one in members]


def test_the_rate_scales_each_group_by_its_own(trainer: Trainer) -> None:
    peaks = [group["lr"] for group in trainer.optimizer.param_groups]
    for share in (0.5, 0.1):
        set_rate(trainer.optimizer, share)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([p * share for p in peaks])
