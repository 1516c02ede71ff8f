"""The posterior KL against torch.distributions, its reductions, and precision where others lose it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.losses import gaussian_kl

SHAPES = [(1,), (4,), (4, 1), (5, 7), (2, 4, 3, 3)]


def _posterior(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return mu, 2 * logvar


def _twin(mu: Tensor, logvar: Tensor) -> Tensor:
    return kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu)))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_reduction_against_torch_distributions(shape: tuple[int, ...]) -> None:
    mu, logvar = _posterior(*shape)
    expected = _twin(mu, logvar)
    per_sample = torch.stack([sample.sum() for sample in expected])
    torch.testing.assert_close(gaussian_kl(mu, logvar, reduction="none"), expected)
    torch.testing.assert_close(gaussian_kl(mu, logvar, reduction="per_sample"), per_sample)
    torch.testing.assert_close(gaussian_kl(mu, logvar, reduction="sum"), per_sample.mean())
    torch.testing.assert_close(gaussian_kl(mu, logvar, reduction="per_dim"), expected.mean())


def test_sum_is_the_number_of_dimensions_times_per_dim() -> None:
    mu, logvar = _posterior(6, 2, 5, 3)
    ratio = gaussian_kl(mu, logvar, reduction="sum") / gaussian_kl(mu, logvar, reduction="per_dim")
    assert ratio.item() == pytest.approx(30)


@settings(deadline=None)
@given(mu=st.floats(-1e6, 1e6), logvar=st.floats(-40, 40))
def test_is_never_negative_and_zero_only_at_the_prior(mu: float, logvar: float) -> None:
    kl = gaussian_kl(torch.tensor([mu]), torch.tensor([logvar]), reduction="sum").item()
    assert kl >= 0
    assert kl > 0 or (abs(mu) < 1e-18 and abs(logvar) < 1e-6)


def test_zero_at_the_prior() -> None:
    assert gaussian_kl(torch.zeros(3, 4), torch.zeros(3, 4), reduction="sum").item() == 0.0


@pytest.mark.parametrize("logvar", [1e-2, 1e-3, -1e-3])
def test_near_the_prior_float32_keeps_digits(logvar: float) -> None:
    """KL ~ logvar^2 / 4: the plain formula exp(logvar) - 1 - logvar would lose most digits to cancellation."""
    tensor = torch.tensor([logvar])
    kl = gaussian_kl(torch.zeros(1), tensor, reduction="sum").item()
    exact = (math.expm1(tensor.item()) - tensor.item()) / 2
    assert kl == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    mu, logvar = (tensor.to(dtype) for tensor in (torch.full((2, 3), 300.0), torch.full((2, 3), 20.0)))
    kl = gaussian_kl(mu, logvar, reduction="sum")
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, gaussian_kl(mu.float(), logvar.float(), reduction="sum"))
    assert kl.isfinite()  # mu^2 = 90,000 and exp(20) are beyond half precision


def test_gradients_are_those_of_the_formula() -> None:
    mu, logvar = (tensor.requires_grad_() for tensor in _posterior(4, 3))
    gradients = torch.autograd.grad(gaussian_kl(mu, logvar, reduction="sum"), (mu, logvar))
    torch.testing.assert_close(gradients, (mu.detach() / 4, (logvar.detach().exp() - 1) / 8))


def test_bad_values_stay_bad_and_stay_apart() -> None:
    mu, logvar = _posterior(4, 2)
    mu[0, 0], logvar[1, 1], logvar[2, 0] = math.nan, math.inf, -math.inf
    per_sample = gaussian_kl(mu, logvar, reduction="per_sample")
    assert per_sample[0].isnan()
    assert not per_sample[1].isfinite()
    assert per_sample[2] == math.inf
    assert per_sample[3].isfinite()


def test_nothing_is_read_from_the_device() -> None:
    mu = torch.empty(4, 3, device="meta")  # a meta tensor has no data: reading any raises
    assert gaussian_kl(mu, mu, reduction="sum").is_meta


def test_refuses_what_would_broadcast() -> None:
    for mu, logvar in ((torch.zeros(4, 3), torch.zeros(4, 1)), (torch.zeros(4), torch.zeros(4, 1))):
        with pytest.raises(ShapeError, match="one Gaussian"):
            gaussian_kl(mu, logvar, reduction="sum")
    with pytest.raises(ShapeError, match="one Gaussian"):
        gaussian_kl(torch.tensor(0.0), torch.tensor(0.0), reduction="sum")


def test_the_reduction_must_be_chosen() -> None:
    mu, logvar = _posterior(2, 2)
    with pytest.raises(TypeError, match="reduction"):
        gaussian_kl(mu, logvar)
    with pytest.raises(UsageError, match=r'"none" \| "per_dim" \| "per_sample" \| "sum"'):
        gaussian_kl(mu, logvar, reduction="mean")
