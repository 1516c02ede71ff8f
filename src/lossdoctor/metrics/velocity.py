"""Does the predicted velocity match its target: on the whole, over time, against trivial predictors, on its path?

A regression of a random direction has a floor above 0 (0.785 for independent unit Gaussians on the linear path), so no
value here is good or bad by itself. All of it comes from the batch the training step computed anyway. Times are
reported from source (0) to target (1), whichever way the user's t runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossdoctor.flow.paths import check_times, expand_time, fit_path, source_time
from lossdoctor.metrics import condition
from lossdoctor.metrics.reading import Maybe, Readings, metric, widened
from lossdoctor.metrics.rows import Fit, fit, flat, mean_where, same_shape, variance
from lossdoctor.probe.snapshot import FlowBatch

__all__ = [
    "alignment",
    "by_time",
    "check",
    "check_times",
    "conditions",
    "measure",
    "scales",
    "source_gradient",
    "target_mismatch",
    "trivial",
]

BINS = 10

# A path fits when it explains x_t to 2 %: bfloat16 rounds at 0.4 %, common noise floors (sigma_min) stay below 1 %, and
# two different paths are more than 10 % apart.
_PATH_TOLERANCE = 0.02


def check(
    v_pred: Tensor,
    v_target: Tensor,
    t: Tensor | float,
    *,
    x_t: Tensor | None = None,
    z0: Tensor | None = None,
    z1: Tensor | None = None,
    t_source: float = 0.0,
) -> None:
    """Raise ShapeError unless all tensors are (B, ...) of one shape and t is a scalar, (B,) or (B, 1, ...).

    Raises UsageError when t_source is neither 0.0 nor 1.0. Looks at shapes only, so it never synchronises; whether the
    times lie in [0, 1] is asked by `check_times`, which does.
    """
    _same_shape(v_pred=v_pred, v_target=v_target, x_t=x_t, z0=z0, z1=z1)
    source_time(expand_time(t, v_pred), t_source)


def _same_shape(**tensors: Tensor | None) -> None:
    same_shape(
        "Velocities are compared element by element.",
        "Reshape before handing in: a (B,) against a (B, 1) would silently broadcast to (B, B).",
        **tensors,
    )


@metric
def alignment(v_pred: Tensor, v_target: Tensor, *, loss: float | Tensor | None = None) -> Readings:
    """How well a predicted velocity field matches its target.

    v_pred, v_target: (B, ...), same shape, any float dtype; D = everything but B. loss: the velocity loss as trained,
    unweighted, 0-d. Keys:
    `flow/nmse` = mean |p - v|^2 / mean |v|^2, in [0, inf), 0 is perfect; absent for an all-zero target.
    `flow/cos` in [-1, 1], mean over samples; samples whose prediction or target is exactly zero have none.
    `flow/speed_ratio` = mean |p| / |v|, in [0, inf), 1 is matched; samples with a zero target are left out.
    `flow/mse_zero` = mean v^2: the loss of predicting 0, and what turns an nmse back into a loss.
    `flow/loss_ratio` = loss / (mean |p - v|^2 / D): 1 for a mean over all elements, D for a sum over dimensions; not
    constant over steps when the loss is another formula or compares samples with each other (a shape that broadcasts).
    `flow/loss_ratio_pairs` = loss / mean over all pairs i, j of |p_i - v_j|^2 / D: constant where `flow/loss_ratio` is
    not when shapes broadcast, so that every prediction is compared with every target.
    Absent without a loss and for an error of exactly 0.
    Raises ShapeError when the shapes differ, so that (B,) never broadcasts against (B, 1).
    """
    _same_shape(v_pred=v_pred, v_target=v_target)
    return _alignment(flat(v_pred), flat(v_target), loss)


def _alignment(v_pred: Tensor, v_target: Tensor, loss: float | Tensor | None, rows: Fit | None = None) -> Readings:
    elements = v_pred.numel()
    if elements == 0:
        return {}
    rows = rows or fit(v_pred, v_target)
    error, power = rows.error.sum(), rows.power.sum()
    ratio = {}
    if loss is not None:
        given = widened(loss).mean() if isinstance(loss, Tensor) else loss
        ratio["flow/loss_ratio"] = Maybe(given / (error / elements), error != 0)
        # Mean over i, j of |p_i - v_j|^2, from the deviations: the difference of two large sums would cancel.
        between = (v_pred.mean(0) - v_target.mean(0)).square().mean()
        pairs = variance(v_pred).mean() + variance(v_target).mean() + between
        ratio["flow/loss_ratio_pairs"] = Maybe(given / pairs, pairs != 0)
    return {
        **ratio,
        "flow/nmse": Maybe(error / power, power != 0),
        "flow/cos": mean_where(rows.cos, rows.has_cos),
        "flow/speed_ratio": mean_where(rows.speed, rows.has_speed),
        "flow/mse_zero": power / elements,
    }


@metric
def by_time(v_pred: Tensor, v_target: Tensor, t: Tensor | float, *, t_source: float = 0.0) -> Readings:
    """The same per tenth of the way from source to target.

    t: scalar, (B,) or (B, 1, ...), in the user's direction; t_source: the t of the source end, 0.0 or 1.0.
    Bin i holds i/10 <= t < (i+1)/10; t = 1 is in bin 9, times outside [0, 1] in the nearest bin, NaN in none. Keys:
    `flow/nmse_t{0..9}` (normalised by the bin's own target), `flow/cos_t{0..9}`: absent for an empty bin.
    `flow/count_t{0..9}`: samples in the bin, 0 for an empty one.
    `flow/t_min`, `flow/t_max`, `flow/t_unique` (number of different times in the batch).
    Raises ShapeError as `check`, UsageError when t_source is neither 0.0 nor 1.0.
    """
    _same_shape(v_pred=v_pred, v_target=v_target)
    return _by_time(fit(flat(v_pred), flat(v_target)), _times(t, v_pred, t_source))


def _times(t: Tensor | float, like: Tensor, t_source: float) -> Tensor:
    return widened(source_time(expand_time(t, like), t_source).reshape(-1))


def _by_time(rows: Fit, t: Tensor) -> Readings:
    if not len(t):
        return {}
    index = torch.arange(BINS, device=t.device)
    inside = (t * BINS).floor().clamp(0, BINS - 1) == index[:, None]
    numbers = torch.stack([rows.error, rows.power, rows.cos, rows.has_cos.to(rows.cos), torch.ones_like(rows.cos)])
    # `where` and not a product with 0 and 1: a NaN must stay in its own bin.
    sums = torch.where(inside, numbers[:, None], 0).sum(-1)
    error, power, cos, cosines, count = sums
    low, high = t.aminmax()
    return {
        **_binned("flow/nmse_t", error / power, power != 0),
        **_binned("flow/cos_t", cos / cosines, cosines > 0),
        **{f"flow/count_t{i}": one for i, one in enumerate(count.unbind())},
        "flow/t_min": low,
        "flow/t_max": high,
        "flow/t_unique": (t.sort().values.diff() != 0).sum() + 1,
    }


def _binned(prefix: str, values: Tensor, defined: Tensor) -> dict[str, Maybe]:
    pairs = zip(values.unbind(), defined.unbind(), strict=True)
    return {f"{prefix}{i}": Maybe(value, known) for i, (value, known) in enumerate(pairs)}


@metric
def trivial(v_target: Tensor) -> Readings:
    """What predictors that know nothing would score: the marks a model must beat.

    v_target: (B, ...). `flow/nmse_zero`: predicting 0; it is 1 by the definition of nmse and there to be drawn beside
    it. `flow/nmse_mean`: predicting the mean of the batch for every sample, in [0, 1]; the variance of the target in
    the unit of nmse; absent for one sample. Both absent for an all-zero target.
    """
    v = flat(v_target)
    if v.numel() == 0:
        return {}
    power = v.square().mean()
    defined = power != 0
    readings = {"flow/nmse_zero": Maybe(power / power, defined)}
    if len(v) > 1:
        readings["flow/nmse_mean"] = Maybe(variance(v).mean() / power, defined)
    return readings


@metric
def scales(z0: Tensor | None = None, z1: Tensor | None = None) -> Readings:
    """The scale of both ends of the path. z0, z1: (B, C, ...), channels second.

    `flow/z0_std`, `flow/z1_std`: over all elements (population), in [0, inf).
    `flow/z1_mean_abs`: mean over channels of |mean of the channel|: a shift that was forgotten.
    `flow/z1_std_spread`: standard deviation of the channels' stds over their mean, 0 when all channels have one scale;
    absent for a single channel or a single value per channel, or when every channel is constant.
    """
    readings: dict[str, Tensor | Maybe] = {}
    if z0 is not None and z0.numel():
        readings["flow/z0_std"] = widened(z0).std(correction=0)
    if z1 is not None and z1.numel():
        z1 = widened(z1)
        channels = z1.movedim(1, 0).flatten(1) if z1.ndim > 1 else z1[None]
        mean = channels.mean(1)
        readings["flow/z1_std"] = z1.std(correction=0)
        readings["flow/z1_mean_abs"] = mean.abs().mean()
        if channels.shape[0] > 1 and channels.shape[1] > 1:
            stds = variance(channels.T).sqrt()
            average = stds.mean()
            readings["flow/z1_std_spread"] = Maybe(stds.std(correction=0) / average, average != 0)
    return readings


@metric
def conditions(cond: Any, samples: int, *, generator: torch.Generator | None = None) -> Readings:
    """How many different conditions a batch has, and how common the commonest is.

    cond: as handed in, for `samples` samples; rows are compared bit by bit (`metrics.condition`). generator: private
    randomness for their hash. `flow/cond_distinct` in [1, B]. `flow/cond_mode_share` in [1/B, 1]: the share of the
    samples that have the most common condition: of the null condition, where a share of the conditions is dropped.
    Both absent when there is no condition, when conditions cannot be compared, and for an empty batch.
    """
    if samples == 0 or cond is None or not condition.splittable(cond, samples):
        return {}
    keys = condition.keys(cond, generator or torch.Generator().manual_seed(0))
    if keys is None:
        return {}
    ordered = keys.sort().values
    place = torch.arange(samples, device=keys.device)
    begins = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered.diff() != 0])
    since = place - torch.where(begins, place, 0).cummax(0).values
    return {"flow/cond_distinct": begins.sum(), "flow/cond_mode_share": (since.max() + 1) / samples}


@metric
def target_mismatch(
    v_target: Tensor, x_t: Tensor, z0: Tensor, z1: Tensor, t: Tensor | float, *, t_source: float = 0.0
) -> Readings:
    """Is the target the velocity of the path that x_t lies on?

    v_target, x_t, z0, z1: (B, ...), same shape; t, t_source: as in `by_time`, with v_target = d x_t / dt in the user's
    direction. `flow/target_mismatch` = |v_target - d x_t/dt| / |v_target| over the batch, in [0, inf), 0 is right;
    absent when no known path (`flow.paths.PATHS`) explains x_t to 2 %, or for an all-zero target.
    `flow/target_scale`: the least-squares factor a in v_target = a d x_t/dt, for the same path: 1 is right, -1 a
    flipped sign, another constant a scale that only one of the two has; absent likewise, and where the path stands
    still.
    """
    check(v_target, v_target, t, x_t=x_t, z0=z0, z1=z1, t_source=t_source)
    if v_target.numel() == 0:
        return {}
    path = fit_path(x_t, z0, z1, t, t_source, v_target=v_target)
    value, fits = path.target_mismatch(_PATH_TOLERANCE)
    scale, defined = path.target_scale(_PATH_TOLERANCE), fits & (v_target != 0).any()
    # Without a velocity of the path its length has been divided by: not finite, unless the target is not either.
    moves = scale.isfinite() | ~v_target.isfinite().all()
    return {"flow/target_mismatch": Maybe(value, defined), "flow/target_scale": Maybe(scale, defined & moves)}


@metric
def source_gradient(grad_z1: Tensor, z1: Tensor) -> Readings:
    """The pull of the velocity loss on a jointly trained latent: <d L / d z1, z1> / |z1|, the batch as one vector.

    grad_z1, z1: the same shape. `flow/source_gradient` is signed, in units of the loss per unit of z1: positive means
    that descent makes |z1| smaller. Absent for an all-zero z1. Raises ShapeError when the shapes differ.
    """
    same_shape("A gradient belongs to its tensor.", "Pass the gradient with respect to z1.", grad_z1=grad_z1, z1=z1)
    gradient, z1 = flat(grad_z1).flatten(), flat(z1).flatten()
    norm = torch.linalg.vector_norm(z1)
    return {"flow/source_gradient": Maybe((gradient * z1).sum() / norm, norm != 0)}


@metric
def measure(
    batch: FlowBatch, *, loss: float | Tensor | None = None, generator: torch.Generator | None = None
) -> Readings:
    """Everything above that the batch allows, except the source gradient, which needs a backward pass.

    loss: as in `alignment`. generator: as in `conditions`.
    """
    _same_shape(v_pred=batch.v_pred, v_target=batch.v_target)
    rows = fit(flat(batch.v_pred), flat(batch.v_target))
    readings = {
        **_alignment(flat(batch.v_pred), flat(batch.v_target), loss, rows),
        **_by_time(rows, _times(batch.t, batch.v_pred, batch.t_source)),
        **trivial.deferred(batch.v_target),
        **scales.deferred(batch.z0, batch.z1),
        **conditions.deferred(batch.cond, len(batch.v_pred), generator=generator),
    }
    x_t, z0, z1 = batch.x_t, batch.z0, batch.z1
    if x_t is not None and z0 is not None and z1 is not None:
        path = target_mismatch.deferred(batch.v_target, x_t, z0, z1, batch.t, t_source=batch.t_source)
        readings.update(path)
    return readings
