"""What several rules of distillation ask: whose gradient is weak, which temperature is the odd one."""

from __future__ import annotations

import math

import numpy as np

from lossdoctor.curves import Share, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Fix
from lossdoctor.rules.fixes import edit, set_knob
from lossdoctor.rules.strengths import nothing_left
from lossdoctor.rules.view import LEAST, RunView, middle

USUAL_STUDENT = 0.1
"""The student's temperature in DINO (2104.14294), for logits that are cosines; its teacher goes from 0.04 to 0.07."""

_ODD_COLD = 5.0
"""Times that the student must be below both its usual temperature and its teacher's to be the one to blame."""


def the_loss(run: RunView) -> str | None:
    """The distillation loss, where there is exactly one."""
    losses = run.of_kind("distill")
    return losses[0] if len(losses) == 1 else None


def weak_gradient(run: RunView, limit: float) -> tuple[Series, Share] | None:
    """The weighted gradient of the loss over the total, and how much of it lies below `limit`.

    None where a weak gradient would say nothing about the temperatures: it is not known; the loss has nothing left to
    learn; or it is only the weight that makes it weak.
    """
    loss = the_loss(run)
    if loss is None or nothing_left(run, loss):
        return None
    ratio = run.ratio(f"grad_weighted/{loss}", "grad/total", loss=loss)
    if len(ratio) < LEAST or middle(run.ratio(f"grad/{loss}", "grad/total", loss=loss)) >= limit:
        return None
    ratio = Series(ratio.steps, np.abs(ratio.values))
    return ratio, share_below(ratio, limit)


def temperatures(run: RunView) -> tuple[float, float]:
    """Of teacher and student, as they usually are after the warm-up; NaN where not recorded."""
    return middle(run.settled("distill/teacher_temp")), middle(run.settled("distill/student_temp"))


def cold_student(run: RunView) -> bool:
    """Whether the student's temperature is far below both what is usual and that of its teacher."""
    teacher, student = temperatures(run)
    return 0 < student * _ODD_COLD <= min(teacher, USUAL_STUDENT)


def cold_teacher(run: RunView, limit: float) -> tuple[Series, Share]:
    """The teacher's temperature over the student's, and how much of it lies below `limit`."""
    ratio = run.ratio("distill/teacher_temp", "distill/student_temp")
    return ratio, share_below(ratio, limit)


def moves(run: RunView) -> bool | None:
    """Whether the teacher follows anything; None where that was not seen."""
    moved = run["teacher/moved"].finite.values
    return bool((moved > 0).any()) if len(moved) else None


def log_prototypes(run: RunView) -> float:
    """ln K, from the shapes the doctor saw or from two entropies; NaN when neither is there."""
    told = (run.meta.get("shapes") or {}).get("prototypes")
    if isinstance(told, int) and told > 1:
        return math.log(told)
    return middle(run.ratio("ent/teacher", "ent/teacher_norm"))


def log_samples(run: RunView) -> float:
    """ln B, the most that targets can tell about the samples of a batch; NaN when no batch size was recorded."""
    told = (run.meta.get("shapes") or {}).get("batch")
    return math.log(told) if isinstance(told, int) and told > 0 else math.nan


def usual_teacher(run: RunView) -> float:
    """A temperature to try for the teacher: half of the student's, DINO's middle way."""
    _, student = temperatures(run)
    return float(f"{(student if student > 0 and not cold_student(run) else USUAL_STUDENT) / 2:.1g}")


def to_temperature(run: RunView, name: str, value: float) -> Fix:
    """Set `teacher_temp` or `student_temp`: as a knob where the script declared it, else by an edit."""
    return edit("temperature", name, value=value) if run.knob(name) is None else set_knob(name, value)
