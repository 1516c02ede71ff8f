"""What the optimizers really did: how far each head moved, whether that helped each loss, what follows slowly.

Ratios are of norms, so they do not depend on the size of a layer. Squared norms and 1 - momentum live near the limits
of float32, so all arithmetic is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossdoctor.metrics.reading import Maybe, Readings, metric
from lossdoctor.metrics.rows import mean_where
from lossdoctor.probe.snapshot import HeadUpdate, Shadow, Updates

_TINY = 1e-12
_RMS_FLOOR = 1e-3
# Two norms of the same gradient, summed in another order, differ by about 1e-7.
_UNCLIPPED = 1e-6


@metric
def head(name: str, update: HeadUpdate) -> Readings:
    """What one step did to one head.

    `step/<head>_update_ratio`: mean over its parameters of |after - before| / (|before| + 1e-12), >= 0; parameters that
    were all zero (zero-initialised final layers) are left out, absent if no other is left.
    `step/<head>_rms_update`: rms(after - before) / max(rms(before), 1e-3) over the head as one vector, >= 0.
    `step/<head>_grad_norm`: of the gradient the optimizer saw, after clipping and unscaling, >= 0.
    `lr/<head>`, `wd/<head>`: learning rate and weight decay; absent when its parameters sit in differing groups.
    Nothing for a head without parameters.
    """
    if not len(update.numel):
        return {}
    before, delta = update.before_norm.double(), update.delta_norm.double()
    root = update.numel.sum().double().sqrt()
    rms_before, rms_delta = (torch.linalg.vector_norm(norms) / root for norms in (before, delta))
    readings: dict[str, Tensor | Maybe] = {
        f"step/{name}_update_ratio": mean_where(delta / (before + _TINY), before != 0),
        f"step/{name}_rms_update": rms_delta / rms_before.clamp(min=_RMS_FLOOR),
        f"step/{name}_grad_norm": torch.linalg.vector_norm(update.grad_norm.double()),
    }
    if update.lr is not None:
        readings[f"lr/{name}"] = torch.tensor(update.lr, dtype=torch.float64)
    if update.weight_decay is not None:
        readings[f"wd/{name}"] = torch.tensor(update.weight_decay, dtype=torch.float64)
    return readings


@metric
def clipping(pre_clip: Tensor, post_clip: Tensor) -> Readings:
    """How much of the gradient the optimizer got. pre_clip, post_clip: 0-d norms after backward and before the step.

    `grad/clip_ratio` = post / pre, in [0, 1] for a clip; absent when the gradient did not change (to 1e-6) or is zero.
    """
    pre, post = pre_clip.double(), post_clip.double()
    ratio = post / pre
    unchanged = (ratio - 1).abs() <= _UNCLIPPED
    return {"grad/clip_ratio": Maybe(ratio, (pre != 0) & ~unchanged)}


@metric
def shadows(*, ema: Shadow | None = None, teacher: Shadow | None = None) -> Readings:
    """Do the slow copies follow? Norms are over all parameters as one vector; live = the weights that are followed. The
    Doctor estimates squared norms over long parameters from a sixteenth of their elements, the same for all of them.

    `ema/distance`, `teacher/distance` = |copy - live| / |live|, >= 0; absent without live weights that match.
    `ema/momentum`, `teacher/momentum` = 1 - |change of the copy| / |live - copy before|, the d of
    copy <- d copy + (1 - d) live; 1 for a copy that stands still, absent when there was no gap to close, and without
    live weights that match.
    `teacher/moved` = |change of the teacher| / |teacher before|, >= 0, 0 for a frozen teacher.
    """
    readings: dict[str, Tensor | Maybe] = {}
    for role, shadow in (("ema", ema), ("teacher", teacher)):
        if shadow is not None and shadow.distance is not None and shadow.live is not None:
            readings[f"{role}/distance"] = _ratio(shadow.distance, shadow.live)
        if shadow is not None and shadow.gap is not None:
            share, defined = _ratio(shadow.moved, shadow.gap)
            readings[f"{role}/momentum"] = Maybe(1 - share, defined)
    if teacher is not None:
        readings["teacher/moved"] = _ratio(teacher.moved, teacher.old)
    return readings


def _ratio(square: Tensor, of: Tensor) -> Maybe:
    return Maybe((square.double() / of.double()).sqrt(), of != 0)


@metric
def measure(updates: Updates, ema: Shadow | None = None, teacher: Shadow | None = None) -> Readings:
    """Everything above, and `descent/<loss>`.

    `descent/<loss>` = -<theta_after - theta_before, g_i>: the first-order decrease of the unweighted loss by the update
    really taken, in units of the loss, signed: negative means that this step made the loss worse. Absent for a loss
    whose gradient was not measured.
    """
    readings: dict[str, Tensor | Maybe] = {}
    for name, update in updates.heads.items():
        readings.update(head.deferred(name, update))
    if updates.descent is not None:
        for name, value, known in zip(updates.names, updates.descent.unbind(), updates.descent_measured, strict=True):
            if known:
                readings[f"descent/{name}"] = value
    if updates.pre_clip is not None and updates.post_clip is not None:
        readings.update(clipping.deferred(updates.pre_clip, updates.post_clip))
    readings.update(shadows.deferred(ema=ema, teacher=teacher))
    return readings
