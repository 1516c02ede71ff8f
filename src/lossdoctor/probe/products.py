"""The products a weight can take part in, and how each one's share of the weight's gradient is sketched.

The catalogue is of operations as autograd records them, not of modules: a linear layer, the projections of an
attention, a weight used by hand or by two modules are all the same few products. The gradient of a weight is the sum
over its products of outer products between a row of the gradient that arrives (delta) and a row of the operand that
the product has saved (an activation), so both can be projected before they are multiplied, and the gradient itself is
never formed. An operation that is not here is no guess: its weight is measured exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Signs = tuple[Tensor, Tensor]


class Product(Protocol):
    """One operation with a weight V as operand; signs = left (d0, m0) and right (d1, m1) project V's two dimensions.

    V of more than two dimensions is seen as (d0, everything else). The sketch is left^T (dL/dV) right, (m0, m1).
    """

    def fits(self, node: Any, weight: Tensor) -> bool:
        """Whether this very node computes the plain product."""
        ...

    def known(self, node: Any, weight: Tensor, signs: Signs) -> Tensor:
        """The saved operand, projected: (rows, m0 or m1). It is the same for every loss. Reads the node's memory."""
        ...

    def sketch(self, node: Any, weight: Tensor, delta: Tensor, known: Tensor, signs: Signs) -> Tensor:
        """This product's share of the sketch, from the gradient that arrives at its output."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """At least float32: a sum of half-precision numbers with random signs would overflow or be rounded away."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _times(rows: Tensor, projection: Tensor) -> Tensor:
    rows = wide(rows)
    return rows @ projection.to(rows)


def _met(first: Tensor, second: Tensor) -> Tensor:
    """first^T second, which may have come in two precisions."""
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.t().to(dtype) @ second.to(dtype)


@dataclass(frozen=True, slots=True)
class LeftFactor:
    """V B: dL/dV = delta B^T. saved: the attribute of the node that holds B."""

    saved: str

    def fits(self, node: Any, weight: Tensor) -> bool:
        """Every matrix product does."""
        return weight.ndim == 2

    def known(self, node: Any, weight: Tensor, signs: Signs) -> Tensor:
        """B^T right, (columns of B, m1)."""
        return _times(getattr(node, self.saved).t(), signs[1])

    def sketch(self, node: Any, weight: Tensor, delta: Tensor, known: Tensor, signs: Signs) -> Tensor:
        """left^T delta B^T right."""
        return _met(_times(delta.t(), signs[0]), known) * getattr(node, "_saved_alpha", 1)


@dataclass(frozen=True, slots=True)
class RightFactor:
    """A V, as a linear layer has it with V = W^T: dL/dV = A^T delta. saved: the attribute that holds A."""

    saved: str

    def fits(self, node: Any, weight: Tensor) -> bool:
        """Every matrix product does."""
        return weight.ndim == 2

    def known(self, node: Any, weight: Tensor, signs: Signs) -> Tensor:
        """A left, (rows of A, m0)."""
        return _times(getattr(node, self.saved), signs[0])

    def sketch(self, node: Any, weight: Tensor, delta: Tensor, known: Tensor, signs: Signs) -> Tensor:
        """left^T A^T delta right."""
        return _met(known, _times(delta, signs[1])) * getattr(node, "_saved_alpha", 1)


@dataclass(frozen=True, slots=True)
class Filters:
    """A convolution in one, two or three dimensions, or a transposed one.

    dL/dV is the sum over positions of the outer product between the channels of one side and the patches of the other;
    patches times a projection is a convolution whose filters are the projection, so patches are never unfolded. The
    side with the patches is the input, and the gradient of the output in a transposed convolution.
    """

    def fits(self, node: Any, weight: Tensor) -> bool:
        """Not a grouped one, whose weights are mostly small, and not one that leaves room for more patches."""
        roomy = any(more >= step for more, step in zip(node._saved_output_padding, node._saved_stride, strict=False))
        return weight.ndim > 2 and node._saved_groups == 1 and not (node._saved_transposed and roomy)

    def known(self, node: Any, weight: Tensor, signs: Signs) -> Tensor:
        """The input, projected: (samples and positions, m0 or m1)."""
        given = wide(node._saved_input)
        if node._saved_transposed:
            return _channels(given, signs[0])
        return _patches(node, weight, given, signs[1])

    def sketch(self, node: Any, weight: Tensor, delta: Tensor, known: Tensor, signs: Signs) -> Tensor:
        """left^T dL/dV right."""
        if not node._saved_transposed:
            return _met(_channels(wide(delta), signs[0]), known)
        return _met(known, _patches(node, weight, wide(delta), signs[1]))


def _channels(x: Tensor, projection: Tensor) -> Tensor:
    """(B, C, ...) times (C, m): (B positions, m)."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1) @ projection.to(x)


def _patches(node: Any, weight: Tensor, x: Tensor, projection: Tensor) -> Tensor:
    """The patches of x (B, C, ...), as this convolution cuts them, times (C kernel, m): (B positions, m)."""
    filters = projection.to(x).t().reshape(-1, *weight.shape[1:])
    none = [0] * (weight.ndim - 2)
    settings = (node._saved_stride, node._saved_padding, node._saved_dilation)
    return torch.convolution(x, filters, None, *settings, False, none, 1).flatten(2).transpose(1, 2).flatten(0, 1)


PRODUCTS: Mapping[str, Mapping[int, Product]] = {
    "AddmmBackward0": {1: LeftFactor("_saved_mat2"), 2: RightFactor("_saved_mat1")},
    "ConvolutionBackward0": {1: Filters()},
    "MmBackward0": {0: LeftFactor("_saved_mat2"), 1: RightFactor("_saved_self")},
}
"""Node of the autograd graph to the operands, by position, whose gradient is known in this form."""
