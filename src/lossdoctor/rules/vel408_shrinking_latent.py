"""VEL408: the velocity loss makes its own target smaller."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.curves import ends, share_above, trend
from lossdoctor.rules.finding import Cause, Clear, Evidence, Message, Outcome, outcome, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import seen, settled, the_loss, too_short, typical
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class ShrinkingLatent(Rule):
    """The velocity loss reaches the latents it is to predict, and makes them smaller.

    Symptom: the velocity loss falls fast and looks excellent, while reconstructions get worse.
    Cause: z1 is trained through the target and the path: a smaller latent is easier to predict.
    Evidence: the gradient of the velocity loss on z1 (`flow/source_gradient`) pulls towards 0 in most steps, and
    `flow/z1_std` falls by more than `shrink` of where it began, away from the scale of the source.
    Fix: detach z1 before it enters the path, or normalise it (batch norm without scale), or leave its scale to the KL.
    Ignore when: the scale is meant to be learned and another loss holds it. Latents that come down to the scale of the
    source and stay there are healthy.
    Confirm: detach z1, and flow/z1_std stays
    """

    code, name = "VEL408", "shrinking-latent"
    needs = ("flow/z1_std", "flow/source_gradient")
    explains = ("VEL407",)
    shrink: float = 0.2  # docs/log.md, the clinic: with a detached z1 it changes by at most 0.1, without 0.6 and more
    near: float = 0.8  # of the scale of the source: latents that end above it have only found that scale
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def beside_the_point(self, run: RunView) -> Message | None:
        """Both ends were handed in, and z1 has no gradient."""
        return say("skip.fixed_latent") if "flow/z1_std" in run else None

    def check(self, run: RunView) -> Outcome:
        """From the first step on: the latent shrinks before a warm-up is over."""
        pull, std = settled(run, "source_gradient"), run["flow/z1_std"].finite
        if (short := too_short(pull)) is not None:
            return short
        first, last = ends(std.values)
        source = typical(run, "z0_std")
        goal = source if 0 < source < math.inf else 1.0
        course, pulled = trend(std, skip=0.0), share_above(pull, 0.0)
        lost = 1 - last / first if first > 0 else 0.0
        small = last < self.near * goal or last > goal / self.near
        if course.direction != "down" or lost <= self.shrink or not small or pulled.share < self.persistent:
            return Clear((pulled.p,))
        loss = the_loss(run)
        finding = self.finding(
            say("rule.VEL408", first=first, last=last, percent=100 * lost, **span(std)),
            evidence=(
                Evidence("flow/z1_std", last, (1 - self.shrink) * first, **span(std)),
                Evidence("flow/source_gradient", middle(pull), 0.0, **span(pull)),
                *seen(run, "nmse"),
            ),
            causes=(Cause("trainable-target"),),
            fixes=(edit("detach_target"), *((ablate(f"without:{loss}"),) if loss else ())),
            loss=loss,
            certainty="likely",
            confirm=f"without:{loss}" if loss else None,
            p=pulled.p,
        )
        return outcome([finding])
