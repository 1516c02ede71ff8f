"""Which products of the autograd graph a weight takes part in: all of them, or no answer.

The graph of the losses is walked once, from the losses to its leaves. From a weight the way leads back up, through
what only passes it on (a transpose, a cast, a part of its rows), to the operations that use it. Only when every one of
them is a product of the catalogue is the list of its uses complete, and the gradient their sum: whoever uses the
weight, through which module, how often, in which precision, recomputed or not. Nothing is assumed about modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lossdoctor.probe.products import PRODUCTS, Product

Node = Any
"""A node of the autograd graph (`tensor.grad_fn`)."""
LEAF = "AccumulateGrad"


@dataclass(frozen=True, slots=True)
class View:
    """What of a weight an operation sees: rows and columns [start, stop), and whether transposed."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """One product, and what of the weight it sees."""

    node: Node
    product: Product
    view: View


def _whole(weight: Tensor) -> View:
    return View((0, weight.shape[0]), (0, weight.shape[1:].numel()))


def _same(node: Node, output: int, view: View) -> View:
    return view


def _swapped(node: Node, output: int, view: View) -> View:
    return replace(view, swapped=not view.swapped)


def _transposed(node: Node, output: int, view: View) -> View:
    # Negative dimensions are told as huge ones; of two, parity is what counts.
    return view if (node._saved_dim0 - node._saved_dim1) % 2 == 0 else _swapped(node, output, view)


def _split(node: Node, output: int, view: View) -> View:
    start = output * node._saved_split_size
    return _part(node._saved_dim, start, start + node._saved_split_size, view)


def _split_by_sizes(node: Node, output: int, view: View) -> View:
    start = sum(node._saved_split_sizes[:output])
    return _part(node._saved_dim, start, start + node._saved_split_sizes[output], view)


def _part(dim: int, start: int, stop: int, view: View) -> View:
    rows = (dim % 2 == 0) != view.swapped
    first, last = view.rows if rows else view.columns
    part = (first + start, min(first + stop, last))
    return replace(view, rows=part) if rows else replace(view, columns=part)


PASSING: Mapping[str, Callable[[Node, int, View], View]] = {
    "AliasBackward0": _same,
    "CloneBackward0": _same,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split_by_sizes,
    "TBackward0": _swapped,
    "ToCopyBackward0": _same,
    "TransposeBackward0": _transposed,
}
"""Nodes that pass a weight on: the view of their output `output`, from that of their input."""
_FOR_ANY_SHAPE = ("AliasBackward0", "CloneBackward0", "ToCopyBackward0")


class Graph:
    """The graph below some losses, kept alive as long as this object: forget it before the real backward."""

    def __init__(self, losses: Iterable[Tensor]) -> None:
        self._children: dict[Node, list[Node]] = {}
        """Every node, those nearer to the leaves first."""
        self._parents: dict[Node, list[tuple[Node, int, int]]] = {}
        """Of leaves and of what may pass a weight on: who uses them, as which operand, and which of their outputs."""
        self._leaves: dict[int, Node] = {}
        seen: set[Node] = set()
        stack: list[tuple[Node, list[Node] | None]] = [(loss.grad_fn, None) for loss in losses if loss.requires_grad]
        while stack:
            node, children = stack.pop()
            if children is not None:
                self._children[node] = children
            elif node is not None and node not in seen:
                seen.add(node)
                edges = node.next_functions
                children = [child for child, _ in edges if child is not None]
                stack.append((node, children))
                stack.extend((child, None) for child in children)
                self._note_parent(node, edges)

    def _note_parent(self, node: Node, edges: Sequence[tuple[Node, int]]) -> None:
        for slot, (child, output) in enumerate(edges):
            kind = type(child).__name__
            if kind == LEAF or kind in PASSING:
                self._parents.setdefault(child, []).append((node, slot, output))
                if kind == LEAF:
                    self._leaves[id(child.variable)] = child

    def uses(self, weight: Tensor) -> list[Use] | None:
        """Every use of a weight of two dimensions or more; None when one of them is not a known product, or none is."""
        leaf = self._leaves.get(id(weight))
        return self._uses(leaf, weight, lambda output: _whole(weight)) if leaf is not None else None

    def _uses(self, node: Node, weight: Tensor, seen_as: Callable[[int], View]) -> list[Use] | None:
        found: list[Use] = []
        for parent, slot, output in self._parents.get(node, ()):
            view, kind = seen_as(output), type(parent).__name__
            product = PRODUCTS.get(kind, {}).get(slot)
            if product is not None and product.fits(parent, weight):
                found.append(Use(parent, product, view))
                continue
            through = PASSING.get(kind)
            if through is None or not (weight.ndim == 2 or kind in _FOR_ANY_SHAPE):
                return None
            above = self._uses(parent, weight, lambda o, p=parent, v=view, t=through: t(p, o, v))  # type: ignore[misc]
            if above is None:
                return None
            found += above
        return found or None

    def lowest(self, covered: set[Node], wanted: Iterable[Tensor]) -> list[Node]:
        """Those of the covered nodes below which nothing is that a pass for `wanted` and `covered` has to reach.

        A pass does not run through them: it ends there.
        """
        asked = covered | {self._leaves[id(w)] for w in wanted if id(w) in self._leaves}
        above: dict[Node, bool] = {}
        for node, children in self._children.items():
            above[node] = any(child in asked or above[child] for child in children)
        return [node for node in covered if not above[node]]
