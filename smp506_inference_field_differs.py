"""SMP506: a field in inference that was not trained."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class InferenceFieldDiffers(Rule):
    """The velocity that inference calls is not the one that was trained.

    Symptom: training is perfect, samples are wrong.
    Cause: another sign, factor, time or condition between the training step and `velocity=`.
    Evidence: `flow/field_mismatch` above `differs` in most steps; `flow/field_scale` and `flow/field_reversed`
    tell which difference it is.
    Fix: call the network in one way, from one function.
    Ignore when: `velocity=` is an average of the weights or uses guidance on purpose.
    Confirm: preflight: sampler
    """

    code, name = "SMP506", "inference-field-differs"
    needs = ("flow/field_mismatch",)
    kind = "velocity"
    severity = "error"
    depth = "root"
    explains = ("VEL405", "VEL406", "CND601", "SMP501", "SMP503", "SMP504")
    differs: float = 0.1  # docs/log.md, the clinic: healthy 0 to 0.02 with dropout; faults 0.6 to 2
    reversed: float = 0.05  # what remains of the difference at 1 - t
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        mismatch = run.settled("flow/field_mismatch")
        if len(mismatch) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(mismatch)), say("enable.longer"))
        test = share_above(mismatch, self.differs)
        if test.share < self.persistent:
            return Clear((test.p,))
        codes = self._causes(run, middle(mismatch))
        finding = self.finding(
            say("rule.SMP506", mismatch=middle(mismatch), scale=run.now("flow/field_scale")),
            evidence=[
                Evidence("flow/field_mismatch", middle(mismatch), self.differs, **span(mismatch)),
                *(
                    Evidence(name, run.now(name))
                    for name in ("flow/field_scale", "flow/field_reversed")
                    if len(run[name].finite)
                ),
            ],
            causes=[Cause(code) for code in codes],
            fixes=[edit("one_field")],
            certainty="likely",
            loss=run.of_kind("velocity")[0],
            p=test.p,
        )
        return Fired((finding,))

    def _causes(self, run: RunView, mismatch: float) -> list[str]:
           """What reproduces the field, by what is left of the difference."""
           scale, flipped = middle(run.settled("flow/field_scale")), middle(run.settled("flow/field_reversed"))
           ignored = abs(middle(run.settled("flow/cond_ratio")) - 1) < 1e-6
           if flipped < self.reversed:
               return ["inference-time", "time-reversed"]
           if abs(scale + 1) < 0.1:
               return ["inference-sign", "inference-formula"]
           if ignored:
               return ["inference-condition", "inference-formula"]
           # v' = a v has a mismatch of |a - 1|, seen from v.
           if abs(abs(scale - 1) - mismatch) < 0.1 * mismatch:
               return ["inference-scale", "path-derivative-missing"]
           return ["inference-formula", "path-derivative-missing", "inference-condition"]
