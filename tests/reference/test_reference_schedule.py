from __future__ import annotations

import itertools

import pytest

from lossdoctor.reference.schedule import rate


def test_it_rises_in_a_line_and_falls_to_its_end() -> None:
    values = [rate(step, 1000, 100, 0.05) for step in range(1000)]
    assert values[0] == pytest.approx(0.01, rel=1e-3)
    assert values[49] == pytest.approx(0.5, rel=0.02)
    assert max(values) == pytest.approx(1.0, abs=0.03)
    assert values.index(max(values)) == pytest.approx(100, abs=5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[100:]))
    assert values[-1] == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("step", [0, 5, 9, 10, 100])
def test_extremes_stay_in_range(step: int) -> None:
    for steps, warmup in [(1, 0), (1, 1), (10, 0), (10, 100)]:
        assert 0 < rate(step, steps, warmup, 0.05) <= 1


def test_past_the_end_it_stays() -> None:
    assert rate(5000, 1000, 100, 0.05) == pytest.approx(0.05)
