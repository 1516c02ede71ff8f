"""A frozen DINOv2 as the teacher: what it sees in a picture, as a distribution over other pictures.

DINOv2's own prototype head is not among the weights that are handed out, and random prototypes say little. So the
prototypes are pictures: the teacher's features of K training pictures, drawn once. What it says of a picture are the
cosines with them, and the head on z0 learns that distribution, as in SEED (Fang et al. 2021, 2101.04731), whose queue
of features this is with a queue that stands still. Two things of DINO are kept:

* Centring. The features of all pictures share a large common part, which makes every cosine near 1: their mean over the
  prototypes is subtracted. The mean of the logits is the loss's centre from the first step on, so that no prototype is
  everybody's answer; it follows the batches from there.
* Sharpening, a teacher temperature under the student's. The warm-up of that temperature is for a teacher that knows
  nothing at first: leave it out (`distill.warmup = 0`).

Teacher and prototypes are fixed, so there is nothing that could collapse, and no picture student.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.reference.borrowed import Borrowed, borrow, settings_of
from lossdoctor.reference.config import TeacherConfig
from lossdoctor.reference.pictures import Pictures, with_channels

_NEEDS: Final = {"hidden_size": int, "patch_size": int, "num_channels": int}
_KIND: Final = "transformers' Dinov2Model"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, in [0, 1]: what DINOv2 was trained with."""


class FrozenTeacher(nn.Module):
    """Pictures to cosines with K prototypes. See `system.Teacher`; it follows nobody."""

    mean: Tensor
    std: Tensor
    common: Tensor
    prototypes: Tensor

    def __init__(self, config: TeacherConfig, prototypes: int, *, weights: bool = True) -> None:
        super().__init__()
        assert config.path is not None
        told = settings_of(config.path, _KIND, _NEEDS)
        if config.size % told["patch_size"]:
            fits = max(1, round(config.size / told["patch_size"])) * told["patch_size"]
            rule, got = "The teacher sees whole patches.", f"{config.size} for patches of {told['patch_size']}"
            raise UsageError(mismatch(rule, "teacher.size a multiple", got, f"set teacher.size={fits}"))
        self.body = _borrowed(config.path, weights=weights)
        self.size, self.batch, self.channels = config.size, config.batch, told["num_channels"]
        usual = self.channels == len(_MEAN)
        mean, std = (_MEAN, _STD) if usual else ((0.5,) * self.channels, (0.5,) * self.channels)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.register_buffer("common", torch.zeros(told["hidden_size"]))
        self.register_buffer("prototypes", torch.zeros(prototypes, told["hidden_size"]))

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to logits (B, K) in [-1, 1]."""
        return F.linear(F.normalize(self.features(pictures) - self.common, dim=1), self.prototypes)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Pictures to the features of the class token after the last norm, (B, width)."""
        return torch.cat([self._seen(part) for part in torch.split(pictures, self.batch)])

    def _seen(self, pictures: Tensor) -> Tensor:
        colour = with_channels(pictures, self.channels)
        side = (self.size, self.size)
        # Antialiased: DINOv2 was trained on pictures made smaller properly.
        fitted = F.interpolate(colour, side, mode="bicubic", antialias=True, align_corners=False)
        pixels = ((fitted.clamp(-1, 1) + 1) / 2 - self.mean) / self.std
        seen: Tensor = self.body.network(pixel_values=pixels).pooler_output
        return seen

    @torch.no_grad()
    def look_at(self, pictures: Pictures) -> Tensor:
        """Take K pictures as prototypes. Returns the mean logits over them (K,), where the loss's centre begins.

        Raises UsageError when there are fewer.
        """
        wanted = len(self.prototypes)
        if len(pictures) < wanted:
            todo = f"set distill.prototypes={len(pictures)} or less, or give more pictures"
            rule = "The prototypes of a frozen teacher are training pictures."
            raise UsageError(mismatch(rule, f"distill.prototypes={wanted} of them at least", str(len(pictures)), todo))
        places = torch.split(torch.arange(wanted), self.batch)
        seen = torch.cat([self.features(pictures.rows(p).read().to(self.common.device)) for p in places])
        self.common.copy_(seen.mean(0))
        self.prototypes.copy_(F.normalize(seen - self.common, dim=1))
        return F.linear(self.prototypes, self.prototypes).mean(0)

    def follow(self, student: nn.Module | None) -> None:
        """It knows what it knows."""


def _borrowed(path: str, *, weights: bool) -> Borrowed:
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError as error:
        raise MissingExtraError("transformers", "encoders", "A teacher from a folder (teacher.path)") from error

    def fresh() -> Any:
        return Dinov2Model(Dinov2Config.from_pretrained(path, local_files_only=True))

    def read() -> Any:
        return Dinov2Model.from_pretrained(path, local_files_only=True)

    return borrow(path, fresh=fresh, read=read, weights=weights)
