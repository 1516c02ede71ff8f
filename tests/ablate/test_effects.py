"""Effects against theory and an independent library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lossdoctor.ablate.effects import T_975, Effect, beginning, effect, outcome, sign_flip, t_975
from lossdoctor.ablate.expectations import Answer
from lossdoctor.record import Series

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10)


def test_the_quantiles_are_students() -> None:
    assert list(T_975) == pytest.approx(stats.t.ppf(0.975, range(1, len(T_975) + 1)), rel=1e-3)
    assert [t_975(n) for n in (31, 50, 200, 1000)] == pytest.approx(stats.t.ppf(0.975, [31, 50, 200, 1000]), rel=0.01)


@given(before=VALUES, shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_the_interval_is_that_of_a_paired_t_test(before: list[float], shift: float, seed: int) -> None:
    after = np.array(before) + shift + np.random.default_rng(seed).normal(size=len(before))
    found = effect(dict(enumerate(before)), dict(enumerate(after.tolist())))
    assert found is not None
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    half = (expected.high - expected.low) / 2
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3 * half + 1e-6)
    assert found.difference == pytest.approx(float(np.mean(after - np.array(before))), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
def test_the_flips_are_those_of_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n)
    expected = stats.permutation_test(
        (d,), lambda x: abs(x.mean()), permutation_type="samples", n_resamples=np.inf, alternative="greater"
    ).pvalue
    assert sign_flip(d) == pytest.approx(expected)
    assert sign_flip(d) == sign_flip(-d)


def test_the_p_value_of_nothing_is_uniform_enough() -> None:
    randomness = np.random.default_rng(0)
    small = np.mean([sign_flip(randomness.normal(size=8)) <= 0.05 for _ in range(400)])
    assert small <= 0.08
    many = np.mean([sign_flip(randomness.normal(size=20)) <= 0.05 for _ in range(100)])
    assert many <= 0.12


@pytest.mark.parametrize(("d", "p"), [([], math.nan), ([3.0], 1.0), ([0.0, 0.0], 1.0), ([1.0, 1.0, 1.0], 0.25)])
def test_the_p_value_of_few(d: list[float], p: float) -> None:
    assert sign_flip(d) == pytest.approx(p, nan_ok=True)


def test_only_seeds_that_both_have_are_pairs() -> None:
    found = effect({0: 1.0, 1: 2.0, 2: 5.0}, {0: 2.0, 2: 7.0, 9: 100.0})
    assert found is not None
    assert (found.baseline, found.arm, found.pairs) == (3.0, 4.5, 2)
    assert effect({0: 1.0}, {1: 1.0}) is None


def test_one_pair_says_nothing_of_the_spread() -> None:
    found = effect({0: 1.0}, {0: 3.0})
    assert found is not None
    assert (found.low, found.high, found.difference, found.clear, found.pairs_needed()) == (
        -math.inf, math.inf, 2.0, False, None,
    )  # fmt: skip


def test_the_pairs_needed_are_enough_for_the_spread_seen() -> None:
    randomness = np.random.default_rng(3)
    d = randomness.normal(0.6, 1.0, 6)
    found = effect(dict.fromkeys(range(6), 0.0), dict(enumerate(d.tolist())))
    assert found is not None
    needed = found.pairs_needed()
    assert needed is not None
    assert needed > 6
    half = stats.t.ppf(0.975, needed - 1) * d.std(ddof=1) / math.sqrt(needed)
    assert half < abs(d.mean()) < half * math.sqrt(needed / (needed - 1)) * 1.02
    assert Effect(0.0, 0.0, -1.0, 1.0, 1.0, 3).pairs_needed() is None, "no difference at all"
    assert Effect(0.0, 1.0, 0.5, 1.5, 1.0, 3).pairs_needed() == 3


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 1.0, 7.5),
        ([math.nan, 2.0, math.inf], 2.0, 2.0),
        ([5.0], 5.0, 5.0),
        ([math.nan], math.nan, math.nan),
        ([], math.nan, math.nan),
    ],
)
def test_where_a_curve_begins_and_ends(values: list[float], first: float, last: float) -> None:
    series = Series(np.arange(len(values)), np.array(values, np.float64))
    assert (beginning(series), outcome(series)) == pytest.approx((first, last), nan_ok=True)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.05, 0.15, "yes"),
        (0.001, 0.02, "yes"),
        (0.001, 0.009, "no"),
        (-0.01, 0.06, "undecided"),
        (-0.04, 0.04, "no"),
        (-0.2, -0.1, "no"),
        (-math.inf, math.inf, "undecided"),
    ],
)
@pytest.mark.parametrize("up", [True, False])
def test_what_hardly_moves_is_no_yes(low: float, high: float, verdict: str, up: bool) -> None:
    """Pairs that are nearly alike leave 0 out of the smallest interval. Sizes here are about 1."""
    sides = (low, high) if up else (-high, -low)
    pairs = 3 if math.isfinite(low) else 1
    assert (
        Answer("without:kl", "without_kl.mu", "mu/abs_mean", up, Effect(1.0, 1.0, *sides, 0.25, pairs)).verdict
        == verdict
    )
