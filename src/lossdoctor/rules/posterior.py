"""What several rules of the posterior ask: what its latent is for, how far it is from the prior, who holds it there."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lossdoctor.curves import Share, share_below, spread, trend
from lossdoctor.record import Series
from lossdoctor.rules.finding import Fix
from lossdoctor.rules.fixes import ablate, scale_weight
from lossdoctor.rules.strengths import factor_to
from lossdoctor.rules.view import RunView, middle

Role = Literal["source", "target", "autoencoder", "unknown"]
"""What the latent is for. source: a flow starts from it, so it should look like the prior. target: a flow ends in it.
autoencoder: only a reconstruction depends on it. In the last two a posterior far from the prior is usual."""

HELD = 0.05
"""Share of the total gradient from which on a KL counts as a force of its own: half of what BAL801 asks for at least.
docs/log.md, the clinic: 0.17 to 0.26 healthy, 0.012 for a mean over 32 dimensions with the weight of a sum, 4e-5 for a
weight of 1e-4."""

FAR = 0.25
"""Nats per dimension from which on a posterior is far from the prior, as for a std of 0.55. docs/log.md, the clinic:
0.09 where a healthy run settles, 0.54 and rising with a KL that is too weak."""

_SAME = 0.05  # z drawn anew has a std that differs by 1 % in a batch of thousands of numbers
_GOAL = 0.2


def the_loss(run: RunView) -> str | None:
    """The KL loss that takes part, where there is exactly one."""
    losses = [loss for loss in run.of_kind("kl") if run.weighted(loss)]
    return losses[0] if len(losses) == 1 else None


def role(run: RunView) -> Role:
    """What the latent is for, by the scale of z against both ends of the flow."""
    variance = run.settled("z_init/var")
    z = Series(variance.steps, np.sqrt(np.maximum(variance.values, 0)))
    source, target = _over(run.settled("flow/z0_std"), z), _over(run.settled("flow/z1_std"), z)
    off_source, off_target = abs(middle(source) - 1), abs(middle(target) - 1)
    if off_source <= _SAME and not off_target < off_source:
        return "source"
    # Latents times a constant, as most latent diffusion has them, are a target too.
    if off_target <= _SAME or (len(target) > 2 and spread(target) < 0.02 and spread(z) > 0.02):
        return "target"
    return "unknown" if run.of_kind("velocity") or run.of_kind("distill") else "autoencoder"


def adrift(run: RunView) -> bool:
    """Whether the latents that a flow ends in began at a std of about 1 and are now twice as wide: they run away.

    Narrower ones have another reason: a velocity loss that trains its target.
    """
    std = run["flow/z1_std"].finite.values
    return role(run) == "target" and 2 / 3 < std[0] < 1.5 and run.now("flow/z1_std") > 2


def distance(run: RunView) -> Series:
    """The true KL per dimension after the warm-up, in nats; where it is missing, from mean mu, std and logvar."""
    loss = the_loss(run)
    exact = run.settled("kl/per_dim", loss=loss)
    if len(exact):
        return exact
    mu, std, logvar = (run.settled(name, loss=loss) for name in ("mu/abs_mean", "std/mean", "logvar/mean"))
    steps = np.intersect1d(np.intersect1d(mu.steps, std.steps), logvar.steps)
    m, s, lv = (curve.values[np.searchsorted(curve.steps, steps)] for curve in (mu, std, logvar))
    with np.errstate(over="ignore", invalid="ignore"):
        return Series(steps, (np.pi / 2 * m**2 + s**2 - 1 - lv) / 2).finite


def approaching(curve: Series) -> bool:
    """Whether the posterior is on its way to the prior."""
    return trend(curve, skip=0.0).direction == "down"


def pull(run: RunView, limit: float = HELD) -> tuple[Series, Share] | None:
    """The weighted gradient of the KL over the total, and how much of it lies below `limit`; None if not known."""
    loss = the_loss(run)
    if loss is None:
        return None
    ratio = run.ratio(f"grad_weighted/{loss}", "grad/total", loss=loss)
    ratio = Series(ratio.steps, np.abs(ratio.values))
    return (ratio, share_below(ratio, limit)) if len(ratio) else None


def held(run: RunView) -> bool | None:
    """Whether the KL is a force of its own in the gradient; None if not known."""
    found = pull(run)
    return None if found is None else middle(found[0]) >= HELD


def stronger(run: RunView) -> tuple[Fix, ...]:
    """Raise the weight to where the KL is a force, at least by 4, and the experiment that tells what the KL does."""
    loss = the_loss(run)
    if loss is None:
        return (ablate("without:kl"),)
    found = pull(run)
    size = middle(found[0]) if found is not None else 0.0
    factor = max(4.0, factor_to(_GOAL, size)) if size > 0 else 4.0
    return scale_weight(loss, factor), ablate(f"without:{loss}")


def _over(curve: Series, unit: Series) -> Series:
    steps, i, j = np.intersect1d(curve.steps, unit.steps, return_indices=True)
    there = unit.values[j] > 0
    with np.errstate(over="ignore"):
        return Series(steps[there], curve.values[i][there] / unit.values[j][there]).finite
