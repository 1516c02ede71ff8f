"""Is the Gaussian posterior near its prior, alive, and trained with the KL it claims?

std = exp(logvar / 2). "Dimensions" are all axes but the first; "over the batch" is the first. Variances are population
variances throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossdoctor.losses.kl import gaussian_kl
from lossdoctor.metrics.reading import Maybe, Readings, metric, widened
from lossdoctor.metrics.rows import flat, mean_where, same_shape, variance
from lossdoctor.probe.snapshot import PosteriorBatch

# Burda et al. 2015 (1509.00519), section 5.2.
_ACTIVE = 0.01
# Below this KL per dimension the usual 1 + logvar - mu^2 - exp(logvar) in float32 is off by more than 1 %.
_SMALLEST_KL = 1e-5


def check(mu: Tensor, logvar: Tensor, *, z: Tensor | None = None) -> None:
    """Raise ShapeError unless mu, logvar and z are (B, ...) of one shape. Never synchronises."""
    same_shape(
        "mu, logvar and z describe the same latent.",
        "Give every latent dimension of every sample its own mean, log-variance and value.",
        mu=mu,
        logvar=logvar,
        z=z,
    )


@metric
def moments(mu: Tensor, logvar: Tensor) -> Readings:
    """The posterior's parameters themselves. mu, logvar: (B, ...), same shape; nothing for an empty batch.

    `mu/abs_mean` = mean |mu|, `mu/rms` = sqrt(mean mu^2), `logvar/mean`, `std/mean`, `std/rms` = sqrt(mean std^2),
    `std/min`, `std/max`: over all elements; at the prior 0, 0, 0, 1, 1, 1, 1.
    """
    check(mu, logvar)
    if mu.numel() == 0:
        return {}
    mu, logvar = widened(mu), widened(logvar)
    std = (logvar / 2).exp()
    low, high = std.aminmax()
    return {
        "mu/abs_mean": mu.abs().mean(),
        "mu/rms": mu.square().mean().sqrt(),
        "logvar/mean": logvar.mean(),
        "std/mean": std.mean(),
        "std/rms": std.square().mean().sqrt(),
        "std/min": low,
        "std/max": high,
    }


@metric
def sample(z: Tensor) -> Readings:
    """The latent that the rest of the model sees. z: (B, ...).

    `z_init/mean`, `z_init/var`: over all elements, 0 and 1 for the prior; the variance is absent for a single element.
    `z_init/std_per_dim_mean`: mean over dimensions of the std over the batch, 1 for the prior; absent for B = 1.
    """
    z = flat(z)
    if z.numel() == 0:
        return {}
    readings = {"z_init/mean": z.mean()}
    if z.numel() > 1:
        readings["z_init/var"] = z.var(correction=0)
    if len(z) > 1:
        readings["z_init/std_per_dim_mean"] = variance(z).sqrt().mean()
    return readings


@metric
def divergence(
    mu: Tensor, logvar: Tensor, *, kl: Tensor | None = None, weight: float | Tensor | None = None
) -> Readings:
    """The true KL from N(0, I), and how the one that was trained relates to it.

    mu, logvar: (B, ...), same shape, D dimensions. kl: the user's unweighted value, 0-d or averaged here. weight: its
    weight in the total loss. Keys:
    `kl/per_dim` = mean over B and D of (mu^2 + std^2 - 1 - logvar) / 2, in nats, >= 0, whatever the training used.
    `kl/given_per_dim` = given KL / D, whatever its reduction: to be held against functions of mu and std, for finding
    out which formula it is; absent without a given KL.
    `kl/ratio` = given KL / (D * `kl/per_dim`): 1 is the sum over D, 1/D the mean, 2 a lost 1/2.
    `kl/beta_per_dim` = weight * `kl/ratio` * D. The total then contains weight * KL_given = (weight * ratio * D) *
    `kl/per_dim`, so this is the weight of a KL averaged over its dimensions, to be held against another loss averaged
    over its own: a mean KL with weight w has w, a summed one D w.
    Ratio and beta are absent without a given KL, and below 1e-5 nats per dimension, where rounding decides.
    """
    check(mu, logvar)
    if mu.numel() == 0:
        return {}
    per_dim = gaussian_kl(mu, logvar, reduction="per_dim")
    readings: dict[str, Tensor | Maybe] = {"kl/per_dim": per_dim}
    if kl is not None:
        dimensions = mu.numel() // len(mu)
        value = widened(kl).mean().to(per_dim)
        multiple = value / per_dim  # of the mean over dimensions
        readings["kl/given_per_dim"] = value / dimensions
        defined = ~(per_dim <= _SMALLEST_KL)
        readings["kl/ratio"] = Maybe(multiple / dimensions, defined)
        if weight is not None:
            readings["kl/beta_per_dim"] = Maybe(multiple * weight, defined)
    return readings


@metric
def activity(mu: Tensor, logvar: Tensor) -> Readings:
    """Does the latent carry anything about the sample? mu, logvar: (B, ...), same shape; absent for B = 1.

    `posterior/active_units`: share of dimensions with Var_batch(mu) > 0.01, in [0, 1].
    `posterior/snr`: mean over dimensions of Var_batch(mu) / mean std^2, >= 0, 0 is collapse; dimensions whose std^2 is
    exactly 0 are left out, absent if none is left.
    """
    check(mu, logvar)
    if mu.numel() == 0 or len(mu) < 2:
        return {}
    signal = variance(flat(mu))
    noise = flat(logvar).exp().mean(0)
    unknown = signal.isnan()  # a comparison would call NaN inactive
    active = torch.where(unknown, signal, (signal > _ACTIVE).to(signal))
    return {"posterior/active_units": active.mean(), "posterior/snr": mean_where(signal / noise, noise != 0)}


@metric
def clamping(logvar: Tensor) -> Readings:
    """How much of logvar sits on a limit. logvar: (B, ...).

    `logvar/clamped`: share of the elements equal to the minimum, if more than one is, plus the same for the maximum; in
    (0, 1], absent when neither repeats. A constant logvar (a zero-initialised head) says nothing about a limit and is
    absent too: `std/min` = `std/max` shows it. Low precision repeats values by rounding, which gives a tiny share.
    """
    if logvar.numel() == 0:
        return {}
    low, high = logvar.detach().aminmax()
    at = torch.stack([(logvar == low).sum(), (logvar == high).sum()])
    repeated = at > 1
    share = torch.where(repeated, at, 0).sum() / logvar.numel()
    return {"logvar/clamped": Maybe(share, repeated.any() & (low != high))}


@metric
def measure(
    batch: PosteriorBatch,
    *,
    generator: torch.Generator | None = None,
    weight: float | Tensor | None = None,
) -> Readings:
    """Everything above for one batch.

    generator: private randomness for z = mu + eps * std when z is not given; the global random state is never touched.
    Without one, the same eps is drawn every time. weight: of the KL in the total loss, for `kl/beta_per_dim`.
    """
    mu, logvar = widened(batch.mu), widened(batch.logvar)
    check(mu, logvar, z=batch.z)
    z = _drawn(mu, logvar, generator) if batch.z is None else batch.z
    return {
        **moments.deferred(mu, logvar),
        **sample.deferred(z),
        **divergence.deferred(mu, logvar, kl=batch.kl, weight=weight),
        **activity.deferred(mu, logvar),
        **clamping.deferred(batch.logvar),
    }


def _drawn(mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
    generator = generator or torch.Generator(mu.device).manual_seed(0)
    eps = torch.randn(mu.shape, generator=generator, device=generator.device, dtype=mu.dtype)
    return mu + eps.to(mu.device) * (logvar / 2).exp()
