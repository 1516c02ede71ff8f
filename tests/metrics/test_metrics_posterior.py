"""Posterior statistics against plain loops, KL against torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lossdoctor.errors import ShapeError
from lossdoctor.metrics import posterior
from lossdoctor.probe.snapshot import PosteriorBatch

SHAPES = [(1,), (5,), (1, 1), (1, 7), (6, 3), (4, 2, 3), (3, 2, 2, 2)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def drawn(shape: tuple[int, ...], seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def twin(mu_: Tensor, logvar_: Tensor, z_: Tensor, kl: float, weight: float) -> dict[str, float]:
    mu, logvar, z = (x.double().numpy().reshape(len(x), -1) for x in (mu_, logvar_, z_))
    b, d = mu.shape
    std = np.exp(logvar / 2)
    out = {
        "mu/abs_mean": sum(abs(m) for m in mu.flat) / (b * d),
        "mu/rms": math.sqrt(sum(m * m for m in mu.flat) / (b * d)),
        "logvar/mean": sum(logvar.flat) / (b * d),
        "std/mean": sum(std.flat) / (b * d),
        "std/rms": math.sqrt(sum(s * s for s in std.flat) / (b * d)),
        "kl/given_per_dim": kl / d,
        "std/min": min(std.flat),
        "std/max": max(std.flat),
        "z_init/mean": sum(z.flat) / (b * d),
    }
    if b * d > 1:
        out["z_init/var"] = sum((v - out["z_init/mean"]) ** 2 for v in z.flat) / (b * d)
    per_dim = sum((m * m + s * s - 1 - lv) / 2 for m, s, lv in zip(mu.flat, std.flat, logvar.flat, strict=True)) / (
        b * d
    )
    out["kl/per_dim"] = per_dim
    if per_dim > 1e-5:
        out["kl/ratio"] = kl / (per_dim * d)
        out["kl/beta_per_dim"] = weight * out["kl/ratio"] * d
    if b > 1:
        out["z_init/std_per_dim_mean"] = np.mean([z[:, j].std() for j in range(d)])
        variances = [mu[:, j].var() for j in range(d)]
        out["posterior/active_units"] = np.mean([v > 0.01 for v in variances])
        out["posterior/snr"] = np.mean([v / (std[:, j] ** 2).mean() for j, v in enumerate(variances)])
    flat = list(logvar.flat)
    at = [flat.count(end) for end in (min(flat), max(flat))]
    if max(at) > 1 and min(flat) != max(flat):
        out["logvar/clamped"] = sum(n for n in at if n > 1) / len(flat)
    return out


@settings(deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([0.0, 0.1, 3.0]),
    st.integers(0, 99),
)
def test_everything_matches_plain_loops(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, spread: float, seed: int
) -> None:
    mu, logvar, z = (
        drawn(shape, seed, scale, dtype),
        drawn(shape, seed + 1, spread, dtype),
        drawn(shape, seed + 2, 2, dtype),
    )
    found = posterior.measure(PosteriorBatch(mu, logvar, z, torch.tensor(1.7)), weight=0.3)
    expected = twin(mu, logvar, z, 1.7, 0.3)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(value, rel=1e-4, abs=1e-6), key
        assert found[key].ndim == 0
        assert found[key].dtype == (torch.float64 if dtype == torch.float64 else torch.float32), key


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_kl_agrees_with_torch_distributions_and_the_reduction_is_read_off(reduction: str) -> None:
    mu, logvar = drawn((8, 5), 0), drawn((8, 5), 1, 0.5)
    true = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    given_kl = true.sum(1).mean() if reduction == "sum" else true.mean()
    found = posterior.divergence(mu, logvar, kl=given_kl, weight=0.01)
    assert float(found["kl/per_dim"]) == pytest.approx(float(true.mean()), rel=1e-5)
    assert float(found["kl/ratio"]) == pytest.approx(1.0 if reduction == "sum" else 1 / 5, rel=1e-5)
    assert float(found["kl/beta_per_dim"]) == pytest.approx(0.05 if reduction == "sum" else 0.01, rel=1e-5)
    assert float(found["kl/given_per_dim"]) == pytest.approx(float(given_kl) / 5, rel=1e-6)
    assert "kl/given_per_dim" not in posterior.divergence(mu, logvar)


def test_a_lost_half_reads_two_and_a_weight_may_be_a_tensor() -> None:
    mu, logvar = drawn((8, 5), 0), drawn((8, 5), 1)
    kl = (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    found = posterior.divergence(mu, logvar, kl=kl, weight=torch.tensor(2.0))
    assert float(found["kl/ratio"]) == pytest.approx(2.0, rel=1e-5)
    assert float(found["kl/beta_per_dim"]) == pytest.approx(20.0, rel=1e-5)


def test_at_the_prior_nothing_can_be_compared() -> None:
    zero = torch.zeros(4, 3)
    found = posterior.measure(PosteriorBatch(zero, zero, zero, torch.tensor(0.0)), weight=1.0)
    assert float(found["kl/per_dim"]) == 0.0
    assert {"kl/ratio", "kl/beta_per_dim", "logvar/clamped"}.isdisjoint(found)
    assert float(found["posterior/active_units"]) == float(found["posterior/snr"]) == 0.0
    assert float(found["std/min"]) == float(found["std/max"]) == 1.0


def test_one_sample_has_no_statistics_over_the_batch() -> None:
    found = posterior.measure(PosteriorBatch(torch.ones(1, 4), torch.zeros(1, 4)))
    assert {"z_init/std_per_dim_mean", "posterior/active_units", "posterior/snr"}.isdisjoint(found)


def test_a_clamp_is_seen_where_it_acts() -> None:
    logvar = drawn((100, 10), 0, 20.0)
    clamped = logvar.clamp(-30, 20)
    at = float(((logvar <= -30) | (logvar >= 20)).float().mean())
    assert float(posterior.clamping(clamped)["logvar/clamped"]) == pytest.approx(at)
    assert posterior.clamping(logvar) == {}
    assert posterior.clamping(torch.full((4, 4), -30.0)) == {}


def test_the_sample_is_private_and_has_the_right_distribution() -> None:
    mu, logvar = torch.full((2000, 4), 3.0), torch.full((2000, 4), math.log(0.25))
    before = torch.get_rng_state()
    found = posterior.measure(PosteriorBatch(mu, logvar), generator=torch.Generator().manual_seed(3))
    again = posterior.measure(PosteriorBatch(mu, logvar), generator=torch.Generator().manual_seed(3))
    without = posterior.measure(PosteriorBatch(mu, logvar))
    assert torch.equal(torch.get_rng_state(), before)
    assert float(found["z_init/mean"]) == pytest.approx(3.0, abs=0.03)
    assert float(found["z_init/var"]) == pytest.approx(0.25, rel=0.06)
    assert float(found["z_init/std_per_dim_mean"]) == pytest.approx(0.5, rel=0.04)
    assert found["z_init/mean"] == again["z_init/mean"] != without["z_init/mean"]


def test_a_given_z_is_measured_as_it_is() -> None:
    z = drawn((50, 3), 5, 7.0)
    found = posterior.measure(PosteriorBatch(torch.zeros(50, 3), torch.zeros(50, 3), z))
    assert float(found["z_init/mean"]) == pytest.approx(float(z.mean()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_kept(bad: float) -> None:
    mu, logvar = torch.zeros(4, 3), torch.zeros(4, 3)
    mu[1, 2] = bad
    found = posterior.measure(PosteriorBatch(mu, logvar, kl=torch.tensor(1.0)))
    for key in ("mu/rms", "z_init/mean", "kl/per_dim", "posterior/snr"):
        assert not math.isfinite(float(found[key])), key
    assert float(found["std/mean"]) == 1.0
    logvar[0, 0] = bad
    assert float(posterior.moments(torch.zeros(4, 3), logvar)["logvar/mean"]) == pytest.approx(bad, nan_ok=True)
    posterior.measure(PosteriorBatch(mu, logvar))


def test_half_precision_does_not_overflow() -> None:
    mu = torch.full((8, 8), 6e4, dtype=torch.float16)
    assert float(posterior.moments(mu, torch.zeros_like(mu))["mu/rms"]) == pytest.approx(6e4, rel=1e-3)


def test_a_vanished_posterior_has_no_signal_to_noise_ratio() -> None:
    assert "posterior/snr" not in posterior.activity(drawn((5, 2), 0), torch.full((5, 2), -500.0))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"mu \(4, 3\), logvar \(3,\)"):
        posterior.check(torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"z \(4, 1\)"):
        posterior.check(torch.zeros(4, 3), torch.zeros(4, 3), z=torch.zeros(4, 1))
    with pytest.raises(ShapeError):
        posterior.check(torch.tensor(1.0), torch.tensor(1.0))


def test_an_empty_batch_has_no_metrics() -> None:
    assert posterior.measure(PosteriorBatch(torch.zeros(0, 3), torch.zeros(0, 3))) == {}
