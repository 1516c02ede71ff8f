"""Every setting of the reference system, with the values its quality was measured at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lossdoctor.errors import UsageError, mismatch


@dataclass(frozen=True, slots=True)
class DataConfig:
    """held_out: share of the pictures kept for evaluation. The others describe augmentation: degrees, pixels, std.

    The picture autoencoder sees slightly moved pictures; the two views of the distillation are moved further and noisy.
    """

    held_out: float = 0.2
    rotate: float = 6.0
    shift: float = 0.25
    view_rotate: float = 15.0
    view_shift: float = 0.5
    view_noise: float = 0.1


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The caption encoder and its posterior.

    embedding_std: large, so that a token's own vector outweighs what attention adds to it. logvar_start, logvar_gain:
    where the posterior's log-variance begins, and how strongly the caption moves it; see `text.VariationalHead`.
    """

    width: int = 64
    heads: int = 4
    blocks: int = 1
    embedding_std: float = 4.0
    logvar_start: float = -1.4
    logvar_gain: float = 0.1


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The picture autoencoder, trained first and then frozen. kl: weight of its own KL, per latent dimension."""

    latent: tuple[int, int, int] = (8, 2, 2)
    width: int = 256
    steps: int = 1000
    batch: int = 128
    lr: float = 2e-3
    final_lr: float = 0.02
    warmup: int = 50
    weight_decay: float = 0.01
    kl: float = 3e-3


@dataclass(frozen=True, slots=True)
class VelocityConfig:
    """The velocity network: residual blocks of `width`, modulated by an embedding of time and caption."""

    width: int = 384
    blocks: int = 3
    embedding: int = 128
    frequencies: int = 16


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """Teacher and students. momentum: share of the old teacher kept per step. lr_scale: of the picture student."""

    prototypes: int = 64
    width: int = 256
    features: int = 128
    bottleneck: int = 64
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    warmup: float = 0.2
    center_momentum: float = 0.9
    momentum: float = 0.97
    lr_scale: float = 2.0


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The main training. final_lr: share of lr left at the end. head_lr_scale: heads learn faster and never decay.

    ema: largest decay of the averaged generator. evaluate_every, progress_every: steps.
    """

    steps: int = 2500
    batch: int = 128
    lr: float = 1e-3
    final_lr: float = 0.05
    warmup: int = 100
    weight_decay: float = 0.05
    head_lr_scale: float = 3.0
    clip: float = 1.0
    ema: float = 0.999
    evaluate_every: int = 250
    progress_every: int = 10


@dataclass(frozen=True, slots=True)
class WeightConfig:
    """Weights of the three losses: flow is a mean over dimensions, kl a sum over them, dino a cross-entropy in nats.

    They hold the gradient norms distill : velocity : kl inside 0.2-0.5 : 1 : 0.1-0.3 once the warm-up is over.
    """

    flow: float = 1.0
    dino: float = 0.22
    kl: float = 0.07


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """All settings. One seed decides the split, the initial weights and every random number of the training."""

    seed: int = 0
    device: str = "cpu"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    velocity: VelocityConfig = field(default_factory=VelocityConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)


@dataclass(frozen=True, slots=True)
class _Range:
    """The values a setting may have, both ends included unless `above` says that the lower one is not."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        begin = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        return begin if math.isinf(self.high) else f"{begin}, at most {self.high:,.10g}"


_COUNT, _STEPS = _Range(1, 10**9), _Range(0, 10**9)
_WIDTH, _DEPTH, _SIDE = _Range(1, 8192), _Range(0, 100), _Range(1, 64)
_SHARE, _POSITIVE, _SIZE = _Range(0, 1), _Range(0, math.inf, above=True), _Range(0, math.inf)

RANGES: Final[dict[str, _Range]] = {
    "data.held_out": _Range(0, 0.9),
    "data.rotate": _Range(0, 180),
    "data.shift": _Range(0, 8),
    "data.view_rotate": _Range(0, 180),
    "data.view_shift": _Range(0, 8),
    "data.view_noise": _Range(0, 100),
    "text.width": _WIDTH,
    "text.heads": _WIDTH,
    "text.blocks": _DEPTH,
    "text.embedding_std": _POSITIVE,
    "text.logvar_start": _Range(-8, 4),  # where the posterior is clamped
    "text.logvar_gain": _SIZE,
    "autoencoder.latent": _SIDE,
    "autoencoder.width": _WIDTH,
    "autoencoder.steps": _COUNT,
    "autoencoder.batch": _Range(1, 65536),
    "autoencoder.lr": _POSITIVE,
    "autoencoder.final_lr": _SHARE,
    "autoencoder.warmup": _STEPS,
    "autoencoder.weight_decay": _SIZE,
    "autoencoder.kl": _SIZE,
    "velocity.width": _WIDTH,
    "velocity.blocks": _DEPTH,
    "velocity.embedding": _WIDTH,
    "velocity.frequencies": _WIDTH,
    "distill.prototypes": _Range(2, 65536),
    "distill.width": _WIDTH,
    "distill.features": _WIDTH,
    "distill.bottleneck": _WIDTH,
    "distill.student_temp": _POSITIVE,
    "distill.teacher_temp": _POSITIVE,
    "distill.warmup_teacher_temp": _POSITIVE,
    "distill.warmup": _SHARE,
    "distill.center_momentum": _SHARE,
    "distill.momentum": _SHARE,
    "distill.lr_scale": _POSITIVE,
    "train.steps": _COUNT,
    "train.batch": _Range(1, 65536),
    "train.lr": _POSITIVE,
    "train.final_lr": _SHARE,
    "train.warmup": _STEPS,
    "train.weight_decay": _SIZE,
    "train.head_lr_scale": _POSITIVE,
    "train.clip": _POSITIVE,
    "train.ema": _SHARE,
    "train.evaluate_every": _COUNT,
    "train.progress_every": _COUNT,
    "weights.flow": _SIZE,
    "weights.dino": _SIZE,
    "weights.kl": _SIZE,
}
"""What every number may be, by dotted key; of a tuple, each of its numbers."""


def validate(config: ReferenceConfig) -> None:
    """Raise UsageError for the first setting, in the order of the configuration, that no training can have.

    It looks at a configuration as a whole, which therefore may be built up in any order.
    """
    for name, value in _numbers(config):
        if value not in RANGES[name]:
            rule, todo = f"{name} is out of range.", f"give another {name}, or leave it out for the usual one"
            raise UsageError(mismatch(rule, str(RANGES[name]), f"{value:g}", todo))
    width, heads = config.text.width, config.text.heads
    if width % heads:
        rule, todo = "The attention heads share text.width evenly.", f"text.heads={math.gcd(width, heads)} would do"
        raise UsageError(mismatch(rule, "a multiple of text.heads", f"{width} for {heads} heads", todo))


def _numbers(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
    for part in dataclasses.fields(config):
        value, name = getattr(config, part.name), f"{path}{part.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")
        elif name not in ("seed", "device"):
            yield from ((name, one) for one in (value if isinstance(value, tuple) else (value,)))
