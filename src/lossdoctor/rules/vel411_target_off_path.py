"""VEL411: a velocity target that is not the derivative of the path it is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import (
    DIFFERS,
    seen,
    settled,
    target_codes,
    target_resembles,
    the_loss,
    too_short,
    typical,
)
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class TargetOffPath(Rule):
    """The velocity target is not the derivative of the path that x_t lies on.

    Symptom: the loss falls as it should, and sampling ends somewhere else.
    Cause: the sign is flipped; the path is curved and the target is that of the straight one; the target is the data
    or the noise itself, and sampling takes it for a velocity.
    Evidence: x_t fits a known path of z0, z1 and t, and `flow/target_mismatch`, the distance of the target from
    d x_t / dt relative to the target, is above `mismatch` in most steps. `flow/target_scale` tells the factor between
    them: -1 is the sign.
    Fix: make x_t and v_target from one function, for example `lossdoctor.flow.Linear().sample`.
    Ignore when: the network is meant to predict something else, and sampling converts it. Then hand the converted
    velocity and its target to `lossdoctor.flow`.
    Confirm: flow/target_mismatch is 0 once this is right
    """

    code, name = "VEL411", "target-off-path"
    needs = ("flow/target_mismatch",)
    severity, depth = "error", "root"
    explains = ("VEL401", "VEL402", "VEL403", "SMP501", "SMP503", "SMP504", "SMP506")
    mismatch: float = DIFFERS  # docs/log.md, the clinic: healthy 0 to 1e-7, mistakes 0.49 and more
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """One test, and the name of what the target is instead."""
        curve = settled(run, "target_mismatch")
        if (short := too_short(curve)) is not None:
            return short
        test = share_above(curve, self.mismatch)
        if test.share < self.persistent:
            return Clear((test.p,))
        loss = the_loss(run)
        codes = target_codes(run) or ("target-formula",)
        what = "sign" if codes[0] == "target-sign" else target_resembles(run)
        sentence = f"rule.VEL411.{what}" if what in ("sign", "straight", "data", "noise", "end") else "rule.VEL411"
        finding = self.finding(
            say(sentence, mismatch=middle(curve), scale=typical(run, "target_scale"), **span(curve)),
            evidence=(
                Evidence("flow/target_mismatch", middle(curve), self.mismatch, **span(curve)),
                *seen(run, "target_scale", 1.0),
                *seen(run, "mse_zero"),
            ),
            causes=causes_of(codes),
            fixes=(edit("flip_target" if what == "sign" else "target_from_path", loss or "flow"),),
            loss=loss,
            certainty="likely",
            confirm="flow/target_mismatch",
            p=test.p,
        )
        return outcome([finding])
