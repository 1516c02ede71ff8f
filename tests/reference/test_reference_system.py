from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lossdoctor import Doctor
from lossdoctor.probe import observe
from lossdoctor.reference import KINDS, System, Trainer
from lossdoctor.reference.data import Batch


@pytest.fixture
def system(trainer: Trainer) -> System:
    """A system that has left its zero-initialised start, with a teacher that differs from its student."""
    trainer.autoencoder_ready = True
    trainer.run(2)
    return trainer.system


@pytest.fixture
def batch(trainer: Trainer) -> Batch:
    return trainer.loader.draw()


def test_the_losses_are_those_of_the_formulas(system: System, batch: Batch) -> None:
    """The same three numbers, sample by sample and in plain terms."""
    losses = system.losses(batch)
    with torch.no_grad():
        mu, logvar = system.generator.z_head(system.generator.text(batch.tokens))
        teacher, center, temp = (
            [system.teacher(view) for view in batch.views],
            system.dino.center,
            system.dino.teacher_temp,
        )
        flow = kl = dino = 0.0
        for i in range(len(batch.t)):
            std = torch.exp(logvar[i] / 2)
            kl += float(sum((mu[i] ** 2 + std**2 - 1 - logvar[i]).flatten()) / 2)
            z0 = mu[i] + std * batch.source_noise[i]
            z1 = system.autoencoder.encode(batch.pictures[i : i + 1], batch.target_noise[i : i + 1])[0]
            t = float(batch.t[i])
            cond = system.generator.text(batch.tokens.rows(torch.tensor([i])))
            v = system.generator.velocity(((1 - t) * z0 + t * z1)[None], batch.t[i : i + 1], cond)[0]
            flow += float(((v - (z1 - z0)) ** 2).mean())
            caption = system.dino_head(z0[None])[0]
            for this, other in [(0, 1), (1, 0)]:
                p = torch.softmax((teacher[this][i] - center) / temp, dim=0)
                for logits in (system.student(batch.views[other][i : i + 1])[0], caption):
                    dino -= float((p * torch.log_softmax(logits / 0.1, dim=0)).sum()) / 4
    rows = len(batch.t)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
        {"flow": flow / rows, "dino": dino / rows, "kl": kl / rows}, rel=1e-4
    )


REACH = {
    "flow": {"generator.text", "generator.z_head", "generator.velocity"},
    "kl": {"generator.text", "generator.z_head"},
    "dino": {"generator.text", "generator.z_head", "dino_head", "student"},
}


@pytest.mark.parametrize("loss", sorted(KINDS))
def test_each_loss_reaches_the_parts_it_should_and_no_others(system: System, batch: Batch, loss: str) -> None:
    system.zero_grad(set_to_none=True)
    system.losses(batch)[loss].backward()
    reached = {n for n, p in system.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    parts = {
        part for name in reached for part in [".".join(name.split(".")[: 2 if name.startswith("generator") else 1])]
    }
    assert parts == REACH[loss]


def test_the_heads_are_parts_of_the_system(system: System) -> None:
    own = {id(p) for p in system.parameters()}
    assert set(system.heads()) == {"z_head", "flow_head", "dino_head"}
    assert all(id(p) in own for head in system.heads().values() for p in head.parameters())


def test_the_teacher_and_its_center_follow_once_per_step(system: System, batch: Batch) -> None:
    system.losses(batch)
    with torch.no_grad():
        said = torch.cat([system.teacher(view) for view in batch.views]).mean(0)
    center, step = system.dino.center.clone(), int(system.dino.step)
    weights = [p.clone() for p in system.teacher.module.parameters()]
    system.update_teacher()
    assert torch.allclose(system.dino.center, 0.9 * center + 0.1 * said, atol=1e-6)
    assert int(system.dino.step) == step + 1
    for kept, old, new in zip(system.teacher.module.parameters(), weights, system.student.parameters(), strict=True):
        assert torch.allclose(kept, 0.97 * old + 0.03 * new, atol=1e-6)


def test_a_doctor_finds_every_formula_as_it_should_be(trainer: Trainer) -> None:
    with Doctor(**trainer.patient(), every=1, strict=True) as doctor:
        trainer.run(3, doctor=doctor)
        seen = dict(doctor.ret)
    assert seen["kl/ratio"] == pytest.approx(1.0, rel=1e-4)
    assert seen["distill/loss_ratio"] == pytest.approx(1.0, rel=1e-4)
    assert seen["flow/target_mismatch"] == pytest.approx(0.0, abs=1e-4)
    assert seen["flow/field_mismatch"] == pytest.approx(0.0, abs=1e-4)
    assert sum(seen[f"grad_share/{loss}"] for loss in KINDS) == pytest.approx(1.0, abs=1e-3)
    assert seen["ema/distance"] > 0
    assert seen["teacher/moved"] > 0


def test_temperatures_and_weights_are_knobs(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"student_temp": 1e6, "w_flow": 0.0, "w_kl": 0.0}
    asked: dict[str, float] = {}

    def knob(name: str, value: float) -> float:
        asked[name] = value
        return changes.get(name, value)

    monkeypatch.setattr(observe, "knob", knob)
    trainer.autoencoder_ready = True
    velocity = [p.clone() for p in trainer.system.generator.velocity.parameters() if p.ndim == 1]
    trainer.run(1)
    assert set(asked) == {"student_temp", "teacher_temp", "w_flow", "w_dino", "w_kl"}
    unmoved = [p for p in trainer.system.generator.velocity.parameters() if p.ndim == 1]
    assert all(torch.equal(a, b) for a, b in zip(velocity, unmoved, strict=True))
    uniform = trainer.system.losses(trainer.loader.draw())["dino"]
    assert float(uniform.detach()) == pytest.approx(math.log(trainer.config.distill.prototypes), rel=1e-3)


def test_the_condition_goes_through_the_doctor(system: System, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(cond: Tensor) -> Tensor:
        return cond.roll(1, 0)

    before = {name: float(loss.detach()) for name, loss in system.losses(batch).items()}
    monkeypatch.setattr(observe, "condition", shuffled)
    after = {name: float(loss.detach()) for name, loss in system.losses(batch).items()}
    assert after["kl"] == pytest.approx(before["kl"], rel=1e-5)
    assert all(after[name] != pytest.approx(before[name], rel=1e-6) for name in ("flow", "dino"))
