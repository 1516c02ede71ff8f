"""One due step, from the first tensor handed in to the readings: probe and metrics put together."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import metrics
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.metrics.reading import Maybe
from lossdoctor.probe import neutrality
from lossdoctor.probe.capture import Capture
from lossdoctor.probe.differences import DISAGREE, IN_BACKWARD, MODE, UNTOLD, Again, slopes
from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.obstacles import Obstacles, obstacles
from lossdoctor.probe.sampling import LONG, ONE_IN
from lossdoctor.probe.sharded import reduces
from lossdoctor.probe.sketch import DOUBTFUL, SIZE, Sketch
from lossdoctor.probe.snapshot import Gradients, Shadow, Snapshot
from lossdoctor.probe.stepping import inside_backward
from lossdoctor.probe.updates import ShadowWatch, UpdateWatch
from lossdoctor.probe.wrapped import must_wait

T = TypeVar("T")
Readings = dict[str, "Tensor | Maybe"]

_LINEARITY = "linearity error"
_DOUBT = "doubt of a sketch/"
_SUM = "sum of shares"
_FAILURES = "ranks that failed"
_GRADIENT_KEYS = ("grad/", "grad_weighted/", "grad_share/", "grad_cos/", "grad_module/", "descent/")
_STEP_KEYS = ("step/", "descent/", "grad/clip_ratio")


@dataclass(slots=True)
class Examination:
    """One due step. Every part is guarded on its own: one that fails is switched off and the others go on.

    losses: what each `backward` of the step was given, by name. backwards: how often it was called. ema_between: how
    many of them found the EMA changed since the one before. passed_over: why the gradients of this one step are not
    measured. calls: how the losses of each backward can be computed again.
    """

    patient: Patient
    out: Outlet
    capture: Capture = field(default_factory=Capture)
    snapshot: Snapshot | None = None
    readings: Readings = field(default_factory=dict)
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    backwards: int = 0
    ema_between: int = 0
    passed_over: str | None = None
    calls: list[tuple[Again, dict[str, float]]] = field(default_factory=list)
    _ledger: Ledger | None = None
    _watch: UpdateWatch | None = None
    _together: frozenset[str] = frozenset()
    _witness: nn.Parameter | None = None
    _ema_version: int = 0

    def before_backward(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float | Tensor],
        *,
        foreign: bool,
        scaler: Any,
        again: Again | None = None,
    ) -> None:
        """The extra passes, while the graph is there. foreign: the backward may multiply the total with a factor.

        again: how the losses were computed, where that is needed.
        """
        if self.patient.several and not self.backwards:
            with self.out.guard("gradients"):
                self.patient.look()
                if must_wait(self.patient.wrappers):
                    self.pass_over("static_graph before its first backward")
        if self.patient.summed is not None and self.passed_over is None and not reduces(self.patient.modules):
            self.pass_over("set_requires_gradient_sync(False): this backward does not bring gradients to .grad")
        by_difference = self.patient.mode == MODE
        if by_difference and again is None and "gradients" not in self.out.off:
            self.pass_over(UNTOLD)
            self.out.pass_over("gradients", UNTOLD)
        ahead = None if by_difference else self._obstacles(losses)
        if "gradients" in self.out.off or self.passed_over is not None:
            self._note(losses)
            return
        with self.out.guard("gradients"):
            one = torch.ones((), device=next(iter(losses.values())).device)
            scale = None if scaler is None else scaler.scale(one)
            if self._given_up(losses, foreign=foreign, scale=scale):
                self.capture, self._ledger = self.capture.latest(), None
                self.losses, self.backwards, self.ema_between, self.calls = {}, 0, 0, []
            self._note(losses)
            patient = self.patient
            if self._ledger is None:
                where, sketch = patient.look(), None
                if patient.mode == "sketch":
                    sketch = Sketch(where, seed=self.out.step, exact=patient.exact)
                self._ledger = Ledger(
                    where, patient.linearity, patient.gradients, sketch, patient.summed, belongings=patient.belongings
                )
            velocities = [name for name in losses if self.patient.kind(name) == "velocity"]
            self._ledger.observe(
                losses,
                {name: float(weight) for name, weight in weights.items()},
                modules=self.patient.modules,
                scale=scale,
                foreign_backward=foreign,
                z1=self.capture.z1,
                z1_loss=velocities[0] if velocities else None,
                ahead=ahead,
                passes=not by_difference,
            )
            if again is not None and by_difference:
                live = [name for name, loss in losses.items() if loss.requires_grad]
                self.calls.append((again, {name: float(weights[name]) for name in live}))
            return
        self._ledger = None

    def _obstacles(self, losses: Mapping[str, Tensor]) -> Obstacles | None:
        """What the passes would stumble over; where it cannot be passed, the gradients of this step are left out."""
        if "gradients" in self.out.off or self.passed_over is not None:
            return None
        with self.out.guard("gradients"):
            found = obstacles(losses.values())
            sharded = self.patient.summed is not None
            parameters = self.patient.look().parameters if found.reentrant or sharded else ()
            why = found.refusal(
                parameters,
                several=self.patient.several and not sharded,
                sharded=sharded,
                spoiled=self.patient.belongings.restored,
            )
            if why is None:
                return found
            self.pass_over(why)
            if not self.patient.several:  # several ranks record it when they meet
                self.out.pass_over("gradients", why)
        return None

    def _note(self, losses: Mapping[str, Tensor]) -> None:
        version = self.patient.auditor.ema_version()
        self.ema_between += self.backwards > 0 and version != self._ema_version
        self._ema_version = version
        self.backwards += 1
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss.detach().clone())

    def _given_up(self, losses: Mapping[str, Tensor], *, foreign: bool, scale: Tensor | None) -> bool:
        """Whether the backwards so far belong to a step that never came, so that only what is coming now counts.

        GradScaler skips a step when it overflows, and then lowers its scale; inside a foreign backward that cannot be
        seen. Other losses belong to an optimizer that is not watched. With the same losses, gradients that are gone are
        a finding: the micro-batches of one step, and `zero_grad` between them.
        """
        ledger = self._ledger
        if ledger is None or not ledger.disturbed():
            return False
        if ledger.scale is not None and scale is not None and bool(scale != ledger.scale):
            return True
        gone = self._witness is not None and self._witness.grad is None
        return gone and (foreign or losses.keys() != ledger.losses.keys())

    @property
    def settled(self) -> bool:
        """Whether the gradients of the step are taken, so that further backwards of it are of other weights."""
        return self.snapshot is not None

    @property
    def ledger(self) -> Ledger | None:
        """The gradients of the step, until they are settled; None when they are not measured."""
        return self._ledger

    def wishes(self) -> list[str]:
        """What all ranks have to do at once where parameters are sharded, and this one is ready for."""
        handed = self.capture.flows[-1:]
        asks = any(flow.velocity is not None and flow.x_t is not None and flow.x_t.numel() > 0 for flow in handed)
        slow = {"ema": self.patient.ema, "teacher": self.patient.teacher}
        ready = {"probes": asks, "steps": True}
        ready.update({role: watch is not None and watch.sharded and watch.armed for role, watch in slow.items()})
        return [what for what, is_ready in ready.items() if is_ready and what not in self.out.off]

    def agree(self, wishes: Sequence[Collection[str]]) -> None:
        """Take in the wishes of all ranks: what one of them is not ready for, none does."""
        all_of_them = frozenset[str]().union(*wishes)
        self._together = all_of_them.intersection(*wishes)
        for what in sorted(all_of_them - self._together - self.out.off):
            self.out.pass_over(what, "one of the ranks is not ready for it, and on shards all of them measure at once")

    def _may(self, what: str) -> bool:
        """Whether a measurement does not need other ranks, or has them."""
        return self.patient.summed is None or not self.patient.several or what in self._together

    def pass_over(self, why: str) -> None:
        """Leave the gradients of this step out."""
        self.passed_over, self._ledger = why, None

    def after_backward(self) -> None:
        """The total gradient, before clipping can change it."""
        if self._ledger is not None:
            with self.out.guard("gradients"):
                self._ledger.after_backward()
                self._witness = next((p for p in self._ledger.where.parameters if p.grad is not None), None)

    def settle(self, losses: Mapping[str, Tensor | float], weights: Mapping[str, float | Tensor]) -> None:
        """Measure, once, everything that needs the parameters as they were in this step's forward."""
        if self.snapshot is not None:
            return
        gradients: Gradients | None = None
        source = None
        if self._ledger is not None:
            with self.out.guard("gradients"):
                gradients, error = self._ledger.settle()
                if self.calls:
                    gradients = self._by_differences(self._ledger, gradients)
                source = self._ledger.source(self.capture.z1)
                if error is not None:
                    self.readings[_LINEARITY] = error
                self.readings.update({f"{_DOUBT}{i}": doubt for i, doubt in self._ledger.doubts().items()})
                if self.patient.mode == "sketch":
                    self.out.tell("sketch", "size", SIZE)
                    self.out.tell("sketch", "modules", sorted(gradients.sketched - {""}))
        flow, posterior, distill = self.capture.flow(), self.capture.posterior(), self.capture.distill()
        if self._ledger is None:
            self.patient.look()
        self._audit()
        owners = owner_of(flow.velocity) if flow else []
        known = set(map(id, self.patient.modules))
        modules = [*self.patient.modules, *neutrality.every_module(m for m in owners if id(m) not in known)]
        if flow is not None:
            samples = len(flow.v_pred)
            self.out.tell("probes", "samples", metrics.probes.sub_batch(samples))
            self.out.tell("probes", "batch", samples)
            self.out.tell("shapes", "batch", samples)
            self.out.tell("shapes", "velocity_dimensions", flow.v_pred[:1].numel())
        if posterior is not None:
            self.out.tell("shapes", "posterior_dimensions", posterior.mu[:1].numel())
        if distill is not None:
            self.out.tell("shapes", "prototypes", distill.teacher_logits.shape[-1])
        self.snapshot = Snapshot(
            randomness=functools.partial(randomness, self.out.step),
            # Bound, not a closure: one would hold this examination, and it all gradients, until the next collection.
            undisturbed=functools.partial(
                neutrality.undisturbed, modules, self.capture.autocast, self.patient.forwards
            ),
            batch_coupled=neutrality.batch_coupled(modules),
            stochastic=neutrality.stochastic(modules),
            flow=flow,
            posterior=posterior,
            distill=distill,
            gradients=gradients,
            source=source,
            kl_weight=self.patient.of_kind("kl", weights),
            distill_loss=self._as_trained("distill", losses, joined=_joined(distill, self.capture.distills)),
            velocity_loss=self._as_trained("velocity", losses, joined=_joined(flow, self.capture.flows)),
            ema=self._followed("ema", self.patient.ema),
            teacher=self._followed("teacher", self.patient.teacher),
        )
        if any(watch.sampled for watch in (self.patient.ema, self.patient.teacher) if watch is not None):
            self.out.tell("copies", "long_tensors", LONG)
            self.out.tell("copies", "one_in", ONE_IN)
        self._measure(metrics.BEFORE_STEP)

    def _followed(self, role: str, watch: ShadowWatch | None) -> Shadow | None:
        if watch is None or not watch.sharded or self.patient.summed is None:
            return None if watch is None else watch.settle()
        return watch.settle(self.patient.summed) if self._may(role) else None

    def _by_differences(self, ledger: Ledger, gradients: Gradients) -> Gradients:
        """The same, with the slope of each loss along the total gradient."""
        if ledger.composed:
            self.out.pass_over("gradients", IN_BACKWARD)
            return gradients
        found = slopes(self.calls, ledger.where.parameters, ledger.total, self.patient.modules)
        if found is None:
            return gradients
        # Along a gradient that GradScaler has scaled, slopes are too large by its factor.
        unscaled = {name: s if ledger.scale is None else s / ledger.scale.to(s) for name, s in found.items()}
        whole = gradients.gram[""][-1, -1]
        self.readings[_SUM] = torch.stack([s.to(whole) for s in unscaled.values()]).sum() / whole
        return replace(gradients, slopes=unscaled)

    def _audit(self) -> None:
        # In the middle of a backward the modules hold whole parameters, and the optimizers shards of them.
        hidden = self.patient.summed is not None and inside_backward()
        if "audit" not in self.out.off and not hidden:
            with self.out.guard("audit"):
                facts = self.patient.auditor.news(self.capture.autocast, self.backwards, self.ema_between)
                if facts is not None:
                    self.out.event("audit", facts=facts)

    def _as_trained(self, kind: str, losses: Mapping[str, Tensor | float], *, joined: bool) -> Tensor | float | None:
        """The one loss of this kind; where its batch is all micro-batches joined, their mean."""
        several = {name: each for name, each in self.losses.items() if joined and self.patient.kind(name) == kind}
        return self.patient.of_kind(kind, {**losses, **{name: sum(each) / len(each) for name, each in several.items()}})

    def before_step(self, optimizer: Optimizer) -> None:
        """Remember what the optimizer is about to change."""
        if "steps" in self.out.off or not self._may("steps"):
            return
        with self.out.guard("steps"):
            if self._watch is None:
                where = self._ledger.where if self._ledger else self.patient.look()
                # A sketch is there to save memory, so that its copies of the heads do not outlive the step.
                packers = {} if self.patient.mode == "sketch" else self.patient.updates
                self._watch = UpdateWatch(where, self.patient.heads, self._ledger, packers)
            self._watch.before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """See what it changed."""
        if self._watch is None:
            return
        if "steps" not in self.out.off:
            with self.out.guard("steps"):
                self._watch.after_step(optimizer)
        if self.patient.summed is not None:
            with self.out.guard("steps"):
                gradients = None if self.snapshot is None else self.snapshot.gradients
                sound = "steps" not in self.out.off
                self._watch.join(optimizer, gradients, self.patient.summed, sound=sound)

    def finish(self) -> Readings:
        """All readings of the step, still on their device."""
        if self._watch is not None and self.snapshot is not None:
            with self.out.guard("steps"):
                updates = self._watch.settle(self.snapshot.gradients)
                self.snapshot = replace(self.snapshot, updates=updates)
                if self._watch.failures is not None:
                    self.readings[_FAILURES] = self._watch.failures
        self._measure(metrics.AFTER_STEP)
        return self.readings

    def learned(self, measured: dict[str, float]) -> dict[str, float]:
        """The same numbers on the host, after the next due step has been planned with them."""
        error = measured.pop(_LINEARITY, None)
        doubts = {int(key.split("/")[1]): measured.pop(key) for key in list(measured) if key.startswith(_DOUBT)}
        if not abs(measured.pop(_SUM, 1.0) - 1.0) <= metrics.gradients.ADD_UP:
            self.out.pass_over("gradients", DISAGREE)
        if measured.pop(_FAILURES, 0.0):
            measured = {key: value for key, value in measured.items() if not key.startswith(_STEP_KEYS)}
        if self._ledger is None:
            return measured
        if self._ledger.scale is not None and not math.isfinite(measured.get("grad/total", 0.0)):
            # GradScaler will skip this step and lower its scale: an overflow here is how it works.
            measured = {key: value for key, value in measured.items() if not key.startswith(_GRADIENT_KEYS)}
        if doubted := [i for i, doubt in doubts.items() if DOUBTFUL < doubt < math.inf]:
            parameters = self._ledger.where.parameters
            self.patient.exact |= {id(parameters[i]) for i in doubted}
            shapes = [list(parameters[i].shape) for i in doubted]
            self.out.event("not_sketched", shapes=shapes, error=max(doubts[i] for i in doubted))
            measured = {key: value for key, value in measured.items() if not key.startswith(_GRADIENT_KEYS)}
        norms = {name: measured.get(f"grad/{name}", math.nan) for name in self._ledger.losses}
        self.patient.linearity.learn(self._ledger, {n: v for n, v in norms.items() if math.isfinite(v)}, error)
        for name in self._ledger.losses:
            self.out.tell("losses", name, self.patient.kind(name))
        return measured

    def _measure(self, families: Mapping[str, metrics.Family]) -> None:
        for name, family in families.items():
            alone = name != "probes" or self._may(name)
            if name not in self.out.off and self.snapshot is not None and alone:
                with self.out.guard(name):
                    self.readings.update(family(self.snapshot))


def randomness(step: int, device: torch.device) -> torch.Generator:
    """Private randomness, the same for the same step whatever happened before."""
    return torch.Generator(device=device).manual_seed(1_000_003 * (step + 1))


def _joined(batch: object, handed_in: Sequence[object]) -> bool:
    """Whether a batch is several micro-batches; those that do not fit together leave the last as it was."""
    return batch is not None and batch is not handed_in[-1]


def owner_of(function: object) -> list[nn.Module]:
    """The module a velocity function belongs to, so that its buffers and modes are kept too."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return [owner] if isinstance(owner, nn.Module) else []
