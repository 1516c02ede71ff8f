"""Spikes and jumps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lossdoctor.curves import change_point, spikes
from lossdoctor.curves.breaks import WINDOW
from lossdoctor.record import Series

ANY = st.floats(allow_nan=True, allow_infinity=True)
HOSTILE = hnp.arrays(np.float64, st.integers(0, 120), elements=st.one_of(ANY, st.sampled_from([0.0, 1e-10, 1e15])))
SCALES = [1e-10, 1.0, 1e15]


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


class TestSpikes:
    @given(HOSTILE, st.floats(0.1, 20))
    def test_always_answers_with_points_of_the_curve(self, y: np.ndarray, factor: float) -> None:
        got = spikes(series(y), factor=factor)
        assert np.isfinite(got.values).all()
        assert (y[got.steps] == got.values).all()
        assert (np.diff(got.steps) > 0).all()

    def test_is_the_definition_in_a_plain_loop(self) -> None:
        y = np.random.default_rng(0).standard_t(2, 5000)
        expected = []
        for place in range(len(y)):
            start = min(max(place - WINDOW // 2, 0), len(y) - WINDOW)
            near = y[start : start + WINDOW]
            deviation = 1.4826 * np.median(np.abs(near - np.median(near)))
            if abs(y[place] - np.median(near)) > 5 * deviation:
                expected.append(place)
        assert expected[0] > 0
        assert spikes(series(y), factor=5).steps.tolist() == expected

    @pytest.mark.parametrize("scale", SCALES)
    def test_finds_what_stands_out_and_nothing_else(self, scale: float) -> None:
        for run in noise(0.9, 20, 1000):
            y = run + np.linspace(50, 0, 1000)
            places = [2, 300, 301, 700, 999]
            y[places] += [60, -60, 80, 60, -60]
            got = spikes(series(scale * y, steps=50 * np.arange(1000)))
            assert got.steps.tolist() == [50 * place for place in places]

    @pytest.mark.parametrize(
        "curve",
        [
            np.full(500, 0.1),
            np.zeros(500),
            np.linspace(0, 1, 500),
            np.exp(-np.arange(500.0)),
            1e6 / np.arange(1, 500) ** 2,
            np.repeat([1.0, 5.0], 250),
            np.tile([0.0] * 9 + [1.0], 50),
            np.where(np.arange(500) % 100, 0.1, np.nextafter(0.1, 1)),
        ],
        ids=["constant", "zero", "ramp", "fast decay", "slow decay", "jump", "every tenth", "rounding"],
    )
    def test_a_curve_is_no_spike(self, curve: np.ndarray) -> None:
        assert len(spikes(series(curve))) == 0

    def test_in_a_constant_curve_the_rare_value_is_one(self) -> None:
        y = np.ones(500)
        y[[100, 300, 310]] = [1.1, 7.0, 7.0]
        assert spikes(series(y)).steps.tolist() == [100, 300, 310]

    def test_a_resumed_run_is_put_in_order_and_what_is_missing_left_out(self) -> None:
        y = np.sin(np.arange(300.0))
        y[[50, 200]] = 1e6
        y[[49, 51, 120]] = [math.nan, math.inf, -math.inf]
        order = np.random.default_rng(0).permutation(300)
        assert spikes(series(y[order], steps=order)).steps.tolist() == [50, 200]

    @pytest.mark.parametrize("n", range(13))
    def test_few_points_have_none(self, n: int) -> None:
        assert len(spikes(series([1.0] * max(n - 2, 0) + [1e9, 1.0]))) == 0
        assert len(spikes(series([]))) == 0

    @pytest.mark.parametrize("phi", [0.0, 0.9, 0.95])
    def test_noise_has_none(self, phi: float) -> None:
        assert np.mean([len(spikes(series(run))) > 0 for run in noise(phi, 500, 1000)]) <= 0.01


class TestChangePoint:
    @given(HOSTILE)
    def test_always_answers(self, y: np.ndarray) -> None:
        got = change_point(series(y))
        if got is not None:
            assert 0 < got.step < len(y)
            assert got.before != got.after
            assert 0 < got.p < 0.01

    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("size", [5, -5])
    @pytest.mark.parametrize("place", [300, 517, 700])
    def test_finds_the_step(self, scale: float, size: int, place: int) -> None:
        runs = noise(0.5, 20, 1000, seed=place)
        jumps = scale * (runs + size * (np.arange(1000) >= place) + 3)
        found = [one for run in jumps if (one := change_point(series(run, steps=50 * np.arange(1000)))) is not None]
        assert len(found) >= 18
        assert np.median([abs(one.step - 50 * place) for one in found]) == 0
        for one in found:
            assert abs(one.step - 50 * place) <= 250
            assert one.before == pytest.approx(3 * scale, abs=0.4 * scale)
            assert one.after - one.before == pytest.approx(size * scale, rel=0.15)

    def test_spikes_and_gaps_neither_hide_nor_make_one(self) -> None:
        y = np.random.default_rng(0).standard_normal(1000)
        y[::50] = 1e9
        y[3::7] = math.nan
        assert change_point(series(y)) is None
        y[500:] += 4
        got = change_point(series(y))
        assert got is not None
        assert abs(got.step - 500) <= 5

    @pytest.mark.parametrize(
        "curve",
        [
            np.arange(1000.0),
            np.arange(1000.0) ** 3,
            1 / (1 + np.arange(1000.0)),
            *(np.exp(-np.arange(1000) / tau) for tau in (1, 3, 10, 20, 30, 100, 300)),
            np.clip((np.arange(1000) - 400) / 200, 0, 1),
            1 / (1 + np.exp(-np.linspace(-10, 10, 1000))),
            np.sin(np.linspace(0, 3, 1000)),
            np.full(1000, 0.1),
            np.where(np.arange(1000) < 500, 0.1, np.nextafter(0.1, 1)),
        ],
    )
    def test_what_moves_smoothly_or_not_at_all_does_not_jump(self, curve: np.ndarray) -> None:
        random = np.random.default_rng(0)
        assert change_point(series(curve)) is None
        if curve[0] != curve[-1]:
            for part in (0.001, 0.03):
                noisy = curve + part * np.ptp(curve) * random.standard_normal(1000)
                assert np.ptp(curve) < 1e-9 or change_point(series(noisy)) is None

    @pytest.mark.parametrize("n", [0, 1, 2, 5, 12])
    def test_few_points_prove_nothing(self, n: int) -> None:
        assert change_point(series([0.0] * (n // 2) + [1.0] * (n - n // 2))) is None

    def test_sixteen_points_are_enough_for_a_clear_one(self) -> None:
        got = change_point(series([0.0] * 8 + [1.0] * 8, steps=range(0, 800, 50)))
        assert got is not None
        assert (got.step, got.before, got.after) == (400, 0.0, 1.0)

    @pytest.mark.parametrize("phi", [0.0, 0.9, 0.95])
    def test_memory_in_the_noise_fakes_none(self, phi: float) -> None:
        assert np.mean([change_point(series(run)) is not None for run in noise(phi, 1000, 1000)]) <= 0.005
