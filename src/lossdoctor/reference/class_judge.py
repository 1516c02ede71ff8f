"""Are generated pictures of the classes they were asked for, and as varied? `judge.Judge` for a folder of classes.

A classifier of photographs needs features: those of the frozen teacher, or else the picture made small. How good it is
on real pictures it has not seen is part of the verdict: no generated picture can be expected to be named more surely.
A folder without classes gets no such verdict; see `doctor.endpoint` for what is measured of its latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossdoctor.errors import MissingExtraError
from lossdoctor.reference.pictures import Pictures, some_of

Look = Callable[[Tensor], Tensor]
"""Pictures (B, C, H, W) in [-1, 1] on the CPU to what a classifier goes by, (B, D)."""

LEARNED_FROM: Final = 2_000
ASKED: Final = 500
"""At most so many training pictures are learned from, and so many held-out ones judged."""
_AT_ONCE, _SIDE = 64, 16


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """accuracy: share of generated pictures named as asked for. real: of held-out real ones. spread: see `judge`.

    spread is NaN where no class has two generated and two real pictures.
    """

    accuracy: float
    real: float
    spread: float


class ClassJudge:
    """A support vector machine that learned from real pictures. Raises MissingExtraError without scikit-learn."""

    def __init__(self, real: Pictures, held_out: Pictures, look: Look | None = None, seed: int = 0) -> None:
        try:
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
            from sklearn.svm import SVC
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "demo", "Judging generated pictures") from error
        self._look = look or _small
        known, asked = some_of(real, LEARNED_FROM, seed, "judge"), some_of(held_out, ASKED, seed, "judge")
        self._features, self._labels = self._read(known), known.labels
        self._machine = make_pipeline(StandardScaler(), SVC(C=10.0))
        self._machine.fit(self._features.numpy(), known.labels.numpy())
        self._real = self._right(self._read(asked), asked.labels)

    def judge(self, pictures: Tensor, labels: Tensor) -> ClassVerdict:
        """Pictures (B, C, H, W) in [-1, 1] and the classes (B,) they were asked for."""
        sound = pictures.flatten(1).isfinite().all(1)
        if not sound.any():
            return ClassVerdict(0.0, self._real, float("nan"))
        features, asked = self._seen(pictures[sound]), labels[sound]
        right = self._right(features, asked) * float(sound.double().mean())
        return ClassVerdict(right, self._real, self._spread(features, asked))

    def _right(self, features: Tensor, labels: Tensor) -> float:
        return float(np.mean(self._machine.predict(features.numpy()) == labels.numpy()))

    def _spread(self, features: Tensor, labels: Tensor) -> float:
        shares = []
        for label in sorted(set(labels.tolist())):
            drawn, real = features[labels == label], self._features[self._labels == label]
            if len(drawn) > 1 and len(real) > 1:
                shares.append(float(drawn.std(0).mean() / real.std(0).mean()))
        return float(np.mean(shares)) if shares else float("nan")

    def _read(self, pictures: Pictures) -> Tensor:
        return torch.cat(
            [self._look(pictures.rows(p).read()).cpu() for p in torch.split(torch.arange(len(pictures)), _AT_ONCE)]
        )

    def _seen(self, pictures: Tensor) -> Tensor:
        return torch.cat([self._look(part).cpu() for part in torch.split(pictures, _AT_ONCE)])


def _small(pictures: Tensor) -> Tensor:
    height, width = pictures.shape[-2:]
    return F.adaptive_avg_pool2d(pictures, (min(_SIDE, height), min(_SIDE, width))).flatten(1)
