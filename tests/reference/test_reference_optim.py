from __future__ import annotations

import pytest

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


def test_the_rate_scales_each_group_by_its_own(trainer: Trainer) -> None:
    peaks = [group["lr"] for group in trainer.optimizer.param_groups]
    for share in (0.5, 0.1):
        set_rate(trainer.optimizer, share)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([p * share for p in peaks])
