"""Scanned digits with captions, what is made of a picture, and batches in which everything random is already drawn.

A training step is then a pure function of its batch, and the state of the loader is all that an exact resume needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lossdoctor.errors import MissingExtraError
from lossdoctor.flow import TimeSampler, Uniform
from lossdoctor.reference.captions import WORDS, CaptionBook, Tokens, captions_of
from lossdoctor.reference.config import DataConfig
from lossdoctor.reference.pictures import Pictures


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures (N, 1, 8, 8) float32 in [-1, 1], -1 is paper; labels (N,) int64 in 0..9. In memory; see `Pictures`."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Digits:
        """The digits at `index` (n,), int64."""
        return Digits(self.pictures[index], self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        channels, height, width = self.pictures.shape[1:]
        return channels, height, width

    @property
    def ways(self) -> Sequence[tuple[str, ...]]:
        """For each digit, every caption it may get."""
        return [captions_of(digit) for digit in range(len(WORDS))]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the digits."""
        return WORDS

    @property
    def digest(self) -> str:
        """A checkpoint goes on with any digits."""
        return ""

    def read(self) -> Tensor:
        """All of them: (N, C, H, W) float32 in [-1, 1]."""
        return self.pictures


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


class Views(Protocol):
    """What of a picture is trained on: the picture as the autoencoder sees it, and views of it for the teacher."""

    def __call__(
        self, pictures: Pictures, generator: torch.Generator, rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Pictures (n, C, H, W) and their views, of `rows` of them or all; randomness is drawn for all of them."""
        ...


@dataclass(frozen=True, slots=True)
class Moved:
    """For self-distillation: the picture a little moved, and two views of it moved further and noisy."""

    picture: Augmentation
    view: Augmentation

    def __call__(
        self, pictures: Pictures, generator: torch.Generator, rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Views`."""
        read = pictures.read()
        moved, *views = (augment(read, generator) for augment in (self.picture, self.view, self.view))
        return (moved, tuple(views)) if rows is None else (moved[rows], tuple(view[rows] for view in views))


@dataclass(frozen=True, slots=True)
class Mirrored:
    """For a frozen teacher, which knows pictures as they are: the picture, half of the time mirrored, is its view."""

    flip: bool = False

    def __call__(
        self, pictures: Pictures, generator: torch.Generator, rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Views`. Only the rows asked for are read."""
        mirrored = torch.rand(len(pictures), generator=generator) < (0.5 if self.flip else 0.0)
        if rows is not None:
            pictures, mirrored = pictures.rows(rows), mirrored[rows]
        read = pictures.read()
        seen = torch.where(mirrored[:, None, None, None], read.flip(-1), read) if self.flip else read
        return seen, (seen,)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's input.

    pictures, views: (B, C, H, W), the picture and the views of it that the teacher sees. tokens: its caption. t: (B,)
    in [0, 1]. source_noise, target_noise: (B, C, H, W) of the latents, standard normal, for sampling z0 and z1.
    """

    pictures: Tensor
    views: tuple[Tensor, ...]
    tokens: Tokens
    t: Tensor
    source_noise: Tensor
    target_noise: Tensor

    def rows(self, index: Tensor) -> Batch:
        """The samples at `index` (n,), int64."""
        return Batch(
            self.pictures[index],
            tuple(view[index] for view in self.views),
            self.tokens.rows(index),
            self.t[index],
            self.source_noise[index],
            self.target_noise[index],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device. A view that is the picture itself stays so."""
        pictures = self.pictures.to(device)
        return Batch(
            pictures,
            tuple(pictures if view is self.pictures else view.to(device) for view in self.views),
            self.tokens.to(device),
            self.t.to(device),
            self.source_noise.to(device),
            self.target_noise.to(device),
        )


class Loader:
    """Endless batches, every picture once per epoch in random order; an incomplete last batch of an epoch is left out.

    pictures: at least `batch` of them. latent: (C, H, W) of the noise. views: see there, by default those of the
    digits. Everything random comes from `generator`.
    """

    times: TimeSampler = Uniform()

    def __init__(
        self,
        pictures: Pictures,
        book: CaptionBook,
        config: DataConfig,
        *,
        batch: int,
        latent: tuple[int, int, int],
        generator: torch.Generator,
        moved: bool = True,
        views: Views | None = None,
    ) -> None:
        self.pictures, self.book, self.batch, self.latent = pictures, book, min(batch, len(pictures)), latent
        move = Augmentation(config.rotate, config.shift) if moved else Augmentation()
        self.views = views or Moved(move, Augmentation(config.view_rotate, config.view_shift, config.view_noise))
        self.generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._next = 0

    def draw(self, rows: Tensor | None = None) -> Batch:
        """The next batch, or these rows of it."""
        if self._next + self.batch > len(self._order):
            self._order, self._next = torch.randperm(len(self.pictures), generator=self.generator), 0
        index = self._order[self._next : self._next + self.batch]
        self._next += self.batch
        return self.assemble(self.pictures.rows(index), rows)

    def assemble(self, pictures: Pictures, rows: Tensor | None = None) -> Batch:
        """A batch of exactly these pictures, or these rows of it; what is drawn is the same."""
        seen, views = self.views(pictures, self.generator, rows)
        noise = (len(pictures), *self.latent)
        tokens = self.book.draw(pictures.labels, self.generator)
        t = self.times.sample(len(pictures), generator=self.generator)
        source, target = (torch.randn(noise, generator=self.generator) for _ in range(2))
        if rows is not None:
            tokens, t, source, target = tokens.rows(rows), t[rows], source[rows], target[rows]
        return Batch(seen, views, tokens, t, source, target)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next batches depend on."""
        return {"order": self._order, "next": self._next, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self._order, self._next = state["order"].clone(), int(state["next"])
        self.generator.set_state(state["generator"])
