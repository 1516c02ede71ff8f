"""Shares, spread and plateaus."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lossdoctor.curves import Plateau, block_medians, plateau, share_above, share_below, spread
from lossdoctor.errors import UsageError
from lossdoctor.record import Series

ANY = st.floats(allow_nan=True, allow_infinity=True)
HOSTILE = hnp.arrays(np.float64, st.integers(0, 80), elements=st.one_of(ANY, st.sampled_from([0.0, 1e-10, 1e15])))


def series(values: object, steps: object = None) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(len(values)) if steps is None else np.asarray(steps, np.int64), values)


def noise(phi: float, runs: int, n: int, seed: int = 0) -> np.ndarray:
    """AR(1) noise of standard deviation 1: (runs, n)."""
    shocks = np.random.default_rng(seed).standard_normal((runs, n))
    shocks[:, 1:] *= math.sqrt(1 - phi**2)
    for step in range(1, n):
        shocks[:, step] += phi * shocks[:, step - 1]
    return shocks


class TestShare:
    @given(HOSTILE, st.floats(allow_nan=False), st.integers(1, 20))
    def test_is_the_share_and_scipys_sign_test_of_blocks(self, y: np.ndarray, threshold: float, blocks: int) -> None:
        finite = y[np.isfinite(y)]
        got = share_below(series(y), threshold, blocks=blocks)
        assert got.n == len(finite)
        if not len(finite):
            assert math.isnan(got.share)
            assert got.p == 1.0
            return
        assert got.share == np.mean(finite < threshold)
        medians = block_medians(series(y), blocks).values
        below = int(np.sum(medians < threshold))
        assert got.p == pytest.approx(stats.binomtest(below, len(medians), alternative="greater").pvalue, rel=1e-12)

    @given(HOSTILE, st.floats(allow_nan=False))
    def test_above_is_below_the_other_way_up(self, y: np.ndarray, threshold: float) -> None:
        above, below = share_above(series(y), threshold), share_below(series(-y), -threshold)
        assert repr(above) == repr(below)

    def test_a_value_at_the_threshold_is_on_neither_side(self) -> None:
        constant = series(np.full(100, 0.1))
        assert share_below(constant, 0.1) == share_above(constant, 0.1)
        assert (share_below(constant, 0.1).share, share_below(constant, 0.1).p) == (0.0, 1.0)
        assert share_below(constant, 0.11).p == 2.0**-16

    def test_few_points_are_tested_themselves(self) -> None:
        assert share_below(series([1.0, 2.0, 3.0, math.nan]), 5.0).p == 2.0**-3
        assert share_below(series([1.0]), 5.0).p == 0.5

    @pytest.mark.parametrize("phi", [0.0, 0.9, 0.95])
    def test_memory_in_the_noise_fakes_no_side(self, phi: float) -> None:
        called = np.mean([share_below(series(run), 0.0).p < 0.01 for run in noise(phi, 1000, 1000)])
        assert called <= 0.015

    def test_nothing_is_below_nan(self) -> None:
        with pytest.raises(UsageError, match=r"(?s)expected:.*to do:"):
            share_below(series([1.0]), math.nan)


class TestSpread:
    @given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-(2.0**50), 2.0**50, width=32)))
    def test_is_scipys_deviation_over_the_median(self, y: np.ndarray) -> None:
        deviation, middle = 1.4826 * stats.median_abs_deviation(y), abs(np.median(y))
        expected = 0.0 if deviation == 0 else math.inf if middle == 0 else deviation / middle
        assert spread(series(y)) == pytest.approx(expected, rel=1e-12)

    @given(HOSTILE)
    def test_always_answers(self, y: np.ndarray) -> None:
        got = spread(series(y))
        assert math.isnan(got) if not np.isfinite(y).any() else got >= 0.0

    def test_of_the_largest_floats_is_a_number(self) -> None:
        assert spread(series([1.7e308, 1.7e308, 1.7e308, -1.7e308])) == 0.0
        y = np.array([-1.7, 1.7, 1.6, 1.5])
        assert spread(series(1e308 * y)) == pytest.approx(spread(series(y)), rel=1e-12)

    def test_estimates_the_relative_standard_deviation(self) -> None:
        y = 10.0 + np.random.default_rng(0).standard_normal(20_000)
        assert spread(series(y)) == pytest.approx(0.1, rel=0.03)
        assert spread(series(1e-10 * y)) == pytest.approx(spread(series(y)), rel=1e-9)

    def test_of_a_constant_is_nothing_and_about_zero_is_infinite(self) -> None:
        assert spread(series([0.0] * 5)) == spread(series([3.0] * 5)) == spread(series([2.0])) == 0.0
        assert spread(series([-1.0, 0.0, 1.0])) == math.inf
        assert math.isnan(spread(series([math.nan, math.inf])))


class TestPlateau:
    @given(HOSTILE, st.floats(0, 0.5))
    def test_always_answers(self, y: np.ndarray, tolerance: float) -> None:
        got = plateau(series(y), tolerance=tolerance)
        assert got.n <= np.isfinite(y).sum()
        assert got.step is None or 0 <= got.step < len(y)

    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_finds_the_knee(self, scale: float, sign: int) -> None:
        knee = sign * np.clip(1 - np.arange(1000) / 500, 0, 1) + 3
        for run in noise(0.9, 20, 1000):
            got = plateau(series(scale * (knee + 0.01 * run)))
            assert got.step is not None
            assert 440 <= got.step <= 540
            assert got.level == pytest.approx(scale * 3, rel=0.01)

    def test_of_a_decay_begins_where_it_is_within_the_tolerance(self) -> None:
        decay = np.exp(-np.arange(1000) / 50)
        for tolerance in (0.02, 0.1):
            got = plateau(series(decay), skip=0.0, tolerance=tolerance)
            assert got.step == pytest.approx(50 * math.log(1 / tolerance), abs=50)

    @pytest.mark.parametrize(
        "curve",
        [
            np.linspace(0, 1, 1000),
            np.linspace(1, 0, 1000) ** 2,
            np.concatenate([np.zeros(900), np.linspace(0, 1, 100)]),
            np.concatenate([np.zeros(900), np.ones(100)]),
            np.sqrt(np.arange(1000)),
        ],
        ids=["ramp", "parabola", "leaves at the end", "jumps at the end", "root"],
    )
    def test_what_moves_at_its_end_has_none(self, curve: np.ndarray) -> None:
        assert plateau(series(curve)).step is None
        assert plateau(series(curve + 0.01 * np.random.default_rng(0).standard_normal(1000))).step is None

    def test_a_constant_rests_since_the_warm_up(self) -> None:
        assert plateau(series(np.full(1000, 7.0))) == Plateau(100, 7.0, 900)
        assert plateau(series(np.full(1000, 7.0)), skip=0.0) == Plateau(0, 7.0, 1000)

    def test_spikes_and_gaps_do_not_wake_it(self) -> None:
        y = np.concatenate([np.linspace(1, 0, 500), np.zeros(500)]) + 2
        y[550::50] = 1e9
        y[3::7] = math.nan
        got = plateau(series(y))
        assert got.step == pytest.approx(500, abs=50)
        assert got.level == 2.0

    def test_too_short_is_no_answer(self) -> None:
        for nothing in ([], [math.nan] * 99):
            got = plateau(series(nothing))
            assert (got.step, got.n) == (None, 0)
            assert math.isnan(got.level)
        assert plateau(series(np.full(39, 1.0)), skip=0.0) == Plateau(None, 1.0, 39)
        assert plateau(series(np.full(40, 1.0)), skip=0.0) == Plateau(0, 1.0, 40)

    @pytest.mark.parametrize(("phi", "moving", "late"), [(0.0, 0.03, 0.04), (0.9, 0.05, 0.07)])
    def test_noise_about_a_constant_is_at_rest(self, phi: float, moving: float, late: float) -> None:
        found = [plateau(series(run)).step for run in noise(phi, 500, 1000)]
        assert np.mean([step is None for step in found]) <= moving
        assert np.mean([step is not None and step > 100 for step in found]) <= late
