"""The KL divergence of a diagonal Gaussian posterior from the standard normal prior.

Source: Kingma and Welling 2013 (1312.6114), appendix B.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch

Reduction = Literal["none", "per_dim", "per_sample", "sum"]


def gaussian_kl(mu: Tensor, logvar: Tensor, *, reduction: Reduction) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) in nats, per dimension (mu^2 + exp(logvar) - 1 - logvar) / 2, >= 0.

    mu, logvar: (B, ...), same shape. Returns float32 or wider; exp(logvar) overflows to inf above 88 in float32, so
    clamp logvar where it is made. The reduction has no default, because it silently sets the weight of the loss: for D
    dimensions "sum" is D times "per_dim".

    reduction: "per_dim": 0-d, mean over batch and dimensions. "sum": 0-d, sum over dimensions, mean over the batch (the
    ELBO's). "per_sample": (B,), sum over dimensions. "none": (B, ...).
    Raises ShapeError when the shapes differ or have no batch, UsageError for another reduction.
    """
    if mu.shape != logvar.shape or mu.ndim == 0:
        got = f"mu {tuple(mu.shape)}, logvar {tuple(logvar.shape)}"
        todo = "Give every latent dimension its own mean and log-variance."
        raise ShapeError(mismatch("mu and logvar describe one Gaussian.", "both (B, ...), the same shape", got, todo))
    wide = torch.promote_types(mu.dtype, torch.float32)
    mu, logvar = mu.to(wide), logvar.to(wide)
    # Near the prior exp(logvar) - 1 - logvar cancels; expm1, and adding mu^2 last, keep the digits.
    kl = (mu.square() + (torch.expm1(logvar) - logvar)) / 2
    match reduction:
        case "none":
            return kl
        case "per_dim":
            return kl.mean()
        case "per_sample":
            return _per_sample(kl)
        case "sum":
            return _per_sample(kl).mean()
    todo = '"sum" is the ELBO\'s; "per_dim" goes with a reconstruction loss averaged over its elements.'
    expected = '"none" | "per_dim" | "per_sample" | "sum"'
    raise UsageError(mismatch("The KL needs a known reduction.", expected, repr(reduction), todo))


def _per_sample(kl: Tensor) -> Tensor:
    return kl.unsqueeze(-1).flatten(1).sum(1)  # the extra axis lets (B,) be flattened too
