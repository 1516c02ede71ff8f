"""The reference system with one mistake in it, as people make them. The healthy code knows nothing of them.

A mistake is another value of a setting, or a small class put in the place of the one that has it right. What each of
them is, in a sentence, and what must be said of it, is written in `clinic.faults`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lossdoctor.config import override
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.flow import LogitNormal, Trigonometric
from lossdoctor.losses import flow_matching_loss, gaussian_kl
from lossdoctor.reference.config import ReferenceConfig, VelocityConfig
from lossdoctor.reference.data import Batch, Loader
from lossdoctor.reference.distill import MomentumTeacher
from lossdoctor.reference.edits import clipped_at, decay_at, edited, mixed, scaled_by
from lossdoctor.reference.ema import Ema
from lossdoctor.reference.pictures import Pictures
from lossdoctor.reference.sample import Sampler
from lossdoctor.reference.system import Generator, System
from lossdoctor.reference.trainer import Trainer
from lossdoctor.reference.velocity import Velocity

_SCALE = 0.18215
"""The scale factor of the latents of Stable Diffusion; theirs have a standard deviation of 5.49 without it."""


def sick(config: ReferenceConfig, fault: str, digits: Pictures | None = None) -> Trainer:
    """As `Trainer(config, digits)`, with one mistake in it. Raises UsageError for a name that is not in `FAULTS`, and
    for settings with parts from folders or a transformer, in whose place none of the mistakes can be put."""
    if fault not in _SWITCHES:
        raise UsageError(
            mismatch("The reference system has no such fault.", ", ".join(FAULTS), fault, "name one of these")
        )
    others = [part for part in ("pictures", "vae", "teacher") if getattr(config, part).path is not None]
    if others or config.velocity.kind != "mlp":
        got = f"{others[0]}.path" if others else f"velocity.kind={config.velocity.kind}"
        rule, todo = "The mistakes are made in the parts of our own.", "leave --fault out, or that setting"
        raise UsageError(mismatch(rule, "digits, an autoencoder and a teacher of our own, an mlp", got, todo))
    return _SWITCHES[fault].trainer_type()(_SWITCHES[fault].configured(config), digits)


@dataclass(frozen=True, slots=True)
class _Switch:
    """What takes the place of what. settings: dotted key to the new value, computed from the old one."""

    settings: dict[str, Callable[[Any], Any]] | None = None
    velocity: type[Velocity] = Velocity
    generator: type[Generator] = Generator
    teacher: type[MomentumTeacher] = MomentumTeacher
    system: type[System] = System
    ema: type[Ema[Generator]] = Ema
    trainer: type[Trainer] = Trainer

    def configured(self, config: ReferenceConfig) -> ReferenceConfig:
        """The settings with the mistake in them."""
        changes = {key: change(operator.attrgetter(key)(config)) for key, change in (self.settings or {}).items()}
        return override(config, changes)

    def trainer_type(self) -> type[Trainer]:
        """The trainer whose parts are these."""
        generator = type("Generator", (self.generator,), {"velocity_type": self.velocity})
        parts = {"generator_type": generator, "teacher_type": self.teacher}
        system = type("System", (self.system,), parts)
        return cast("type[Trainer]", type("Trainer", (self.trainer,), {"system_type": system, "ema_type": self.ema}))


def _times(factor: float) -> Callable[[float], float]:
    return lambda value: value * factor


def _to(value: float) -> Callable[[float], float]:
    return lambda _: value


# The losses and their wiring


class _DetachedStudents(System):
    def _answers(self, views: Tensor, z0: Tensor) -> list[Tensor]:
        return [logits.detach() for logits in super()._answers(views, z0)]


class _DetachedKL(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return super()._kl(mu.detach(), logvar.detach(), z0)


class _BypassedHead(Velocity):
    def __init__(self, config: VelocityConfig, latent: tuple[int, int, int], condition: int) -> None:
        super().__init__(config, latent, condition)
        if (least := self.head.out_features) > config.width:
            rule, todo = "Without its head the network must be as wide as the latent.", f"set velocity.width={least}"
            raise UsageError(mismatch(rule, f"velocity.width of {least} or more", f"{config.width}", todo))

    def read_out(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.head.out_features]


class _EmptyMask(System):
    def _flow_loss(self, v_pred: Tensor, v_target: Tensor, t: Tensor) -> Tensor:
        late = t > 500  # of 1000 steps, but t ends at 1
        return flow_matching_loss(v_pred, v_target, weight=late.to(v_pred.dtype))


# Distillation


class _FrozenTeacher(MomentumTeacher):
    def follow(self, student: nn.Module | None) -> None:
        """Never called for."""


class _StudentAsTeacher(MomentumTeacher):
    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__(student, momentum)
        self.module = student


class _TrainableTeacher(MomentumTeacher):
    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__(student, momentum)
        self.requires_grad_(True)


class _OtherTemperature(System):
    def _cross_entropy(self, said: list[Tensor], heard: list[Tensor]) -> Tensor:
        return super()._cross_entropy(said, [logits / 3 for logits in heard])


class _HalfPrecisionSoftmax(System):
    """The softmax written out, without subtracting the maximum, in float16."""

    def _cross_entropy(self, said: list[Tensor], heard: list[Tensor]) -> Tensor:
        targets = [_softmax((logits - self.dino.center) / self.dino.teacher_temp) for logits in said]
        guesses = [_softmax(logits / self.dino.student_temp) for logits in heard]
        pairs = [(p * q.log()).sum(1).mean() for i, p in enumerate(targets) for j, q in enumerate(guesses) if i != j]
        return -torch.stack(pairs).mean()


def _softmax(logits: Tensor) -> Tensor:
    powers = logits.half().exp()
    return powers.float() / powers.float().sum(1, keepdim=True)


# The posterior


class _KLOfSample(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return gaussian_kl(z0, logvar, reduction="sum")


class _KLOfScaledLatent(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        std = _SCALE * (logvar / 2).exp()
        return gaussian_kl(_SCALE * mu, 2 * std.log(), reduction="sum")


class _MeanKL(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return gaussian_kl(mu, logvar, reduction="per_dim")


class _KLWithoutHalf(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return 2 * super()._kl(mu, logvar, z0)


class _SixthPowerKL(System):
    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        terms = (0.3 * mu) ** 6 + (logvar.exp() - 1 - logvar) / 2
        return terms.flatten(1).sum(1).mean()


class _WeightNotApplied(System):
    def weights(self) -> dict[str, float]:
        return {**super().weights(), "kl": 1.0}


# The velocity: path, target, times


class _OppositeTarget(System):
    def _on_path(self, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t, _ = super()._on_path(z0, z1, t)
        return x_t, z0 - z1


class _StraightTargetOfCurve(System):
    def _on_path(self, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t, _ = Trigonometric().sample(z0, z1, t)
        return x_t, z1 - z0


class _DataAsTarget(System):
    def _on_path(self, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t, _ = super()._on_path(z0, z1, t)
        return x_t, z1


class _EveryTarget(System):
    def _flow_loss(self, v_pred: Tensor, v_target: Tensor, t: Tensor) -> Tensor:
        return (v_pred.flatten(1).unsqueeze(1) - v_target.flatten(1)).square().mean()


class _NarrowTimes(Trainer):
    def _loader(self, pictures: Pictures, purpose: str, *, moved: bool = True) -> Loader:
        loader = super()._loader(pictures, purpose, moved=moved)
        if purpose == "training":
            loader.times = mixed(LogitNormal(0.0, 0.3))
        return loader


class _NoTime(Velocity):
    def embed_time(self, t: Tensor) -> Tensor:
        return 0 * super().embed_time(t)


class _UnscaledLatent(System):
    def encode(self, batch: Batch) -> Tensor:
        return super().encode(batch) * scaled_by(1 / _SCALE)


class _TwiceScaledLatent(System):
    def encode(self, batch: Batch) -> Tensor:
        return super().encode(batch) * scaled_by(_SCALE)


# Sampling calls another field than the one that is trained


class _TimeReversed(Generator):
    def field(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return super().field(x, 1 - t, cond)


class _SignReversed(Generator):
    def field(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return -super().field(x, t, cond)


class _FactorLost(Generator):
    def field(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return super().field(x, t, cond) / 2


class _ConditionLost(Generator):
    def field(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return super().field(x, t, torch.zeros_like(cond))


# The condition


class _NoCondition(Velocity):
    def embed_condition(self, cond: Tensor) -> Tensor:
        return 0 * super().embed_condition(cond)


class _CaptionsOfOthers(System):
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Every picture with the caption of the one before it in the batch."""
        others = torch.arange(len(batch.t), device=batch.t.device).roll(1)
        return super().losses(replace(batch, tokens=batch.tokens.rows(others)))


# The optimizer


class _ForgottenHead(Trainer):
    def _build_optimizer(self) -> AdamW:
        return _regrouped(super()._build_optimizer(), self.system.dino_head, leave_out=True)


class _SlowHead(Trainer):
    def _build_optimizer(self) -> AdamW:
        slower = _times(1e-5)
        return _regrouped(super()._build_optimizer(), self.system.generator.z_head, lr=slower, peak_lr=slower)


class _DecayedHeads(Trainer):
    def _build_optimizer(self) -> AdamW:
        heads = nn.ModuleList(self.system.heads().values())
        return _regrouped(super()._build_optimizer(), heads, weight_decay=_to(self.config.train.weight_decay))


def _regrouped(
    optimizer: AdamW, head: nn.Module, *, leave_out: bool = False, **changes: Callable[[float], float]
) -> AdamW:
    """The optimizer with the parameters of a head in groups of their own, with changed settings, or left out."""
    chosen = {id(p) for p in head.parameters()}
    for group in list(optimizer.param_groups):
        apart = [p for p in group["params"] if id(p) in chosen]
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        changed = {key: change(group[key]) for key, change in changes.items()}
        if apart and not leave_out:
            optimizer.add_param_group({**group, **changed, "params": apart})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


class _FrozenHead(System):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.dino_head.requires_grad_(False)


class _RateSearchLeftOn(Trainer):
    def _rate(self) -> float:
        return super()._rate() * 1.1**self.step


# The average


class _StuckEma(Ema[Generator]):
    def update(self, model: Generator) -> None:
        """Never called for."""


class _SlowEma(Ema[Generator]):
    def _decay(self) -> float:
        return decay_at(self.updates, 0.99999)


class _HalfPrecisionEma(Ema[Generator]):
    def __init__(self, model: Generator, decay: float) -> None:
        super().__init__(model, decay)
        self.model.bfloat16()

    @torch.no_grad()
    def update(self, model: Generator) -> None:
        decay = self._decay()
        for kept, live in zip(self.model.parameters(), model.parameters(), strict=True):
            kept.lerp_(live.to(kept.dtype), 1 - decay)
        self.updates += 1


class _AsksInFull(Trainer):
    """Whoever asks the average is given a copy in float32, or the other tensors would have to be in bfloat16 too."""

    def sampler(self) -> Sampler:
        generator = copy.deepcopy(self.ema.model).float()
        return Sampler(generator, self.autoencoder, self.tokenizer, self.config.autoencoder.latent)

    def evaluate(self, *given: Any, **options: Any) -> dict[str, float]:
        half, self.ema.model = self.ema.model, copy.deepcopy(self.ema.model).float()
        try:
            return super().evaluate(*given, **options)
        finally:
            self.ema.model = half


_SWITCHES = {
    "detached-distillation": _Switch(system=_DetachedStudents),
    "detached-kl": _Switch(system=_DetachedKL),
    "bypassed-head": _Switch(velocity=_BypassedHead),
    "weak-distillation": _Switch({"weights.dino": _times(1e-4)}),
    "weak-kl": _Switch({"weights.kl": _times(1e-4)}),
    "weak-velocity": _Switch({"weights.flow": _times(1e-4)}),
    "strong-kl": _Switch({"weights.kl": _times(1000)}),
    "strong-distillation": _Switch({"weights.dino": _times(1000)}),
    "tight-clip": _Switch({"train.clip": lambda clip: clipped_at(0.01 * clip)}),
    "sharp-teacher": _Switch({"distill.teacher_temp": _to(1e-3), "distill.warmup_teacher_temp": _to(1e-3)}),
    "saturated-student": _Switch({"distill.student_temp": _times(1 / 50)}),
    "uniform-teacher": _Switch({"distill.teacher_temp": _times(100), "distill.warmup_teacher_temp": _times(100)}),
    "collapsed-teacher": _Switch(
        {
            "distill.center_momentum": lambda right: (
                right if edited("center_teacher") else 1.0
            ),  # the centre stays at 0
            "distill.teacher_temp": _times(1 / 7),
            "distill.warmup_teacher_temp": _times(1 / 7),
        }
    ),
    "frozen-teacher": _Switch(teacher=_FrozenTeacher),
    "teacher-is-student": _Switch(teacher=_StudentAsTeacher),
    "trainable-teacher": _Switch(teacher=_TrainableTeacher),
    "warm-teacher": _Switch({"distill.teacher_temp": _to(0.2), "distill.warmup_teacher_temp": _to(0.2)}),
    "distillation-formula": _Switch(system=_OtherTemperature),
    "kl-on-sample": _Switch(system=_KLOfSample),
    "kl-on-scaled-latent": _Switch(system=_KLOfScaledLatent),
    "kl-mean-for-sum": _Switch(system=_MeanKL),
    "kl-half-lost": _Switch(system=_KLWithoutHalf),
    "kl-other-formula": _Switch(system=_SixthPowerKL),
    "kl-not-applied": _Switch(system=_WeightNotApplied),
    "deterministic-code": _Switch({"weights.kl": _times(0.01), "train.head_lr_scale": _times(4)}),
    "target-sign": _Switch(system=_OppositeTarget),
    "target-off-path": _Switch(system=_StraightTargetOfCurve),
    "predicts-data": _Switch(system=_DataAsTarget),
    "starved-edges": _Switch(trainer=_NarrowTimes),
    "time-not-connected": _Switch(velocity=_NoTime),
    "reversed-inference": _Switch(generator=_TimeReversed),
    "unscaled-latent": _Switch(system=_UnscaledLatent),
    "doubly-scaled-latent": _Switch(system=_TwiceScaledLatent),
    "broadcast-target": _Switch(system=_EveryTarget),
    "inference-sign": _Switch(generator=_SignReversed),
    "inference-scale": _Switch(generator=_FactorLost),
    "inference-other-condition": _Switch(generator=_ConditionLost),
    "condition-ignored": _Switch(velocity=_NoCondition),
    "shuffled-condition": _Switch(system=_CaptionsOfOthers),
    "head-not-in-optimizer": _Switch(trainer=_ForgottenHead),
    "frozen-head": _Switch(system=_FrozenHead),
    "slow-head": _Switch(trainer=_SlowHead),
    "decayed-heads": _Switch(trainer=_DecayedHeads),
    "huge-rate": _Switch({"train.lr": _times(100)}),
    "stuck-ema": _Switch(ema=_StuckEma),
    "half-precision-ema": _Switch(ema=_HalfPrecisionEma, trainer=_AsksInFull),
    "slow-ema": _Switch(ema=_SlowEma),
    "diverged": _Switch(trainer=_RateSearchLeftOn),
    "empty-mask": _Switch(system=_EmptyMask),
    "half-precision-overflow": _Switch(system=_HalfPrecisionSoftmax),
}

FAULTS: tuple[str, ...] = tuple(_SWITCHES)
"""The names of all mistakes there are here; a subset of those of `clinic.faults`."""
