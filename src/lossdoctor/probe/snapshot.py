"""What the probe hands to the metrics: plain tensors, detached, still on their device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """One batch as `ld.flow` received it.

    v_pred, v_target, x_t, z0, z1: (B, ...). t: (B,) as floats in the *user's* direction; `t_like` is the tensor as
    the user shaped it, to call `velocity(x, t, cond)` the way the user does. `t_source` is the t of the source end.
    """

    v_pred: Tensor
    v_target: Tensor
    t: Tensor
    t_like: Tensor
    x_t: Tensor | None = None
    z0: Tensor | None = None
    z1: Tensor | None = None
    cond: Any = None
    velocity: Velocity | None = None
    t_source: float = 0.0


@dataclass(frozen=True, slots=True)
class PosteriorBatch:
    """One batch as `ld.posterior` received it. mu, logvar, z: (B, ...); kl: the user's KL value, 0-d."""

    mu: Tensor
    logvar: Tensor
    z: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DistillBatch:
    """One batch as `ld.distill` received it. Logits: (rows, K), row i of both from the same sample."""

    teacher_logits: Tensor
    student_logits: Tensor
    teacher_temp: float | Tensor
    student_temp: float | Tensor
    center: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Gradients:
    """Per-loss gradients of one optimizer step as inner products.

    names: the K losses. weights: (K,) float64. gram: module name to (K+1, K+1) float64, row and column K being the
    total gradient that the real backward produced; `""` is the whole parameter set. A loss that does not require grad
    is False in `measured`, and its rows mean nothing. reached[module]: (K,) whether any parameter of the module was
    part of the loss's graph at all. derived: the loss whose gradient follows from the total, if any. accumulated: 0-d
    squared norm of the sum of what several backwards of the step brought, to be held against the total; None with one.
    sketched: the modules, `""` included, whose entries are estimates, as some of their weights are sketched; entries of
    all others are exact. slopes: loss to w_i <g_i, g>, where nothing else is known of single losses.
    """

    names: tuple[str, ...]
    weights: Tensor
    gram: Mapping[str, Tensor]
    measured: tuple[bool, ...]
    reached: Mapping[str, tuple[bool, ...]]
    derived: str | None = None
    accumulated: Tensor | None = None
    sketched: frozenset[str] = frozenset()
    slopes: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class HeadUpdate:
    """What one optimizer step did to one head, parameter by parameter.

    before_norm, delta_norm, grad_norm: (P,) L2 norms of the P parameters before the step, of their change, and of the
    gradient the optimizer saw. numel: (P,) element counts. lr, weight_decay: of the head's parameter group; None when
    its parameters sit in groups that differ.
    """

    before_norm: Tensor
    delta_norm: Tensor
    grad_norm: Tensor
    numel: Tensor
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, slots=True)
class Updates:
    """What the optimizers did in one step.

    heads: head name to its update. descent: (K,) -<theta_after - theta_before, g_i> or None without gradients.
    pre_clip, post_clip: gradient norm after backward and as the optimizer saw it, 0-d, over the parameters stepped.
    """

    heads: Mapping[str, HeadUpdate]
    names: tuple[str, ...] = ()
    descent: Tensor | None = None
    descent_measured: tuple[bool, ...] = ()
    pre_clip: Tensor | None = None
    post_clip: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A slowly following copy (EMA or teacher) around one of its updates, as squared norms, 0-d each.

    moved: |new - old|^2. old: |old|^2. live: |live|^2 of the weights it follows. gap: |live - old|^2.
    distance: |new - live|^2. Without live weights that match, the last three are None.
    """

    moved: Tensor
    old: Tensor
    gap: Tensor | None = None
    distance: Tensor | None = None
    live: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the probe caught in one due step, for the metric families; what was not handed in is None.

    source: (d L_flow / d z1, z1) when z1 requires grad. kl_weight: weight of the KL in the total. distill_loss,
    velocity_loss: 0-d, as trained, averaged over the micro-batches that the batch consists of. randomness: a fresh
    private generator, the same for the same step. undisturbed: a context in which the user's model may be asked without
    a trace, in the precision of the training forward. batch_coupled: whether a sample's output depends on the others
    now. stochastic: whether the model is known to draw random numbers.
    """

    randomness: Callable[[torch.device], torch.Generator]
    undisturbed: Callable[[], AbstractContextManager[object]]
    batch_coupled: bool = False
    stochastic: bool = False
    flow: FlowBatch | None = None
    posterior: PosteriorBatch | None = None
    distill: DistillBatch | None = None
    gradients: Gradients | None = None
    source: tuple[Tensor, Tensor] | None = None
    kl_weight: float | Tensor | None = None
    distill_loss: float | Tensor | None = None
    velocity_loss: float | Tensor | None = None
    updates: Updates | None = None
    ema: Shadow | None = None
    teacher: Shadow | None = None
