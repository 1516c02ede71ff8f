from __future__ import annotations

import pytest
import torch

from lossdoctor.reference import Digits, Judge, load_digits
from lossdoctor.reference.judge import spread
from lossdoctor.reference.pictures import split


@pytest.fixture(scope="module")
def both() -> tuple[Digits, Digits]:
    return split(load_digits(), 0.2, seed=0)


@pytest.fixture(scope="module")
def judge(both: tuple[Digits, Digits]) -> Judge:
    return Judge(both[0])


def test_it_knows_real_digits_it_never_saw(judge: Judge, both: tuple[Digits, Digits]) -> None:
    verdict = judge.judge(both[1])
    assert verdict.accuracy > 0.97
    assert min(verdict.per_digit.values()) > 0.9
    assert verdict.spread == pytest.approx(1.0, abs=0.08)


def test_wrong_labels_and_noise_are_not_accepted(judge: Judge, both: tuple[Digits, Digits]) -> None:
    held_out = both[1]
    wrong = Digits(held_out.pictures, (held_out.labels + 1) % 10)
    assert judge.judge(wrong).accuracy < 0.05
    noise = Digits(torch.rand(500, 1, 8, 8) * 2 - 1, torch.arange(500) % 10)
    assert judge.judge(noise).accuracy < 0.3


def test_a_repeated_picture_has_no_spread(judge: Judge, both: tuple[Digits, Digits]) -> None:
    one = torch.stack([both[0].pictures[both[0].labels == digit][0] for digit in range(10)])
    verdict = judge.judge(Digits(one.repeat_interleave(5, 0), torch.arange(10).repeat_interleave(5)))
    assert verdict.accuracy == 1.0
    assert verdict.spread == pytest.approx(0.0, abs=1e-6)


def test_class_means_do_not_count_as_spread() -> None:
    torch.manual_seed(0)
    pictures, labels = torch.randn(300, 1, 8, 8), torch.arange(300) % 10
    shifted = Digits(pictures + labels.reshape(-1, 1, 1, 1), labels)
    by_hand = (
        sum(float(pictures[labels == c, 0, i, j].std()) for c in range(10) for i in range(8) for j in range(8)) / 640
    )
    assert spread(shifted, list(range(10))) == pytest.approx(by_hand, rel=1e-4)


def test_only_the_digits_asked_for_are_compared(judge: Judge, both: tuple[Digits, Digits]) -> None:
    real = both[0]
    sevens = real.rows((real.labels == 7).nonzero().flatten())
    verdict = judge.judge(sevens)
    assert set(verdict.per_digit) == {7}
    assert verdict.spread == pytest.approx(1.0)
