"""The flow-matching loss: plain squared error, never broadcast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.losses import flow_matching_loss

SHAPES = [(1,), (4,), (4, 1), (5, 7), (2, 4, 3, 3)]


def _velocities(*shape: int) -> tuple[Tensor, Tensor]:
    v_pred, v_target = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return v_pred, v_target


@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch_and_sample_by_sample(shape: tuple[int, ...]) -> None:
    v_pred, v_target = _velocities(*shape)
    torch.testing.assert_close(flow_matching_loss(v_pred, v_target), torch.nn.functional.mse_loss(v_pred, v_target))
    expected = torch.stack([(p - u).square().mean() for p, u in zip(v_pred, v_target, strict=True)])
    torch.testing.assert_close(flow_matching_loss(v_pred, v_target, reduction="per_sample"), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_multiply_samples(shape: tuple[int, ...]) -> None:
    v_pred, v_target = _velocities(*shape)
    weight = torch.linspace(0, 2, shape[0], dtype=torch.float64)
    plain = flow_matching_loss(v_pred, v_target, reduction="per_sample")
    torch.testing.assert_close(
        flow_matching_loss(v_pred, v_target, weight=weight, reduction="per_sample"), weight * plain
    )
    torch.testing.assert_close(flow_matching_loss(v_pred, v_target, weight=weight), (weight * plain).mean())
    ones = torch.ones(shape[0])
    torch.testing.assert_close(flow_matching_loss(v_pred, v_target, weight=3 * ones), 3 * plain.mean())


def test_zero_only_when_equal() -> None:
    v_pred, v_target = _velocities(3, 2)
    assert flow_matching_loss(v_target, v_target).item() == 0.0
    assert flow_matching_loss(v_pred, v_target).item() > 0.0


def test_predicting_zero_costs_one_plus_the_variance_of_the_data() -> None:
    """The reference value for independent ends: E|z1 - z0|^2 per dimension = 1 + s^2."""
    z0, z1 = torch.randn(2, 20_000, 4, generator=torch.Generator().manual_seed(0))
    assert flow_matching_loss(torch.zeros_like(z0), 1.5 * z1 - z0).item() == pytest.approx(1 + 1.5**2, rel=0.02)


@pytest.mark.parametrize(
    ("pred", "target"), [((4,), (4, 1)), ((4, 3), (4, 1)), ((4, 3), (3,)), ((4, 3), (4, 3, 1)), ((), ())]
)
def test_refuses_what_would_broadcast(pred: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="its own target"):
        flow_matching_loss(torch.zeros(pred), torch.zeros(target))


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (3,), (4, 3)])
def test_refuses_weights_that_are_not_one_per_sample(shape: tuple[int, ...]) -> None:
    v_pred, v_target = _velocities(4, 3)
    with pytest.raises(ShapeError, match="one weight per sample"):
        flow_matching_loss(v_pred, v_target, weight=torch.ones(shape))


def test_refuses_an_unknown_reduction() -> None:
    v_pred, v_target = _velocities(4, 3)
    with pytest.raises(UsageError, match=r'"mean" \| "per_sample"'):
        flow_matching_loss(v_pred, v_target, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    v_pred, v_target = torch.full((2, 3), 400.0, dtype=dtype), torch.full((2, 3), -400.0, dtype=dtype)
    loss = flow_matching_loss(v_pred, v_target)
    assert loss.dtype == torch.float32
    assert loss.item() == 640_000.0  # beyond the 65,504 of float16


def test_gradients_reach_prediction_and_target() -> None:
    v_pred, v_target = (tensor.requires_grad_() for tensor in _velocities(4, 3))
    toward, away = torch.autograd.grad(flow_matching_loss(v_pred, v_target), (v_pred, v_target))
    torch.testing.assert_close(toward, (2 / 12 * (v_pred - v_target)).detach())
    torch.testing.assert_close(away, -toward)


def test_bad_values_stay_bad_and_stay_apart() -> None:
    v_pred, v_target = _velocities(3, 2)
    v_pred[0, 0], v_target[2, 1] = math.nan, math.inf
    per_sample = flow_matching_loss(v_pred, v_target, reduction="per_sample")
    assert per_sample.isfinite().tolist() == [False, True, False]


def test_nothing_is_read_from_the_device() -> None:
    v = torch.empty(4, 3, device="meta")  # a meta tensor has no data: reading any raises
    assert flow_matching_loss(v, v, weight=torch.empty(4, device="meta")).is_meta
