"""A batch as one vector per sample, and a prediction compared with its target vector by vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, mismatch
from lossdoctor.metrics.reading import Maybe, widened


def same_shape(rule: str, todo: str, **tensors: Tensor | None) -> None:
    """Raise ShapeError unless all given tensors are (B, ...) of one shape, so that nothing broadcasts."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    shapes = {tuple(tensor.shape) for tensor in given.values()}
    if len(shapes) > 1 or () in shapes:
        got = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ShapeError(mismatch(rule, "one shape (B, ...)", got, todo))


def flat(tensor: Tensor) -> Tensor:
    """(B, ...) as (B, D), in float32 or wider; (B,) has D = 1."""
    return widened(tensor).reshape(len(tensor), -1) if tensor.numel() else widened(tensor).new_zeros(len(tensor), 0)


class Fit(NamedTuple):
    """Each predicted vector against its target, (B,) each.

    error: |p - v|^2. power: |v|^2. cos: their cosine. speed: |p| / |v|. A zero target has neither cosine nor speed, a
    zero prediction no cosine: there the value is 0 and `has_cos`, `has_speed` are false.
    """

    error: Tensor
    power: Tensor
    cos: Tensor
    has_cos: Tensor
    speed: Tensor
    has_speed: Tensor


def fit(prediction: Tensor, target: Tensor) -> Fit:
    """Compare row by row. prediction, target: (B, D), float32 or wider."""
    # The same sum as in `error`, so that predicting 0 has exactly the error of the target.
    power = target.square().sum(1)
    norm_p, norm_v = torch.linalg.vector_norm(prediction, dim=1), power.sqrt()
    has_speed = norm_v != 0  # NaN is not 0: it stays and shows
    has_cos = has_speed & (norm_p != 0)
    safe_p, safe_v = torch.where(has_cos, norm_p, 1), torch.where(has_speed, norm_v, 1)
    # Dividing twice keeps the product of two tiny norms from vanishing.
    cos = ((prediction * target).sum(1) / safe_p / safe_v).clamp(-1, 1)
    error = (prediction - target).square().sum(1)
    return Fit(error, power, cos, has_cos, torch.where(has_speed, norm_p / safe_v, 0), has_speed)


def variance(rows: Tensor) -> Tensor:
    """Population variance over the batch of (B, D): (D,). Three times as fast as `torch.var` over that axis."""
    return (rows - rows.mean(0)).square_().mean(0)


def mean_where(values: Tensor, mask: Tensor) -> Maybe:
    """Mean of the values (B,) where the mask (B,) is true; undefined where it never is."""
    count = mask.sum()
    return Maybe(torch.where(mask, values, 0).sum() / count, count > 0)
