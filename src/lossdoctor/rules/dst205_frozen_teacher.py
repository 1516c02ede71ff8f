"""DST205: a teacher that should follow the student and stands still."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import trend
from lossdoctor.rules.distillation import the_loss
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, span


@dataclass(frozen=True)
class FrozenTeacher(Rule):
    """The teacher began as a copy of the student and never moves, while the student leaves it.

    Symptom: the student learns what an untrained network says, and then the loss stands still.
    Cause: the update of the teacher is never called, or called on another object.
    Evidence: `teacher/moved` is exactly 0 at `still` of the measured steps or more, `teacher/distance` rises and is at
    least `grown` times what it was at the first measurement. Distance is there only for a teacher with the student's
    architecture.
    Fix: move every parameter of the teacher towards the student's after each optimizer step.
    Ignore when: the teacher is pretrained and frozen on purpose. With an architecture or weights of its own it does not
    fire; when the student itself began from the weights of a frozen teacher, it does.
    Confirm: teacher/moved is above 0 once the update is called
    """

    code, name = "DST205", "frozen-teacher"
    needs = ("teacher/moved", "teacher/distance")
    depth = "root"
    explains = ("DST201", "DST203", "DST204", "GRD102", "BAL801")
    still: float = 0.75  # most of the measured steps
    grown: float = 2.0  # docs/log.md, the clinic: 16 times in 400 steps; below 1 for a teacher that follows

    def check(self, run: RunView) -> Outcome:
        """Still on one side, moving on the other."""
        moved, distance = run["teacher/moved"].finite, run["teacher/distance"].finite
        if len(moved) < LEAST or len(distance) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=min(len(moved), len(distance))), say("enable.longer"))
        share = float((moved.values == 0).mean())
        first, way = float(distance.values[0]), trend(distance, skip=0.0)
        if share < self.still or way.direction != "up" or way.last < self.grown * first:
            return Clear()
        finding = self.finding(
            say("rule.DST205", percent=100 * share, first=first, last=way.last, **span(moved)),
            evidence=(
                Evidence("teacher/moved", 0.0, 0.0, **span(moved)),
                Evidence("teacher/distance", way.last, first, **span(distance)),
            ),
            causes=(Cause("teacher-not-updated"),),
            fixes=(edit("update_teacher"),),
            loss=the_loss(run),
            certainty="likely",
            confirm="teacher/moved",
        )
        return outcome([finding])
