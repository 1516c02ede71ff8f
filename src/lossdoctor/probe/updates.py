"""What an optimizer step did: parameters before and after, seen from hooks on the optimizer.

Where parameters are sharded over ranks, each rank sees its own parts move. Squared norms and inner products of parts
add up to those of the whole, in one small collective right after each optimizer's step: there all ranks are in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import linalg
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.parameters import ParameterMap, unwrapped
from lossdoctor.probe.sampling import Sample
from lossdoctor.probe.sharded import is_sharded, local, locals_of
from lossdoctor.probe.snapshot import Gradients, HeadUpdate, Shadow, Updates

Summed = Callable[[list[Tensor]], list[Tensor]]
"""Adds small tensors up over the ranks."""
_ROUNDING = 1e-6
"""Below this part of its terms a sum of squares is rounding."""


@dataclass(slots=True)
class UpdateWatch:
    """What each optimizer of one due step does to the parameters.

    How much a loss decreases by it follows from two inner products with that loss's gradient, of the parameters before
    and after; only of the heads, whose change is reported in lengths, is there a copy, between the two hooks.
    ledger: the gradients of the step, settled; None when they are not measured. packers: memory for the copies that is
    used again at every due step, by optimizer. failures: 0-d, on how many ranks that could not be done.
    """

    where: ParameterMap
    heads: Mapping[str, nn.Module]
    ledger: Ledger | None = None
    packers: dict[int, linalg.Packer] = field(default_factory=dict)
    _before: dict[int, Tensor] = field(default_factory=dict)
    _along: dict[int, Tensor] = field(default_factory=dict)
    _decreases: list[Tensor] = field(default_factory=list)
    _before_norm: dict[int, Tensor] = field(default_factory=dict)
    _delta_norm: dict[int, Tensor] = field(default_factory=dict)
    _grad_norm: dict[int, Tensor] = field(default_factory=dict)
    _total_norm: dict[int, Tensor] = field(default_factory=dict)
    _group: dict[int, tuple[float, float]] = field(default_factory=dict)
    failures: Tensor | None = None

    def before_step(self, optimizer: Optimizer) -> None:
        """Look at what `optimizer` is about to change, and at the norms of the gradients it sees."""
        mine = self._of(optimizer)
        # A fused optimizer under GradScaler divides by the scale itself.
        scale = getattr(optimizer, "grad_scale", None)
        with torch.no_grad():
            reported = self._reported(mine)
            copies = self.packers.setdefault(id(optimizer), linalg.Packer())([mine[i] for i in reported])
            self._before.update({i: c for i, c in zip(reported, copies, strict=True) if c is not None})
            if self.ledger is not None:
                self._along[id(optimizer)] = self.ledger.along(mine)
            with_grad = {i: local(p.grad) for i, p in self._found(_parameters(optimizer)) if p.grad is not None}
            norms = linalg.norms(list(with_grad.values()))
            norms = norms if scale is None else norms / scale.to(norms)
            self._grad_norm.update(zip(with_grad, norms.unbind(), strict=True))
        for group in optimizer.param_groups:
            settings = (float(group.get("lr", float("nan"))), float(group.get("weight_decay", 0.0)))
            self._group.update({i: settings for i, _ in self._found(group["params"])})

    def after_step(self, optimizer: Optimizer) -> None:
        """See how far it has moved them since `before_step`."""
        mine = self._of(optimizer)
        if self.ledger is not None and (start := self._along.pop(id(optimizer), None)) is not None:
            self._decreases.append(start - self.ledger.along(mine).to(start))
        reported = [i for i in self._reported(mine) if i in self._before]
        before = [self._before.pop(i) for i in reported]
        self._before_norm.update(zip(reported, linalg.norms(before).unbind(), strict=True))
        if before:
            with torch.no_grad():
                after = [linalg.flattened(mine[i], b.dtype) for i, b in zip(reported, before, strict=True)]
                torch._foreach_sub_(before, after)
        self._delta_norm.update(zip(reported, linalg.norms(before).unbind(), strict=True))

    def _found(self, parameters: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        index = {id(p): i for i, p in enumerate(self.where.parameters)}
        return ((index[id(p)], p) for p in parameters if id(p) in index)

    def _of(self, optimizer: Optimizer) -> dict[int, Tensor]:
        """The watched parameters that this optimizer moves, by index, in order; this rank's parts of them."""
        with torch.no_grad():
            return {i: local(p) for i, p in sorted(self._found(_parameters(optimizer)))}

    def _reported(self, mine: Iterable[int]) -> list[int]:
        """Those of them that belong to a head."""
        heads = {id(p) for head in self.heads.values() for p in head.parameters()}
        return [i for i in mine if id(self.where.parameters[i]) in heads]

    def join(self, optimizer: Optimizer, gradients: Gradients | None, summed: Summed, *, sound: bool) -> None:
        """Make what is known of this rank's parts, which `optimizer` has just moved, that of the whole.

        One collective, whose size is the same on every rank whatever failed before it. sound: nothing has, here.
        """
        indices = list(self._of(optimizer))
        if not indices:
            return
        ledger, kinds = self.ledger, (self._before_norm, self._delta_norm, self._grad_norm, self._total_norm)
        sound = sound and (ledger is None or gradients is not None)
        zero = torch.zeros((), dtype=torch.float64, device=self.where.parameters[0].device)
        decrease = zero.expand(0 if ledger is None else len(ledger.losses))
        if sound and ledger is not None:
            there = [i for i in indices if ledger.total[i] is not None]
            self._total_norm.update(zip(there, ledger.lengths(there), strict=True))
            decrease = self._decreases.pop().to(zero)
        squares = [
            torch.stack([norms[i].double().square() if sound and i in norms else zero for i in indices])
            for norms in kinds
        ]
        failures, decrease, *squares = summed([zero if sound else zero + 1, decrease, *squares])
        self.failures = failures if self.failures is None else self.failures + failures
        if ledger is not None:
            self._decreases.append(decrease)
        for norms, found in zip(kinds, squares, strict=True):
            norms.update({i: square.sqrt() for i, square in zip(indices, found, strict=True) if i in norms})

    def settle(self, gradients: Gradients | None) -> Updates:
        """Everything about the step, once all optimizers that take part have moved."""
        heads = {name: update for name, head in self.heads.items() if (update := self._head(head)) is not None}
        if self.ledger is None or gradients is None:
            return Updates(heads=heads)
        pre, post = self._clip(self.ledger, gradients)
        decreases = [each.to(self._decreases[0]) for each in self._decreases]
        return Updates(
            heads=heads,
            names=gradients.names,
            descent=torch.stack(decreases).sum(0) if decreases else None,
            descent_measured=gradients.measured,
            pre_clip=pre,
            post_clip=post,
        )

    def _head(self, head: nn.Module) -> HeadUpdate | None:
        index = {id(p): i for i, p in enumerate(self.where.parameters)}
        mine = [index[id(p)] for p in head.parameters() if id(p) in index and index[id(p)] in self._delta_norm]
        if not mine:
            return None
        zero = torch.zeros_like(self._before_norm[mine[0]])
        settings = {self._group[i] for i in mine}
        lr, weight_decay = settings.pop() if len(settings) == 1 else (None, None)
        return HeadUpdate(
            before_norm=torch.stack([self._before_norm[i] for i in mine]),
            delta_norm=torch.stack([self._delta_norm[i] for i in mine]),
            grad_norm=torch.stack([self._grad_norm.get(i, zero) for i in mine]),
            numel=torch.tensor([self.where.parameters[i].numel() for i in mine], device=zero.device),
            lr=lr,
            weight_decay=weight_decay,
        )

    def _clip(self, ledger: Ledger, gradients: Gradients) -> tuple[Tensor | None, Tensor | None]:
        """The gradient norm after backward and as the optimizers saw it, over the parameters that were stepped.

        Nothing for an optimizer in the backward: there is no moment between the two.
        """
        if ledger.composed:
            return None, None
        both = [i for i in self._grad_norm if ledger.total[i] is not None]
        if not both:
            return None, None
        post = torch.linalg.vector_norm(torch.stack([self._grad_norm[i] for i in both]))
        if len(both) == sum(piece is not None for piece in ledger.total):
            return gradients.gram[""][-1, -1].sqrt(), post  # of all parameters, known already
        known = self._total_norm
        pre = torch.linalg.vector_norm(torch.stack([known[i] for i in both]) if known else ledger.lengths(both))
        return (pre if ledger.scale is None else pre / ledger.scale.to(pre)), post


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


@dataclass(slots=True)
class ShadowWatch:
    """A slowly following copy (EMA, teacher), kept from the end of one step to the next due one.

    follower: parameters of the copy. live: the parameters they follow, in the same order, or None when the copy has
    another architecture. sharded: each rank holds parts of both. apart: only one of the two is sharded, so that it is
    not known how far they are from each other.
    """

    follower: Sequence[Tensor]
    live: Sequence[Tensor] | None
    sharded: bool = False
    apart: bool = False
    _sample: Sample | None = None
    _old: list[Tensor] | None = None

    @property
    def armed(self) -> bool:
        """Whether it is remembered how the copy was."""
        return self._old is not None

    @property
    def sampled(self) -> bool:
        """Whether long tensors are read in part."""
        return self._sample is not None and any(factor != 1.0 for factor in self._sample.factors)

    def arm(self) -> None:
        """Remember the copy as it is before its next update."""
        follower, live = locals_of(self.follower), locals_of(self.live or ())
        self._sample = Sample.of(follower, live) if self._sample is None else self._sample.next()
        self._old = self._sample.vectors(follower)

    def settle(self, summed: Summed = list) -> Shadow | None:
        """What moved since `arm`; None when nothing was remembered. The live weights must still be those followed.

        summed: of a sharded copy, adds up over the ranks what each has found of its parts.
        """
        if self._old is None or self._sample is None:
            return None
        sample, old, self._old = self._sample, self._old, None
        now, live = (None if each is None else sample.vectors(locals_of(each)) for each in (self.follower, self.live))
        pairs, combinations = self._asked()
        problems = [
            ([vectors[group : group + 1] for vectors in (old, now, live) if vectors is not None], pairs, combinations)
            for group in range(len(sample.factors))
        ]
        each = [factor * found for factor, found in zip(sample.factors, linalg.inners(problems), strict=True)]
        (sums,) = summed([torch.stack(each).sum(0)])
        if self.live is None:
            before, moved = sums
            return Shadow(old=before, moved=moved)
        before, moved, of_live, distance, common = sums
        # theta - ema_before = (theta - ema) + (ema - ema_before), so that its length needs no vector of its own.
        gap = distance + 2.0 * common + moved
        gap = torch.where(gap > _ROUNDING * (distance + moved), gap, 0.0)
        return Shadow(old=before, moved=moved, live=of_live, distance=distance, gap=gap)

    def _asked(self) -> tuple[list[tuple[int, int]], list[list[float]]]:
        """Squared lengths of the old copy and of its change. With live weights also of these and of how far the new one
        is from them, and what change and distance have in common."""
        # Differences are taken between vectors, as differences of squares would drown in rounding.
        if self.live is None:
            return [(0, 0), (2, 2)], [[-1.0, 1.0]]
        return [(0, 0), (3, 3), (2, 2), (4, 4), (3, 4)], [[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]


def shadow_watch(role: str, copy: nn.Module | None, model: nn.Module) -> ShadowWatch | None:
    """A watch on `copy`, which follows the model or one of its submodules; a teacher may follow nothing.

    The module with the same parameter names and shapes is the one followed, the whole model first.
    Raises UsageError when an EMA matches nothing.
    """
    if copy is None:
        return None
    follower = dict(unwrapped(copy).named_parameters())
    shapes = {name: p.shape for name, p in follower.items()}
    parts = [is_sharded(p) for p in follower.values()]
    for module in unwrapped(model).modules():
        live = dict(module.named_parameters())
        if module is not unwrapped(copy) and {name: p.shape for name, p in live.items()} == shapes:
            followed = [live[name] for name in follower]
            apart = [is_sharded(p) for p in followed] != parts
            return ShadowWatch(list(follower.values()), None if apart else followed, any(parts), apart)
    if role == "ema":
        raise UsageError(
            mismatch(
                "ema= follows no part of the model",
                "a module with the parameter names and shapes of the model or of one of its submodules",
                f"{type(copy).__name__} with {len(follower)} parameters",
                "pass the averaged module itself, for example ema=ema.module",
            )
        )
    return ShadowWatch(list(follower.values()), None, any(parts))
