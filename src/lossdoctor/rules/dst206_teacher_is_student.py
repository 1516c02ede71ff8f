"""DST206: teacher and student are one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossdoctor.rules.distillation import moves, the_loss
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView, span


@dataclass(frozen=True)
class TeacherIsStudent(Rule):
    """The teacher is the student: the same object, shared parameters, or a copy that is renewed at every step.

    Symptom: none for sure. The loss can fall to 0, since the student agrees with itself.
    Cause: `teacher = student` instead of a deep copy; a deep copy whose parameters were tied again; a momentum of 0.
    Evidence: the audit finds parameters of the teacher in the memory of trained ones; or `teacher/distance` is exactly
    0 at all of at least `least` measured steps while the teacher moves.
    Fix: `copy.deepcopy(student).requires_grad_(False)`, updated with a momentum near 1.
    Ignore when: a few parameters are shared on purpose, such as a frozen patch embedding that is trained elsewhere.
    That is a warning; all of them is an error.
    Confirm: teacher/distance is above 0 once the teacher is a copy
    """

    code, name = "DST206", "teacher-is-student"
    needs = ("teacher/distance or audit:teacher",)
    depth = "root"
    explains = ("DST201", "DST202", "DST203", "DST204", "DST205", "DST207", "GRD102", "BAL801")
    least: int = 3  # exactly 0 after an update is no coincidence

    def check(self, run: RunView) -> Outcome:
        """The audit, else the distance."""
        facts = run.facts.get("teacher") or {}
        if (finding := self.shared(facts)) is not None:
            return outcome([replace(finding, loss=the_loss(run))])
        distance = run["teacher/distance"].finite
        # A copy of a student that learns nothing stays equal to it, and is a copy.
        if len(distance) >= self.least and not distance.values.any() and moves(run):
            told = Evidence("teacher/distance", 0.0, 0.0, **span(distance))
            finding = self._finding("rule.DST206.equal", told, "warning", count=len(distance))
            return outcome([replace(finding, loss=the_loss(run))])
        if not facts and len(distance) < self.least:
            return Skipped(say("skip.short", least=self.least, found=len(distance)), say("enable.longer"))
        return Clear()

    def shared(self, teacher: Mapping[str, Any]) -> Finding | None:
        """What an audit of the teacher says: that all of it, or a part, lies in the memory of trained parameters."""
        aliased, parameters = int(teacher.get("aliased") or 0), int(teacher.get("parameters") or 0)
        if not aliased:
            return None
        whole = aliased >= parameters
        return self._finding(
            "rule.DST206" if whole else "rule.DST206.partly",
            Evidence("audit/teacher/aliased", float(aliased), 0.0),
            "error" if whole else "warning",
            aliased=aliased,
            parameters=parameters,
        )

    def _finding(self, sentence: str, told: Evidence, severity: Severity, **params: int) -> Finding:
        return self.finding(
            say(sentence, **params),
            evidence=(told,),
            causes=(Cause("teacher-is-student"),),
            fixes=(edit("copy_teacher"),),
            severity=severity,
            certainty="likely",
            confirm="teacher/distance",
        )
