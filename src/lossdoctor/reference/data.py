"""Scanned digits with captions: the split, the augmentation, and batches in which everything random is already drawn.

A training step is then a pure function of its batch, and the state of the loader is all that an exact resume needs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossdoctor.errors import MissingExtraError
from lossdoctor.flow import TimeSampler, Uniform
from lossdoctor.reference.captions import WORDS, Tokenizer, Tokens, captions_of
from lossdoctor.reference.config import DataConfig


def stream(seed: int, purpose: str) -> torch.Generator:
    """A private random stream on the CPU: the same for the same seed and purpose, unrelated to any other."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose}/{seed}".encode()))


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures (N, 1, 8, 8) float32 in [-1, 1], -1 is paper; labels (N,) int64 in 0..9."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Digits:
        """The digits at `index` (n,), int64."""
        return Digits(self.pictures[index], self.labels[index])


def load_digits() -> Digits:
    """The 1,797 scanned digits that come with scikit-learn (UCI "Optical Recognition of Handwritten Digits").

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            "scikit-learn", "demo", "The reference system, which is trained on its digits,"
        ) from error
    bunch = datasets.load_digits()
    pictures = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    return Digits(pictures, torch.tensor(bunch.target, dtype=torch.int64))


def split_digits(digits: Digits, held_out: float, seed: int) -> tuple[Digits, Digits]:
    """(training, held out): a random share of the digits is held out, at least one."""
    order = torch.randperm(len(digits), generator=stream(seed, "split"))
    kept = max(1, round(held_out * len(digits)))
    return digits.rows(order[kept:]), digits.rows(order[:kept])


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random rotation (degrees, either way), shift (pixels, either way, both axes) and Gaussian noise (std)."""

    rotate: float = 0.0
    shift: float = 0.0
    noise: float = 0.0

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """pictures: (B, 1, H, W) on the CPU; every picture is moved by its own amount, paper moves in."""
        angle, right, down = torch.empty(3, len(pictures)).uniform_(-1, 1, generator=generator)
        angle = angle * math.radians(self.rotate)
        height, width = pictures.shape[-2:]
        rows = (
            torch.stack([angle.cos(), -angle.sin(), right * 2 * self.shift / width], 1),
            torch.stack([angle.sin(), angle.cos(), down * 2 * self.shift / height], 1),
        )
        grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
        # Cubic: linear interpolation blurs pictures of 8 by 8 pixels beyond recognition of a fine stroke.
        moved = F.grid_sample(pictures + 1, grid, mode="bicubic", align_corners=False) - 1
        return moved + self.noise * torch.randn(moved.shape, generator=generator)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's input.

    pictures, views: (B, 1, 8, 8), the picture and two augmented views of it. tokens: its caption. t: (B,) in [0, 1].
    source_noise, target_noise: (B, C, H, W) standard normal, for sampling z0 and z1.
    """

    pictures: Tensor
    views: tuple[Tensor, Tensor]
    tokens: Tokens
    t: Tensor
    source_noise: Tensor
    target_noise: Tensor

    def rows(self, index: Tensor) -> Batch:
        """The samples at `index` (n,), int64."""
        return Batch(
            self.pictures[index],
            (self.views[0][index], self.views[1][index]),
            self.tokens.rows(index),
            self.t[index],
            self.source_noise[index],
            self.target_noise[index],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.pictures.to(device),
            (self.views[0].to(device), self.views[1].to(device)),
            self.tokens.to(device),
            self.t.to(device),
            self.source_noise.to(device),
            self.target_noise.to(device),
        )


class CaptionBook:
    """Every caption of every digit, tokenized once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [captions_of(digit) for digit in range(len(WORDS))]
        self.per_digit = len(texts[0])
        self.tokens = tokenizer.encode([text for same in texts for text in same])

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tokens:
        """One of the captions of each label (B,), drawn anew at every call."""
        which = torch.randint(self.per_digit, (len(labels),), generator=generator)
        return self.tokens.rows(labels * self.per_digit + which)


class Loader:
    """Endless batches, every digit once per epoch in random order; an incomplete last batch of an epoch is left out.

    digits: at least `batch` of them. latent: (C, H, W) of the noise. Everything random comes from `generator`.
    """

    times: TimeSampler = Uniform()

    def __init__(
        self,
        digits: Digits,
        book: CaptionBook,
        config: DataConfig,
        *,
        batch: int,
        latent: tuple[int, int, int],
        generator: torch.Generator,
        moved: bool = True,
    ) -> None:
        self.digits, self.book, self.batch, self.latent = digits, book, min(batch, len(digits)), latent
        self.move = Augmentation(config.rotate, config.shift) if moved else Augmentation()
        self.view = Augmentation(config.view_rotate, config.view_shift, config.view_noise)
        self.generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._next = 0

    def draw(self) -> Batch:
        """The next batch."""
        if self._next + self.batch > len(self._order):
            self._order, self._next = torch.randperm(len(self.digits), generator=self.generator), 0
        index = self._order[self._next : self._next + self.batch]
        self._next += self.batch
        return self.assemble(self.digits.rows(index))

    def assemble(self, digits: Digits) -> Batch:
        """A batch of exactly these digits."""
        noise = (len(digits), *self.latent)
        return Batch(
            pictures=self.move(digits.pictures, self.generator),
            views=(self.view(digits.pictures, self.generator), self.view(digits.pictures, self.generator)),
            tokens=self.book.draw(digits.labels, self.generator),
            t=self.times.sample(len(digits), generator=self.generator),
            source_noise=torch.randn(noise, generator=self.generator),
            target_noise=torch.randn(noise, generator=self.generator),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything the next batches depend on."""
        return {"order": self._order, "next": self._next, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self._order, self._next = state["order"].clone(), int(state["next"])
        self.generator.set_state(state["generator"])
