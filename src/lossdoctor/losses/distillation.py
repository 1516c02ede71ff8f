"""Self-distillation with centring and sharpening, as in DINO.

The student's softmax is pulled towards the teacher's. Two opposite forces keep the teacher from collapsing: a low
teacher temperature sharpens its targets (alone, all samples end in one class), and subtracting the running mean of its
logits flattens them (alone, all samples end uniform). Source: Caron et al. 2021 (2104.14294), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from lossdoctor.errors import ShapeError, UsageError, mismatch

Views = Tensor | Sequence[Tensor]
"""Logits (rows, K) of one view of a batch, or of several views of the same rows."""


def distillation_cross_entropy(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    teacher_temp: float | Tensor,
    student_temp: float | Tensor,
    center: Tensor | None = None,
) -> Tensor:
    """Mean over rows of -sum_k p_T log p_S, p_T = softmax((teacher_logits - center) / teacher_temp).

    teacher_logits, student_logits: (..., K), same shape; row i of one belongs to row i of the other. Temperatures: > 0,
    numbers or 0-d tensors. center: (K,). Returns 0-d float32 or wider, in nats, at least the entropy of the teacher.
    The teacher gets no gradient. Safe for half-precision logits: the softmax is taken in float32 or wider.
    Raises ShapeError when the number of classes or rows differ, UsageError for a temperature (number) <= 0.
    """
    _require_same_shape(teacher_logits, student_logits)
    targets = _targets(teacher_logits, teacher_temp, center)
    return _cross_entropy(targets, _log_probabilities(student_logits, student_temp))


class DINOLoss(nn.Module):
    """Cross-entropy between all pairs of a teacher view and a student view, with a moving centre.

    out_dim: K, the width of both heads. student_temp: T_s. The teacher temperature goes in a straight line from
    `warmup_teacher_temp` to `teacher_temp` over the first `warmup_steps` calls of `update`, then stays.
    center_momentum: share of the old centre kept per update. skip_same_view: leave out the pairs with equal index, as
    where the student sees the teacher's views first and then its own; switch it off where no student view is a teacher
    view, for example for a student that sees only the caption.

    Once per optimizer step: loss = dino(teacher_views, student_views), then dino.update(teacher_views).
    `center` (K,) and `step` (0-d int64) are buffers: a checkpoint resumes exactly.
    Raises UsageError for settings out of range.
    """

    center: Tensor
    step: Tensor

    def __init__(
        self,
        out_dim: int,
        *,
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        warmup_teacher_temp: float = 0.04,
        warmup_steps: int = 0,
        center_momentum: float = 0.9,
        skip_same_view: bool = True,
    ) -> None:
        super().__init__()
        for temperature in (student_temp, teacher_temp, warmup_teacher_temp):
            _require_positive(temperature)
        if out_dim < 1 or warmup_steps < 0 or not 0.0 <= center_momentum <= 1.0:
            rule, expected = (
                "DINOLoss got a setting out of range.",
                "out_dim >= 1, warmup_steps >= 0, momentum in [0, 1]",
            )
            got = f"out_dim={out_dim}, warmup_steps={warmup_steps}, center_momentum={center_momentum}"
            raise UsageError(mismatch(rule, expected, got, "DINO used 65536, the steps of 30 epochs, and 0.9."))
        self.out_dim = out_dim
        self.student_temp = student_temp
        self.final_teacher_temp = teacher_temp
        self.warmup_teacher_temp = warmup_teacher_temp
        self.warmup_steps = warmup_steps
        self.center_momentum = center_momentum
        self.skip_same_view = skip_same_view
        self.register_buffer("center", torch.zeros(out_dim))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def teacher_temp(self) -> Tensor:
        """The teacher temperature at this step: 0-d float32 on the device of the loss."""
        progress = (self.step / self.warmup_steps).clamp(max=1.0) if self.warmup_steps else torch.ones_like(self.step)
        return self.warmup_teacher_temp + (self.final_teacher_temp - self.warmup_teacher_temp) * progress.float()

    def forward(self, teacher: Views, student: Views) -> Tensor:
        """Mean cross-entropy over the pairs: 0-d float32 or wider, in nats, ln K for uniform outputs.

        teacher, student: logits (..., K) of one view or a sequence of views, all of one shape. The teacher gets no
        gradient. Raises ShapeError when shapes differ or K is not out_dim, UsageError when no pair is left.
        """
        teacher, student = self._views(teacher), self._views(student)
        _require_same_shape(*teacher, *student)
        targets = [_targets(view, self.teacher_temp, self.center) for view in teacher]
        predictions = [_log_probabilities(view, self.student_temp) for view in student]
        pairs = [
            _cross_entropy(target, prediction)
            for i, target in enumerate(targets)
            for j, prediction in enumerate(predictions)
            if not (self.skip_same_view and i == j)
        ]
        if not pairs:
            got = f"{len(teacher)} teacher and {len(student)} student views, skip_same_view={self.skip_same_view}"
            todo = "Add views, or set skip_same_view=False if the student does not see the teacher's view."
            raise UsageError(mismatch("No pair of views is left to compare.", "at least one pair", got, todo))
        return torch.stack(pairs).mean()

    @torch.no_grad()
    def update(self, teacher: Views) -> None:
        """Move the centre towards the mean teacher logits of the global batch, and the schedule by one step.

        teacher: as in `forward`. Where torch.distributed is initialised every rank must call this: rows are averaged
        over all ranks, however many each has.
        """
        rows = _widened(torch.cat([view.reshape(-1, self.out_dim) for view in self._views(teacher)]))
        total = torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        self.center.lerp_((total[:-1] / total[-1]).to(self.center), 1 - self.center_momentum)
        self.step += 1

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return (
            f"{self.out_dim}, student_temp={self.student_temp}, "
            f"teacher_temp={self.warmup_teacher_temp}->{self.final_teacher_temp} in {self.warmup_steps} steps, "
            f"center_momentum={self.center_momentum}, skip_same_view={self.skip_same_view}"
        )

    def _views(self, views: Views) -> list[Tensor]:
        listed = [views] if isinstance(views, Tensor) else list(views)
        for view in listed:
            if view.ndim == 0 or view.shape[-1] != self.out_dim:
                expected, got = f"(..., {self.out_dim})", f"a view of shape {tuple(view.shape)}"
                todo = "Give both heads out_dim outputs, classes last."
                raise ShapeError(mismatch("Logits must have out_dim classes.", expected, got, todo))
        return listed


def _targets(logits: Tensor, temperature: float | Tensor, center: Tensor | None) -> Tensor:
    """The teacher's probabilities, without gradient."""
    _require_positive(temperature)
    logits = _widened(logits.detach())
    if center is not None:
        if center.shape != logits.shape[-1:]:
            expected, got = f"({logits.shape[-1]},)", f"center of shape {tuple(center.shape)}"
            raise ShapeError(mismatch("The centre has one number per class.", expected, got, "Flatten the centre."))
        logits = logits - center
    return torch.softmax(logits / temperature, dim=-1)


def _log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    _require_positive(temperature)
    return torch.log_softmax(_widened(logits) / temperature, dim=-1)


def _cross_entropy(targets: Tensor, log_probabilities: Tensor) -> Tensor:
    return -(targets * log_probabilities).sum(-1).mean()


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _require_same_shape(*views: Tensor) -> None:
    shapes = [tuple(view.shape) for view in views]
    if len(set(shapes)) > 1 or any(len(shape) == 0 for shape in shapes):
        got, todo = " and ".join(map(str, shapes)), "Project both to the same classes and match the rows."
        raise ShapeError(mismatch("Teacher and student must agree row by row.", "one shape (..., K)", got, todo))


def _require_positive(temperature: float | Tensor) -> None:
    # A tensor is not looked at: that would synchronise.
    if not isinstance(temperature, Tensor) and not temperature > 0:
        todo = "DINO used 0.1 for the student, 0.04 to 0.07 for the teacher."
        raise UsageError(mismatch("A temperature must be positive.", "> 0", f"{temperature}", todo))
