"""An average of the weights over the last steps: what samples are drawn from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """Follows `model` with decay min(decay, (1 + n) / (10 + n)) at its n-th update.

    The growing decay forgets the initial weights: a constant 0.999 would still hold 37 % of them after 1,000 steps.
    `model` is the averaged copy, in float32 and evaluation mode, without gradients.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).float().requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Move towards `model`, once per optimizer step. Buffers are copied."""
        decay = self._decay()
        live = [parameter.float() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), live, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.updates += 1

    def _decay(self) -> float:
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])
