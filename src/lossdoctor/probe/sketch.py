"""Per-loss gradients that are never formed: each weight's is held as a small random projection of it.

A weight's gradient G (d0, d1), a sum of outer products, is held as S = L^T G R with random signs L (d0, m), R (d1, m),
each over sqrt(m). Over the signs the mean of <S_i, S_j> is <G_i, G_j>, and S is linear in G: sketches of micro-batches,
of ranks, of the total gradient and of the update add up and compare as the gradients themselves do. All losses of a
step share the signs; the next step draws new ones, so that errors average out over steps. They come from a generator of
their own, seeded by the step: every rank and every repetition draws the same.

A pass stops at the gradients of activations and needs no products for the weights. Which weights can be held this way
the graph says (`graph.Graph`); where it cannot prove it, and for small weights, norms, biases and embeddings, the
gradient is measured exactly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.graph import Graph, Node, Use
from lossdoctor.probe.parameters import ParameterMap
from lossdoctor.probe.products import Signs, wide

SIZE = 32
"""m, of at most 62. What it buys is in docs/sketch.md."""
SMALLER = 4
"""A weight is sketched only when the sketch is this many times smaller."""
EXACT_UP_TO = 10_000_000
"""Trained parameters up to which "auto" takes exact gradients. Where it comes from is in docs/sketch.md."""
DOUBTFUL = 0.05
"""|g - sum w_i g_i| / (|g| + sum |w_i g_i|) of one weight above which it is not sketched again. bfloat16 makes 0.01."""
_ROWS_OF = 2**18
"""Elements of a weight that are in float64 at a time."""
MODES = ("auto", "exact", "sketch", "finite-difference", "off")


def checked_mode(mode: str, parameters: Iterable[Tensor]) -> str:
    """How gradients are measured: any of MODES but "auto", which chooses by the number of trained parameters.

    Raises UsageError for anything else.
    """
    if mode not in MODES:
        raise UsageError(
            mismatch("gradients= names a mode", "one of " + ", ".join(map(repr, MODES)), repr(mode), "use 'auto'")
        )
    if mode != "auto":
        return mode
    return "exact" if sum(p.numel() for p in parameters if p.requires_grad) <= EXACT_UP_TO else "sketch"


@dataclass(slots=True)
class Sketch:
    """How the gradients of one optimizer step are held: which weights are sketched, and their signs.

    seed: of the signs. exact: ids of parameters never to be sketched. signs: parameter index to L and R; decided by the
    graph of the first micro-batch.
    """

    where: ParameterMap
    seed: int
    size: int = field(default_factory=lambda: SIZE)
    exact: frozenset[int] = frozenset()
    signs: dict[int, Signs] | None = None

    def passes(self, losses: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> Passes:
        """Everything the passes of one micro-batch need, before its graph is gone. modules: all that take part."""
        graph = Graph(losses)
        never = self.exact.union(id(p) for m in modules if _rewrites_gradients(m) for p in m._parameters.values())
        parameters = self.where.parameters
        uses: dict[int, list[Use]] = {}
        for i, weight in enumerate(parameters):
            eligible = self._fits(weight) and id(weight) not in never
            if eligible and (found := graph.uses(weight)) is not None:
                uses[i] = found
        if self.signs is None:
            self.signs = {i: self._draw(i) for i in uses}
        uses = {i: found for i, found in uses.items() if i in self.signs}
        covered = {use.node for found in uses.values() for use in found}
        rest = [p for i, p in enumerate(parameters) if i not in uses]
        passes = Passes(self, frozenset(uses), graph.lowest(covered, rest))
        _in_one_backward(lambda: passes.read(uses))
        return passes

    def held(self, i: int, tensor: Tensor | None) -> Tensor | None:
        """Something with as many elements as parameter i, as gradients are held: sketched, or as it is."""
        if tensor is None or not self.signs or i not in self.signs:
            return tensor
        left, right = self.signs[i]
        with torch.no_grad(), _plain(tensor):
            rows = wide(tensor).reshape(len(left), -1)
            return left.t().to(rows) @ (rows @ right.to(rows)) * _scale(left, right)

    def finely(self, i: int, tensor: Tensor) -> Tensor:
        """The same in float64, so that sketches of a weight before and after a step may be subtracted.

        In float32 the difference would drown in rounding, the more so where products may run in TF32 or bfloat16.
        Takes rows by turns: no copy of the weight is made.
        """
        if not self.signs or i not in self.signs:
            return tensor
        left, right = self.signs[i]
        with torch.no_grad(), _plain(tensor):
            rows, right = tensor.detach().reshape(len(left), -1), right.double()
            height = max(1, _ROWS_OF // rows.shape[1])
            parts = zip(torch.split(rows, height), torch.split(left, height), strict=True)
            found = torch.stack([sides.double().t() @ (part.double() @ right) for part, sides in parts]).sum(0)
            return found * _scale(left, right)

    def like(self, i: int) -> Tensor:
        """Something of the size and the dtype in which gradients of parameter i are held."""
        weight = self.where.parameters[i]
        if not self.signs or i not in self.signs:
            return weight
        left, right = self.signs[i]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return weight.new_empty((left.shape[1], right.shape[1]), dtype=dtype)

    def _fits(self, weight: Tensor) -> bool:
        """Whether a weight may be sketched as far as it can tell itself. A hook of its own may rewrite its gradient."""
        if weight.ndim < 2 or type(weight) not in (nn.Parameter, Tensor) or weight._backward_hooks:
            return False
        held = _held(weight.shape[0], self.size) * _held(weight.shape[1:].numel(), self.size)
        return weight.is_floating_point() and weight.layout == torch.strided and weight.numel() >= SMALLER * held

    def _draw(self, i: int) -> Signs:
        weight = self.where.parameters[i]
        generator = torch.Generator(weight.device).manual_seed(self.seed * 1_000_003 + i)
        return (
            _signs(weight.shape[0], self.size, generator),
            _signs(weight.shape[1:].numel(), self.size, generator),
        )


@dataclass(slots=True)
class Passes:
    """The passes of one micro-batch. Forget it before the real backward: it keeps the graph alive.

    covered: the parameters a pass sketches by itself. lowest: the products below which it has nothing to do.
    """

    sketch: Sketch
    covered: frozenset[int]
    lowest: Sequence[Node]
    _at: dict[Node, list[tuple[int, Use, Tensor]]] = field(default_factory=dict)

    def read(self, uses: Mapping[int, Iterable[Use]]) -> None:
        """Project what the products have saved; that is the same for every loss."""
        for i, found in uses.items():
            for use in found:
                weight = self.sketch.where.parameters[i]
                with torch.no_grad(), _plain(weight):
                    known = use.product.known(use.node, weight, self._sides(i, use))
                self._at.setdefault(use.node, []).append((i, use, known))

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """As `torch.autograd.grad(loss, inputs)`, unused ones None; inputs: the parameters, and anything after them."""
        asked = [x for i, x in enumerate(inputs) if i not in self.covered]
        edges = [GradientEdge(node, 0) for node in self.lowest]
        found: dict[int, Tensor] = {}
        arrived: set[Node] = set()
        hooks = [node.register_prehook(partial(self._arrived, node, found, arrived)) for node in self._at]
        try:
            wanted: list[Any] = [*asked, *edges]
            got = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        for node, delta in zip(self.lowest, got[len(asked) :], strict=True):
            if node not in arrived:  # a pass that goes on to something else below has been through
                self._arrived(node, found, arrived, (delta,))
        exact = iter(got)
        return [found.get(i) if i in self.covered else self.sketch.held(i, next(exact)) for i in range(len(inputs))]

    def _arrived(
        self, node: Node, found: dict[int, Tensor], arrived: set[Node], grads: Sequence[Tensor | None]
    ) -> None:
        """A gradient is at a product's output: add its share to the sketch of each weight in it."""
        arrived.add(node)
        delta = grads[0]
        if delta is None:
            return
        with torch.no_grad(), _plain(delta):
            for i, use, known in self._at[node]:
                weight = self.sketch.where.parameters[i]
                share = use.product.sketch(node, weight, delta, known, self._sides(i, use))
                share = (share.t() if use.view.swapped else share).to(weight.device)
                share = share * _scale(*(self.sketch.signs or {})[i])
                found[i] = found[i] + share if i in found else share

    def _sides(self, i: int, use: Use) -> Signs:
        """The signs of the weight's two dimensions, as this use sees them."""
        left, right = (self.sketch.signs or {})[i]
        left, right = left[slice(*use.view.rows)], right[slice(*use.view.columns)]
        return (right, left) if use.view.swapped else (left, right)


def _held(length: int, size: int) -> int:
    """How long a dimension is in a sketch. Half of it is not worth the noise: with one side kept, noise halves too."""
    return length if length <= 2 * size else size


def _signs(length: int, size: int, generator: torch.Generator) -> Tensor:
    """(length, size), +-1; the identity for a dimension that is kept."""
    if _held(length, size) == length:
        return torch.eye(length, dtype=torch.int8, device=generator.device)
    bits = torch.randint(2**62, (length, 1), generator=generator, device=generator.device)
    ones = bits.bitwise_right_shift(torch.arange(size, device=generator.device)).bitwise_and_(1)
    return ones.to(torch.int8).mul_(2).sub_(1)


def _scale(left: Tensor, right: Tensor) -> float:
    """1 / sqrt(m) for each side that is projected, so that inner products are right on average."""
    return float(math.prod(side.shape[1] ** -0.5 for side in (left, right) if side.shape[0] != side.shape[1]))


def _rewrites_gradients(module: nn.Module) -> bool:
    """Whether a backward hook of the old kind sits on the module: it may change gradients at the product itself."""
    return bool(module._backward_hooks) and module._is_full_backward_hook is False


def _plain(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast: what is wide stays wide."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _in_one_backward(read: Callable[[], None]) -> None:
    """Call `read` as part of one backward, so that a checkpointed block is computed again once for all it reads."""
    with torch.enable_grad():
        start = torch.zeros((), device="cpu", requires_grad=True)
        end = start.clone()
    end.register_hook(lambda _: read())  # type: ignore[no-untyped-call]
    torch.autograd.grad(end, start)
