"""The Doctor of one run: what its user calls. It asks the probe, lets the metrics count, and hands the numbers on.

One optimizer step goes: `flow`/`posterior`/`distill`/`log` and `backward`, any number of times; then every optimizer
steps, seen through its hooks; the last one closes the record (`course`). A step that is not due leaves only its loss
values, detached and on their device, until the next due record takes them along in its single copy to the host.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import metrics
from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.doctor.course import Course
from lossdoctor.doctor.hearing import Hearing
from lossdoctor.doctor.live import Alerts
from lossdoctor.doctor.meeting import IN_STEP, Meeting, whose
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.doctor.rollout import STEPS, Rollouts
from lossdoctor.doctor.treatment import treated
from lossdoctor.doctor.trial import trial_of
from lossdoctor.kinds import checked_kinds
from lossdoctor.probe import observe
from lossdoctor.probe.audit import Auditor
from lossdoctor.probe.compiled import keep_activations
from lossdoctor.probe.differences import MODE, Compute
from lossdoctor.probe.in_step import InStep
from lossdoctor.probe.parameters import check_heads, check_optimizers
from lossdoctor.probe.ranks import Ranks, ranks_of
from lossdoctor.probe.schedule import Every, Schedule, Settling, Together, schedule
from lossdoctor.probe.sharded import any_sharded, unsupported
from lossdoctor.probe.sketch import checked_mode
from lossdoctor.probe.snapshot import Velocity
from lossdoctor.probe.updates import shadow_watch
from lossdoctor.rules import Finding
from lossdoctor.sinks import Sink
from lossdoctor.store import Run
from lossdoctor.store.provenance import provenance
from lossdoctor.treat import Balancer, Ramp, Weighting, balancer

T = TypeVar("T")


class Doctor(Hearing):
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
        if trial is not None:
            self._patient.linearity.steady = True  # paired runs are compared number by number
        due = schedule(every)
        if balance is not None and isinstance(due, Every):
            due = Settling(due.n)
        rank = 0 if ranks is None else ranks.rank
        sharded = any_sharded(self._patient.tops)
        strange = unsupported(self._patient.look().parameters) if sharded else None
        mode = self._patient.mode
        # Nobody has the whole of a sharded gradient, and what several ranks find by differences is not added up yet.
        passed_over = (mode == "sketch" and sharded) or (mode == MODE and (sharded or ranks is not None))
        if passed_over:
            self._patient.mode = "exact"
        facts = {
            **provenance(),
            **self._patient.facts(),
            "schedule": repr(due),
            **({} if ranks is None else {"ranks": whose(ranks.size, sharded=sharded, understood=strange is None)}),
            **(meta or {}),
            **({} if trial is None else trial.facts),
        }
        self._out = Outlet(run, facts, sinks, resume=resume, strict=strict, rank=rank)
        for fields in () if preflight is None else preflight.events():
            self._out.event("preflight", **fields)
        if passed_over and gradients != "auto":
            self._out.event("passed_over", measurement=gradients, reason="these ranks are measured exactly")
        self._treatment = None if balance is None else treated(balancer(balance), self._patient, self._out)
        self._meeting = None if ranks is None else Meeting(ranks, Together(due), self._patient, self._out)
        self._compiling_ends = self._graphs_kept()
        if sharded:
            self._sharded(ranks, strange)
        self._rollouts = Rollouts(self._patient, self._out)
        self._course = Course(
            self._patient,
            self._out,
            due,
            trial=trial,
            treatment=self._treatment,
            meeting=self._meeting,
            alerts=Alerts(self._out, on_finding) if live and rank == 0 else None,
            rollouts=self._rollouts,
            end=self.close,
        )
        observe.activate(self)
        atexit.register(self._at_exit)

    def _graphs_kept(self) -> Callable[[], None] | None:
        """From now on what extra passes need of compiled graphs; what ends that, where there are such passes."""
        if self._patient.mode == "off":
            self._out.off.add("gradients")
        return None if self._patient.mode in ("off", MODE) else keep_activations()

    def _sharded(self, ranks: Ranks | None, strange: str | None) -> None:
        """Each rank holds a part of every vector. strange: why it is not known which part."""
        patient = self._patient
        patient.summed = list if ranks is None else ranks.summed
        patient.forwards = InStep(ranks).forwards
        for role, watch in (("ema", patient.ema), ("teacher", patient.teacher)):
            if watch is not None and watch.apart:
                why = f"only one of the model and the {role} is sharded; give both to fully_shard"
                self._out.event("passed_over", measurement=f"{role}/distance", reason=why)
        if strange is not None:
            self._out.off.update(IN_STEP)
            self._out.failed("gradients", f"the model is sharded in a way that is not understood: {strange}")

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
        self._course.stepping.forget()
        again = None
        if callable(losses):
            again = self._course.about_to(losses)
            losses = losses()
        total = self._course.handed_in(losses, weights or {}, again, recorded=True)
        self.before_backward(foreign=backward is not None, scaler=scaler)
        total = self._course.treated(total)
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
        self._course.stepping.forget()
        return self._course.handed_in(losses, weights or {}, None, recorded=torch.is_grad_enabled())

    def before_backward(self, *, foreign: bool = True, scaler: Any = None) -> None:
        """A framework is about to run the backward of the last `total`: measure each loss, if the step is due.

        foreign: the framework may multiply the total with a factor, which is then found from the gradients. scaler: the
        GradScaler it uses.
        """
        self._course.before_backward(foreign=foreign, scaler=scaler)

    def after_backward(self) -> None:
        """The backward announced by `before_backward` is done, and nothing has touched the gradients since."""
        self._course.after_backward()

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
        if self._course.closed or "endpoint" in self._out.off:
            return {}
        values = self._rollouts.measure(z0, z1, velocity, cond, steps=steps, solver=solver, t_source=t_source)
        self._course.ret = {**self._course.ret, **values}
        return values

    # Reading and ending

    @property
    def ret(self) -> dict[str, float]:
        """The readings of the last measured step, by name."""
        return self._course.ret

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
        if self._treatment is None:
            return {"step": self._out.step}
        linearity = self._patient.linearity.state_dict()
        return {"step": self._out.step, "balance": self._treatment.state_dict(), "linearity": linearity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the step of a checkpoint."""
        self._out.step = int(state["step"])
        if self._treatment is not None and "balance" in state:
            self._treatment.load_state_dict(state["balance"])
        if self._treatment is not None and "linearity" in state:
            self._patient.linearity.load_state_dict(state["linearity"], self._patient.look())
        if self._meeting is not None:
            self._meeting.forget()
        self._course.begin()

    def close(self, *, rollout: bool = True) -> None:
        """Write what is pending, close run and sinks, remove the hooks. Training may go on unobserved.

        On several ranks, to be called on each: the loss values of the last steps are averaged once more.
        rollout: when `endpoint` was never called and `flow` got both ends and the velocity, integrate the last measured
        batch once, unless that would take longer than half a minute.
        """
        self._close(rollout=rollout, together=True)

    def _close(self, *, rollout: bool, together: bool) -> None:
        if self._course.closed:
            return
        self._course.close(rollout=rollout, together=together)
        atexit.unregister(self._at_exit)
        observe.deactivate(self)
        if self._compiling_ends is not None:
            self._compiling_ends()
        self._course.stepping.remove()
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
