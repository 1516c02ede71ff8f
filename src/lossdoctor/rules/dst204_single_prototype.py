"""DST204: a teacher that sends every sample to the same prototype."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.rules.distillation import (
    cold_teacher,
    log_prototypes,
    log_samples,
    the_loss,
    to_temperature,
    usual_teacher,
)
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fix, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class SinglePrototype(Rule):
    """Nearly all samples go to one prototype: the collapse that shows as a loss that falls to 0 and looks great.

    Symptom: the distillation loss goes to 0 within a few hundred steps; agreement is perfect.
    Cause: sharpening without centring: the outputs of the teacher are not centred, the centre does not move, or the
    temperature is so low that centring cannot keep up.
    Evidence: the entropy of the mean target, `ent/teacher_marginal`, under the logarithm of `effective` in most steps
    after the warm-up: the teacher uses fewer than so many prototypes. For few prototypes or few samples per batch the
    bar is `small` of the largest entropy there can be.
    Fix: subtract a running mean of the teacher's logits, or balance the assignments with Sinkhorn; raise a very low
    teacher temperature.
    Ignore when: the data really have one class, or a batch shows only one.
    Confirm: knob:teacher_temp=<half of the student's>
    """

    code, name = "DST204", "single-prototype"
    needs = ("ent/teacher_marginal",)
    explains = ("DST201", "DST202", "GRD102", "BAL801")
    effective: float = 2.0  # docs/log.md, the clinic: 1.4 to 1.8 without centring, 18 healthy, of 64
    small: float = 0.25  # of ln K or ln B: two prototypes can have no more than ln 2
    cold: float = 0.05  # as DST201
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """The mean target over the batch."""
        marginal = run.settled("ent/teacher_marginal")
        if len(marginal) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(marginal)), say("enable.longer"))
        bar = self._bar(run)
        test = share_below(marginal, bar)
        if test.share < self.persistent:
            return Clear((test.p,))
        codes = ["no-centering", "teacher-temperature-low"]
        goal = usual_teacher(run)
        fixes: list[Fix] = [edit("center_teacher"), edit("sinkhorn"), to_temperature(run, "teacher_temp", goal)]
        if cold_teacher(run, self.cold)[1].share >= self.persistent:
            codes.reverse()
            fixes.reverse()
        finding = self.finding(
            say("rule.DST204", effective=math.exp(middle(marginal)), marginal=middle(marginal), **span(marginal)),
            evidence=(Evidence("ent/teacher_marginal", middle(marginal), bar, **span(marginal)),),
            causes=[Cause(code) for code in codes],
            fixes=fixes,
            loss=the_loss(run),
            confirm=f"knob:teacher_temp={goal:g}",
            p=test.p,
        )
        return outcome([finding])

    def _bar(self, run: RunView) -> float:
        largest = (log_prototypes(run), log_samples(run))
        return min([math.log(self.effective), *(self.small * one for one in largest if one >= 0)])
