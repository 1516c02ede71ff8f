"""Are the teacher's targets worth learning, and is the student learning them?

p_T = softmax((teacher_logits - center) / teacher_temp), p_S = softmax(student_logits / student_temp); rows are samples.
The cross-entropy has the teacher's entropy as its floor, so a loss that stands still there has nothing left to learn.
A sharp teacher is healthy while it says different things about different samples (`ent/teacher_mi`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, mismatch
from lossdoctor.metrics.reading import Maybe, Readings, metric, widened
from lossdoctor.metrics.rows import same_shape
from lossdoctor.probe.snapshot import DistillBatch

# The eigenvalues of 256 rows take 15 ms on one core and grow with the cube; the rank is bounded by the rows anyway.
_RANK_ROWS = 256

_LOG_OF_ZERO = -1e30
# In nats: below it a loss computed in float32 is off by more than 1 %.
_SMALLEST_LOSS = 1e-5


def check(teacher_logits: Tensor, student_logits: Tensor, *, center: Tensor | None = None) -> None:
    """Raise ShapeError unless the logits are (..., K) of one shape and the centre has K numbers. Never synchronises."""
    same_shape(
        "Row i of the teacher belongs to row i of the student.",
        "Hand in pairs of views: repeat the teacher's rows where several student views learn from one teacher view.",
        teacher_logits=teacher_logits,
        student_logits=student_logits,
    )
    classes = teacher_logits.shape[-1]
    if center is not None and (center.numel() != classes or center.shape[-1:] != (classes,)):
        got = f"a centre of shape {tuple(center.shape)}"
        todo = "Pass the running mean of the teacher's logits."
        raise ShapeError(mismatch("The centre is one number per class.", f"({classes},)", got, todo))


@metric
def entropies(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_temp: float | Tensor,
    student_temp: float | Tensor,
    center: Tensor | None = None,
    *,
    loss: float | Tensor | None = None,
) -> Readings:
    """How sharp, how informative, and how far apart teacher and student are.

    teacher_logits, student_logits: (..., K), same shape. Temperatures: positive numbers or 0-d tensors. center: (K,) or
    (1, K). loss: the distillation loss as trained, 0-d. Keys, in nats:
    `ent/teacher`, `ent/student`: mean over rows of -sum p ln p, in [0, ln K]. `ent/teacher_norm`, `ent/student_norm`:
    the same / ln K, in [0, 1], absent for K = 1.
    `ent/teacher_marginal`: entropy of the mean row; `ent/teacher_marginal_norm`: the same / ln K, in [0, 1], absent for
    K = 1. `ent/teacher_mi` = marginal - mean, >= 0: the information that the teacher carries about the sample; 0 is
    collapse.
    `distill/kl` = CE(p_T, p_S) - `ent/teacher`, >= 0: what is left to learn.
    `distill/loss_ratio` = loss / CE(p_T, p_S), 1 for the cross-entropy itself; absent without loss and for CE < 1e-5.
    Nothing for an empty batch. Logits of -inf are masked classes; NaN stays NaN. Raises ShapeError as `check`.
    """
    check(teacher_logits, student_logits, center=center)
    teacher, student = _scaled(teacher_logits, teacher_temp, center), _scaled(student_logits, student_temp)
    return _entropies(teacher, student, loss) if teacher.numel() else {}


def _scaled(logits: Tensor, temperature: float | Tensor, center: Tensor | None = None) -> Tensor:
    """What the softmax sees: (rows, K), float32 or wider."""
    rows = widened(logits).reshape(-1, logits.shape[-1]) if logits.numel() else widened(logits).new_zeros(0, 1)
    if center is not None:
        rows = rows - widened(center).reshape(-1)
    return rows / (widened(temperature).reshape(()) if isinstance(temperature, Tensor) else temperature)


def _entropies(teacher: Tensor, student: Tensor, loss: float | Tensor | None) -> Readings:
    log_teacher, log_student = teacher.log_softmax(-1), student.log_softmax(-1)
    p_teacher, p_student = log_teacher.exp(), log_student.exp()
    in_teacher, in_student = _entropy(p_teacher, log_teacher).mean(), _entropy(p_student, log_student).mean()
    mean_row = p_teacher.mean(0)
    marginal = _entropy(mean_row, mean_row.log())
    # A class that the teacher rules out costs nothing, also where the student gives it probability 0.
    cross = -torch.where(p_teacher == 0, 0, p_teacher * log_student).sum(-1).mean()
    readings: dict[str, Tensor | Maybe] = {
        "ent/teacher": in_teacher,
        "ent/student": in_student,
        "ent/teacher_marginal": marginal,
        "ent/teacher_mi": marginal - in_teacher,
        "distill/kl": cross - in_teacher,
    }
    if (classes := teacher.shape[-1]) > 1:
        readings["ent/teacher_norm"] = in_teacher / math.log(classes)
        readings["ent/student_norm"] = in_student / math.log(classes)
        readings["ent/teacher_marginal_norm"] = marginal / math.log(classes)
    if loss is not None:
        given = widened(loss).mean() if isinstance(loss, Tensor) else loss
        readings["distill/loss_ratio"] = Maybe(given / cross, ~(cross <= _SMALLEST_LOSS))
    return readings


def _entropy(p: Tensor, log_p: Tensor) -> Tensor:
    # The bound makes 0 * log 0 = 0 in a single pass over the data.
    return -(p * log_p.clamp(min=_LOG_OF_ZERO)).sum(-1)


@metric
def temperatures(teacher_temp: float | Tensor, student_temp: float | Tensor) -> Readings:
    """The temperatures as handed in, numbers or tensors of one element: `distill/teacher_temp`, `distill/student_temp`.

    As a rule the teacher's is the lower one, so that its targets are sharper than what the student says.
    """
    given = {"distill/teacher_temp": teacher_temp, "distill/student_temp": student_temp}
    return {
        key: widened(value).reshape(()) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for key, value in given.items()
    }


@metric
def outputs(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_temp: float | Tensor,
    student_temp: float | Tensor,
    center: Tensor | None = None,
) -> Readings:
    """What the logits show before any softmax. Arguments as in `entropies`.

    `distill/agreement`: share of rows with the same largest class, in [0, 1].
    `distill/max_logit_over_temp`: max |logit / temperature| over teacher (centred) and student: exp overflows beyond 11
    in float16 and 88 in float32.
    """
    check(teacher_logits, student_logits, center=center)
    teacher, student = _scaled(teacher_logits, teacher_temp, center), _scaled(student_logits, student_temp)
    return _outputs(teacher, student) if teacher.numel() else {}


def _outputs(teacher: Tensor, student: Tensor) -> Readings:
    ends = [end for logits in (teacher, student) for end in logits.aminmax()]
    return {
        "distill/agreement": (teacher.max(-1).indices == student.max(-1).indices).to(teacher).mean(),
        "distill/max_logit_over_temp": torch.stack(ends).abs().max(),
    }


@metric
def feature_rank(student_logits: Tensor) -> Readings:
    """Effective rank of the student's logits: exp of the entropy of the normalised singular values, not centred.

    student_logits: (..., K). `distill/feature_rank` in [1, min(rows, K)]; 1 when all rows are multiples of one, absent
    when all logits are 0, NaN when one is not finite. Of more than 256 rows, 256 evenly spaced ones are used. Source:
    Roy and Vetterli 2007. The eigenvalue solver itself synchronises on a GPU.
    """
    if student_logits.numel() == 0:
        return {}
    rows = student_logits.detach().reshape(-1, student_logits.shape[-1])
    if len(rows) > _RANK_ROWS:
        rows = rows[torch.arange(_RANK_ROWS, device=rows.device) * len(rows) // _RANK_ROWS]
    rows = rows.double()
    finite = rows.isfinite().all()
    rows = torch.where(finite, rows, 0.0)  # the solver raises on NaN
    # Squaring halves the digits: in float64 singular values keep 1e-8 of the largest, at half the cost of an SVD.
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    share = singular / total
    rank = _entropy(share, share.log()).exp()
    return {"distill/feature_rank": Maybe(torch.where(finite, rank, math.nan), (total != 0) | ~finite)}


@metric
def measure(batch: DistillBatch, *, loss: float | Tensor | None = None) -> Readings:
    """Everything above for one batch. loss: the distillation loss as trained, for `distill/loss_ratio`."""
    check(batch.teacher_logits, batch.student_logits, center=batch.center)
    if batch.student_logits.numel() == 0:
        return {}
    teacher = _scaled(batch.teacher_logits, batch.teacher_temp, batch.center)
    student = _scaled(batch.student_logits, batch.student_temp)
    return {
        **_entropies(teacher, student, loss),
        **_outputs(teacher, student),
        **temperatures.deferred(batch.teacher_temp, batch.student_temp),
        **feature_rank.deferred(batch.student_logits),
    }
