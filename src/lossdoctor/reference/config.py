"""Every setting of the reference system, with the values its quality was measured at."""

from __future__ import annotations

from dataclasses import dataclass, field


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
