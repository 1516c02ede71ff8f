"""VEL410: a flow between two clouds without structure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.curves import share_above, share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import scale_weight
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class StructurelessLatent(Rule):
    """The flow leads between two clouds that know nothing of each other.

    Symptom: the velocity loss stops at pi/2 per dimension.
    Cause: the posterior has collapsed: its sample carries nothing about the input.
    Evidence: `flow/nmse` within `near` of pi/4 in most steps while `posterior/snr` is below `snr`: the values of
    independent unit Gaussians.
    Fix: see posterior-collapse: less KL, a warm-up, free bits.
    Ignore when: source and data are meant to be independent Gaussians.
    Confirm: weight:<kl>*0.1
    """

    code, name = "VEL410", "structureless-latent"
    needs = ("flow/nmse", "posterior/snr")
    kind = "velocity"
    depth = "consequence"
    near: float = 0.02  # of pi/4 = 0.785, the floor between independent unit Gaussians
    snr: float = 0.01  # docs/log.md, the clinic: collapsed under 0.001
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        nmse = run.settled("flow/nmse")
        if len(nmse) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(nmse)), say("enable.longer"))
        above, below = share_above(nmse, math.pi / 4 - self.near), share_below(nmse, math.pi / 4 + self.near)
        inside = min(above.share, below.share) >= self.persistent
        if not inside or not middle(run.settled("posterior/snr")) < self.snr:
            return Clear((max(above.p, below.p),))
        finding = self.finding(
            say("rule.VEL410", nmse=middle(nmse)),
            evidence=[
                Evidence("flow/nmse", middle(nmse), math.pi / 4, **span(nmse)),
                Evidence("posterior/snr", middle(run.settled("posterior/snr")), self.snr),
            ],
            causes=[Cause("kl-too-strong")],
            fixes=[scale_weight(loss, 0.1) for loss in run.of_kind("kl")[:1]],
            loss=run.of_kind("velocity")[0],
            p=max(above.p, below.p),
        )
        return Fired((finding,))
