"""DST208: a teacher that is not sharper than its student."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.rules.distillation import cold_student, moves, temperatures, the_loss, to_temperature, usual_teacher
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView, span


@dataclass(frozen=True)
class TemperatureOrder(Rule):
    """The teacher's temperature is not below the student's, so that its targets do not sharpen what the student says.

    Symptom: teacher and student drift to the uniform distribution; the loss approaches ln K.
    Cause: the temperatures are swapped, or a schedule ends too high.
    Evidence: `distill/teacher_temp` above `distill/student_temp` in most steps after the warm-up. Equal temperatures
    are a warning only for a teacher that follows its student, where they let it collapse.
    Fix: the usual values are 0.04 to 0.07 for the teacher against 0.1 for the student.
    Ignore when: a frozen teacher is distilled at one temperature for both: that is the classic recipe, and only
    mentioned. A frozen teacher that is softer than its student on purpose still fires.
    Confirm: knob:teacher_temp=<half of the student's>
    """

    code, name = "DST208", "temperature-order"
    needs = ("distill/teacher_temp", "distill/student_temp")
    depth = "root"
    explains = ("DST203", "GRD102", "BAL801")
    same: float = 0.01  # relative difference; a configured temperature is exact, a half-precision one to 0.4 %
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """A fact of the configuration, so no test; schedules are why most steps are asked for."""
        ratio = run.ratio("distill/teacher_temp", "distill/student_temp")
        if not len(ratio):
            return Skipped(say("skip.short", least=1, found=0), say("enable.longer"))
        softer = float(np.mean(ratio.values > 1 + self.same)) >= self.persistent
        equal = float(np.mean(ratio.values >= 1 - self.same)) >= self.persistent
        if not equal:
            return Clear()
        teacher, student = temperatures(run)
        codes = ["teacher-temperature-high", "student-temperature-low"]
        if cold_student(run):
            codes.reverse()
        goal = usual_teacher(run)
        finding = self.finding(
            say("rule.DST208" if softer else "rule.DST208.equal", teacher=teacher, student=student, **span(ratio)),
            evidence=(Evidence("distill/teacher_temp", teacher, student, **span(ratio)),),
            causes=[Cause(code) for code in codes],
            fixes=(to_temperature(run, "teacher_temp", goal),),
            loss=the_loss(run),
            severity="warning" if softer or moves(run) else "info",
            certainty="likely",
            confirm=f"knob:teacher_temp={goal:g}",
        )
        return outcome([finding])
