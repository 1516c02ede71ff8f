"""A transformer with K losses on one trunk, and the ways to get the gradient of each loss.

The worst case for K losses: each has a small head of its own, and its gradient runs through all of the trunk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchjd.aggregation import IMTLG, IMTLGWeighting
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward
from transformer import LENGTH, Block

from lossdoctor.doctor import Doctor
from lossdoctor.probe import observe

INPUTS = 32


class Size(NamedTuple):
    width: int
    blocks: int
    tokens: int


SIZES = {"cpu": Size(256, 4, 512), "cuda": Size(1024, 9, 8192)}


class Model(nn.Module):
    """K heads, each of which tells the input some positions back."""

    def __init__(self, width: int, blocks: int, losses: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(INPUTS, width), *(Block(width) for _ in range(blocks)), nn.LayerNorm(width)
        )
        self.heads = nn.ModuleList(nn.Linear(width, INPUTS) for _ in range(losses))

    def losses_of(self, h: Tensor, x: Tensor) -> dict[str, Tensor]:
        """h: (B, T, width), what the trunk makes of x, (B, T, INPUTS)."""
        return {f"back{k}": (head(h) - x.roll(k, 1)).square().mean() * (k + 1) for k, head in enumerate(self.heads)}

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        return self.losses_of(self.trunk(x), x)


class Way:
    """The plain step: the weighted sum, its backward, the optimizer."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.weights = {f"back{k}": 1 / (k + 1) for k in range(len(model.heads))}
        self.norms: dict[str, float] = {}

    def step(self, x: Tensor) -> None:
        self.backward(x)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, x: Tensor) -> None:
        self.total(self.model.losses(x)).backward()  # type: ignore[no-untyped-call]

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        first, *others = (self.weights[name] * loss for name, loss in losses.items())
        for term in others:
            first = first + term
        return first

    def close(self) -> None:
        """Nothing to take off."""


class Watched(Way):
    """A due step of this library; step 0 is not due, so that the optimizer's state is there in all that are."""

    def __init__(self, model: Model, mode: str) -> None:
        super().__init__(model)
        self.mode = mode
        self.doctor = Doctor(
            model, self.optimizer, every=lambda step: step > 0, gradients=mode, strict=True, live=False
        )
        observe.deactivate(self.doctor)

    def backward(self, x: Tensor) -> None:
        if self.mode == "finite-difference":
            self.doctor.backward(lambda: self.model.losses(x), self.weights)
        else:
            self.doctor.backward(self.model.losses(x), self.weights)

    def step(self, x: Tensor) -> None:
        super().step(x)
        self.norms = {name: value for name in self.weights if (value := self.doctor.ret.get(f"grad/{name}"))}

    def close(self) -> None:
        self.doctor.close(rollout=False)


class Template(Way):
    """What people paste: a backward for each loss, `.item()` for every norm, and the total."""

    def backward(self, x: Tensor) -> None:
        losses = self.model.losses(x)
        for name, loss in losses.items():
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            self.norms[name] = self.norm()
            self.optimizer.zero_grad()
        self.total(losses).backward()  # type: ignore[no-untyped-call]
        self.norms["total"] = self.norm()

    def norm(self) -> float:
        squares = [p.grad.norm().item() ** 2 for p in self.model.parameters() if p.grad is not None]
        return sum(squares) ** 0.5  # type: ignore[no-any-return]


class TorchJD(Way):
    """Its documented way for several tasks: the Jacobian of the trunk, then an aggregator."""

    def __init__(self, model: Model, *, lean: bool) -> None:
        super().__init__(model)
        self.chunk = 1 if lean else None
        self.lean = lean
        self.aggregator = IMTLG()

    def backward(self, x: Tensor) -> None:
        h = self.model.trunk(x)
        losses = list(self.model.losses_of(h, x).values())
        mtl_backward(losses, features=h, parallel_chunk_size=self.chunk)
        jac_to_grad(self.model.trunk.parameters(), self.aggregator, optimize_gramian_computation=self.lean)


class Autogram(Way):
    """TorchJD's other engine: the Gram matrix layer by layer, and one backward with the weights that follow."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.engine = Engine(model.trunk, batch_dim=None)
        self.weighting = IMTLGWeighting()

    def backward(self, x: Tensor) -> None:
        losses = torch.stack(list(self.model.losses(x).values()))
        losses.backward(self.weighting(self.engine.compute_gramian(losses)))  # type: ignore[no-untyped-call]


PLAIN: dict[str, Callable[[Model], Way]] = {"plain": Way}
OURS: dict[str, Callable[[Model], Way]] = {
    "exact": lambda model: Watched(model, "exact"),
    "sketch": lambda model: Watched(model, "sketch"),
    "finite-difference": lambda model: Watched(model, "finite-difference"),
}
OTHERS: dict[str, Callable[[Model], Way]] = {
    "template": Template,
    "torchjd": lambda model: TorchJD(model, lean=False),
    "torchjd, lean": lambda model: TorchJD(model, lean=True),
    "torchjd, autogram": Autogram,
}


def made(size: Size, losses: int, device: torch.device) -> Model:
    """The same model every time."""
    torch.manual_seed(0)
    return Model(size.width, size.blocks, losses).to(device)


def built(kinds: dict[str, Callable[[Model], Way]], model: Model) -> dict[str, Way]:
    """Each way with a model and an optimizer of its own, all alike."""
    return {name: kind(copy.deepcopy(model)) for name, kind in kinds.items()}


def batches(size: Size, device: torch.device) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (max(size.tokens // LENGTH, 1), LENGTH, INPUTS)
    return lambda: torch.randn(*shape, generator=generator).to(device)
