"""Are the generated pictures the digits that were asked for, and are they as varied as real ones?

Both questions are needed: one perfect picture per digit, drawn again and again, would pass the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossdoctor.errors import MissingExtraError
from lossdoctor.reference.data import Digits


@dataclass(frozen=True, slots=True)
class Verdict:
    """accuracy: share of pictures named as the digit asked for. spread: within-class spread over the real one's.

    per_digit: the accuracy for each digit that was asked for.
    """

    accuracy: float
    spread: float
    per_digit: dict[int, float]


class Judge:
    """A support vector machine that learned from real digits. Raises MissingExtraError without scikit-learn."""

    def __init__(self, real: Digits) -> None:
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "demo", "Judging generated digits") from error
        self.real = real
        self._machine = SVC(C=10.0, gamma=0.05).fit(_features(real.pictures), real.labels.numpy())

    def name(self, pictures: Tensor) -> Tensor:
        """The digit it sees in each of (B, 1, 8, 8) pictures in [-1, 1]: (B,) int64; -1 in one with NaN or infinity."""
        sound = pictures.flatten(1).isfinite().all(1)
        named = torch.full((len(pictures),), -1)
        if sound.any():
            named[sound] = torch.as_tensor(self._machine.predict(_features(pictures[sound])), dtype=torch.int64)
        return named

    def judge(self, generated: Digits) -> Verdict:
        """How well pictures fit the labels they were asked for, and how varied they are. At least 2 per label."""
        right = self.name(generated.pictures) == generated.labels
        asked = sorted(set(generated.labels.tolist()))
        return Verdict(
            accuracy=float(right.double().mean()),
            spread=spread(generated, asked) / spread(self.real, asked),
            per_digit={digit: float(right[generated.labels == digit].double().mean()) for digit in asked},
        )


def spread(digits: Digits, labels: list[int]) -> float:
    """Standard deviation of each pixel within a class, averaged over pixels and over the classes `labels`."""
    return float(torch.stack([digits.pictures[digits.labels == label].std(0).mean() for label in labels]).mean())


def _features(pictures: Tensor) -> object:
    return ((pictures.flatten(1) + 1) / 2).numpy()
