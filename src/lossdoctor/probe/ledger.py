"""The gradient of each loss, over one optimizer step, without touching `.grad`.

K losses, total g = sum_i w_i g_i. The real backward gives g. All losses but the most expensive one get an extra pass
with `torch.autograd.grad`; the last follows by linearity, g_k = (g - sum_{i != k} w_i g_i) / w_k, unless rounding would
drown it. Where a single loss reaches a parameter, that is g / w_k, so that a pass does not go there either: it stops at
what the losses share. How exact linearity is depends on the model (autocast rounds each pass anew), so it is measured:
on the first due step, and now and then later, every loss gets a pass everywhere and |g - sum_i w_i g_i| is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lossdoctor import linalg
from lossdoctor.probe.belongings import Belongings
from lossdoctor.probe.extra_pass import Differentiate, ExtraPass, exactly
from lossdoctor.probe.lengths import KnownLengths
from lossdoctor.probe.linearity import TOLERATED, Linearity, Owners
from lossdoctor.probe.neutrality import same_buffers
from lossdoctor.probe.obstacles import Obstacles, hooked, obstacles
from lossdoctor.probe.parameters import ParameterMap
from lossdoctor.probe.sharded import gradients
from lossdoctor.probe.sketch import Sketch
from lossdoctor.probe.snapshot import Gradients


@dataclass(slots=True)
class Ledger:
    """Per-loss gradients collected over the micro-batches of one optimizer step.

    Extra memory: one gradient copy per measured loss over the parameters it touches, and one for the total; with a
    sketch, that of the sketches for the weights it takes on. Everything below is linear, so it works on either.
    summed: given when each rank holds a part of every gradient: adds inner products up over the ranks.
    """

    where: ParameterMap
    linearity: Linearity
    packer: linalg.Packer = field(default_factory=linalg.Packer)
    sketch: Sketch | None = None
    summed: Callable[[list[Tensor]], list[Tensor]] | None = None
    losses: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[Tensor | None]] = field(default_factory=dict)
    source_gradient: Tensor | None = None
    derived: str | None = None
    owners: Owners = ()
    calibrating: bool = False
    scale: Tensor | None = None
    foreign_backward: bool = False
    _rescaled: Tensor | None = None
    _base: list[Tensor | None] | None = None
    total: list[Tensor | None] = field(default_factory=list)
    lost: dict[int, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _planned: bool = False
    _backwards: int = 0
    _alike: bool = True
    _seen: list[tuple[Tensor | None, int]] = field(default_factory=list)
    known: KnownLengths = field(default_factory=KnownLengths)
    belongings: Belongings = field(default_factory=Belongings)
    _observed: int = 0

    def observe(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        *,
        modules: Sequence[nn.Module],
        scale: Tensor | None = None,
        foreign_backward: bool = False,
        z1: Tensor | None = None,
        z1_loss: str | None = None,
        ahead: Obstacles | None = None,
        passes: bool = True,
    ) -> None:
        """The extra passes of one micro-batch, before its real backward.

        scale: the GradScaler's factor, 0-d; passes run scaled, as fp16 needs, and are divided at the end.
        foreign_backward: the real backward may rescale (Accelerate divides by the accumulation steps), so every loss
        is measured and the factor found. z1, z1_loss: also take d loss / d z1 in that loss's pass. ahead: what lies in
        the way of a pass, where the caller has looked already. passes: False to follow the total alone.
        """
        live = {name: loss for name, loss in losses.items() if passes and loss.requires_grad}
        ahead = obstacles(live.values()) if ahead is None else ahead
        ordinary = self.summed is not None or ahead.reentrant
        one_pass = ExtraPass(self.where.parameters, self.belongings, ahead.custom, ordinary)
        differentiate: Differentiate = exactly
        if self.sketch is not None and ordinary:
            self.sketch.signs = self.sketch.signs or {}
        elif self.sketch is not None:
            with same_buffers(modules):
                differentiate = self.sketch.passes(live.values(), modules).gradients
        if self._base is None:
            self._base = linalg.Packer()(self._grads(range(len(self.where.parameters))))
        elif losses.keys() == self.losses.keys():
            self._note_losses()
        else:
            # Backwards of different losses may belong to optimizers that take turns, each with gradients of its own.
            self._alike = False
        if not self._planned:
            self._planned = True
            self.scale, self.foreign_backward = scale, foreign_backward
            choice, owners = (
                (None, ())
                if foreign_backward or hooked(self.where.parameters)
                else self.linearity.plan({name: weights[name] for name in live}, self.where)
            )
            self.derived = None if choice == z1_loss and z1 is not None else choice
            self.owners = () if ordinary or self.sketch is not None else owners
            self.calibrating = self.everywhere and bool(live) and not foreign_backward
        self.losses.update({name: float(weights[name]) for name in losses})
        with same_buffers(modules):
            for name, loss in live.items():
                if name != self.derived:
                    self._measure(name, loss, z1 if name == z1_loss else None, one_pass, differentiate)
        self._observed += 1

    def _grads(self, indices: Sequence[int]) -> list[Tensor | None]:
        """What is in `.grad` of these parameters now, as gradients are held."""
        grads = gradients([self.where.parameters[i] for i in indices])
        return grads if self.sketch is None else [self.sketch.held(i, g) for i, g in zip(indices, grads, strict=True)]

    def _measure(
        self, name: str, loss: Tensor, z1: Tensor | None, one_pass: ExtraPass, differentiate: Differentiate
    ) -> None:
        started = time.perf_counter()
        scaled = loss if self.scale is None else loss * self.scale
        skipped = frozenset(p for p, owner in enumerate(self.owners) if owner == name)
        found, of_z1 = one_pass.gradients(scaled, z1, differentiate, skipped)
        if self.sketch is not None and one_pass.ordinary:
            found = [self.sketch.held(i, g) for i, g in enumerate(found)]
        self.seconds[name] = time.perf_counter() - started
        self.source_gradient = self.source_gradient if z1 is None else of_z1
        self.rows[name] = _added(self.rows.get(name), found)

    def so_far(self) -> Tensor | None:
        """(K, K), float64: inner products of the unweighted losses' gradients, as far as the passes have brought them.

        None where a loss had no pass, or not to all it reaches. A loss without a gradient is a row of zeros.
        """
        if not self.everywhere:
            return None
        silent: list[Tensor | None] = [None] * len(self.where.parameters)
        found = linalg.gram([self.rows.get(name, silent) for name in self.losses])
        return found if self.scale is None else found / self.scale.to(found).square()

    @property
    def everywhere(self) -> bool:
        """Whether every loss has a pass to every parameter it reaches, so that nothing follows from the total."""
        return self.derived is None and not self.owners

    def reached_by(self, name: str) -> tuple[bool, ...]:
        """Per parameter whether this loss, which had a pass, reaches it; where it had none, as it was found before."""
        found = tuple(g is not None for g in self.rows[name])
        return tuple(f or o == name for f, o in zip(found, self.owners, strict=True)) if self.owners else found

    def _of_total(self, p: int) -> str | None:
        """The loss whose gradient in parameter p follows from the total, None where there is none."""
        if self.owners and self.owners[p] is not None:
            return self.owners[p]
        there = self.derived is not None and self.linearity.reach[self.derived][p]
        return self.derived if there else None

    @property
    def composed(self) -> bool:
        """Whether the step is taken inside its backward, so that the total is known as the sum of its parts alone."""
        return self._backwards < self._observed

    def _sum_of_parts(self) -> list[Tensor | None]:
        """sum_i w_i g_i, where `.grad` is gone before it can be read."""
        total: list[Tensor | None] = [None] * len(self.where.parameters)
        for name, row in self.rows.items():
            total = _added(total, [None if g is None else g * self.losses[name] for g in row])
        return total

    def after_backward(self) -> None:
        """Copy the total gradient of the step so far, before clipping can change it."""
        self.total = self.packer(self._grads(range(len(self.where.parameters))))
        for total, base in zip(self.total, self._base or (), strict=bool(self._base)):
            if total is not None and base is not None:
                total.sub_(base)
        self._backwards += 1
        grads = [p.grad for p in self.where.parameters]
        self._seen = [(grad, 0 if grad is None else grad._version) for grad in grads]
        if self.sketch is not None:
            self.known.take(list(self.sketch.signs or ()), grads)

    @property
    def sketched(self) -> frozenset[int]:
        """The parameters whose gradients are held as sketches."""
        return frozenset((self.sketch and self.sketch.signs) or ())

    def pieces(self) -> list[Tensor]:
        """For each parameter something of the size and the dtype in which its gradients are held."""
        parameters: list[Tensor] = list(self.where.parameters)
        return parameters if self.sketch is None else list(map(self.sketch.like, range(len(parameters))))

    def lengths(self, indices: Sequence[int]) -> Tensor:
        """Norms of these parameters' gradients after the last backward, (n,), in any order; never from a sketch."""
        return self.known.of(indices, self.total)

    def disturbed(self) -> list[int]:
        """Parameters whose gradient was taken away or written to since the last backward, as its owner tells.

        Nothing is read from the device: another tensor is another object, and writing to one counts its version up.
        """
        now = [p.grad for p in self.where.parameters]
        return [
            i
            for i, (grad, (seen, version)) in enumerate(zip(now, self._seen, strict=bool(self._seen)))
            if grad is not seen or (grad is not None and grad._version != version)
        ]

    def _note_losses(self) -> None:
        """Keep what earlier backwards of the step brought and what is no longer there: `zero_grad` in between."""
        changed = self.disturbed()
        rest = linalg.Packer()(self._grads(changed))
        for i, now in zip(changed, rest, strict=True):
            before = self.total[i]
            if before is not None:
                gone = before.clone() if now is None else before - now
                self.lost[i] = self.lost[i] + gone if i in self.lost else gone
            if self._base is not None:
                self._base[i] = None  # whatever was there before the step went too

    def _accumulated(self, whole: Tensor) -> Tensor | None:
        """Squared norm, 0-d, of the sum of what all backwards brought, scaled as the total; None with only one."""
        if self._backwards < 2 or not self._alike or (self.lost and self.summed is not None):
            return None
        if not self.lost:
            return whole[len(self.losses), len(self.losses)]
        lost = [self.lost.get(i) for i in range(len(self.where.parameters))]
        return linalg.squares([self.total, lost], [[1.0, 1.0]])[-1]

    def settle(self) -> tuple[Gradients, Tensor | None]:
        """All inner products, and the linearity error (0-d) when it was measured."""
        if self.composed:
            self.total, self.calibrating = self._sum_of_parts(), False
        names, weights = tuple(self.losses), list(self.losses.values())
        silent: list[Tensor | None] = [None] * len(self.where.parameters)
        rows = [self.rows.get(name, silent) for name in names]
        k, residual = len(names), [[*(-weight for weight in weights), 1.0]] if self.calibrating else []
        groups = self._groups(rows)
        problems: list[tuple[Sequence[linalg.Pieces], Sequence[Sequence[float]]]] = []
        orders: list[list[int]] = []
        for (_, follows, alone), indices in groups.items():
            combination = residual if follows is None else [self._rest(follows)]
            held = (self.total,) if alone else (*rows, self.total)
            problems.append(([[row[i] for i in indices] for row in held], () if alone else combination))
            # What follows from the total is a combination, and stands where the loss that follows has no row.
            own = [k + 1 if name == follows else i for i, name in enumerate(names)]
            orders.append([0] if alone else [*own, k, *range(k + 1, k + 1 + len(residual))])
        parts: list[tuple[tuple[str, ...], Tensor, tuple[bool, ...]]] = []
        for ((labels, follows, alone), indices), found, (_, combined), order in zip(
            groups.items(), linalg.grams(problems, orders), problems, orders, strict=True
        ):
            touched = tuple(
                name == follows or (not alone and any(row[i] is not None for i in indices))
                for name, row in zip(names, rows, strict=True)
            )
            held = (self.total,) if alone else (*rows, self.total)
            part = self.known.put_right(found, indices, held, combined, order=order, before=self._base or silent)
            parts.append((labels, self._multiples_of_total(part, follows) if alone else part, touched))
        if self.summed is not None:
            sums = self.summed([part for _, part, _ in parts])
            parts = [(labels, part, touched) for (labels, _, touched), part in zip(parts, sums, strict=True)]
        size = k + 1 + len(residual)
        whole = _sum([g for _, g, _ in parts], size)
        grams = {"": whole}
        reached = {"": _any([t for _, _, t in parts], k)}
        for module in self.where.modules():
            grams[module] = _sum([g for labels, g, _ in parts if module in labels], size)
            reached[module] = _any([t for labels, _, t in parts if module in labels], k)
        unit = self._unit(whole, weights)
        accumulated = self._accumulated(whole)
        self._seen = []  # a gradient that is set to None must not live on here
        gradients = Gradients(
            names=names,
            weights=torch.tensor(weights, dtype=torch.float64, device=whole.device),
            gram={module: g[: k + 1, : k + 1] * unit for module, g in grams.items()},
            measured=tuple(name in self.rows or name == self.derived for name in names),
            reached=reached,
            derived=self.derived,
            sketched=self._sketched_modules(),
            accumulated=None if accumulated is None else accumulated.to(unit.device) * unit[k, k],
        )
        return gradients, _relative_residual(whole, weights) if self.calibrating else None

    def doubts(self) -> dict[int, Tensor]:
        """How far the sketches of each weight are from adding up, 0-d; {} unless every loss had a pass.

        What was taken out of `.grad` between micro-batches is no reason for doubt.
        """
        complete = self.calibrating and not self.lost and (self._alike or self._backwards < 2)
        return self.known.doubts(self.rows, self.losses, self.total) if complete else {}

    def _sketched_modules(self) -> frozenset[str]:
        return frozenset(label for i in self.sketched for label in ("", *self.where.labels[i]))

    def _rest(self, name: str) -> list[float]:
        """Coefficients over the losses and the total of what is left for `name`: its gradient, where it had no pass."""
        w = self.losses[name]
        return [*(0.0 if other == name else -weight / w for other, weight in self.losses.items()), 1.0 / w]

    def _groups(self, rows: Sequence[linalg.Pieces]) -> dict[tuple[tuple[str, ...], str | None, bool], list[int]]:
        """Parameters that are reported together: by labels, by the loss that follows from the total there, and by
        whether no loss was measured there: then the total alone is known."""
        groups: dict[tuple[tuple[str, ...], str | None, bool], list[int]] = {}
        for index, labels in enumerate(self.where.labels):
            alone = all(row[index] is None for row in rows)
            groups.setdefault((labels, self._of_total(index), alone), []).append(index)
        return groups

    def _multiples_of_total(self, square: Tensor, follows: str | None) -> Tensor:
        """The Gram matrix where the total alone is not zero, from its squared norm, (1, 1): of the losses, the total,
        and what is left of it when all losses were measured."""
        own = [1.0 / self.losses[name] if name == follows else 0.0 for name in self.losses]
        factors = torch.tensor([*own, 1.0, *([1.0] if self.calibrating else [])], dtype=torch.float64)
        return factors.outer(factors).to(square.device) * square

    def _unit(self, whole: Tensor, weights: Sequence[float]) -> Tensor:
        """What the Gram entries are multiplied with: 1 / scale^2, and the factor of a foreign backward."""
        k = len(weights)
        unit = torch.ones(k + 1, dtype=whole.dtype, device=whole.device)
        if self.foreign_backward:
            # g = c * sum w_i g_i: what the backward multiplied the loss with belongs into every g_i.
            w = torch.tensor(weights, dtype=whole.dtype, device=whole.device)
            c = (whole[k, :k] @ w) / (w @ whole[:k, :k] @ w)
            self._rescaled = torch.where(((c - 1.0).abs() < TOLERATED) | ~c.isfinite(), torch.ones_like(c), c)
            unit[:k] = self._rescaled
        if self.scale is not None:
            unit = unit / self.scale.to(unit)
        return unit.outer(unit)

    def source(self, z1: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(d L / d z1, z1) of the last micro-batch, when it was asked for and z1 is part of the graph."""
        if self.source_gradient is None or z1 is None:
            return None
        return self.source_gradient if self.scale is None else self.source_gradient / self.scale, z1.detach()

    def along(self, vectors: Mapping[int, Tensor]) -> Tensor:
        """<v, g_i> of every loss, (K,), float64, over the parameters that are given: each index with its part of v.

        Two of them may be subtracted, of the parameters before and after a step: see `linalg.fine_products`.
        """
        names = tuple(self.losses)
        silent: list[Tensor | None] = [None] * len(self.where.parameters)
        rows = [self.rows.get(name, silent) for name in names]
        groups: dict[tuple[str | None, bool], list[int]] = {}
        for p in vectors:
            follows, alone = self._of_total(p), all(row[p] is None for row in rows)
            if not alone or follows is not None:
                groups.setdefault((follows, alone), []).append(p)
        problems = []
        for (follows, alone), indices in groups.items():
            needed = ([] if alone else rows) + ([self.total] if follows is not None else [])
            held = [vectors[p] if self.sketch is None else self.sketch.finely(p, vectors[p]) for p in indices]
            problems.append(([[row[p] for p in indices] for row in needed], held))
        each = torch.zeros(len(names), dtype=torch.float64)
        for (follows, alone), found in zip(groups, linalg.fine_products(problems), strict=True):
            each = each.to(found.device)
            if not alone:
                each = each + found[: len(rows)]
            if follows is not None:
                rest = torch.tensor(self._rest(follows), dtype=each.dtype, device=each.device)
                each[names.index(follows)] += found @ (rest[-1:] if alone else rest)
        each = each if self._rescaled is None else each * self._rescaled.to(each)
        return each if self.scale is None else each / self.scale.to(each)


def _added(before: list[Tensor | None] | None, found: Sequence[Tensor | None]) -> list[Tensor | None]:
    if before is None:
        return [None if g is None else g.detach() for g in found]
    return [b if g is None else g if b is None else b + g for b, g in zip(before, found, strict=True)]


def _sum(parts: Sequence[Tensor], size: int) -> Tensor:
    if not parts:
        return torch.zeros(size, size, dtype=torch.float64)
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(0)


def _any(parts: Sequence[tuple[bool, ...]], size: int) -> tuple[bool, ...]:
    return tuple(any(part[i] for part in parts) for i in range(size))


def _relative_residual(whole: Tensor, weights: Sequence[float]) -> Tensor:
    """|g - sum w_i g_i| / (|g| + sum |w_i g_i|); rows: K losses, the total, the residual."""
    lengths = whole.diagonal().clamp_min(0.0).sqrt()
    w = torch.tensor([*(abs(x) for x in weights), 1.0], dtype=whole.dtype, device=whole.device)
    return lengths[-1] / (lengths[:-1] * w).sum()
