"""How much of the gradient each loss makes up, from values of losses alone: two forwards, no extra backward.

With the total gradient g, s_i = w_i (L_i(theta + e g) - L_i(theta - e g)) / (2 e |g|^2) is the signed share
w_i <g_i, g> / |g|^2, up to e^2. Any number of losses costs the same, no graph is kept, and a compiled graph may donate
its buffers. Norms and cosines of single losses, and what they reach, cannot be told this way.

Both forwards need the function that computes the losses, and draw the same random numbers as the training forward.
Whether the result can be believed shows by itself: the shares of all losses add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossdoctor import linalg
from lossdoctor.probe import observe
from lossdoctor.probe.neutrality import Autocast, Streams, undisturbed
from lossdoctor.probe.weighted import named_losses

MODE = "finite-difference"
STEP = 1e-3
"""|e g| / |theta|. Ten times more or less makes shares worse; docs/measuring.md has the errors."""
UNTOLD = (
    'gradients="finite-difference" computes the losses twice more; give doctor.backward the function that computes '
    "them, doctor.backward(lambda: losses(batch), weights)"
)
IN_BACKWARD = (
    'gradients="finite-difference" needs the gradient of the whole step, and an optimizer in the backward takes it '
    'away; use gradients="exact"'
)
DISAGREE = (
    "shares by finite differences do not add up to 1, so none is recorded: half precision, or a function that does "
    'not compute the same losses each time; use gradients="exact"'
)

Compute = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Again:
    """How the losses of one backward are computed again: as they were, with the same random numbers."""

    compute: Compute
    streams: Streams
    precision: Autocast

    @classmethod
    def now(cls, compute: Compute, device: torch.device) -> Again:
        """To be called right before the training forward."""
        return cls(compute, Streams.capture(device), Autocast.capture(device))

    def losses(self, modules: Sequence[nn.Module]) -> dict[str, Tensor]:
        """Their values with the parameters as they are now, 0-d; leaves no trace but what `compute` does elsewhere."""
        with undisturbed(modules, self.precision), observe.silence():
            self.streams.put_back()
            return named_losses(self.compute())


def slopes(
    calls: Sequence[tuple[Again, Mapping[str, float]]],
    parameters: Sequence[nn.Parameter],
    total: linalg.Pieces,
    modules: Sequence[nn.Module],
) -> dict[str, Tensor] | None:
    """w_i <g_i, g> of every loss, 0-d float64, summed over the backwards of a step; None when g is not finite.

    calls: each with the weights of its losses. total: g, in flat pieces. The parameters are moved, and put back bit
    for bit. Extra memory: a copy of them.
    """
    moved = [(p, piece) for p, piece in zip(parameters, total, strict=True) if piece is not None]
    before = linalg.Packer()([p for p, _ in moved])
    starts = [start for start in before if start is not None]
    directions = [piece for _, piece in moved]
    length = torch.linalg.vector_norm(linalg.norms(directions))
    if not moved or not bool(torch.isfinite(length) & (length > 0)):
        return None
    step = STEP * torch.linalg.vector_norm(linalg.norms(starts)) / length
    found: dict[str, Tensor] = {}
    try:
        for sign in (1.0, -1.0):
            for (p, direction), start in zip(moved, starts, strict=True):
                _write(p, start + direction.to(start.dtype) * (sign * step).to(start))
            for again, weights in calls:
                for name, loss in again.losses(modules).items():
                    if name in weights:
                        term = loss.double() * (sign * weights[name] / (2.0 * step.double().to(loss.device)))
                        found[name] = found[name] + term if name in found else term
    finally:
        for (p, _), start in zip(moved, starts, strict=True):
            _write(p, start)
    return found


def _write(parameter: nn.Parameter, flat: Tensor) -> None:
    """Through `.data`, so that a graph somebody has kept stays valid."""
    place = torch.view_as_real(parameter.data) if parameter.is_complex() else parameter.data
    place.copy_(flat.reshape(place.shape))
