"""DST201: targets so sharp that there is nothing soft left to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lossdoctor.curves import Share, share_below
from lossdoctor.record import Series
from lossdoctor.rules.distillation import (
    cold_teacher,
    log_samples,
    temperatures,
    the_loss,
    to_temperature,
    usual_teacher,
    weak_gradient,
)
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import LEAST, RunView, middle, span


class _Reason(NamedTuple):
    """Why sharpness is bad here: the sentence, the metric, its curve in its own unit over `unit`, and the test."""

    sentence: str
    metric: str
    curve: Series
    threshold: float
    unit: float
    test: Share


@dataclass(frozen=True)
class SharpTeacher(Rule):
    """The targets of the teacher are one-hot, and that is more than confidence.

    Symptom: the distillation loss falls early and then nothing moves, or it jumps about.
    Cause: the teacher temperature is too low, or centring is off.
    Evidence: `ent/teacher_norm` under `floor` in most steps, and one of three things: a teacher temperature under
    `cold` of the student's; `ent/teacher_mi` under `mi_floor`, so that every sample gets the same target; a gradient of
    the loss under `weak` of the total, and not for its weight. The first is wrong by construction, whatever the targets
    tell about the samples: all that a teacher knows beside its first choice is gone, and the distillation has become a
    classification of its own labels.
    Fix: raise the teacher temperature; check the centring.
    Ignore when: entropy is low and `ent/teacher_mi` is high at a usual temperature: confident and informative is
    healthy, and does not fire. Nor does a student that already says what its teacher says. Hard pseudo-labels fire,
    also when they are meant.
    Confirm: knob:teacher_temp=<half of the student's>
    """

    code, name = "DST201", "sharp-teacher"
    needs = ("ent/teacher_norm", "ent/teacher_mi")
    explains = ("GRD102", "BAL801")
    floor: float = given(0.02)  # the method's; a healthy demo ends at 0.016, so it does not decide alone
    mi_floor: float = 0.05  # nats; docs/log.md, the clinic: 2 to 3 healthy, under 0.03 where targets are all alike
    weak: float = given(0.05)  # the method's limit of an error of GRD102
    cold: float = 0.05  # docs/log.md, the clinic: 0.4 to 0.7 in DINO, 0.01 in the faulty program
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Sharp, and for a bad reason."""
        sharpness = run.settled("ent/teacher_norm")
        if len(sharpness) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(sharpness)), say("enable.longer"))
        sharp = share_below(sharpness, self.floor)
        reasons = self._reasons(run)
        p = max(sharp.p, min(1.0, len(reasons) * min((reason.test.p for reason in reasons), default=1.0)))
        met = [reason for reason in reasons if reason.test.share >= self.persistent]
        if sharp.share < self.persistent or not met:
            return Clear((p,))
        return outcome([self._finding(run, sharpness, met[0], p)])

    def _reasons(self, run: RunView) -> list[_Reason]:
        """Those that can be judged here, the surest first."""
        found = []
        ratio, cold = cold_teacher(run, self.cold)
        if len(ratio):
            student = temperatures(run)[1]
            found.append(_Reason("rule.DST201.cold", "distill/teacher_temp", ratio, self.cold, student, cold))
        told = run.settled("ent/teacher_mi")
        if log_samples(run) != 0:  # of one sample every target is like the others
            same = share_below(told, self.mi_floor)
            found.append(_Reason("rule.DST201", "ent/teacher_mi", told, self.mi_floor, 1.0, same))
        if (gradient := weak_gradient(run, self.weak)) is not None:
            loss, total = the_loss(run), middle(run.settled("grad/total"))
            found.append(
                _Reason("rule.DST201.weak", f"grad_weighted/{loss}", gradient[0], self.weak, total, gradient[1])
            )
        return found

    def _finding(self, run: RunView, sharpness: Series, reason: _Reason, p: float) -> Finding:
        value, where = middle(reason.curve), span(reason.curve)
        goal = usual_teacher(run)
        return self.finding(
            say(
                reason.sentence,
                norm=middle(sharpness),
                value=value,
                percent=100 * value,
                temperature=temperatures(run)[0],
                **span(sharpness),
            ),
            evidence=(
                Evidence("ent/teacher_norm", middle(sharpness), self.floor, **span(sharpness)),
                Evidence(reason.metric, value * reason.unit, reason.threshold * reason.unit, **where),
            ),
            causes=(Cause("teacher-temperature-low"), Cause("no-centering")),
            fixes=(to_temperature(run, "teacher_temp", goal), edit("center_teacher")),
            loss=the_loss(run),
            confirm=f"knob:teacher_temp={goal:g}",
            p=p,
        )
