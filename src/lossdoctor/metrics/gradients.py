"""How strong each loss's gradient is, where it goes, and what it contributes to the step.

Everything follows from inner products: the Gram matrix of the K unweighted loss gradients and, as the last row, the
gradient of the weighted total that the real backward produced.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from lossdoctor.metrics.reading import Maybe, Readings, metric
from lossdoctor.probe.snapshot import Gradients

WHOLE = ""
"""The name under which `Gradients.gram` holds the whole parameter set."""
ADD_UP = 0.02
"""How far from 1 the sum of shares by finite differences may be. Float32 makes 1e-4; see docs/measuring.md."""


@metric
def strengths(names: tuple[str, ...], weights: Tensor, gram: Tensor, measured: tuple[bool, ...]) -> Readings:
    """Norms, weighted norms and signed shares.

    names: K losses. weights: (K,). gram: (K+1, K+1), the last row being the total. measured: (K,), false for a loss
    without gradient. Keys, norms in units of the loss per unit of the parameters, >= 0:
    `grad/<loss>` unweighted, `grad/total` weighted: two different things, so `grad_weighted/<loss>` = w * norm is what
    compares with the total. `grad_share/<loss>` = w <g_i, g> / |g|^2, signed; the shares of all losses sum to 1.
    Absent for a loss that is not measured; shares are absent when the total is zero.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()  # a derived row may be a rounding error below 0
    total = gram[-1, -1]
    shares = gram[:-1, -1] / total
    has_share = total != 0
    readings: dict[str, Tensor | Maybe] = {"grad/total": norms[-1]}
    for i, name in _measured(names, measured):
        weight = weights[i]  # one by one: 0-d weights may lie on the host without a copy to the device
        readings[f"grad/{name}"] = norms[i]
        readings[f"grad_weighted/{name}"] = weight * norms[i]
        readings[f"grad_share/{name}"] = Maybe(weight * shares[i], has_share)
    return readings


@metric
def shares_by_slopes(slopes: Mapping[str, Tensor], square: Tensor) -> Readings:
    """Signed shares from finite differences.

    slopes: loss to w <g_i, g>, 0-d. square: |g|^2, 0-d. `grad_share/<loss>` = w <g_i, g> / |g|^2, signed, right to
    about 1e-4 in float32; absent for all losses when their sum is not 1, to ADD_UP: then they are of something else.
    """
    shares = {name: slope.to(square) / square for name, slope in slopes.items()}
    believed = (torch.stack([*shares.values()]).sum() - 1.0).abs() <= ADD_UP
    return {f"grad_share/{name}": Maybe(share, believed) for name, share in shares.items()}


@metric
def cosines(names: tuple[str, ...], gram: Tensor, measured: tuple[bool, ...]) -> Readings:
    """Do two losses pull together or against each other?

    Arguments as in `strengths`. `grad_cos/<a>|<b>` in [-1, 1], names in alphabetical order; absent when one of the two
    is not measured or has a zero gradient.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    # Dividing twice keeps the product of two tiny norms from vanishing.
    cos = (gram / norms[:, None] / norms).clamp(-1, 1)
    known = (norms != 0)[:, None] & (norms != 0)
    order = sorted(_measured(names, measured), key=lambda pair: pair[1])
    return {f"grad_cos/{a}|{b}": Maybe(cos[i, j], known[i, j]) for (i, a), (j, b) in itertools.combinations(order, 2)}


@metric
def accumulation(arrived: Tensor, accumulated: Tensor) -> Readings:
    """Did the gradients of all micro-batches arrive at the optimizer?

    arrived, accumulated: 0-d squared norms, of the gradient that is there after the last backward of the optimizer
    step, before clipping, and of the sum of what every backward of it brought. `grad/accumulation` is the ratio of the
    norms, >= 0: 1 = all arrived; between 1/n and about 1/sqrt(n) = only the last of n, because gradients were zeroed
    between the micro-batches. Absent for a sum of zero.
    """
    return {"grad/accumulation": Maybe((arrived.clamp(min=0) / accumulated).sqrt(), accumulated != 0)}


@metric
def measure(gradients: Gradients) -> Readings:
    """Everything above, the weights, and the reach matrix.

    `weight/<loss>`: the weight used, for every loss.
    `grad_module/<loss>/<module>`: norm of the loss's gradient on one head or top-level child of the model, >= 0; absent
    where the module is no part of the loss's graph, 0 where it is and nothing arrives.
    """
    names, measured = gradients.names, gradients.measured
    readings: dict[str, Tensor | Maybe] = {
        f"weight/{name}": weight for name, weight in zip(names, gradients.weights.unbind(), strict=True)
    }
    whole = gradients.gram.get(WHOLE)
    if whole is not None and gradients.slopes:
        readings.update(shares_by_slopes.deferred(gradients.slopes, whole[-1, -1]))
    if whole is not None:
        readings.update(strengths.deferred(names, gradients.weights, whole, measured))
        readings.update(cosines.deferred(names, whole, measured))
        if gradients.accumulated is not None:
            readings.update(accumulation.deferred(whole[-1, -1], gradients.accumulated))
    modules = [module for module in gradients.gram if module != WHOLE]
    if modules:
        squares = torch.stack([gradients.gram[module].diagonal() for module in modules])
        norms = squares.clamp(min=0).sqrt()
        for row, module in zip(norms.unbind(), modules, strict=True):
            reached = gradients.reached[module]
            for i, name in _measured(names, measured):
                if reached[i]:
                    readings[f"grad_module/{name}/{module}"] = row[i]
    return readings


def _measured(names: tuple[str, ...], measured: tuple[bool, ...]) -> list[tuple[int, str]]:
    return [(i, name) for i, (name, known) in enumerate(zip(names, measured, strict=True)) if known]
