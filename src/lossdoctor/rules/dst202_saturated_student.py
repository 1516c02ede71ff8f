"""DST202: a softmax of the student that is saturated by its temperature."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.record import Series
from lossdoctor.rules.distillation import (
    USUAL_STUDENT,
    cold_student,
    temperatures,
    the_loss,
    to_temperature,
    weak_gradient,
)
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import scale_weight
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import too_small
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class SaturatedStudent(Rule):
    """The student's softmax is saturated, so that the distillation no longer teaches it.

    Symptom: the distillation loss starts far above ln K, or stands still far above the entropy of the teacher.
    Cause: the student temperature is too low for its logits, or its weight is too small to bring it back.
    Evidence: `ent/student_norm` under `floor` in most steps and a gradient of the loss under `weak` of the total, not
    for its weight; or a `distill/student_temp` at most a fifth of both 0.1, the usual one, and the teacher's. Then the
    entropy is not asked: a student that follows a much warmer teacher flattens all its logits, and a teacher that is
    its average becomes uniform.
    Fix: raise the student temperature; or raise the weight of the distillation.
    Ignore when: the student says what a confident teacher says. Nothing is left to learn then, and this stays silent.
    Confirm: knob:student_temp=0.1
    """

    code, name = "DST202", "saturated-student"
    needs = ("ent/student_norm",)
    kind = "distill"
    explains = ("DST203", "DST208", "GRD102", "GRD103", "BAL801", "OPT704")
    floor: float = 0.02  # as DST201
    weak: float = given(0.05)  # the method's limit of an error of GRD102
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """The temperature first: it is certain."""
        entropy = run.settled("ent/student_norm")
        if cold_student(run):
            return self._cold(run)
        if len(entropy) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(entropy)), say("enable.longer"))
        gradient = weak_gradient(run, self.weak)
        saturated = share_below(entropy, self.floor)
        if gradient is None:
            return Clear()
        p = max(saturated.p, gradient[1].p)
        if min(saturated.share, gradient[1].share) < self.persistent:
            return Clear((p,))
        return self._saturated(run, entropy, gradient[0], p)

    def _cold(self, run: RunView) -> Outcome:
        teacher, student = temperatures(run)
        where = span(run.settled("distill/student_temp"))
        finding = self.finding(
            say("rule.DST202.cold", student=student, teacher=teacher, factor=teacher / student, usual=USUAL_STUDENT),
            evidence=(
                Evidence("distill/student_temp", student, USUAL_STUDENT, **where),
                Evidence("distill/teacher_temp", teacher, None, **where),
            ),
            causes=(Cause("student-temperature-low"), Cause("teacher-temperature-high")),
            fixes=(to_temperature(run, "student_temp", USUAL_STUDENT),),
            loss=the_loss(run),
            certainty="likely",
            confirm=f"knob:student_temp={USUAL_STUDENT:g}",
        )
        return outcome([finding])

    def _saturated(self, run: RunView, entropy: Series, gradient: Series, p: float) -> Outcome:
        loss = the_loss(run) or ""
        total = middle(run.settled("grad/total"))
        student = temperatures(run)[1]
        goal = 2 * student if student > USUAL_STUDENT / 2 else USUAL_STUDENT
        finding = self.finding(
            say("rule.DST202", norm=middle(entropy), loss=loss, percent=100 * middle(gradient), **span(entropy)),
            evidence=(
                Evidence("ent/student_norm", middle(entropy), self.floor, **span(entropy)),
                Evidence(f"grad_weighted/{loss}", middle(gradient) * total, self.weak * total, **span(gradient)),
            ),
            causes=(Cause("student-temperature-low"), too_small(loss or None)),
            fixes=(to_temperature(run, "student_temp", goal), scale_weight(loss, 4.0)),
            loss=loss,
            confirm=f"knob:student_temp={goal:g}",
            p=p,
        )
        return outcome([finding])
