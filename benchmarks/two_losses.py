"""Two small programs with one thing wrong each: losses that oppose each other, and losses of unequal size.

Both can be served at once by the same weights, so that what is left of either loss was left by the way there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

INPUTS, BATCH = 8, 64
ANGLE = math.acos(-0.9)
"""Between the two directions in which the conflict program reads its outputs."""
STRONGER = 5.0
"""The second of these losses, over the first."""
SIZE = 10.0
"""Of the larger targets of the imbalance program, over the smaller ones."""


class Conflict(nn.Module):
    """Two outputs, linear in x, read in two nearly opposite directions: a step towards one target leads off the other.

    The losses are mean squared errors of the two readings; the second one counts five times as much.
    """

    rate: ClassVar = {"sgd": 0.12, "fast sgd": 0.3, "adam": 0.05}
    kinds: ClassVar = {"main": "velocity", "other": "distill"}

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.outputs = nn.Linear(INPUTS, 2, bias=False)
        self.outputs.weight.data = torch.randn(2, INPUTS, generator=generator)
        self.register_buffer("truth", torch.randn(2, INPUTS, generator=generator))
        self.register_buffer("read", torch.tensor([[1.0, 0.0], [math.cos(ANGLE), math.sin(ANGLE)]]))

    def errors(self, x: Tensor) -> Tensor:
        """(2,), one for each reading."""
        off = self.outputs(x) - x @ self.get_buffer("truth").T
        errors: Tensor = 0.5 * (off @ self.get_buffer("read").T).square().mean(0)
        return errors

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        main, other = self.errors(x)
        return {"main": main, "other": STRONGER * other}


class Imbalance(nn.Module):
    """A narrow trunk with a head for each of two targets, one of them `SIZE` times as large as the other."""

    rate: ClassVar = {"sgd": 0.02, "adam": 3e-3}
    kinds: ClassVar = {"large": "velocity", "small": "distill"}

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(INPUTS, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh())
        self.large, self.small = nn.Linear(12, 3), nn.Linear(12, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                fan = layer.weight.shape[1] ** -0.5
                layer.weight.data = fan * torch.randn(layer.weight.shape, generator=generator)
                layer.bias.data.zero_()
        self.register_buffer("truth", torch.randn(2, INPUTS, 3, generator=generator) * 0.5)

    def errors(self, x: Tensor) -> Tensor:
        """(2,), relative to the size of the targets."""
        found = torch.stack([head(self.trunk(x)) for head in (self.large, self.small)])
        targets = torch.tanh(x @ self.get_buffer("truth"))
        return (found - targets * torch.tensor([SIZE, 1.0])[:, None, None]).square().mean((1, 2))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        large, small = self.errors(x)
        return {"large": large, "small": small}


@torch.no_grad()
def grades(model: Conflict | Imbalance) -> dict[str, float]:
    """Both errors on fresh data, over those of answering 0, and their mean."""
    x = torch.randn(2048, INPUTS, generator=torch.Generator().manual_seed(10**6))
    a, b = model.errors(x).tolist()
    if isinstance(model, Imbalance):
        a, b = (e / float(t.square().mean()) for e, t in zip((a, b), torch.tanh(x @ model.truth), strict=True))  # type: ignore[operator]
        a /= SIZE**2
    return {"first": a, "second": b, "both": (a + b) / 2}


def trained(
    model: Conflict | Imbalance,
    optimizer: torch.optim.Optimizer,
    seed: int,
    steps: int,
    backward: Callable[[dict[str, Tensor]], object],
) -> None:
    """`steps` steps on fresh batches."""
    generator = torch.Generator().manual_seed(10**5 + seed)
    for _ in range(steps):
        backward(model.losses(torch.randn(BATCH, INPUTS, generator=generator)))
        optimizer.step()
        optimizer.zero_grad()
