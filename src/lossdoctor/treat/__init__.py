"""Cures: balancers of losses, schedules, parameter groups, time samplers.

Nothing here touches a graph. A balancer is told inner products of gradients and answers with factors on the weights.
"""

from __future__ import annotations

from collections.abc import Callable

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.conflict_free import ConFIG
from lossdoctor.treat.cosine import CosineWeighting
from lossdoctor.treat.gradnorm import GradNorm
from lossdoctor.treat.groups import Audit, Groups, audit, param_groups, table
from lossdoctor.treat.measured import Measured, measured
from lossdoctor.treat.pcgrad import PCGrad
from lossdoctor.treat.ratio import RatioController
from lossdoctor.treat.scheduled import at_step, scheduled
from lossdoctor.treat.schedules import BetaTarget, Cyclical, Ramp, WarmUp, free_bits, teacher_warm_up
from lossdoctor.treat.times import LossAdaptive
from lossdoctor.treat.torchjd import Weighted, Weighting

__all__ = [
    "BALANCERS", "Advice", "Audit", "Balancer", "BetaTarget", "ConFIG", "CosineWeighting", "Cyclical", "GradNorm",
    "Groups", "LossAdaptive", "Measured", "PCGrad", "Ramp", "RatioController", "WarmUp", "Weighted", "Weighting",
    "at_step", "audit", "balancer", "free_bits", "measured", "param_groups", "scheduled", "table", "teacher_warm_up",
]  # fmt: skip

BALANCERS: dict[str, Callable[[], Balancer]] = {
    "config": ConFIG,
    "cosine": CosineWeighting,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "ratio": RatioController,
}


def balancer(wanted: str | Balancer | Weighting) -> Balancer:
    """A balancer by its name, as it is, or from a function of the Gram such as a weighting of torchjd.

    Raises UsageError for another name.
    """
    if isinstance(wanted, Balancer):
        return wanted
    if not isinstance(wanted, str) and callable(wanted):
        return Weighted(wanted)
    if wanted not in BALANCERS:
        raise UsageError(
            mismatch("balance= names a balancer", ", ".join(map(repr, BALANCERS)), repr(wanted), "use one of these")
        )
    return BALANCERS[wanted]()
