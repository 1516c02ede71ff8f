"""The Doctor of one run: asks the probe, lets the metrics count, hands the numbers to the store and the sinks.

One optimizer step goes: `flow`/`posterior`/`distill`/`log` and `backward`, any number of times; then every optimizer
steps, seen through its hooks; the last one closes the record. A step that is not due leaves only its loss values,
detached and on their device, until the next due record takes them along in its single copy to the host.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import metrics
from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.doctor.examination import Examination, randomness
from lossdoctor.doctor.live import LiveDiagnosis, told
from lossdoctor.doctor.meeting import SHARDED_OFF, Meeting, whose
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.doctor.rollout import STEPS, Rollout
from lossdoctor.doctor.treatment import Treatment
from lossdoctor.doctor.trial import trial_of
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.flow.times import TimeSampler
from lossdoctor.kinds import checked_kinds
from lossdoctor.metrics.reading import Maybe, to_host
from lossdoctor.probe import observe
from lossdoctor.probe.audit import Auditor
from lossdoctor.probe.compiled import keep_activations
from lossdoctor.probe.differences import MODE, Again, Compute
from lossdoctor.probe.parameters import check_heads, check_optimizers, unwrapped
from lossdoctor.probe.pending import Pending, by_step
from lossdoctor.probe.ranks import Ranks, ranks_of
from lossdoctor.probe.schedule import Every, Schedule, Settling, Together, schedule
from lossdoctor.probe.sharded import any_sharded, unsupported
from lossdoctor.probe.sketch import checked_mode
from lossdoctor.probe.snapshot import FlowBatch, Velocity
from lossdoctor.probe.stepping import Stepping, with_closure
from lossdoctor.probe.updates import shadow_watch
from lossdoctor.probe.weighted import named_losses, named_weights, weighted_total
from lossdoctor.record import Record
from lossdoctor.rules import Finding
from lossdoctor.sinks import Sink
from lossdoctor.store import Run
from lossdoctor.store.provenance import provenance
from lossdoctor.treat import Balancer, Measured, Ramp, Weighting, at_step, balancer

T = TypeVar("T")
Readings = dict[str, "Tensor | Maybe"]

_LINEARITY = "linearity error"
_GRADIENT_KEYS = ("grad/", "grad_weighted/", "grad_share/", "grad_cos/", "grad_module/", "descent/")
_ROLLOUT_SECONDS = 30.0


class Doctor:
    """Measures one training run without changing it by one bit.

    model, optimizer: what is trained; one optimizer or a sequence. run: folder of the run, None keeps it in memory.
    heads: name to module, reported one by one. teacher, ema: modules that follow the model slowly, audited if given.
    kinds: loss name to "distill", "kl", "velocity" or "other"; guessed from the name by default. every: which
    optimizer steps are measured in full: an int n, "log" (ever fewer), "1%" (as many as take this share of the time), a
    function of the step, or a schedule (`probe.cadence`). sinks: other trackers that get every record. gradients:
    "exact" per-loss gradients, "sketch" for estimates that cost less memory and time on large models,
    "finite-difference" for shares alone, without an extra backward, "off" for none; "auto" takes exact ones up to
    `probe.sketch.EXACT_UP_TO` trained parameters. balance: "ratio", "gradnorm", "pcgrad", "config", "cosine", a
    `treat.Balancer` or a weighting of torchjd, which changes the weights of the losses at measured steps; None, the
    default, changes nothing. strict: raise instead of recording a failure (tests).
    resume: continue a run whose folder exists. live: ask the rules about the growing run, in the background and at most
    1 % of the time; what is new goes to the log, to the run's and the sinks' events, and to `on_finding`, which is
    called in the training thread, after a step. preflight: what `preflight.check` found, kept in the run's events for
    every later diagnosis. meta: anything JSON can hold, kept in meta.json.

    In an experiment the environment names the arm, the folder of the run and its end; see `probe.experiment`.
    Raises UsageError for heads, kinds or schedules that cannot be, RunExistsError when the folder holds another run. A
    folder that cannot be written gives one warning, and the records stay in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        run: str | Path | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        teacher: nn.Module | None = None,
        ema: nn.Module | None = None,
        kinds: Mapping[str, str] | None = None,
        every: int | str | Callable[[int], bool] | Schedule = 50,
        sinks: Sequence[Sink] = (),
        gradients: str = "auto",
        balance: str | Balancer | Weighting | None = None,
        strict: bool = False,
        resume: bool = False,
        on_finding: Callable[[Finding], object] | None = None,
        live: bool = True,
        preflight: Diagnosis | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        optimizers, checked = check_optimizers(optimizer), check_heads(model, heads or {})
        ranks = ranks_of(model)
        if (trial := trial_of(checked, optimizers)) is not None:
            run, resume, every = trial.run or run, False, trial.experiment.every or every
            sinks, live = (), False  # an experiment is not the run that is being followed
            balance = trial.balance or balance
        self._trial = trial
        self._patient = Patient(
            model=model,
            optimizers=optimizers,
            heads=checked,
            tops=[m for m in (model, *(heads or {}).values(), teacher, ema) if m is not None],
            ema=shadow_watch("ema", ema, model),
            teacher=shadow_watch("teacher", teacher, model),
            kinds=checked_kinds(kinds or {}),
            auditor=Auditor(model, checked, optimizers, teacher, ema),
            mode=checked_mode(gradients, (p for one in optimizers for g in one.param_groups for p in g["params"])),
            several=ranks is not None,
        )
        self.ret: dict[str, float] = {}
        self._schedule = schedule(every)
        if balance is not None and isinstance(self._schedule, Every):
            self._schedule = Settling(self._schedule.n)
        # A schedule by the clock is told how long steps take; the others cost no look at it.
        self._took: Callable[[int, float], None] | None = getattr(self._schedule, "took", None)
        self._closed_at = math.nan
        rank = 0 if ranks is None else ranks.rank
        self._weights: Mapping[str, float | Tensor] = {}
        self._schedules: set[str] = set()
        self._pending = Pending()
        self._last_flow: FlowBatch | None = None
        self._rolled_out = False
        self._closed = False
        self._handed: tuple[dict[str, Tensor], dict[str, float | Tensor], Again | None] | None = None
        self._observing: Examination | None = None
        self._stepped: frozenset[int] = frozenset()
        self._owed: frozenset[int] = frozenset()
        self._turns = 0
        sharded = any_sharded(self._patient.tops)
        mode = self._patient.mode
        # Nobody has the whole of a sharded gradient, and what several ranks find by differences is not added up yet.
        passed_over = (mode == "sketch" and sharded) or (mode == MODE and (sharded or ranks is not None))
        if passed_over:
            self._patient.mode = "exact"
        facts = {
            **self._facts(),
            **({} if ranks is None else {"ranks": whose(ranks.size, sharded=sharded)}),
            **(meta or {}),
            **({} if trial is None else trial.facts),
        }
        self._out = Outlet(run, facts, sinks, resume=resume, strict=strict, rank=rank)
        for fields in () if preflight is None else preflight.events():
            self._out.event("preflight", **fields)
        if passed_over and gradients != "auto":
            self._out.event("passed_over", measurement=gradients, reason="these ranks are measured exactly")
        self._treatment = None if balance is None else self._treated(balancer(balance))
        self._meeting = None if ranks is None else self._met(ranks)
        self._compiling_ends = self._graphs_kept()
        if sharded:
            self._sharded(list if ranks is None else ranks.summed)
        self._on_finding = on_finding
        self._live = LiveDiagnosis(lambda: self.run, self._found, self._live_failed) if live and rank == 0 else None
        self._begin_step()
        self._stepping = Stepping(optimizers, self._before_step, self._after_step)
        observe.activate(self)
        atexit.register(self._at_exit)

    def _graphs_kept(self) -> Callable[[], None] | None:
        """From now on what extra passes need of compiled graphs; what ends that, where there are such passes."""
        if self._patient.mode == "off":
            self._out.off.add("gradients")
        return None if self._patient.mode in ("off", MODE) else keep_activations()

    def _treated(self, wanted: Balancer) -> Treatment:
        if self._patient.mode in ("off", MODE):
            raise UsageError(
                mismatch(
                    "A balancer needs the gradient of each loss.",
                    'gradients="exact", "sketch" or "auto"',
                    f'gradients="{self._patient.mode}" with balance={wanted.name!r}',
                    "leave gradients= out, or balance=",
                )
            )
        # Which loss is derived from the others depends on the clock; a run that acts on it would not repeat itself.
        self._patient.linearity.derives = False
        self._out.describe(balance=wanted.name)
        return Treatment(wanted, self._out)

    def _met(self, ranks: Ranks) -> Meeting:
        self._schedule = together = Together(self._schedule)
        return Meeting(ranks, together, self._patient, self._out)

    def _sharded(self, summed: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self._patient.summed = summed
        self._out.off.update(SHARDED_OFF)
        if (why := unsupported(self._patient.look().parameters)) is not None:
            self._out.failed("gradients", f"the model is sharded in a way that is not understood: {why}")

    # What the user hands in

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
        if (examination := self._listening("velocity")) is not None:
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
            self._pending.add(self._out.step, f"flow/density_t{tenth}", height)
        self._out.tell("times", "sampler", repr(times))

    def posterior(
        self, mu: Tensor, logvar: Tensor, *, z: Tensor | None = None, kl: Tensor | float | None = None
    ) -> None:
        """As `lossdoctor.posterior`."""
        if (examination := self._listening("posterior")) is not None:
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
        if (examination := self._listening("distillation")) is not None:
            with self._out.guard("distillation"):
                metrics.distillation.check(teacher_logits, student_logits, center=center)
                settings = {"teacher_temp": teacher_temp, "student_temp": student_temp, "center": center}
                examination.capture.add_distill(teacher_logits, student_logits, **settings)

    def log(self, values: Mapping[str, Tensor | float] | None = None, /, **scalars: Tensor | float) -> None:
        """As `lossdoctor.log`."""
        if not self._closed:
            self._new_step_if_stepped()
            for name, value in {**(values or {}), **scalars}.items():
                self._pending.add(self._out.step, name, value)

    def knob(self, name: str, value: T) -> T:
        """As `lossdoctor.knob`."""
        if not self._closed:
            self._out.tell("knobs", name, value if isinstance(value, (bool, int, float, str)) else repr(value))
        return value

    def scheduled(self, name: str, ramp: Ramp, since: int = 0) -> None:
        """Note that `name` follows a schedule, and until which step: no rule judges it before. Once per name."""
        if not self._closed and name not in self._schedules:
            self._schedules.add(name)
            steps = getattr(ramp, "steps", None)
            until = None if steps is None else since + steps
            self._out.event("schedule", target=name, schedule=repr(ramp), until=until)

    def not_handed_in(self, what: str) -> None:
        """Called while torch.compile traces a region that may not be broken, where nothing can be handed in."""
        self._out.pass_over(
            f"tensors of ld.{what}",
            "it is called inside torch.compile(..., fullgraph=True); call it on what the compiled function returns",
        )

    def backward(
        self,
        losses: Mapping[str, Tensor | float | None] | Compute,
        weights: Mapping[str, float | Tensor | Ramp] | None = None,
        *,
        backward: Callable[[Tensor], object] | None = None,
        scaler: Any = None,
    ) -> Tensor:
        """One ordinary backward of sum_i w_i L_i; on a due step the gradient of each loss is measured before it.

        losses: name to loss, or a function that computes them, which gradients="finite-difference" calls twice more at
        a due step; None is skipped, a vector is averaged. weights: 1 where not given; a schedule such as `treat.WarmUp`
        is asked at every optimizer step, until `close`, and the rules wait for its end. backward: called with the total
        instead of `total.backward()`, for Accelerate. scaler: a GradScaler. May be called several times per optimizer
        step. Returns the weighted total, detached, 0-d.
        Raises UsageError for weights of unknown losses, and when there is no loss at all.
        """
        self._stepping.forget()
        again = None
        if callable(losses):
            again = self._about_to(losses)
            losses = losses()
        total = self._handed_in(losses, weights or {}, again, recorded=True)
        handed = self._handed
        self.before_backward(foreign=backward is not None, scaler=scaler)
        if handed is not None and self._treatment is not None and self._treatment.fresh:
            total = self._begun(self._treatment, handed[0], total)
        if backward is not None:
            backward(total)
        else:
            (total if scaler is None else scaler.scale(total)).backward()
        self.after_backward()
        return total.detach()

    def total(
        self, losses: Mapping[str, Tensor | float | None], weights: Mapping[str, float | Tensor | Ramp] | None = None
    ) -> Tensor:
        """As `lossdoctor.total`; the backward of it is to be between `before_backward` and `after_backward`."""
        self._stepping.forget()
        return self._handed_in(losses, weights or {}, None, recorded=torch.is_grad_enabled())

    def _handed_in(
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
        if recorded and not self._closed:
            self._new_step_if_stepped()
            for name, loss in given.items():
                self._pending.add(self._out.step, f"loss/{name}", loss)
            self._pending.add(self._out.step, "loss/total", total)
            self._weights = factors
            self._handed = (given, factors, again) if self._examination is not None else None
        return total

    def before_backward(self, *, foreign: bool = True, scaler: Any = None) -> None:
        """A framework is about to run the backward of the last `total`: measure each loss, if the step is due.

        foreign: the framework may multiply the total with a factor, which is then found from the gradients. scaler: the
        GradScaler it uses.
        """
        handed, self._handed, self._observing = self._handed, None, None
        if handed is not None and self._examination is not None and not self._examination.settled and not self._closed:
            given, factors, again = handed
            self._observing = self._examination
            self._examination.before_backward(given, factors, foreign=foreign, scaler=scaler, again=again)

    def _begun(self, treatment: Treatment, losses: Mapping[str, Tensor], total: Tensor) -> Tensor:
        """The total with which the first step is to be taken, now that its gradients are known.

        Weights that are wrong by a factor of 100 would otherwise have one step to themselves, which can still be seen
        300 steps later. On several ranks each knows its own gradients alone until they meet.
        """
        ledger = None if self._examination is None else self._examination.ledger
        if ledger is None or self._meeting is not None or self._patient.summed is not None:
            return total
        with self._out.guard("balance"):
            if (gram := ledger.so_far()) is None:
                return total
            values = torch.stack([loss.detach().to(gram) for loss in losses.values()])
            seen = Measured(
                names=tuple(losses),
                kinds=tuple(map(self._patient.kind, losses)),
                gram=gram.cpu().numpy(),
                weights=np.array([float(self._weights[name]) for name in losses]),
                losses=values.cpu().numpy(),
                step=self._out.step,
            )
            if treatment.begin(seen):
                # A factor of 1 was in use until now.
                self._weights = {name: w * treatment.factors.get(name, 1.0) for name, w in self._weights.items()}
                total = weighted_total(losses, self._weights)
                ledger.losses.update({name: float(self._weights[name]) for name in losses})
                self._pending.correct(self._out.step, "loss/total", total)
        return total

    def after_backward(self) -> None:
        """The backward announced by `before_backward` is done, and nothing has touched the gradients since."""
        observing, self._observing = self._observing, None
        if observing is not None and observing is self._examination and not observing.settled:
            observing.after_backward()

    def _about_to(self, compute: Compute) -> Again | None:
        """What it takes to compute these losses again, where that will be needed."""
        if self._closed or self._patient.mode != MODE:
            return None
        self._new_step_if_stepped()
        device = self._patient.optimizers[0].param_groups[0]["params"][0].device
        return Again.now(compute, device) if self._examination is not None else None

    def endpoint(  # noqa: PLR0917 - the order is public
        self,
        z0: Tensor,
        z1: Tensor,
        velocity: Velocity,
        cond: Any = None,
        steps: Sequence[int] = STEPS,
        solver: str | metrics.endpoint.Sampler = "euler",
        t_source: float = 0.0,
    ) -> dict[str, float]:
        """Integrate the field from z0 in evaluation mode and record how well it ends; see the endpoint metrics.

        z0, z1: (B, ...), the source and the target end. velocity: called velocity(x, t, cond), with t shaped as in the
        last `flow` call, (B,) without one. solver: a name of `flow.solvers.SOLVERS`, or your own sampler, called
        solver(velocity, z0, cond, steps) and expected to return the end points (B, ...): then `flow/ode_error@K` and
        `flow/ode_order` judge its grid and its times. Returns the metrics of this call, recorded at the current step.
        """
        values: dict[str, float] = {}
        if self._closed or "endpoint" in self._out.off:
            return values
        self._rolled_out = True
        with self._out.guard("endpoint"):
            t_ndim = 1 if self._last_flow is None else self._last_flow.t_like.ndim
            rollout = Rollout(velocity, cond, tuple(steps), solver, t_source, t_ndim)
            values = rollout.measure(z0, z1, self._patient.tops, randomness(self._out.step, z0.device))
            self._out.deliver([Record(self._out.step, values)])
            self._out.describe(endpoint={**rollout.facts(), "samples": len(z0)})
            self.ret = {**self.ret, **values}
        return values

    # Reading and ending

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self._out.step

    @property
    def run(self) -> Run:
        """Everything recorded so far."""
        return self._out.run

    def diagnose(self) -> Diagnosis:
        """What the rules say of everything recorded so far; see `lossdoctor.diagnose`."""
        self._out.flush()
        return diagnose(self.run)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on counting."""
        treated = {} if self._treatment is None else {"balance": self._treatment.state_dict()}
        return {"step": self._out.step, **treated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the step of a checkpoint."""
        self._out.step = int(state["step"])
        if self._treatment is not None and "balance" in state:
            self._treatment.load_state_dict(state["balance"])
        if self._meeting is not None:
            self._meeting.forget()
        self._begin_step()

    def close(self, *, rollout: bool = True) -> None:
        """Write what is pending, close run and sinks, remove the hooks. Training may go on unobserved.

        On several ranks, to be called on each: the loss values of the last steps are averaged once more.
        rollout: when `endpoint` was never called and `flow` got both ends and the velocity, integrate the last measured
        batch once, unless that would take longer than half a minute.
        """
        self._close(rollout=rollout, together=True)

    def _close(self, *, rollout: bool, together: bool) -> None:
        if self._closed:
            return
        if self._meeting is not None:
            self._meeting.close(self._pending, together=together)
        if rollout and not self._rolled_out and "endpoint" not in self._out.off:
            with self._out.guard("endpoint"):
                self._roll_out_last_batch()
        with self._out.guard("record"):
            self._out.deliver(self._records(None))
        if self._live is not None:
            self._out.flush()
            self._hand_on(self._live.close())
        if self._trial is not None:
            self._out.describe(**self._trial.facts)
        self._closed = True
        atexit.unregister(self._at_exit)
        observe.deactivate(self)
        if self._compiling_ends is not None:
            self._compiling_ends()
        self._stepping.remove()
        self._out.close()

    def __enter__(self) -> Doctor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._out.event("stopped", error=repr(error))
        self._close(rollout=error is None, together=error is None)

    def _at_exit(self) -> None:
        # A script that ended by an error is not made to wait for a rollout, and none for other ranks.
        self._close(rollout=getattr(sys, "last_value", None) is None, together=False)

    def _facts(self) -> dict[str, Any]:
        """What meta.json says of this run from the start."""
        patient = self._patient
        return {
            **provenance(),
            "model": type(unwrapped(patient.model)).__name__,
            "parameters": sum(p.numel() for p in patient.model.parameters()),
            "gradients": patient.mode,
            "optimizers": [type(optimizer).__name__ for optimizer in patient.optimizers],
            "heads": sorted(patient.heads),
            "kinds": dict(patient.kinds),
            "schedule": repr(self._schedule),
        }

    # One step

    def _begin_step(self, *, due: bool | None = None) -> None:
        due = self._schedule.due(self._out.step) if due is None else due
        self._examination = Examination(self._patient, self._out) if due else None

    def _new_step_if_stepped(self) -> None:
        """Some optimizers stepped and others sit this step out: the next sign of life belongs to a new step."""
        if self._stepped:
            self._close_step()

    def _listening(self, what: str) -> Examination | None:
        """The examination that wants tensors of this kind now; tensors of an evaluation (no_grad) are not for it."""
        if self._closed:
            return None
        self._new_step_if_stepped()
        return self._examination if what not in self._out.off and torch.is_grad_enabled() else None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if self._trial is not None:
            self._trial.rates.before(optimizer)
        if self._closed:
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
            if first and not self._closed:
                self._settle_before(optimizer)
            first = False
            return found

        return evaluated

    def _settle_before(self, optimizer: Optimizer) -> None:
        # Of this rank's batch, as the tensors that were handed in; the meeting makes them those of the global batch.
        losses = self._losses() if self._examination is not None else {}
        if self._meeting is not None:
            self._meeting.hold(self._examination, self._pending)
        if self._examination is not None:
            with self._out.guard("record"):
                self._examination.settle(losses, self._weights)
            self._examination.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._trial is not None:
            self._trial.rates.after(optimizer)
        if self._closed:
            return
        if self._examination is not None:
            self._examination.after_step(optimizer)
        self._stepped |= {id(optimizer)}
        if len(self._stepped) == len(self._patient.optimizers):
            self._close_step()

    def _losses(self) -> dict[str, Tensor | float]:
        return self._pending.at(self._out.step, "loss/")

    def _close_step(self) -> None:
        """End the step: one copy to the host when it was due, nothing otherwise."""
        if self._examination is not None:
            with self._out.guard("record"):
                self._examination.settle(self._losses(), self._weights)
                self._out.deliver(self._records(self._examination))
            if self._treatment is not None:
                with self._out.guard("balance"):
                    kinds = {name: self._patient.kind(name) for name in self._weights}
                    posterior = snapshot.posterior if (snapshot := self._examination.snapshot) else None
                    dimensions = None if posterior is None else posterior.mu[:1].numel()
                    self._treatment.learn(self._out.step, self.ret, kinds, dimensions)
            if (snapshot := self._examination.snapshot) and snapshot.flow:
                self._last_flow = snapshot.flow
            if self._live is not None:
                self._live.measured()
                self._hand_on(self._live.news())
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
        self._begin_step(due=self._schedule.due(self._out.step) or (bool(self._owed) and self._turns > 0))
        if self._examination is not None and "steps" not in self._out.off:
            with self._out.guard("steps"):
                self._patient.arm()
        if self._trial is not None and self._trial.stepped():
            self.close()
            raise SystemExit(0)

    def _records(self, examination: Examination | None) -> list[Record]:
        """Pending scalars and the readings of a due step, through one copy to the host, one record per step."""
        readings = examination.finish() if examination else {}
        tensors, numbers = self._pending.drain()
        host = to_host({**tensors, **{(None, name): reading for name, reading in readings.items()}})
        measured = {key[1]: host.pop(key) for key in list(host) if key[0] is None}
        steps = by_step([*host.items(), *numbers.items()])
        now = self._out.step
        if examination is not None:
            treated = {} if self._treatment is None else self._treatment.readings(now)
            steps[now] = self.ret = {**steps.get(now, {}), **examination.learned(measured), **treated}
        return [Record(s, dict(values), full=bool(examination) and s == now) for s, values in sorted(steps.items())]

    def _found(self, finding: Finding) -> None:
        self._out.event("finding", **told(finding))

    def _live_failed(self, error: Exception) -> None:
        self._out.event("failure", measurement="live diagnosis", error=f"{type(error).__name__}: {error}")

    def _hand_on(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if self._on_finding is not None and "on_finding" not in self._out.off:
                with self._out.guard("on_finding"):
                    self._on_finding(finding)

    def _roll_out_last_batch(self) -> None:
        batch = self._last_flow
        if batch is None or batch.velocity is None or batch.z0 is None or batch.z1 is None:
            return
        rollout = Rollout(batch.velocity, batch.cond, STEPS, "euler", batch.t_source, batch.t_like.ndim)
        seconds = rollout.seconds(batch, self._patient.tops)
        if seconds > _ROLLOUT_SECONDS:
            self._out.event("rollout_skipped", seconds=seconds, hint="call doctor.endpoint(...) on a smaller batch")
            return
        self.endpoint(batch.z0, batch.z1, batch.velocity, batch.cond, t_source=batch.t_source)
