from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.config import override
from lossdoctor.errors import UsageError
from lossdoctor.losses import gaussian_kl
from lossdoctor.messages import languages, text
from lossdoctor.probe.audit import audit
from lossdoctor.reference import Digits, Judge, ReferenceConfig, Trainer
from lossdoctor.reference.faults import FAULTS, sick

BEFORE = {"flow": 1.1245034933, "dino": 2.9682245255, "kl": 2.7611081600}
"""The losses of the fourth batch, by the code from before there was any fault."""


@pytest.fixture(scope="module")
def autoencoder(tiny: ReferenceConfig, digits: Digits) -> dict[str, Any]:
    trainer = Trainer(tiny, digits)
    trainer.prepare()
    return trainer.autoencoder.state_dict()


Trained = Callable[[str | None, int], Trainer]


@pytest.fixture(scope="module")
def trained(tiny: ReferenceConfig, digits: Digits, autoencoder: dict[str, Any]) -> Trained:
    def train(fault: str | None, steps: int) -> Trainer:
        trainer = Trainer(tiny, digits) if fault is None else sick(tiny, fault, digits)
        trainer.adopt(autoencoder)
        trainer.run(steps)
        return trainer

    return train


def losses(trainer: Trainer) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in trainer.system.losses(trainer.loader.draw()).items()}


def signs(trainer: Trainer) -> list[Any]:
    """All by which two trainings could be told apart: losses, weights, what sampling asks, what an audit sees."""
    told: list[Any] = [losses(trainer)]
    system, generator = trainer.system, trainer.sampler().generator
    facts = audit(system, system.heads(), [trainer.optimizer], trainer.patient()["teacher"], trainer.ema.model)
    x, t = torch.ones(2, *trainer.config.autoencoder.latent), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        field = generator.field(x, t, torch.ones(2, trainer.config.text.width))
    weights = [p.detach().float() for p in [*system.generator.parameters(), *generator.parameters()]]
    return [*told, facts, system.weights(), *(w.tolist() for w in [field, *weights])]


def test_the_faults_are_those_of_the_clinic_with_a_sentence_each() -> None:
    assert len(FAULTS) >= 20
    assert set(FAULTS) <= set(BY_NAME)
    for lang in languages():
        assert all(text(f"fault.{name}", lang) for name in BY_NAME)


def test_an_unknown_fault_is_refused(tiny: ReferenceConfig) -> None:
    with pytest.raises(UsageError, match=r"detached-kl[\s\S]*got: +healthy"):
        sick(tiny, "healthy")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_trains_and_can_be_told_from_the_healthy_system(trained: Trained, fault: str) -> None:
    assert signs(trained(fault, 3)) != signs(trained(None, 3))


def test_the_healthy_system_is_what_it_was(trained: Trained) -> None:
    for fault in FAULTS:
        trained(fault, 0)
    trainer = trained(None, 3)
    assert losses(trainer) == pytest.approx(BEFORE, rel=1e-4)
    assert signs(trained(None, 3)) == signs(trained(None, 3))


def test_an_adopted_autoencoder_changes_nothing(tiny: ReferenceConfig, digits: Digits, trained: Trained) -> None:
    own = Trainer(tiny, digits)
    own.run(3)
    assert signs(own) == signs(trained(None, 3))


def test_settings_change_in_proportion(tiny: ReferenceConfig, digits: Digits) -> None:
    halved = override(tiny, {"weights.kl": tiny.weights.kl / 2})
    assert sick(halved, "weak-kl", digits).config.weights.kl == pytest.approx(0.5e-4 * tiny.weights.kl)


# That each of them is the mistake it says


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("kl-on-sample", lambda mu, logvar, z: gaussian_kl(z, logvar, reduction="sum")),
        ("kl-mean-for-sum", lambda mu, logvar, z: gaussian_kl(mu, logvar, reduction="per_dim")),
        ("kl-half-lost", lambda mu, logvar, z: 2 * gaussian_kl(mu, logvar, reduction="sum")),
        (
            "kl-on-scaled-latent",
            lambda mu, logvar, z: gaussian_kl(0.18215 * mu, (0.18215**2 * logvar.exp()).log(), reduction="sum"),
        ),
        (
            "kl-other-formula",
            lambda mu, logvar, z: ((0.3 * mu) ** 6 + (logvar.exp() - 1 - logvar) / 2).sum((1, 2, 3)).mean(),
        ),
    ],
)
def test_the_kl_is_another_formula(trained: Trained, fault: str, expected: Callable[..., Tensor]) -> None:
    trainer = trained(fault, 2)
    batch = trainer.loader.draw()
    _, mu, logvar, z = trainer.system.generator.source(batch.tokens, batch.source_noise)
    assert torch.allclose(trainer.system.losses(batch)["kl"], expected(mu, logvar, z), rtol=1e-4)


@pytest.mark.parametrize(("fault", "loss"), [("detached-distillation", "dino"), ("detached-kl", "kl")])
def test_a_detached_loss_has_its_value_and_no_gradient(trained: Trained, fault: str, loss: str) -> None:
    right, wrong = (t.system.losses(t.loader.draw())[loss] for t in (trained(None, 0), trained(fault, 0)))
    assert not wrong.requires_grad
    assert torch.equal(right.detach(), wrong)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ("reversed-inference", lambda v, x, t, c: v(x, 1 - t, c)),
        ("inference-sign", lambda v, x, t, c: -v(x, t, c)),
        ("inference-scale", lambda v, x, t, c: 0.5 * v(x, t, c)),
        ("inference-other-condition", lambda v, x, t, c: v(x, t, 0 * c)),
    ],
)
def test_sampling_asks_another_field_and_training_is_healthy(
    trained: Trained, fault: str, field: Callable[..., Tensor]
) -> None:
    trainer, healthy = trained(fault, 3), trained(None, 3)
    assert losses(trainer) == losses(healthy)
    torch.manual_seed(0)
    x, t, cond = torch.randn(5, 2, 2, 2), torch.rand(5), torch.randn(5, 16)
    generator = trainer.sampler().generator
    assert torch.equal(generator.field(x, t, cond), field(generator.velocity, x, t, cond))
    assert not torch.allclose(generator.field(x, t, cond), healthy.sampler().generator.field(x, t, cond))


@pytest.mark.parametrize(("fault", "which"), [("time-not-connected", 1), ("condition-ignored", 2)])
def test_an_input_that_is_not_connected_changes_nothing(trained: Trained, fault: str, which: int) -> None:
    torch.manual_seed(0)
    velocity = trained(fault, 3).system.generator.velocity
    given = [torch.randn(5, 2, 2, 2), torch.rand(5), torch.randn(5, 16)]
    for place in (1, 2):
        other = [-g if i == place else g for i, g in enumerate(given)]
        assert torch.equal(velocity(*given), velocity(*other)) == (place == which)


def test_teachers_share_follow_and_require_grad_as_they_say(trained: Trained) -> None:
    same, stuck, trainable = (
        trained(f"{k}", 3).system for k in ("teacher-is-student", "frozen-teacher", "trainable-teacher")
    )
    assert [p.data_ptr() for p in same.teacher.parameters()] == [p.data_ptr() for p in same.student.parameters()]
    assert all(p.requires_grad for p in same.student.parameters())
    start = trained("frozen-teacher", 0).system.teacher
    assert all(torch.equal(a, b) for a, b in zip(stuck.teacher.parameters(), start.parameters(), strict=True))
    assert all(p.requires_grad for p in trainable.teacher.parameters())


def test_heads_are_left_out_slow_decayed_or_frozen(trained: Trained, tiny: ReferenceConfig) -> None:
    def rates(fault: str, head: str) -> set[tuple[float, float]]:
        trainer = trained(fault, 0)
        mine = {id(p) for p in trainer.system.heads()[head].parameters()}
        groups = trainer.optimizer.param_groups
        return {(g["peak_lr"], g["weight_decay"]) for g in groups for p in g["params"] if id(p) in mine}

    peak = tiny.train.lr * tiny.train.head_lr_scale
    assert rates("head-not-in-optimizer", "dino_head") == set()
    assert rates("head-not-in-optimizer", "z_head") == {(peak, 0.0)}
    assert rates("slow-head", "z_head") == {(peak * 1e-5, 0.0)}
    assert rates("decayed-heads", "flow_head") == {(peak, tiny.train.weight_decay)}
    frozen = trained("frozen-head", 0).system
    assert not any(p.requires_grad for p in frozen.dino_head.parameters())


def test_averages_stick_lag_and_round(trained: Trained) -> None:
    start = [p.clone() for p in trained(None, 0).ema.model.parameters()]

    def moved(fault: str | None) -> float:
        now = trained(fault, 10).ema.model.parameters()
        return max(float((a.float() - b).abs().max()) for a, b in zip(now, start, strict=True))

    healthy, slow = moved(None), moved("slow-ema")
    assert moved("stuck-ema") == 0
    assert 0 < slow < 1e-3 * healthy
    half = trained("half-precision-ema", 10)
    assert {p.dtype for p in half.ema.model.parameters()} == {torch.bfloat16}
    assert half.evaluate()["eval/flow_nmse"] == pytest.approx(trained(None, 10).evaluate()["eval/flow_nmse"], rel=0.05)
    assert {p.dtype for p in half.ema.model.parameters()} == {torch.bfloat16}, "asking leaves it as it is"


def test_a_rate_that_grows_ends_in_nan_and_is_still_judged(trained: Trained) -> None:
    trainer = trained("diverged", 40)
    assert trainer._rate() > 40 * trained(None, 40)._rate()
    trainer.system.generator.velocity.head.bias.data.fill_(torch.nan)  # as after a longer run
    trainer.ema.update(trainer.system.generator)
    pictures = trainer.sampler()(["seven", "seven"], randomness=torch.Generator().manual_seed(0))
    assert pictures.isnan().all()
    assert Judge(trainer.training_set).judge(Digits(pictures, torch.tensor([7, 7]))).accuracy == 0.0


def test_an_empty_mask_leaves_exactly_nothing(trained: Trained) -> None:
    assert losses(trained("empty-mask", 3))["flow"] == 0.0


def test_latents_come_in_another_scale(trained: Trained) -> None:
    def std(fault: str | None) -> float:
        trainer = trained(fault, 0)
        return float(trainer.system.encode(trainer.loader.draw()).std())

    assert std("unscaled-latent") == pytest.approx(std(None) / 0.18215)
    assert std("doubly-scaled-latent") == pytest.approx(std(None) * 0.18215)


def test_captions_are_those_of_other_pictures(trained: Trained) -> None:
    wrong, right = trained("shuffled-condition", 0), trained(None, 0)
    batch = wrong.loader.draw()
    rolled = copy.copy(batch)
    object.__setattr__(rolled, "tokens", batch.tokens.rows(torch.arange(len(batch.t)).roll(1)))
    told = wrong.system.losses(batch)
    assert all(torch.equal(told[name], loss) for name, loss in right.system.losses(rolled).items())


def test_a_narrow_network_needs_its_head(tiny: ReferenceConfig, digits: Digits) -> None:
    with pytest.raises(UsageError, match=r"set velocity\.width=8"):
        sick(override(tiny, {"velocity.width": 4}), "bypassed-head", digits)
