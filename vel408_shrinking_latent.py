"""VEL408: latents that the velocity loss shrinks."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import trend
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, span

@dataclass(frozen=True)
class ShrinkingLatent(Rule):
    """The velocity loss shrinks the latents it is to reach, because that lowers the loss.

    Symptom: the velocity loss falls fast, the reconstruction gets worse.
    Cause: z1 requires grad: the loss trains its own target.
    Evidence: `flow/source_gradient` is there and `flow/z1_std` falls by more than `fallen` after the warm-up.
    Fix: detach z1, or normalise it to a fixed scale.
    Ignore when: the latent is meant to shrink, as under a growing KL.
    Confirm: without:<velocity loss>
    """

    code, name = "VEL408", "shrinking-latent"
    needs = ("flow/z1_std", "flow/source_gradient")
    kind = "velocity"
    depth = "root"
    explains = ("VEL407", "PST305", "PST306", "SMP504")
    fallen: float = 0.2  # docs/log.md, the clinic: detached targets move by less than 2 %

    def check(self, run: RunView) -> Outcome:
        std = run["flow/z1_std"].finite
        if len(std) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(std)), say("enable.longer"))
        course = trend(std, skip=0.0)
        if course.direction != "down" or course.last > (1 - self.fallen) * course.first:
            return Clear((course.p,))
        finding = self.finding(
            say("rule.VEL408", first=course.first, last=course.last),
            evidence=[Evidence("flow/z1_std", course.last, (1 - self.fallen) * course.first, **span(std))],
            causes=[Cause("trainable-target")],
            fixes=[edit("detach_target")],
            loss=run.of_kind("velocity")[0],
            p=course.p,
        )
        return Fired((finding,))
