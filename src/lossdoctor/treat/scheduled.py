"""A schedule at work: its number at this step, and the run told of it, so that no rule judges before it ends."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.observe import active, knob
from lossdoctor.treat.schedules import BetaTarget, Ramp


def scheduled(name: str, ramp: Ramp, step: int | None = None) -> float:
    """The number of a schedule at a step, by default the optimizer step of the active doctor, which is told of it.

    name: what it moves. `teacher_temp` and `student_temp` are known to the rules of distillation, `weight/<loss>` to
    those of that loss; any name is a knob, which experiment arms can change. Raises UsageError without a step where no
    doctor is active.
    """
    listener = active()
    if step is None and listener is None:
        expected = "step=, or a Doctor that counts the steps"
        raise UsageError(mismatch(f"{name} follows a schedule.", expected, "neither", "pass the optimizer step"))
    if listener is not None:
        listener.scheduled(name, ramp)
    return float(knob(name, float(ramp(listener.step if step is None else step))))


def at_step(
    weights: Mapping[str, float | Tensor | Ramp], step: int
) -> tuple[dict[str, float | Tensor], dict[str, Ramp]]:
    """Weights with the schedules among them as numbers, and those schedules.

    Raises UsageError for a `BetaTarget`, which follows the KL and not the steps.
    """
    numbers: dict[str, float | Tensor] = {}
    ramps: dict[str, Ramp] = {}
    for name, weight in weights.items():
        if isinstance(weight, Tensor) or not callable(weight):
            numbers[name] = weight
        elif isinstance(weight, BetaTarget):
            got = f"{weight} as the weight of {name!r}"
            raise UsageError(
                mismatch("A target is no schedule.", "a number", got, "call it with the KL, pass its beta")
            )
        else:
            ramps[name] = weight
            numbers[name] = weight(step)
    return numbers, ramps
