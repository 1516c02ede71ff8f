"""Direction and blocks, against scipy and plain loops."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lossdoctor.curves import LEAST_BLOCKS, block_medians, ends, mann_kendall, theil_sen, trend
from lossdoctor.record import Series

FINITE = st.floats(-1e15, 1e15, allow_subnormal=False)
ANY = st.floats(allow_nan=True, allow_infinity=True)
MISSING = [math.nan, math.inf, -math.inf]
CURVES = hnp.arrays(np.float64, st.integers(2, 40), elements=FINITE)
TIED = hnp.arrays(np.float64, st.integers(3, 40), elements=st.integers(0, 4).map(float))
HOSTILE = hnp.arrays(np.float64, st.integers(0, 60), elements=st.one_of(ANY, st.sampled_from([0.0, 1e-10, 1e15])))


def series(values: object, steps: object = None) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(len(values)) if steps is None else np.asarray(steps, np.int64), values)


class TestTheilSen:
    @given(CURVES)
    def test_is_the_median_slope_of_all_pairs(self, y: np.ndarray) -> None:
        slopes = [(y[j] - y[i]) / (j - i) for i, j in itertools.combinations(range(len(y)), 2)]
        assert theil_sen(np.arange(len(y)), y) == statistics.median(slopes)

    @given(CURVES, st.randoms(use_true_random=False))
    def test_agrees_with_scipy_on_uneven_repeated_steps(self, y: np.ndarray, random: object) -> None:
        x = np.array([random.randrange(len(y)) for _ in y])  # type: ignore[attr-defined]
        if len(np.unique(x)) < 2:
            assert math.isnan(theil_sen(x, y))
        else:
            with np.errstate(invalid="ignore"):  # scipy's confidence band, not its slope
                assert theil_sen(x, y) == pytest.approx(stats.theilslopes(y, x).slope, rel=1e-12)

    def test_ignores_wild_and_missing_points(self) -> None:
        y = 3.0 * np.arange(50.0)
        y[::5] = 1e12
        y[1::10] = [math.nan, math.inf, -math.inf, math.nan, math.nan]
        assert theil_sen(np.arange(50), y) == 3.0

    @pytest.mark.parametrize("y", [[], [1.0], [math.nan] * 5, [1.0, math.inf]])
    def test_is_undefined_without_two_points(self, y: list[float]) -> None:
        assert math.isnan(theil_sen(range(len(y)), y))


class TestMannKendall:
    @given(st.one_of(CURVES, TIED))
    def test_counts_pairs(self, y: np.ndarray) -> None:
        pairs = itertools.combinations(y, 2)
        assert mann_kendall(y).s == sum(int(b > a) - int(b < a) for a, b in pairs)

    @given(TIED)
    def test_agrees_with_kendalls_tau_up_to_its_continuity_correction(self, y: np.ndarray) -> None:
        got = mann_kendall(y)
        if len(np.unique(y)) == 1:
            assert got == (0, 0.0, 1.0)
            return
        reference = stats.kendalltau(np.arange(len(y)), y, method="asymptotic")
        uncorrected = abs(got.z) * abs(got.s) / (abs(got.s) - 1) if abs(got.s) > 1 else None
        if uncorrected is not None:
            assert math.erfc(uncorrected / math.sqrt(2)) == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-300)

    @pytest.mark.parametrize("n", [8, 12, 16, 24])
    def test_p_is_close_to_the_exact_one(self, n: int) -> None:
        random = np.random.default_rng(n)
        for _ in range(50):
            y = random.permutation(n).astype(float)
            exact = stats.kendalltau(np.arange(n), y, method="exact").pvalue
            assert mann_kendall(y).p == pytest.approx(exact, abs=0.02)

    @given(HOSTILE)
    def test_reversing_a_curve_reverses_the_sign_only(self, y: np.ndarray) -> None:
        forward, backward = mann_kendall(y), mann_kendall(y[::-1])
        assert (forward.s, forward.z, forward.p) == (-backward.s, -backward.z, backward.p)
        assert 0.0 <= forward.p <= 1.0

    def test_does_not_depend_on_scale_or_shape_of_a_monotone_curve(self) -> None:
        x = np.linspace(0.1, 2, 30)
        assert mann_kendall(x) == mann_kendall(1e15 * x) == mann_kendall(np.exp(x)) == mann_kendall(1e-10 * x)


class TestBlocks:
    @given(
        hnp.arrays(np.float64, st.integers(0, 60), elements=st.one_of(FINITE, st.sampled_from(MISSING))),
        st.integers(1, 20),
    )
    def test_keeps_to_the_finite_points_in_equal_parts(self, y: np.ndarray, blocks: int) -> None:
        finite = y[np.isfinite(y)]
        got = block_medians(series(y), blocks)
        assert len(got) == min(blocks, len(finite))
        if len(finite) > blocks:
            size, more = divmod(len(finite), blocks)
            cuts = [0, *itertools.accumulate([size + 1] * more + [size] * (blocks - more))]
            parts = [finite[a:b] for a, b in itertools.pairwise(cuts)]
            assert got.values.tolist() == [statistics.median(part) for part in parts]

    def test_puts_a_resumed_run_in_order(self) -> None:
        got = block_medians(series([5.0, 7.0, 6.0], steps=[0, 20, 10]), 16)
        assert got.steps.tolist() == [0, 10, 20]
        assert got.values.tolist() == [5.0, 6.0, 7.0]


class TestEnds:
    def test_are_medians_of_a_tenth(self) -> None:
        y = np.arange(100.0)
        y[[0, 99]] = [1e9, -1e9]
        assert ends(y) == (5.5, 93.5)

    def test_of_few_values_are_the_values(self) -> None:
        assert ends([math.nan, 2.0, 3.0, math.inf]) == (2.0, 3.0)
        assert ends([4.0]) == (4.0, 4.0)
        assert all(math.isnan(end) for end in ends([math.nan, math.inf]))


class TestTrend:
    @given(HOSTILE, st.integers(1, 40))
    def test_always_answers(self, y: np.ndarray, points: int) -> None:
        got = trend(series(y), points=points)
        assert got.n <= np.isfinite(y).sum()
        if got.direction == "unknown":
            assert min(got.n, points) < LEAST_BLOCKS
            assert math.isnan(got.p)
        else:
            assert 0.0 <= got.p <= 1.0
        if got.n == 0:
            assert math.isnan(got.first)

    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
    @pytest.mark.parametrize(("sign", "direction"), [(1, "up"), (-1, "down"), (0, "flat")])
    def test_finds_the_direction_under_noise(self, scale: float, sign: int, direction: str) -> None:
        noise = np.random.default_rng(3).standard_normal(400)
        got = trend(series(scale * (noise + sign * np.linspace(0, 3, 400))))
        assert got.direction == direction
        if sign:
            assert got.slope == pytest.approx(sign * scale * 3 / 399, rel=0.25)
            assert sign * (got.last - got.first) > 0

    def test_leaves_the_warm_up_out(self) -> None:
        y = np.concatenate([np.linspace(100, 1, 100), np.tile([1.0, 2.0], 450)])
        assert trend(series(y), skip=0.15).direction == "flat"
        assert trend(series(y), skip=0.15).first in (1.0, 2.0)
        assert trend(series(np.linspace(0, 1, 101)), skip=0.5).n == 51

    def test_a_constant_and_a_valley_are_flat(self) -> None:
        assert trend(series(np.full(50, 7.0))).direction == "flat"
        assert trend(series(np.abs(np.linspace(-1, 1, 200))), skip=0.0).direction == "flat"

    def test_too_short_is_unknown(self) -> None:
        assert trend(series(range(LEAST_BLOCKS - 1)), skip=0.0).direction == "unknown"
        assert trend(series(range(LEAST_BLOCKS)), skip=0.0).direction == "up"

    @pytest.mark.parametrize("phi", [0.0, 0.9, 0.95])
    def test_memory_in_the_noise_fakes_no_trend(self, phi: float) -> None:
        random = np.random.default_rng(0)
        runs, n = 400, 1000
        shocks = random.standard_normal((runs, n))
        noise = np.empty((runs, n))
        noise[:, 0] = shocks[:, 0] / math.sqrt(1 - phi**2)
        for step in range(1, n):
            noise[:, step] = phi * noise[:, step - 1] + shocks[:, step]
        called = np.mean([trend(series(run), alpha=0.01).direction != "flat" for run in noise])
        assert called <= 0.035
