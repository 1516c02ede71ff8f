"""Which parts a configuration asks for. Each is one file, and each knows nothing of the others:

| pictures | `data.Digits`, or `folder.Folder` with `pictures.path` |
| autoencoder | `image_vae.PictureVAE`, or `diffusers_vae.LatentAutoencoder` with `vae.path` |
| teacher | `distill.MomentumTeacher` of a `PictureStudent`, or `dinov2.FrozenTeacher` with `teacher.path` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from lossdoctor.config import override
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.reference.borrowed import has_weights
from lossdoctor.reference.captions import Tokenizer
from lossdoctor.reference.config import ReferenceConfig, TextConfig
from lossdoctor.reference.data import Mirrored, Views, load_digits
from lossdoctor.reference.diffusers_vae import LatentAutoencoder, latent_shape
from lossdoctor.reference.dinov2 import FrozenTeacher
from lossdoctor.reference.distill import PictureStudent
from lossdoctor.reference.folder import open_folder
from lossdoctor.reference.image_vae import PictureVAE
from lossdoctor.reference.pictures import Pictures

_AT_ONCE: Final = 2**31
"""Bytes of training pictures that an autoencoder or a student of our own may hold in memory."""


@dataclass(frozen=True)
class Teaching:
    """Who teaches: a student whose average does, or a teacher without one."""

    student: PictureStudent | None = None
    teacher: FrozenTeacher | None = None


def resolved(config: ReferenceConfig) -> ReferenceConfig:
    """The settings with what follows from others: the shape of the latents, from a folder's autoencoder.

    Raises UsageError where the two do not fit, and for latents that patches do not divide.
    """
    if config.vae.path is None:
        return config
    channels, height, width = latent_shape(config.vae, config.pictures.size)
    if config.velocity.kind == "transformer" and height % config.velocity.patch:
        rule, got = "The patches of the velocity network cover the latent.", f"{config.velocity.patch} for {height}"
        todo = f"set velocity.patch={math.gcd(height, config.velocity.patch)}, or another pictures.size"
        raise UsageError(mismatch(rule, f"velocity.patch a divisor of {height}", got, todo))
    return override(config, {"autoencoder.latent": (channels, height, width)})


def pictures_of(config: ReferenceConfig) -> Pictures:
    """The pictures the settings name. Raises UsageError for a folder that cannot be trained on."""
    return load_digits() if config.pictures.path is None else open_folder(config.pictures)


def tokenizer_of(pictures: Pictures, config: TextConfig) -> Tokenizer:
    """One that knows the words said of these pictures."""
    used = pictures.ways if pictures.names is not None else [pictures.ways[i] for i in pictures.labels.tolist()]
    texts = (text for way in used for text in way)
    return Tokenizer(texts, vocabulary=config.vocabulary, words=config.words)


def views_of(config: ReferenceConfig) -> Views | None:
    """What is made of a picture; None for what is made of digits."""
    return None if config.teacher.path is None else Mirrored(config.pictures.flip)


def autoencoder_of(
    config: ReferenceConfig, shape: tuple[int, int, int], *, weights: bool = True
) -> PictureVAE | LatentAutoencoder:
    """The picture autoencoder, frozen. shape: (C, H, W) of the pictures. weights: False to leave those of a folder."""
    if config.vae.path is not None:
        return LatentAutoencoder(config.vae, config.autoencoder.latent, shape[0], weights=weights).eval()
    return PictureVAE(config.autoencoder, shape).requires_grad_(False).eval()


def teaching_of(
    config: ReferenceConfig, shape: tuple[int, int, int], mean: float, std: float, *, weights: bool = True
) -> Teaching:
    """Who teaches. mean, std: of the training pictures, for a student of our own."""
    if config.teacher.path is not None:
        return Teaching(teacher=FrozenTeacher(config.teacher, config.distill.prototypes, weights=weights))
    return Teaching(student=PictureStudent(config.distill, mean, std, math.prod(shape)))


def in_memory(pictures: Pictures, whose: str, key: str) -> Tensor:
    """All pictures at once, for a part of our own that needs them. Raises UsageError where that is too much."""
    size = 4 * len(pictures) * math.prod(pictures.shape)
    if size > _AT_ONCE:
        got = f"{len(pictures):,} pictures of {pictures.shape}, {size / 2**30:.1f} GiB"
        rule = f"{whose} of our own holds all pictures in memory."
        raise UsageError(mismatch(rule, f"{_AT_ONCE / 2**30:.0f} GiB at most", got, f"give a trained one: {key}"))
    return pictures.read()


def without_weights(config: ReferenceConfig) -> tuple[str, ...]:
    """Which of `vae.path` and `teacher.path` are folders with a configuration alone: those networks are random."""
    paths = {"vae.path": config.vae.path, "teacher.path": config.teacher.path}
    return tuple(key for key, path in paths.items() if path is not None and not has_weights(path))
