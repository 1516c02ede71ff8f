"""Every setting of the reference system, with the values its quality was measured at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from lossdoctor.config import override
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
class PicturesConfig:
    """Whose pictures. path: a folder of your own, in one of the forms of `reference.folder`; None: the digits.

    size: side of the square they are cut to, pixels. mode: colour or grey. enlarge: whether pictures under that size
    are welcome. flip: half of them mirrored, another half every time. templates: what is said of a class {name}, where
    sub-folders are classes. readers: threads that read them.
    """

    path: str | None = None
    size: int = 256
    mode: Literal["RGB", "L"] = "RGB"
    enlarge: bool = False
    flip: bool = False
    templates: tuple[str, ...] = ("{name}", "a picture of a {name}", "an image of the {name}", "this is a {name}")
    readers: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture of the folder."""
        return 3 if self.mode == "RGB" else 1, self.size, self.size


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """A frozen picture autoencoder from a folder: diffusers' AutoencoderKL. None: our own, trained first.

    scale: shift and factor of the latents as the folder's config.json has them, or measured on `measured_on` training
    pictures. batch: pictures it takes at once; it needs much memory for each.
    """

    path: str | None = None
    scale: Literal["config", "measured"] = "config"
    measured_on: int = 256
    batch: int = 16


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A frozen teacher from a folder: transformers' DINOv2. None: our own, which follows a picture student.

    size: side of the square it sees, pixels, a multiple of its patches. batch: pictures it takes at once.
    """

    path: str | None = None
    size: int = 224
    batch: int = 64


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The caption encoder and its posterior.

    words: longest caption; your own are cut there. vocabulary: the most frequent words of your own captions it knows.
    embedding_std: large, so that a token's own vector outweighs what attention adds to it. logvar_start, logvar_gain:
    where the posterior's log-variance begins, and how strongly the caption moves it; see `text.VariationalHead`.
    """

    words: int = 16
    vocabulary: int = 8192
    width: int = 64
    heads: int = 4
    blocks: int = 1
    embedding_std: float = 4.0
    logvar_start: float = -1.4
    logvar_gain: float = 0.1


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The picture autoencoder, trained first and then frozen. kl: weight of its own KL, per latent dimension.

    latent: (C, H, W). With `vae.path` it follows from that autoencoder and `pictures.size`; the rest is not used then.
    """

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
    """The velocity network: residual blocks of `width`, modulated by an embedding of time and caption.

    kind: blocks over the flat latent, or a transformer over its patches of `patch` by `patch`, with attention `heads`.
    """

    kind: Literal["mlp", "transformer"] = "mlp"
    width: int = 384
    blocks: int = 3
    embedding: int = 128
    frequencies: int = 16
    patch: int = 2
    heads: int = 8


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """Teacher and students. momentum: share of the old teacher kept per step. lr_scale: of the picture student.

    A frozen teacher follows nobody and has no picture student; its prototypes are what it says of that many pictures.
    """

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

    ema: largest decay of the averaged generator. evaluate_every, progress_every: steps. evaluate_rows: at most so many
    draws of held-out pictures in an evaluation.
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
    evaluate_rows: int = 10_000
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
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
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
_WIDTH, _DEPTH, _SIDE = _Range(1, 8192), _Range(0, 100), _Range(1, 256)
_PIXELS = _Range(4, 4096)
_SHARE, _POSITIVE, _SIZE = _Range(0, 1), _Range(0, math.inf, above=True), _Range(0, math.inf)

RANGES: Final[dict[str, _Range]] = {
    "pictures.size": _PIXELS,
    "pictures.readers": _Range(1, 256),
    "vae.measured_on": _Range(2, 65536),
    "vae.batch": _Range(1, 65536),
    "teacher.size": _PIXELS,
    "teacher.batch": _Range(1, 65536),
    "data.held_out": _Range(0, 0.9),
    "data.rotate": _Range(0, 180),
    "data.shift": _Range(0, 8),
    "data.view_rotate": _Range(0, 180),
    "data.view_shift": _Range(0, 8),
    "data.view_noise": _Range(0, 100),
    "text.words": _Range(16, 4096),
    "text.vocabulary": _Range(16, 10**6),
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
    "velocity.patch": _Range(1, 64),
    "velocity.heads": _WIDTH,
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
    "train.evaluate_rows": _Range(16, 10**9),
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
    for name, value in numbers(config):
        if value not in RANGES[name]:
            rule, todo = f"{name} is out of range.", f"give another {name}, or leave it out for the usual one"
            raise UsageError(mismatch(rule, str(RANGES[name]), f"{value:g}", todo))
    _divides("text.width", config.text.width, "text.heads", config.text.heads)
    if config.velocity.kind == "transformer":
        _divides("velocity.width", config.velocity.width, "velocity.heads", config.velocity.heads)
        for side in config.autoencoder.latent[1:] if config.vae.path is None else ():
            _divides("autoencoder.latent", side, "velocity.patch", config.velocity.patch)
    if not config.pictures.templates or not all("{name}" in template for template in config.pictures.templates):
        rule, got = "A template says where the name of the class goes.", repr(list(config.pictures.templates))
        raise UsageError(mismatch(rule, "texts with {name} in them", got, 'write "a picture of a {name}"'))


def _divides(whole: str, width: int, part: str, heads: int) -> None:
    if width % heads:
        rule, todo = f"{whole} is shared out evenly by {part}.", f"{part}={math.gcd(width, heads)} would do"
        raise UsageError(mismatch(rule, f"a multiple of {part}", f"{width} for {part}={heads}", todo))


def rooted(config: ReferenceConfig, folder: Path) -> ReferenceConfig:
    """The settings with the relative paths in them taken from `folder`, that of the file they were read from."""
    changes = {
        f"{part}.path": str(folder / path)
        for part in ("pictures", "vae", "teacher")
        if (path := getattr(config, part).path) is not None
    }
    return override(config, changes)


def numbers(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number among the settings by its dotted key, of a tuple each of its numbers; not the seed."""
    for part in dataclasses.fields(config):
        value, name = getattr(config, part.name), f"{path}{part.name}"
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{name}.")
        elif name != "seed":
            every = value if isinstance(value, tuple) else (value,)
            yield from ((name, one) for one in every if isinstance(one, (int, float)) and not isinstance(one, bool))
