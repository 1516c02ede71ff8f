"""What a Doctor hears: batches of the three losses, scalars and settings, handed in wherever they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lossdoctor import metrics
from lossdoctor.doctor.course import Course
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.flow.times import TimeSampler
from lossdoctor.probe.snapshot import Velocity
from lossdoctor.treat import Ramp

T = TypeVar("T")


class Hearing:
    """Methods of a Doctor that the functions of `probe.observe` reach. Each looks first whether anybody listens."""

    _course: Course
    _out: Outlet

    def flow(
        self,
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
        """As `lossdoctor.flow`."""
        if (examination := self._course.listening("velocity")) is not None:
            with self._out.guard("velocity"):
                ends = {"x_t": x_t, "z0": z0, "z1": z1}
                metrics.velocity.check(v_pred, v_target, t, **ends, t_source=t_source)
                if self._out.step == 0:
                    metrics.velocity.check_times(torch.as_tensor(t))
                examination.capture.add_flow(
                    v_pred, v_target, t, **ends, cond=cond, velocity=velocity, t_source=t_source
                )
                if times is not None:
                    self._drawn_by(times, v_pred.device, t_source)

    def _drawn_by(self, times: TimeSampler, device: torch.device, t_source: float) -> None:
        """The density of the sampler, by tenths of the way from source to target."""
        heights = times.tenths(device)
        for tenth, height in enumerate(heights if t_source == 0 else heights.flip(0)):
            self._course.pending.add(self._out.step, f"flow/density_t{tenth}", height)
        self._out.tell("times", "sampler", repr(times))

    def posterior(
        self, mu: Tensor, logvar: Tensor, *, z: Tensor | None = None, kl: Tensor | float | None = None
    ) -> None:
        """As `lossdoctor.posterior`."""
        if (examination := self._course.listening("posterior")) is not None:
            with self._out.guard("posterior"):
                metrics.posterior.check(mu, logvar, z=z)
                examination.capture.add_posterior(mu, logvar, z, kl)

    def distill(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        teacher_temp: float | Tensor,
        student_temp: float | Tensor,
        center: Tensor | None = None,
    ) -> None:
        """As `lossdoctor.distill`."""
        if (examination := self._course.listening("distillation")) is not None:
            with self._out.guard("distillation"):
                metrics.distillation.check(teacher_logits, student_logits, center=center)
                settings = {"teacher_temp": teacher_temp, "student_temp": student_temp, "center": center}
                examination.capture.add_distill(teacher_logits, student_logits, **settings)

    def log(self, values: Mapping[str, Tensor | float] | None = None, /, **scalars: Tensor | float) -> None:
        """As `lossdoctor.log`."""
        if not self._course.closed:
            self._course.new_step_if_stepped()
            for name, value in {**(values or {}), **scalars}.items():
                self._course.pending.add(self._out.step, name, value)

    def knob(self, name: str, value: T) -> T:
        """As `lossdoctor.knob`."""
        if not self._out.told("knobs", name) and not self._course.closed:
            self._out.tell("knobs", name, value if isinstance(value, (bool, int, float, str)) else repr(value))
        return value

    def scheduled(self, name: str, ramp: Ramp, since: int = 0) -> None:
        """Note that `name` follows a schedule, and until which step: no rule judges it before. Once per name."""
        self._course.scheduled(name, ramp, since)

    def not_handed_in(self, what: str) -> None:
        """Called while torch.compile traces a region that may not be broken, where nothing can be handed in."""
        self._out.pass_over(
            f"tensors of ld.{what}",
            "it is called inside torch.compile(..., fullgraph=True); call it on what the compiled function returns",
        )
