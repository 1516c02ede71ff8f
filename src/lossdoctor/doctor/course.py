"""The course of a training, optimizer step by optimizer step: which are measured, what belongs to them, the records.

A step begins when the one before it is over, collects what is handed in and the losses of its backwards, is settled
when its first optimizer is about to step, and ends when all of them have stepped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lossdoctor.doctor.examination import Examination
from lossdoctor.doctor.live import Alerts
from lossdoctor.doctor.meeting import Meeting
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.doctor.rollout import Rollouts
from lossdoctor.doctor.treatment import Treatment
from lossdoctor.doctor.trial import Trial
from lossdoctor.metrics.reading import to_host
from lossdoctor.probe.differences import MODE, Again, Compute
from lossdoctor.probe.pending import Pending, by_step
from lossdoctor.probe.schedule import Schedule
from lossdoctor.probe.stepping import Stepping, with_closure
from lossdoctor.probe.weighted import named_losses, named_weights, weighted_total
from lossdoctor.record import Record
from lossdoctor.treat import Measured, Ramp, at_step

T = TypeVar("T")


class Course:
    """The steps of one Doctor, from `begin` until it is `closed`.

    schedule: which steps are due; on several ranks, as they agree on it. trial, treatment, meeting, alerts: what takes
    part in this run. rollouts: get the flow of the last measured step. end: closes the Doctor, when an experiment has
    had its steps.
    """

    def __init__(
        self,
        patient: Patient,
        out: Outlet,
        schedule: Schedule,
        *,
        trial: Trial | None,
        treatment: Treatment | None,
        meeting: Meeting | None,
        alerts: Alerts | None,
        rollouts: Rollouts,
        end: Callable[[], None],
    ) -> None:
        self._patient, self._out = patient, out
        self._schedule = schedule if meeting is None else meeting.schedule
        # A schedule by the clock is told how long steps take; the others cost no look at it.
        self._took: Callable[[int, float], None] | None = getattr(schedule, "took", None)
        self._trial, self._treatment, self._meeting, self._alerts = trial, treatment, meeting, alerts
        self._rollouts, self._end = rollouts, end
        self.ret: dict[str, float] = {}
        self.closed = False
        self.pending = Pending()
        self._closed_at = math.nan
        self._weights: Mapping[str, float | Tensor] = {}
        self._schedules: set[str] = set()
        self._handed: tuple[dict[str, Tensor], dict[str, float | Tensor], Again | None] | None = None
        self._observing: Examination | None = None
        self._given: Mapping[str, Tensor] = {}
        self.examination: Examination | None = None
        self._stepped: frozenset[int] = frozenset()
        self._owed: frozenset[int] = frozenset()
        self._turns = 0
        self.begin()
        self.stepping = Stepping(patient.optimizers, self.before_step, self.after_step)

    def scheduled(self, name: str, ramp: Ramp, since: int = 0) -> None:
        """As `Doctor.scheduled`."""
        if not self.closed and name not in self._schedules:
            self._schedules.add(name)
            steps = getattr(ramp, "steps", None)
            until = None if steps is None else since + steps
            self._out.event("schedule", target=name, schedule=repr(ramp), until=until)

    def handed_in(
        self,
        losses: Mapping[str, Tensor | float | None],
        weights: Mapping[str, float | Tensor | Ramp],
        again: Again | None,
        *,
        recorded: bool,
    ) -> Tensor:
        """The weighted total with its graph; recorded and remembered for its backward unless it is an evaluation's."""
        given = named_losses(losses)
        numbers, ramps = at_step(weights, self._out.step)
        for name, ramp in ramps.items():
            self.scheduled(f"weight/{name}", ramp)
        factors = named_weights(losses, given, numbers)
        if self._trial is not None:
            for name, ramp in self._trial.schedules.items():
                self.scheduled(name, ramp, self._out.step - self._trial.done)  # counted from where the arm began
            factors = self._trial.experiment.weights(losses, factors, self._trial.done)
        if self._treatment is not None:
            factors = self._treatment.weigh(factors)
        total = weighted_total(given, factors)
        if recorded and not self.closed:
            self.new_step_if_stepped()
            for name, loss in given.items():
                self.pending.add(self._out.step, f"loss/{name}", loss)
            self.pending.add(self._out.step, "loss/total", total)
            self._weights = factors
            self._handed = (given, factors, again) if self.examination is not None else None
        return total

    def before_backward(self, *, foreign: bool = True, scaler: Any = None) -> None:
        """As `Doctor.before_backward`."""
        handed, self._handed, self._observing, self._given = self._handed, None, None, {}
        if handed is not None and self.examination is not None and not self.examination.settled and not self.closed:
            given, factors, again = handed
            self._observing, self._given = self.examination, given
            self.examination.before_backward(given, factors, foreign=foreign, scaler=scaler, again=again)

    def treated(self, total: Tensor) -> Tensor:
        """The total with which the first step is to be taken, now that its gradients are known.

        Weights that are wrong by a factor of 100 would otherwise have one step to themselves, which can still be seen
        300 steps later. On several ranks each knows its own gradients alone until they meet.
        """
        ledger = None if self._observing is None else self._observing.ledger
        if self._treatment is None or not self._treatment.fresh or ledger is None or self._meeting is not None:
            return total
        if self._patient.summed is not None:
            return total
        with self._out.guard("balance"):
            if (gram := ledger.so_far()) is None:
                return total
            losses = self._given
            seen = Measured(
                names=tuple(losses),
                kinds=tuple(map(self._patient.kind, losses)),
                gram=gram.cpu().numpy(),
                weights=np.array([float(self._weights[name]) for name in losses]),
                losses=torch.stack([loss.detach().to(gram) for loss in losses.values()]).cpu().numpy(),
                step=self._out.step,
            )
            if self._treatment.begin(seen):
                # A factor of 1 was in use until now.
                factors = self._treatment.factors
                self._weights = {name: w * factors.get(name, 1.0) for name, w in self._weights.items()}
                total = weighted_total(losses, self._weights)
                ledger.losses.update({name: float(self._weights[name]) for name in losses})
                self.pending.correct(self._out.step, "loss/total", total)
        return total

    def after_backward(self) -> None:
        """As `Doctor.after_backward`."""
        observing, self._observing, self._given = self._observing, None, {}
        if observing is not None and observing is self.examination and not observing.settled:
            observing.after_backward()

    def about_to(self, compute: Compute) -> Again | None:
        """What it takes to compute these losses again, where that will be needed."""
        if self.closed or self._patient.mode != MODE:
            return None
        self.new_step_if_stepped()
        device = self._patient.optimizers[0].param_groups[0]["params"][0].device
        return Again.now(compute, device) if self.examination is not None else None

    def begin(self, *, due: bool | None = None) -> None:
        """Begin a step. due: whether it is measured, where the schedule alone does not say so."""
        due = self._schedule.due(self._out.step) if due is None else due
        self.examination = Examination(self._patient, self._out) if due else None

    def new_step_if_stepped(self) -> None:
        """Some optimizers stepped and others sit this step out: the next sign of life belongs to a new step."""
        if self._stepped:
            self._close_step()

    def listening(self, what: str) -> Examination | None:
        """The examination that wants tensors of this kind now; tensors of an evaluation (no_grad) are not for it."""
        if self.closed:
            return None
        self.new_step_if_stepped()
        return self.examination if what not in self._out.off and torch.is_grad_enabled() else None

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """An optimizer is about to step; the arguments it gets instead, if any."""
        if self._trial is not None:
            self._trial.rates.before(optimizer)
        if self.closed:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._settle_before(optimizer)
            return None
        # The losses are still to come, inside the step; what the closure does after its backward, such as clipping,
        # belongs to them.
        return with_closure(args, kwargs, self._settling(optimizer, closure))

    def _settling(self, optimizer: Optimizer, closure: Callable[[], T]) -> Callable[[], T]:
        """The closure, after whose first call the gradients are those of the step."""
        first = True

        def evaluated() -> T:
            nonlocal first
            found = closure()
            if first and not self.closed:
                self._settle_before(optimizer)
            first = False
            return found

        return evaluated

    def _settle_before(self, optimizer: Optimizer) -> None:
        # Of this rank's batch, as the tensors that were handed in; the meeting makes them those of the global batch.
        losses = self._losses() if self.examination is not None else {}
        if self._meeting is not None:
            self._meeting.hold(self.examination, self.pending)
        if self.examination is not None:
            with self._out.guard("record"):
                self.examination.settle(losses, self._weights)
            self.examination.before_step(optimizer)

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer has stepped; the last one of them ends the step."""
        if self._trial is not None:
            self._trial.rates.after(optimizer)
        if self.closed:
            return
        if self.examination is not None:
            self.examination.after_step(optimizer)
        self._stepped |= {id(optimizer)}
        if len(self._stepped) == len(self._patient.optimizers):
            self._close_step()

    def _losses(self) -> dict[str, Tensor | float]:
        return self.pending.at(self._out.step, "loss/")

    def _close_step(self) -> None:
        """End the step: one copy to the host when it was due, nothing otherwise."""
        if self.examination is not None:
            with self._out.guard("record"):
                self.examination.settle(self._losses(), self._weights)
                self._out.deliver(self._records(self.examination))
            if self._treatment is not None:
                with self._out.guard("balance"):
                    kinds = {name: self._patient.kind(name) for name in self._weights}
                    posterior = snapshot.posterior if (snapshot := self.examination.snapshot) else None
                    dimensions = None if posterior is None else posterior.mu[:1].numel()
                    self._treatment.learn(self._out.step, self.ret, kinds, dimensions)
            if (snapshot := self.examination.snapshot) and snapshot.flow:
                self._rollouts.last = snapshot.flow
            if self._alerts is not None:
                self._alerts.measured()
        if self._took is not None:
            now = time.perf_counter()
            if not math.isnan(self._closed_at):
                self._took(self._out.step, now - self._closed_at)
            self._closed_at = now
        # Optimizers that take turns: after a due step the others get a measured step too, once.
        if self._schedule.due(self._out.step):
            self._owed, self._turns = frozenset(map(id, self._patient.optimizers)), len(self._patient.optimizers)
        self._owed -= self._stepped
        self._turns -= 1
        self._out.step += 1
        self._stepped = frozenset()
        self.begin(due=self._schedule.due(self._out.step) or (bool(self._owed) and self._turns > 0))
        if self.examination is not None and "steps" not in self._out.off:
            with self._out.guard("steps"):
                self._patient.arm()
        if self._trial is not None and self._trial.stepped():
            self._end()
            raise SystemExit(0)

    def close(self, *, rollout: bool, together: bool) -> None:
        """Nothing is measured any more; what is still to be recorded is. As `Doctor.close`; together: on all ranks."""
        rollout = rollout and self._rollouts.possible
        if self._meeting is not None:
            wished = self._meeting.farewell(self.pending, wish=rollout) if together else False
            rollout = rollout and (wished or self._patient.summed is None)
        if rollout:
            with self._out.guard("endpoint"):
                self.ret = {**self.ret, **self._rollouts.of_last_batch(self._longest)}
        if self._meeting is not None:
            self._meeting.ranks.leave()
        with self._out.guard("record"):
            self._out.deliver(self._records(None))
        if self._alerts is not None:
            self._alerts.close()
        if self._trial is not None:
            self._out.describe(**self._trial.facts)
        self.closed = True

    def _longest(self, seconds: float) -> float:
        """What takes this rank so many seconds takes so many where every rank has to wait for the others."""
        if self._meeting is None or self._patient.summed is None:
            return seconds
        return self._meeting.longest(seconds)

    def _records(self, examination: Examination | None) -> list[Record]:
        """Pending scalars and the readings of a due step, through one copy to the host, one record per step."""
        readings = examination.finish() if examination else {}
        tensors, numbers = self.pending.drain()
        host = to_host({**tensors, **{(None, name): reading for name, reading in readings.items()}})
        measured = {key[1]: host.pop(key) for key in list(host) if key[0] is None}
        steps = by_step([*host.items(), *numbers.items()])
        now = self._out.step
        if examination is not None:
            treated = {} if self._treatment is None else self._treatment.readings(now)
            steps[now] = self.ret = {**steps.get(now, {}), **examination.learned(measured), **treated}
        return [Record(s, dict(values), full=bool(examination) and s == now) for s, values in sorted(steps.items())]
