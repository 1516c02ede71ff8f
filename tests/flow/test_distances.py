"""Distances between sets of samples: against POT, scipy and slow twins, and as metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import ot
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.flow import distances, energy_distance, sliced_wasserstein

Distance = Callable[[Tensor, Tensor], Tensor]

SIZES = [(1, 1), (1, 7), (40, 40), (40, 25), (12, 36), (31, 37)]


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sets(n: int, m: int, *trailing: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = _seeded(seed)
    x = torch.randn(n, *trailing, generator=generator, dtype=torch.float64)
    y = 1.5 * torch.randn(m, *trailing, generator=generator, dtype=torch.float64) + 0.5
    return x, y


def _directions(dims: int, count: int) -> Tensor:
    normal = torch.randn(dims, count, generator=_seeded(5), dtype=torch.float64)
    return normal / normal.norm(dim=0)


def _sliced(x: Tensor, y: Tensor) -> Tensor:
    return sliced_wasserstein(x, y, generator=_seeded(3))


both = pytest.mark.parametrize("distance", [_sliced, energy_distance])


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_sliced_wasserstein_against_pot(n: int, m: int) -> None:
    x, y = _sets(n, m, 5)
    directions = _directions(5, 64)
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), p=2, projections=directions.numpy())
    assert sliced_wasserstein(x, y, directions=directions).item() == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_sliced_wasserstein_on_a_line_is_optimal_transport(n: int, m: int) -> None:
    x, y = _sets(n, m)
    theirs = ot.emd2_1d(x.numpy(), y.numpy(), metric="sqeuclidean")
    assert sliced_wasserstein(x, y, projections=3).item() == pytest.approx(math.sqrt(theirs), rel=1e-9)


@settings(deadline=None)
@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 1000))
def test_sliced_wasserstein_against_repeated_sets(n: int, m: int, seed: int) -> None:
    """The slow twin: repeat every sample until both sets have n * m, then pair them in order."""
    x, y = _sets(n, m, 3, seed=seed)
    directions = _directions(3, 4)
    squared = [
        (
            torch.tensor(sorted((x @ direction).tolist() * m), dtype=torch.float64)
            - torch.tensor(sorted((y @ direction).tolist() * n), dtype=torch.float64)
        )
        .square()
        .mean()
        for direction in directions.T
    ]
    expected = torch.stack(squared).mean().sqrt()
    torch.testing.assert_close(sliced_wasserstein(x, y, directions=directions), expected)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_energy_distance_is_the_square_of_scipys_on_a_line(n: int, m: int) -> None:
    x, y = _sets(n, m)
    assert energy_distance(x, y).item() == pytest.approx(scipy.stats.energy_distance(x, y) ** 2, rel=1e-6)


@pytest.mark.parametrize("block", [1, 50, 10**9])
def test_energy_distance_against_the_definition_in_any_chunks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "_BLOCK", block)
    x, y = _sets(33, 21, 4)

    def mean(a: Tensor, b: Tensor) -> float:
        return sum(math.dist(p, q) for p in a.tolist() for q in b.tolist()) / (len(a) * len(b))

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y).item() == pytest.approx(expected, rel=1e-6)


@both
@settings(deadline=None)
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    dims=st.integers(1, 6),
    seed=st.integers(0, 1000),
    zoom=st.integers(-8, 12),
)
def test_is_a_symmetric_distance_of_sets(distance: Distance, n: int, m: int, dims: int, seed: int, zoom: int) -> None:
    x, y = (10.0**zoom * points for points in _sets(n, m, dims, seed=seed))
    d = distance(x, y).item()
    close = 1e-6 * d + 1e-7 * 10.0**zoom
    assert d >= 0
    assert distance(y, x).item() == pytest.approx(d, abs=close)
    shuffled = x[torch.randperm(n, generator=_seeded(seed))]
    assert distance(shuffled, y).item() == pytest.approx(d, abs=close)
    assert distance(x, shuffled).item() <= 1e-7 * 10.0**zoom
    assert distance(x.repeat(2, 1), y).item() == pytest.approx(d, abs=close)
    together = torch.full((dims,), 1e3 * 10.0**zoom, dtype=torch.float64)
    assert distance(x + together, y + together).item() == pytest.approx(d, abs=1e-5 * 10.0**zoom)


@both
def test_scales_with_the_unit(distance: Distance) -> None:
    x, y = _sets(30, 20, 3)
    assert distance(7 * x, 7 * y).item() == pytest.approx(7 * distance(x, y).item(), rel=1e-6)


def test_a_shift_is_measured() -> None:
    """Along a direction u a shift s moves everything by <u, s>: the mean square over directions is |s|^2 / D."""
    x, _ = _sets(50, 1, 8)
    shift = torch.full((8,), 3.0, dtype=torch.float64)
    assert sliced_wasserstein(x, x + shift, projections=20_000, generator=_seeded()).item() == pytest.approx(
        3.0, rel=0.05
    )
    far = 1e6 * shift
    assert energy_distance(x, x + far).item() == pytest.approx(2 * far.norm().item(), rel=1e-4)


def test_energy_floor_of_one_distribution() -> None:
    """Two halves of one distribution are E|x - x'| (1/N + 1/M) apart on average: the floor the docstring promises."""
    halves = torch.randn(60, 2, 50, 4, generator=_seeded(), dtype=torch.float64)
    measured = torch.stack([energy_distance(x, y) for x, y in halves]).mean().item()
    x, y = _sets(2000, 1, 4)[0].chunk(2)
    assert measured == pytest.approx((x - y).norm(dim=1).mean().item() * (2 / 50), rel=0.05)


@both
def test_collapse_is_seen(distance: Distance) -> None:
    x, _ = _sets(200, 1, 4)
    other, collapsed = _sets(200, 1, 4, seed=1)[0], x.mean(0).expand(200, 4)
    assert distance(x, collapsed) > 5 * distance(x, other)


@both
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_far_from_the_origin_in_float32(distance: Distance, offset: float) -> None:
    x, y = (points.float() + offset for points in _sets(200, 200, 16))
    exact = distance(x.double() - offset, y.double() - offset).item()
    assert distance(x, y).item() == pytest.approx(exact, rel=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_dtype_is_measured_in_float64(distance: Distance, dtype: torch.dtype) -> None:
    x, y = ((10 * points).to(dtype) for points in _sets(20, 30, 3))
    d = distance(x, y)
    assert d.dtype == torch.float64
    assert d.shape == ()
    torch.testing.assert_close(d, distance(x.double(), y.double()))


@both
def test_lowered_matmul_precision_does_not_show(distance: Distance) -> None:
    x, y = (points.float() for points in _sets(50, 60, 30))
    expected, before = distance(x, y), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(distance(x, y), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@both
def test_samples_of_any_rank_are_flattened(distance: Distance) -> None:
    x, y = _sets(9, 11, 2, 3, 4)
    torch.testing.assert_close(distance(x, y), distance(x.flatten(1), y.flatten(1)))
    torch.testing.assert_close(distance(x[:, 0, 0, 0], y[:, 0, 0, 0]), distance(x[:, 0, 0, :1], y[:, 0, 0, :1]))


@both
def test_a_constant_or_single_sample(distance: Distance) -> None:
    assert distance(torch.zeros(5, 3), torch.zeros(8, 3)).item() == 0.0
    assert distance(torch.full((5, 3), 2.5), torch.full((1, 3), 2.5)).item() < 1e-12
    assert distance(torch.zeros(1, 1), torch.ones(1, 1)).item() > 0.5


@both
def test_nan_in_nan_out(distance: Distance) -> None:
    x, y = _sets(6, 5, 3)
    for broken in (x, y):
        spoiled = broken.clone()
        spoiled[2, 1] = math.nan
        other = y if broken is x else x
        assert distance(spoiled, other).isnan()
        assert distance(other, spoiled).isnan()
    x[0, 0] = math.inf
    assert not distance(x, y).isfinite()


@both
def test_refuses_sets_of_different_spaces(distance: Distance) -> None:
    x = torch.zeros(4, 3, 2)
    for other in (torch.zeros(4, 3, 1), torch.zeros(4, 6), torch.zeros(4), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match="one space"):
            distance(x, other)
    for empty in (torch.zeros(0, 3, 2), torch.zeros(4, 0)):
        with pytest.raises(UsageError, match="at least one sample"):
            distance(empty, torch.zeros(4, *empty.shape[1:]))


def test_refuses_bad_directions() -> None:
    x, y = _sets(4, 4, 3)
    for wrong in (torch.zeros(2, 8), torch.zeros(3)):
        with pytest.raises(ShapeError, match=r"\(3, P\)"):
            sliced_wasserstein(x, y, directions=wrong)
    with pytest.raises(UsageError, match="projections >= 1"):
        sliced_wasserstein(x, y, projections=0)


def test_a_generator_keeps_the_global_state() -> None:
    x, y = _sets(10, 10, 3)
    before = torch.get_rng_state()
    first = sliced_wasserstein(x, y, generator=_seeded(1))
    assert torch.equal(sliced_wasserstein(x, y, generator=_seeded(1)), first)
    energy_distance(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(sliced_wasserstein(x, y, generator=_seeded(2)), first)


@both
def test_nothing_is_read_from_the_device(distance: Distance) -> None:
    x, y = (points.to("meta") for points in _sets(20, 30, 4))  # a meta tensor has no data: reading any raises
    assert distance(x, y).is_meta
