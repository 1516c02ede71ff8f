"""The tensors handed in during one due step, waiting to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lossdoctor.probe.neutrality import Autocast
from lossdoctor.probe.snapshot import DistillBatch, FlowBatch, PosteriorBatch

Batch = TypeVar("Batch", FlowBatch, PosteriorBatch, DistillBatch)


@dataclass(slots=True)
class Capture:
    """Everything `ld.flow`, `ld.posterior` and `ld.distill` received since the last optimizer step.

    z1: the target end with its graph, when it requires grad (a jointly trained latent).
    autocast: the precision in which v_pred was computed; without a flow, that of what else was handed in.
    """

    flows: list[FlowBatch] = field(default_factory=list)
    posteriors: list[PosteriorBatch] = field(default_factory=list)
    distills: list[DistillBatch] = field(default_factory=list)
    z1: Tensor | None = None
    autocast: Autocast | None = None

    def add_flow(
        self, v_pred: Tensor, v_target: Tensor, t: Tensor | float, *, z1: Tensor | None = None, **context: Any
    ) -> None:
        """Keep one batch of `ld.flow`, whose shapes are checked already."""
        t = torch.as_tensor(t, device=v_pred.device).detach()
        if z1 is not None and z1.requires_grad:
            self.z1 = z1
        self.autocast = Autocast.capture(v_pred.device)
        kept = {name: detached(value) for name, value in {**context, "z1": z1}.items()}
        self.flows.append(FlowBatch(v_pred.detach(), v_target.detach(), times(t, len(v_pred)), t, **kept))

    def add_posterior(self, mu: Tensor, logvar: Tensor, z: Tensor | None, kl: Tensor | float | None) -> None:
        """Keep one batch of `ld.posterior`; a KL per sample is averaged."""
        self.autocast = self.autocast or Autocast.capture(mu.device)
        given = None if kl is None else torch.as_tensor(kl, device=mu.device).detach().float().mean()
        self.posteriors.append(PosteriorBatch(mu.detach(), logvar.detach(), detached(z), given))

    def add_distill(self, teacher_logits: Tensor, student_logits: Tensor, **context: Any) -> None:
        """Keep one batch of `ld.distill`, as rows of K logits."""
        self.autocast = self.autocast or Autocast.capture(student_logits.device)
        teacher, student = (x.detach().reshape(-1, x.shape[-1]) for x in (teacher_logits, student_logits))
        kept = {name: detached(value) for name, value in context.items()}
        self.distills.append(DistillBatch(teacher, student, **kept))

    def latest(self) -> Capture:
        """Only the batches handed in last."""
        return Capture(self.flows[-1:], self.posteriors[-1:], self.distills[-1:], self.z1, self.autocast)

    def flow(self) -> FlowBatch | None:
        """The flow batches of all micro-batches as one."""
        return _merged(self.flows)

    def posterior(self) -> PosteriorBatch | None:
        """The posterior batches of all micro-batches as one."""
        batch = _merged(self.posteriors)
        kls = [b.kl for b in self.posteriors if b.kl is not None]
        return batch if batch is None or len(kls) < 2 else replace(batch, kl=torch.stack(kls).mean())

    def distill(self) -> DistillBatch | None:
        """The distillation batches of all micro-batches and views as one."""
        return _merged(self.distills)


def _merged(batches: Sequence[Batch]) -> Batch | None:
    """One batch out of several with the same fields; the last one when they do not fit together."""
    if len(batches) < 2:
        return batches[-1] if batches else None
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(batches[-1])):
        values = [getattr(batch, name) for batch in batches]
        last = values[-1]
        if not isinstance(last, Tensor):
            if not all(_same(value, last) for value in values):
                return batches[-1]
            joined[name] = last
        elif last.ndim == 0 or name == "center":
            joined[name] = last
        elif any(not isinstance(v, Tensor) or v.shape[1:] != last.shape[1:] for v in values):
            return batches[-1]
        else:
            joined[name] = torch.cat(values)
    if isinstance(joined.get("t_like"), Tensor) and joined["t_like"].ndim == 0:
        return batches[-1]
    return type(batches[-1])(**joined)


def _same(value: Any, last: Any) -> bool:
    """Whether a setting of two batches is one. What may have rows (nests, arrays) is not, nor can it be compared."""
    known = last is None or isinstance(last, (bool, int, float, str)) or callable(last)
    return known and not isinstance(value, Tensor) and bool(value == last)


def detached(value: Any) -> Any:
    """The same nest of tensors without graphs; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(detached(item) for item in value)
    return value


def times(t: Tensor, batch: int) -> Tensor:
    """t as (B,), from (B,), (B, 1, ...), (1,) or a scalar."""
    flat = t.detach().reshape(-1)
    return flat.expand(batch) if flat.numel() == 1 else flat
