"""The flow-matching loss: squared error of a predicted velocity.

Source: Lipman et al. 2022 (2210.02747), equation 9.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch


def flow_matching_loss(
    v_pred: Tensor,
    v_target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: Literal["mean", "per_sample"] = "mean",
) -> Tensor:
    """Mean squared error per element, weighted per sample, in float32 or wider.

    v_pred, v_target: (B, ...), same shape. weight: (B,), multiplied in and not normalised, so its mean scales the loss.
    reduction: "mean": 0-d; "per_sample": (B,), each the mean over its elements. The loss is >= 0 for weights >= 0 and
    has a floor > 0 (the variance of v_target given x_t and t): it does not fall to 0 in a healthy run.
    Gradients also flow into v_target: where the data end is being trained (a joint VAE), this pulls the latents
    together, so detach the target if that is not meant.
    Raises ShapeError when shapes differ, so that (B,) never broadcasts against (B, 1), and UsageError for another
    reduction.
    """
    if v_pred.shape != v_target.shape or v_pred.ndim == 0:
        got = f"v_pred {tuple(v_pred.shape)}, v_target {tuple(v_target.shape)}"
        todo = "Reshape so that nothing relies on broadcasting: a (B, B) error is the variance of the target."
        raise ShapeError(mismatch("A velocity is compared with its own target.", "both (B, ...)", got, todo))
    wide = torch.promote_types(v_pred.dtype, torch.float32)
    error = (v_pred.to(wide) - v_target.to(wide)).square()
    per_sample = error.unsqueeze(-1).flatten(1).mean(1)  # the extra axis lets (B,) be flattened too
    if weight is not None:
        if weight.shape != per_sample.shape:
            expected, got = f"({len(per_sample)},)", f"weight of shape {tuple(weight.shape)}"
            raise ShapeError(mismatch("There is one weight per sample.", expected, got, "Flatten the weight to (B,)."))
        per_sample = per_sample * weight
    match reduction:
        case "mean":
            return per_sample.mean()
        case "per_sample":
            return per_sample
    todo = "Take the per-sample losses and reduce them as you like."
    raise UsageError(mismatch("The loss needs a known reduction.", '"mean" | "per_sample"', repr(reduction), todo))
