"""DST203: a teacher that says everything at once, the same of every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.curves import ends, share_above, share_below, trend
from lossdoctor.record import Series
from lossdoctor.rules.distillation import (
    cold_student,
    log_prototypes,
    moves,
    temperatures,
    the_loss,
    to_temperature,
    usual_teacher,
)
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Fix, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class UniformTeacher(Rule):
    """The teacher's targets are uniform and carry no information: the collapse that shows as a loss pinned at ln K.

    Symptom: the distillation loss is a strange constant, 8.3178 for 4,096 prototypes, 11.0904 for 65,536.
    Cause: the teacher temperature is too high, not below the student's; or with usual temperatures the logits
    themselves have shrunk, `distill/max_logit_over_temp` under `shrunk` of what it was, because nothing holds the scale
    of features and prototypes; or an unstable start, a last layer that moves too early, a teacher that was never
    trained.
    Evidence: `ent/teacher_norm` above `ceiling` and `ent/teacher_mi` under `mi_floor` in most steps after the warm-up,
    without a way out: the information is not rising to `escape` times what it was. Usage of the prototypes and linear
    probes can still look healthy.
    Fix: lower the teacher temperature below the student's, warm it up from 0.04, keep the last layer still in the first
    epoch; where the logits have shrunk, normalise features and prototypes and do not train their scale.
    Ignore when: the run is still in its first steps. A start just above ln K is normal, and a teacher that is leaving
    it does not fire.
    Confirm: knob:teacher_temp=<half of the student's>
    """

    code, name = "DST203", "uniform-teacher"
    needs = ("ent/teacher_norm", "ent/teacher_mi")
    explains = ("GRD102", "BAL801")
    ceiling: float = 0.98  # docs/log.md, the clinic: above 0.993 where collapsed, 0.92 and falling in healthy starts
    mi_floor: float = 0.05  # nats; docs/log.md, the clinic: under 0.03 where collapsed, above 0.1 in healthy starts
    escape: float = 2.0  # docs/log.md, the clinic: a distillation at 1e-4 of its weight still made 10 times as much
    in_order: float = 0.8  # times the student's temperature; DINO's 0.04 to 0.07 against 0.1
    shrunk: float = 0.25  # share of their size that is left of the logits; docs/log.md, 9: 0.1 where they had collapsed
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Flat, the same for all, and staying so."""
        flatness, told = run.settled("ent/teacher_norm"), run.settled("ent/teacher_mi")
        if len(flatness) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(flatness)), say("enable.longer"))
        flat, same = share_above(flatness, self.ceiling), share_below(told, self.mi_floor)
        p = max(flat.p, same.p)
        if min(flat.share, same.share) < self.persistent or self._leaving(told):
            return Clear((p,))
        return outcome([self._finding(run, flatness, told, p)])

    def _leaving(self, told: Series) -> bool:
        way = trend(told, skip=0.0)
        return way.direction == "up" and way.last > self.escape * way.first

    def _finding(self, run: RunView, flatness: Series, told: Series, p: float) -> Finding:
        loss, most = the_loss(run), log_prototypes(run)
        value = run.now(f"loss/{loss}") if loss else math.nan
        pinned = abs(value - most) <= 0.02 * most
        teacher, student = temperatures(run)
        # A teacher that is at the usual temperature already must go below it.
        goal = float(f"{min(usual_teacher(run), teacher / 2 if teacher > 0 else math.inf):.1g}")
        shrunk = self._shrunk(run, teacher, student)
        fixes: list[Fix] = (
            [edit("hold_prototype_scale")]
            if shrunk
            else [to_temperature(run, "teacher_temp", goal), edit("warm_up_teacher_temp")]
        )
        fixes.append(edit("freeze_last_layer"))
        return self.finding(
            say(
                "rule.DST203.pinned" if pinned else "rule.DST203",
                norm=middle(flatness),
                mi=middle(told),
                value=value,
                most=most,
                **span(flatness),
            ),
            evidence=(
                Evidence("ent/teacher_norm", middle(flatness), self.ceiling, **span(flatness)),
                Evidence("ent/teacher_mi", middle(told), self.mi_floor, **span(told)),
            ),
            causes=self._causes(run, shrunk=shrunk),
            fixes=fixes,
            loss=loss,
            confirm=f"knob:teacher_temp={goal:g}",
            p=p,
        )

    def _shrunk(self, run: RunView, teacher: float, student: float) -> bool:
        """Whether the temperatures are in order and the logits are what became small."""
        first, last = ends(run["distill/max_logit_over_temp"].values)
        return teacher < self.in_order * student and last < self.shrunk * first

    def _causes(self, run: RunView, *, shrunk: bool) -> tuple[Cause, ...]:
        teacher, student = temperatures(run)
        codes = ["teacher-temperature-high", "unstable-training"]
        if shrunk:
            codes = ["logits-shrunk", *reversed(codes)]
        if moves(run) is False and teacher < student:
            codes.insert(0, "teacher-not-updated")
        if cold_student(run):
            codes.insert(0, "student-temperature-low")
        return tuple(map(Cause, codes))
