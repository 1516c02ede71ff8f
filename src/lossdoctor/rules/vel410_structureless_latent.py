"""VEL410: both ends of the flow are plain noise, and the velocity has nothing to learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import scale_weight
from lossdoctor.rules.posterior import the_loss as the_kl
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import seen, settled, too_short, typical
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class StructurelessLatent(Rule):
    """The velocity has reached the error that two independent Gaussians leave: its latent carries nothing.

    Symptom: the velocity loss stops near pi/2 per dimension and no change of the network lowers it.
    Cause: the posterior has collapsed to the prior, so that the latent tells nothing about its input.
    Evidence: on the straight path between independent Gaussians of standard deviations a and b the best possible
    `flow/nmse` is (pi/2) a b / (a^2 + b^2), which is 0.785 for a = b. It is within `near` of that, and `posterior/snr`
    is under `snr`.
    Fix: lower the weight of the KL, warm it up, or give it free bits; see PST306.
    Ignore when: the posterior is informative: an error of 0.785 alone is healthy, and is not judged without it.
    Confirm: weight:<kl>*0.1
    """

    code, name = "VEL410", "structureless-latent"
    needs = ("flow/nmse", "posterior/snr")
    depth = "consequence"
    explains = ("CND601",)
    near: float = 0.05  # docs/log.md, the clinic: 0.02 with a collapsed posterior
    snr: float = 0.01  # docs/log.md, the clinic: collapsed 6e-6, healthy 0.16 and more

    def check(self, run: RunView) -> Outcome:
        """Where both curves have settled."""
        nmse, snr = settled(run, "nmse"), run.settled("posterior/snr")
        if (short := too_short(nmse)) is not None:
            return short
        floor = gaussian_floor(typical(run, "z0_std"), typical(run, "z1_std"))
        off = Series(nmse.steps, np.abs(nmse.values - floor))
        if not (middle(off) <= self.near * floor and middle(snr) < self.snr):
            return Clear()
        kl = the_kl(run)
        finding = self.finding(
            say("rule.VEL410", nmse=middle(nmse), floor=floor, snr=middle(snr), **span(nmse)),
            evidence=(
                Evidence("flow/nmse", middle(nmse), floor, **span(nmse)),
                Evidence("posterior/snr", middle(snr), self.snr, **span(snr)),
                *seen(run, "cos"),
            ),
            causes=(Cause("kl-too-strong"),),
            fixes=(scale_weight(kl, 0.1),) if kl else (),
            confirm=f"weight:{kl}*0.1" if kl else None,
        )
        return outcome([finding])


def gaussian_floor(a: float, b: float) -> float:
    """The least nmse of the straight path between independent Gaussians of these standard deviations.

    pi/4, of two equal ones, where they are not known.
    """
    if not (0 < a < 1e100 and 0 < b < 1e100):
        return math.pi / 4
    ratio = min(a, b) / max(a, b)
    return math.pi / 2 * ratio / (1 + ratio * ratio)
