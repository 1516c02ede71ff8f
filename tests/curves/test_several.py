"""Adjusting p values and correlating curves, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lossdoctor.curves import adjusted, correlation
from lossdoctor.errors import UsageError
from lossdoctor.record import Series

FINITE = st.floats(-1e15, 1e15)
TIED = st.integers(0, 4).map(float)


def series(values: object, steps: object = None) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(len(values)) if steps is None else np.asarray(steps, np.int64), values)


class TestAdjusted:
    @given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), min_size=1, max_size=50))
    def test_agrees_with_scipy(self, p: list[float]) -> None:
        np.testing.assert_allclose(adjusted(p), stats.false_discovery_control(p), rtol=1e-12)

    @given(st.lists(st.floats(0, 1), max_size=20), st.randoms(use_true_random=False))
    def test_a_test_not_made_does_not_count(self, p: list[float], random: object) -> None:
        among = [*p, *[math.nan] * 3]
        order = list(range(len(among)))
        random.shuffle(order)  # type: ignore[attr-defined]
        got = adjusted([among[place] for place in order])
        expected = [*adjusted(p).tolist(), *[math.nan] * 3]
        np.testing.assert_array_equal(got, [expected[place] for place in order])

    def test_of_nothing_is_nothing_and_what_was_given_stays(self) -> None:
        assert adjusted([]).tolist() == []
        given_p = np.array([0.2, 0.01])
        assert adjusted(given_p).tolist() == [0.2, 0.02]
        assert given_p.tolist() == [0.2, 0.01]

    @pytest.mark.parametrize("p", [[-0.1], [0.5, 1.5], [math.inf], [[0.1]]])
    def test_what_is_no_probability_is_an_error(self, p: list[float]) -> None:
        with pytest.raises(UsageError, match=r"(?s)expected:.*to do:"):
            adjusted(p)

    def test_keeps_its_promise(self) -> None:
        random = np.random.default_rng(0)
        shares = []
        for _ in range(300):
            p = np.concatenate([random.random(80), random.random(20) * 1e-4])
            found = adjusted(p) <= 0.1
            shares.append(found[:80].sum() / max(found.sum(), 1))
        assert np.mean(shares) <= 0.1


class TestCorrelation:
    @given(st.integers(5, 40).flatmap(lambda n: hnp.arrays(np.float64, (2, n), elements=st.one_of(FINITE, TIED))))
    def test_agrees_with_scipy(self, y: np.ndarray) -> None:
        got = correlation(series(y[0]), series(y[1]))
        if any(len(np.unique(row)) == 1 for row in y):
            assert math.isnan(got)
        else:
            assert got == pytest.approx(stats.spearmanr(y[0], y[1]).statistic, abs=1e-12)

    def test_is_of_the_steps_both_have(self) -> None:
        random = np.random.default_rng(0)
        one, other = random.standard_normal((2, 100))
        one[7], other[30] = math.nan, math.inf
        a, b = series(one, steps=10 * np.arange(100)), series(other, steps=15 * np.arange(100))
        common = [(x, y) for step, x in a for other_step, y in b if step == other_step and np.isfinite([x, y]).all()]
        assert 20 < len(common) < 34
        assert correlation(a, b) == pytest.approx(stats.spearmanr(common).statistic, abs=1e-12)

    def test_sees_order_alone(self) -> None:
        x = np.linspace(0.1, 3, 30)
        assert correlation(series(x), series(np.exp(-(x**3)))) == -1.0
        assert correlation(series(1e-300 * x), series(1e300 * x)) == 1.0

    def test_of_too_few_or_of_a_constant_is_undefined(self) -> None:
        assert math.isnan(correlation(series(range(4)), series(range(4))))
        assert correlation(series(range(5)), series(range(5))) == 1.0
        assert math.isnan(correlation(series(range(50)), series(np.full(50, 0.1))))
        assert math.isnan(correlation(series(range(50)), series([])))
        assert math.isnan(correlation(series(range(50)), series(range(50), steps=range(46, 96))))
