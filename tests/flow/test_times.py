"""Time samplers: drawn times against their density, the density against scipy, ends, generators."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import UsageError
from lossdoctor.flow import TIME_SAMPLERS, EdgeWeighted, LogitNormal, Stepwise, TimeMixture, TimeSampler, Uniform

SAMPLERS = [
    Uniform(), LogitNormal(), LogitNormal(0.7, 0.4), LogitNormal(-2.0, 3.0),
    EdgeWeighted(), EdgeWeighted(0.9, 7.5), EdgeWeighted(0.0, 1.0), Stepwise((3.0, 0.0, 0.25, 1.0, 0.0)),
    TimeMixture(), TimeMixture((EdgeWeighted(), LogitNormal(1.0, 0.5), Uniform()), (2.0, 1.0, 1.0)),
]  # fmt: skip
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cdf(sampler: TimeSampler, t: np.ndarray) -> np.ndarray:
    if isinstance(sampler, TimeMixture):
        whole = sum(sampler.shares)
        return sum(share / whole * _cdf(one, t) for one, share in zip(sampler.parts, sampler.shares, strict=True))
    if isinstance(sampler, EdgeWeighted):
        x = 2 * t - 1
        favoured = (1 + np.sign(x) * np.abs(x) ** (sampler.power + 1)) / 2
        return (1 - sampler.share) * t + sampler.share * favoured
    if isinstance(sampler, Stepwise):
        up_to = np.concatenate([[0.0], np.cumsum(sampler.shares)]) / sum(sampler.shares)
        return np.interp(t, np.linspace(0, 1, len(up_to)), up_to)
    if isinstance(sampler, LogitNormal):
        return scipy.stats.norm.cdf(scipy.special.logit(t), sampler.mean, sampler.std)
    return scipy.stats.uniform.cdf(t)


def test_catalogue_is_sorted() -> None:
    assert list(TIME_SAMPLERS) == sorted(TIME_SAMPLERS) == ["edge_weighted", "logit_normal", "mixture", "uniform"]


@every_sampler
def test_drawn_times_follow_the_distribution(sampler: TimeSampler) -> None:
    times = sampler.sample(20_000, generator=_seeded(), dtype=torch.float64).numpy()
    assert scipy.stats.kstest(times, lambda t: _cdf(sampler, t)).pvalue > 1e-3


@every_sampler
def test_density_is_the_slope_of_the_distribution(sampler: TimeSampler) -> None:
    t, h = np.linspace(0.0203, 0.9803, 97), 1e-6  # no step of a stepwise one among them
    slope = (_cdf(sampler, t + h) - _cdf(sampler, t - h)) / (2 * h)
    np.testing.assert_allclose(sampler.density(torch.from_numpy(t)).numpy(), slope, rtol=1e-6, atol=1e-9)


@every_sampler
def test_density_integrates_to_one(sampler: TimeSampler) -> None:
    def at(t: float) -> float:
        return sampler.density(torch.tensor(t, dtype=torch.float64)).item()

    # Cut where a wide logit-normal piles up against the ends.
    pieces = [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.2, 0.4, 0.5, 0.6, 0.8, 1 - 1e-3, 1 - 1e-5, 1 - 1e-8, 1.0]
    total = sum(scipy.integrate.quad(at, *piece, limit=200)[0] for piece in itertools.pairwise(pieces))
    assert total == pytest.approx(1.0, abs=2e-3 if sampler == LogitNormal(-2.0, 3.0) else 1e-6)


def test_standard_logit_normal_starves_the_ends() -> None:
    """0.16 % of the times lie below 0.05: the fact the whole rule about starved bins rests on."""
    exact = scipy.stats.norm.cdf(math.log(0.05 / 0.95))
    assert exact == pytest.approx(0.0016, abs=5e-5)
    t = torch.linspace(0, 0.05, 100_001, dtype=torch.float64)
    assert torch.trapezoid(LogitNormal().density(t), t).item() == pytest.approx(exact, rel=1e-6)
    drawn = (LogitNormal().sample(1_000_000, generator=_seeded()) < 0.05).double().mean().item()
    assert drawn == pytest.approx(exact, rel=0.1)


@every_sampler
def test_density_at_hostile_times(sampler: TimeSampler) -> None:
    outside = torch.tensor([-1.0, -1e-30, 1 + 1e-6, 5.0, math.inf, -math.inf])
    assert torch.equal(sampler.density(outside), torch.zeros(6))
    assert sampler.density(torch.tensor([math.nan])).isnan().all()
    inside = sampler.density(torch.tensor([[0.0, 1e-38, 0.5], [1 - 1e-7, 0.999, 1.0]]))
    assert inside.shape == (2, 3)
    assert inside.isfinite().all()
    assert (inside >= 0).all()


def test_a_mean_with_weights_is_that_over_uniform_times() -> None:
    """Of any function, where the weights have a variance; a mixture with a share of uniform times always has."""
    samplers = [Uniform(), EdgeWeighted(), EdgeWeighted(0.9, 7.5), TimeMixture(), TimeMixture(shares=(0.5, 0.5))]
    functions = (torch.ones_like, torch.square, lambda t: (t > 0.93).double(), lambda t: (9 * t).sin())
    for sampler in samplers:
        t, weight = sampler.weighted(100_000, generator=_seeded(), dtype=torch.float64)
        for function in functions:
            grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
            found = weight * function(t)
            error = found.std().item() / math.sqrt(len(t)) + 1e-12
            assert abs(found.mean().item() - function(grid).mean().item()) < 4 * error, (sampler, function)


def test_weights_are_bounded_by_the_uniform_share() -> None:
    t = torch.linspace(0, 1, 10_001)
    assert TimeMixture().weight(t).max() == pytest.approx(10, rel=1e-5)
    assert EdgeWeighted(0.75).weight(t).max() == pytest.approx(4, rel=1e-5)
    assert Uniform().weight(t).tolist() == [1.0] * len(t)
    assert LogitNormal().weight(torch.tensor([0.0])).isinf().all()


@every_sampler
def test_weights_come_from_the_times_before_rounding(sampler: TimeSampler) -> None:
    t, weight = sampler.weighted(1000, generator=_seeded())
    assert torch.equal(t, sampler.sample(1000, generator=_seeded()))
    assert torch.equal(weight, sampler.density(t).reciprocal())
    assert weight.isfinite().all(), "nothing is drawn where the density is 0"
    narrow = sampler.weighted(1000, generator=_seeded(), dtype=torch.bfloat16)
    assert torch.equal(narrow[0], t.bfloat16())
    assert torch.equal(narrow[1], weight.bfloat16())


@every_sampler
def test_tenths_are_the_shares_of_the_tenths(sampler: TimeSampler) -> None:
    edges = _cdf(sampler, np.linspace(1e-15, 1 - 1e-15, 11))
    # A wide logit-normal piles up so near to the ends that a hundred points do not see all of it.
    tolerance = 0.2 if sampler == LogitNormal(-2.0, 3.0) else 1e-3
    np.testing.assert_allclose(sampler.tenths().numpy(), 10 * np.diff(edges), rtol=tolerance, atol=1e-3)


def test_an_empty_bin_is_never_drawn() -> None:
    sampler = Stepwise((0.0, 1e-9, 1.0, 0.0))
    times = sampler.sample(100_000, generator=_seeded())
    assert times.min() >= 0.25
    assert times.max() <= 0.75


def test_density_ends() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert Uniform().density(ends).tolist() == [1.0, 1.0]
    assert LogitNormal().density(ends).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", [Uniform(), LogitNormal(), LogitNormal(30.0, 50.0), LogitNormal(-200.0, 1.0)])
def test_times_never_leave_the_interval(sampler: TimeSampler, dtype: torch.dtype) -> None:
    times = sampler.sample(10_000, generator=_seeded(), dtype=dtype)
    assert times.dtype == dtype
    assert times.shape == (10_000,)
    assert not times.isnan().any()
    assert times.min() >= 0
    assert times.max() <= 1


@every_sampler
def test_a_seed_means_the_same_times_in_every_dtype(sampler: TimeSampler) -> None:
    full = sampler.sample(100, generator=_seeded(7))
    assert torch.equal(sampler.sample(100, generator=_seeded(7)), full)
    assert torch.equal(sampler.sample(100, generator=_seeded(7), dtype=torch.bfloat16), full.bfloat16())
    assert not torch.equal(sampler.sample(100, generator=_seeded(8)), full)


@every_sampler
def test_a_generator_keeps_the_global_state(sampler: TimeSampler) -> None:
    before = torch.get_rng_state()
    sampler.sample(10, generator=_seeded())
    assert torch.equal(torch.get_rng_state(), before)
    sampler.sample(10)
    assert not torch.equal(torch.get_rng_state(), before)


@every_sampler
@pytest.mark.parametrize("n", [0, 1, 5])
def test_size_and_device(sampler: TimeSampler, n: int) -> None:
    assert sampler.sample(n).shape == (n,)
    assert sampler.sample(n, device="meta").is_meta


@every_sampler
def test_times_are_drawn_where_the_generator_lives(sampler: TimeSampler) -> None:
    generator = _seeded()
    assert sampler.sample(5, generator=generator, device="meta").is_meta
    assert not torch.equal(generator.get_state(), _seeded().get_state())


@settings(deadline=None)
@given(mean=st.floats(-3, 3), std=st.floats(0.2, 2))
def test_swapping_the_ends_flips_the_mean(mean: float, std: float) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    mirrored: Tensor = LogitNormal(-mean, std).density(1 - t)
    torch.testing.assert_close(LogitNormal(mean, std).density(t), mirrored, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("settings", [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf), (math.inf, 1.0)])
def test_logit_normal_refuses_no_spread(settings: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="std > 0"):
        LogitNormal(*settings)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: EdgeWeighted(1.0), lambda: EdgeWeighted(-0.1), lambda: EdgeWeighted(0.5, 0.0),
        lambda: EdgeWeighted(0.5, math.inf), lambda: Stepwise(()), lambda: Stepwise((0.0, 0.0)),
        lambda: Stepwise((1.0, -1.0)), lambda: Stepwise((math.nan,)), lambda: TimeMixture((), ()),
        lambda: TimeMixture((Uniform(),), (0.5, 0.5)), lambda: TimeMixture((Uniform(),), (0.0,)),
        lambda: TimeMixture(("uniform",), (1.0,)),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"(?s)expected:.*got:.*to do:"):
        wrong()  # type: ignore[operator]
