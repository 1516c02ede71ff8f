"""What an optimizer step did: parameters before and after, seen from hooks on the optimizer.

Where parameters are sharded over ranks, each rank sees its own parts move. Squared norms and inner products of parts
add up to those of the whole, in one small collective right after each optimizer's step: there all ranks are in step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import linalg
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.parameters import ParameterMap, unwrapped
from lossdoctor.probe.sharded import is_sharded, local, locals_of
from lossdoctor.probe.snapshot import Gradients, HeadUpdate, Shadow, Updates

Summed = Callable[[list[Tensor]], list[Tensor]]
"""Adds small tensors up over the ranks."""
_ROUNDING = 1e-6
"""Below this part of its terms a sum of squares is rounding."""


@dataclass(slots=True)
class UpdateWatch:
    """The parameters of one due step before each optimizer moves them.

    Extra memory: one copy of the trainable parameters, from the first optimizer's step to the end of the last; of this
    rank's parts where they are sharded. failures: 0-d, on how many ranks that could not be done.
    """

    where: ParameterMap
    heads: Mapping[str, nn.Module]
    packers: dict[int, linalg.Packer] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    _before_norm: dict[int, Tensor] = field(default_factory=dict)
    _delta_norm: dict[int, Tensor] = field(default_factory=dict)
    _grad_norm: dict[int, Tensor] = field(default_factory=dict)
    _group: dict[int, tuple[float, float]] = field(default_factory=dict)
    _moved: set[int] = field(default_factory=set)
    _total_norm: dict[int, Tensor] = field(default_factory=dict)
    _descent: Tensor | None = None
    failures: Tensor | None = None

    def before_step(self, optimizer: Optimizer) -> None:
        """Copy what `optimizer` is about to change, and the norms of the gradients it sees."""
        index = {id(p): i for i, p in enumerate(self.where.parameters)}
        mine = [(index[id(p)], p) for group in optimizer.param_groups for p in group["params"] if id(p) in index]
        # A fused optimizer under GradScaler divides by the scale itself.
        scale = getattr(optimizer, "grad_scale", None)
        with torch.no_grad():
            copies = self.packers.setdefault(id(optimizer), linalg.Packer())([local(p) for _, p in mine])
            self.before.update({i: c for (i, _), c in zip(mine, copies, strict=True) if c is not None})
            with_grad = [(i, local(p.grad)) for i, p in mine if p.grad is not None]
            norms = linalg.norms([g for _, g in with_grad])
            norms = norms if scale is None else norms / scale.to(norms)
            self._grad_norm.update(zip((i for i, _ in with_grad), norms, strict=True))
        for group in optimizer.param_groups:
            settings = (float(group.get("lr", float("nan"))), float(group.get("weight_decay", 0.0)))
            self._group.update({index[id(p)]: settings for p in group["params"] if id(p) in index})

    def after_step(self, optimizer: Optimizer) -> None:
        """Turn the copies into theta_before - theta_after, in place."""
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        indices = [i for i in self.before if id(self.where.parameters[i]) in mine and i not in self._moved]
        in_heads = {id(p) for head in self.heads.values() for p in head.parameters()}
        reported = [i for i in indices if id(self.where.parameters[i]) in in_heads]
        copies = [self.before[i] for i in reported]
        self._before_norm.update(zip(reported, linalg.norms(copies), strict=True))
        with torch.no_grad():
            before = [self.before[i] for i in indices]
            parameters = [local(self.where.parameters[i]) for i in indices]
            after = [linalg.flattened(p, b.dtype) for p, b in zip(parameters, before, strict=True)]
            torch._foreach_sub_(before, after)
        self._delta_norm.update(zip(reported, linalg.norms(copies), strict=True))
        self._moved.update(indices)

    def join(
        self, optimizer: Optimizer, ledger: Ledger | None, gradients: Gradients | None, summed: Summed, *, sound: bool
    ) -> None:
        """Make norms of this rank's parts, which `optimizer` has just moved, those of the whole; and add up descents.

        One collective, whose size is the same on every rank whatever failed before it. sound: nothing has, here.
        """
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        indices = [i for i, p in enumerate(self.where.parameters) if id(p) in mine]
        if not indices:
            return
        sound = sound and (ledger is None or gradients is not None)
        zero = torch.zeros((), dtype=torch.float64, device=self.where.parameters[0].device)
        descent = zero.expand(0 if ledger is None else len(ledger.losses))
        kinds = (self._before_norm, self._delta_norm, self._grad_norm, self._total_norm)
        if sound and ledger is not None and gradients is not None:
            there = [i for i in indices if ledger.total[i] is not None]
            self._total_norm.update(zip(there, ledger.lengths(there), strict=True))
            moved = set(indices)
            decrease = [self.before.get(i) if i in moved else None for i in range(len(self.where.parameters))]
            descent = ledger.descent(decrease, gradients)
        squares = [
            torch.stack([norms[i].double().square() if sound and i in norms else zero for i in indices])
            for norms in kinds
        ]
        failures, descent, *squares = summed([zero if sound else zero + 1, descent, *squares])
        self.failures = failures if self.failures is None else self.failures + failures
        self._descent = descent if self._descent is None else self._descent + descent
        for norms, found in zip(kinds, squares, strict=True):
            norms.update({i: square.sqrt() for i, square in zip(indices, found, strict=True) if i in norms})

    def settle(self, ledger: Ledger | None, gradients: Gradients | None) -> Updates:
        """Everything about the step, once all optimizers that take part have moved."""
        heads = {name: update for name, head in self.heads.items() if (update := self._head(head)) is not None}
        if ledger is None or gradients is None:
            return Updates(heads=heads)
        descent = self._descent
        if descent is None:
            descent = ledger.descent([self.before.get(i) for i in range(len(self.where.parameters))], gradients)
        pre, post = self._clip(ledger, gradients)
        return Updates(
            heads=heads,
            names=gradients.names,
            descent=descent,
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
    _old: list[Tensor | None] | None = None
    _packer: linalg.Packer = field(default_factory=linalg.Packer)

    @property
    def armed(self) -> bool:
        """Whether it is remembered how the copy was."""
        return self._old is not None

    def arm(self) -> None:
        """Remember the copy as it is before its next update."""
        self._old = self._packer(locals_of(self.follower))

    def settle(self, summed: Summed = list) -> Shadow | None:
        """What moved since `arm`; None when nothing was remembered. The live weights must still be those followed.

        summed: of a sharded copy, adds up over the ranks what each has found of its parts.
        """
        if self._old is None:
            return None
        old, self._old = self._old, None
        rows: list[linalg.Pieces] = [old, locals_of(self.follower)]
        # Differences are taken between vectors, as differences of squares would drown in rounding.
        if self.live is None:
            (found,) = summed([linalg.squares(rows, [[-1.0, 1.0]])])
            return Shadow(old=found[0], moved=found[2])
        rows.append(locals_of(self.live))
        differences = [[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]
        (found,) = summed([linalg.inner(rows, [(0, 0), (2, 2), (3, 3), (4, 4), (3, 4)], differences)])
        before, live, moved, distance, common = found
        # theta - ema_before = (theta - ema) + (ema - ema_before), so that its length needs no vector of its own.
        gap = distance + 2.0 * common + moved
        gap = torch.where(gap > _ROUNDING * (distance + moved), gap, 0.0)
        return Shadow(old=before, moved=moved, live=live, distance=distance, gap=gap)


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
