"""What user code hands in, also deep inside a loss module: `flow`, `posterior`, `distill`, `log`, `total`.

The module-level functions reach the doctor that was activated last and do nothing when there is none. They return at
once when the step is not due, without touching a tensor.

Inside a region of torch.compile they break the graph, and run as ever; where it may not be broken (`fullgraph=True`)
they do nothing, and the doctor records that.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from lossdoctor.probe.compiled import in_one_piece
from lossdoctor.probe.experiment import current
from lossdoctor.probe.snapshot import Velocity
from lossdoctor.probe.weighted import named_losses, named_weights, weighted_total

if TYPE_CHECKING:  # `lossdoctor.flow` is at once the mathematics and the function below: it looks here for that
    from lossdoctor.flow.times import TimeSampler

T = TypeVar("T")


_listeners: list[Any] = []
"""The doctors that are active, the last one on top. Doctors live above the probe, so their type is not named here."""


_early: dict[str, object] = {}
"""Settings handed in while no doctor was active: a script takes them before it makes its doctor."""


def activate(listener: Any) -> None:
    """Make `listener` the one the module-level functions reach; it is told the settings handed in before."""
    _listeners.append(listener)
    told = dict(_early)
    _early.clear()
    for name, value in told.items():
        listener.knob(name, value)


def deactivate(listener: object) -> None:
    """Forget `listener`; the one activated before it is reached again."""
    if listener in _listeners:
        _listeners.remove(listener)


def active() -> Any:
    """The doctor activated last, or None."""
    return _listeners[-1] if _listeners else None


def _hand_in(kind: str, *args: Any, **kwargs: Any) -> None:
    if _listeners:
        getattr(_listeners[-1], kind)(*args, **kwargs)
    elif kind == "knob":
        _early.update([args])


_hand_in_uncompiled = _disable_dynamo(_hand_in)


def _cannot(kind: str) -> bool:
    """Whether the region that is being traced must stay in one piece; the doctor is told. Traced as a constant."""
    found = in_one_piece()
    if found and _listeners:
        _listeners[-1].not_handed_in(kind)
    return found


# What `torch.compiler.assume_constant_result` would set; that imports torch.compile, which takes seconds.
_cannot._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _reached(kind: str, *args: Any, **kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _hand_in(kind, *args, **kwargs)
    elif not _cannot(kind):
        _hand_in_uncompiled(kind, *args, **kwargs)


def _in_experiment() -> bool:
    return current() is not None


_in_experiment._dynamo_marked_constant = True  # type: ignore[attr-defined]


@_disable_dynamo
def _other_condition(c: T) -> T:
    experiment = current()
    return c if experiment is None else experiment.condition(c, _listeners[-1].step if _listeners else 0)


@_disable_dynamo
def _other_value(name: str, value: T) -> T:
    experiment = current()
    return value if experiment is None else experiment.knob(name, value)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What is handed in inside reaches nobody: a forward that is not the training's."""
    heard, early = list(_listeners), dict(_early)
    _listeners.clear()
    try:
        yield
    finally:
        _listeners[:] = heard
        _early.clear()
        _early.update(early)


def flow(
    v_pred: Tensor,
    v_target: Tensor,
    t: Tensor | float,
    *,
    x_t: Tensor | None = None,
    z0: Tensor | None = None,
    z1: Tensor | None = None,
    cond: Any = None,
    velocity: Velocity | None = None,
    t_source: float = 0.0,
    times: TimeSampler | None = None,
) -> None:
    """Hand in one batch of a velocity (flow-matching) loss.

    v_pred, v_target: (B, ...), the regression pair. t: (B,), (B, 1), (B, 1, 1, 1) or a scalar, in [0, 1]. x_t, z0, z1:
    (B, ...), the point on the path and its ends. cond: the condition, a tensor or a nest of tensors with leading B.
    velocity: the field as inference calls it, velocity(x, t, cond) with t shaped as given here; enables the condition,
    time and field probes. t_source: the t of the source end, 1.0 for code where t = 0 is data. times: the sampler that
    drew t; the run then tells its density.
    Raises ShapeError when the shapes would broadcast and UsageError when t leaves [0, 1], both only on the first step.
    """
    more = {"x_t": x_t, "z0": z0, "z1": z1, "cond": cond, "velocity": velocity}
    _reached("flow", v_pred, v_target, t, **more, t_source=t_source, times=times)


def posterior(mu: Tensor, logvar: Tensor, *, z: Tensor | None = None, kl: Tensor | float | None = None) -> None:
    """Hand in one batch of a Gaussian posterior.

    mu, logvar: (B, ...). z: the sample that was used, (B, ...). kl: the KL value as trained, unweighted, 0-d or per
    sample; compared with the closed form. Raises ShapeError on the first step when the shapes differ.
    """
    _reached("posterior", mu, logvar, z=z, kl=kl)


def distill(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    teacher_temp: float | Tensor,
    student_temp: float | Tensor,
    center: Tensor | None = None,
) -> None:
    """Hand in one batch of teacher and student logits.

    teacher_logits, student_logits: (..., K), row i of one belongs to row i of the other. teacher_temp, student_temp:
    positive. center: (K,), subtracted from the teacher's logits.
    Raises ShapeError on the first step when K or the rows differ.
    """
    temps = {"teacher_temp": teacher_temp, "student_temp": student_temp}
    _reached("distill", teacher_logits, student_logits, **temps, center=center)


def log(values: Mapping[str, Tensor | float] | None = None, /, **scalars: Tensor | float) -> None:
    """Keep scalars of this step, as a mapping (names may be any text) or as keywords."""
    _reached("log", values, **scalars)


def total(losses: Mapping[str, Tensor | float | None], weights: Mapping[str, float | Tensor] | None = None) -> Tensor:
    """The weighted total sum_i w_i L_i, 0-d, with its graph: for frameworks that run the backward themselves.

    In a plain loop use `Doctor.backward`. Here the framework's integration (`lossdoctor.integrations`) lets the doctor
    measure right before the backward of what is returned. losses, weights: as for `Doctor.backward`. Without a doctor
    it is the total all the same. In an evaluation (no_grad) nothing is recorded.
    """
    if torch.compiler.is_compiling():
        return _plain_total(losses, weights) if _cannot("total") else _summed_uncompiled(losses, weights)
    return _summed(losses, weights)


def _plain_total(losses: Mapping[str, Tensor | float | None], weights: Mapping[str, float | Tensor] | None) -> Tensor:
    given = named_losses(losses)
    return weighted_total(given, named_weights(losses, given, weights or {}))


def _summed(losses: Mapping[str, Tensor | float | None], weights: Mapping[str, float | Tensor] | None) -> Tensor:
    found: Tensor = _listeners[-1].total(losses, weights) if _listeners else _plain_total(losses, weights)
    return found


_summed_uncompiled = _disable_dynamo(_summed)


def condition(c: T) -> T:
    """Pass a condition through; in an experiment with the arm `shuffle:cond`, its rows in another order.

    c: a tensor, or a nest of tensors and lists, with the batch as first axis. Conditions of one optimizer step are
    shuffled alike.
    """
    return _other_condition(c) if _in_experiment() else c


def knob(name: str, value: T) -> T:
    """Pass a setting through, and note its name and value in the run's meta data; an experiment arm may change it."""
    if _in_experiment():
        value = _other_value(name, value)
    _reached("knob", name, value)
    return value


def checkpoint(path: T) -> T | str:
    """Where the training begins: `path`, or in an experiment that begins from a checkpoint, that checkpoint.

    path: what the script would load, None for a training from scratch. Call it, and load, before the first step, and
    `seed_everything` after that: a checkpoint that brings random states along would make all seeds the same.
    """
    experiment = current()
    return path if experiment is None else experiment.start(path)


def seed_everything(default: int) -> int:
    """Seed python, numpy and torch on all devices; returns the seed. `LOSSDOCTOR_SEED`, set by an experiment, wins."""
    seed = int(default)
    if (experiment := current()) is not None:
        experiment.seeded = True
        seed = seed if experiment.seed is None else experiment.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    return seed
