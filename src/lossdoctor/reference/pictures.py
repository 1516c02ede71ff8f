"""What is trained on, whoever it comes from: pictures, each with what may be said of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound="Pictures")


class Pictures(Protocol):
    """Pictures of one shape with captions, in memory or on disk. `data.Digits` and `folder.Folder` are such."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        ...

    @property
    def labels(self) -> Tensor:
        """(N,) int64: which of `ways` there are to describe each picture."""
        ...

    @property
    def ways(self) -> Sequence[tuple[str, ...]]:
        """For each label, every caption it may get."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the labels where they are classes; None where every picture has captions of its own."""
        ...

    @property
    def digest(self) -> str:
        """The same for the same pictures, by name and caption: a checkpoint goes on with these alone. "" for any."""
        ...

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Self:
        """The pictures at `index` (n,), int64; nothing is read yet."""
        ...

    def read(self) -> Tensor:
        """All of them, (N, C, H, W) float32 in [-1, 1] on the CPU. Raises UsageError for one that cannot be read."""
        ...


def stream(seed: int, purpose: str) -> torch.Generator:
    """A private random stream on the CPU: the same for the same seed and purpose, unrelated to any other."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose}/{seed}".encode()))


def split(pictures: P, held_out: float, seed: int) -> tuple[P, P]:
    """(training, held out): a random share of the pictures is held out, at least one."""
    order = torch.randperm(len(pictures), generator=stream(seed, "split"))
    kept = max(1, round(held_out * len(pictures)))
    return pictures.rows(order[kept:]), pictures.rows(order[:kept])


def some_of(pictures: P, count: int, seed: int, purpose: str) -> P:
    """At most `count` of them, drawn once per seed and purpose."""
    return pictures.rows(torch.randperm(len(pictures), generator=stream(seed, purpose))[:count])


def with_channels(pictures: Tensor, channels: int) -> Tensor:
    """Grey pictures (B, 1, H, W) as the same grey in `channels`, colours (B, C, H, W) in one as their mean."""
    if pictures.shape[1] == channels:
        return pictures
    grey = pictures.mean(1, keepdim=True)
    return grey.expand(-1, channels, -1, -1)
