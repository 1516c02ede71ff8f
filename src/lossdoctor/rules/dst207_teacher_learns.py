"""DST207: a teacher that is set up like something to be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossdoctor.rules.distillation import the_loss
from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class TeacherLearns(Rule):
    """The teacher requires gradients, or runs in training mode.

    Symptom: memory and time for gradients nobody needs; targets that differ from one forward to the next; a teacher
    that runs after its student.
    Cause: `requires_grad_(False)` or `eval()` is missing, or `model.train()` undoes the latter every epoch because the
    teacher is registered inside the model.
    Evidence: the audit counts parameters of the teacher that require gradients, an error when they are in an optimizer
    too; and submodules in training mode that behave differently in it: dropout, batch norm, stochastic depth.
    Fix: `teacher.requires_grad_(False).eval()`, a forward under `no_grad`, and a `train()` that keeps it so.
    Ignore when: batch norm with batch statistics is part of the method, as in MoCo and BYOL, or dropout is, as in Mean
    Teacher. A teacher without such modules may be in training mode, as in DINO, and does not fire.
    Confirm: the next audit
    """

    code, name = "DST207", "teacher-learns"
    needs = ("audit:teacher",)
    depth = "root"

    def check(self, run: RunView) -> Outcome:
        """Two facts, each a finding of its own."""
        told = self.set_up(run.facts.get("teacher") or {})
        return outcome([replace(finding, loss=the_loss(run)) for finding in told])

    def set_up(self, teacher: Mapping[str, Any]) -> Iterator[Finding]:
        """What an audit of the teacher says."""
        if count := int(teacher.get("requires_grad") or 0):
            learning = bool(teacher.get("in_optimizer"))
            yield self.finding(
                say("rule.DST207.optimizer" if learning else "rule.DST207", count=count),
                evidence=(Evidence("audit/teacher/requires_grad", float(count), 0.0),),
                causes=(Cause("teacher-trainable"),),
                fixes=(edit("freeze_teacher"),),
                subject="requires_grad",
                severity="error" if learning else "warning",
                certainty="likely",
            )
        if count := int(teacher.get("training") or 0):
            yield self.finding(
                say("rule.DST207.mode", count=count),
                evidence=(Evidence("audit/teacher/training", float(count), 0.0),),
                causes=(Cause("teacher-in-train-mode"),),
                fixes=(edit("teacher_eval"),),
                subject="mode",
                certainty="likely",
            )
