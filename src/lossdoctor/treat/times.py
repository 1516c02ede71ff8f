"""Times that follow the losses: visited more often where they are large, weighed so that the objective stays the same.

The distributions that learn nothing are mathematics, `lossdoctor.flow.times`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch
from lossdoctor.flow.times import TimeSampler, bin_of

_LARGEST = 1e30
"""Of a loss that is taken in: the sums stay finite in float32."""


@dataclass(slots=True)
class LossAdaptive(TimeSampler):
    """A share of uniform times; the others by bin, as often as a power of the mean loss seen in the bin.

    An estimate is least noisy when times are drawn in proportion to the root of the mean squared gradient there; of a
    squared error that grows as the root of the loss, hence power = 0.5 (Nichol & Dhariwal 2021, 2102.09672, take the
    root of the mean squared loss). Multiply each sample's loss by its weight, or another objective is trained; the
    weights are at most 1 / uniform. Until every bin has `least` samples the times are uniform.

    bins: equally wide, on [0, 1]. uniform: share in (0, 1]. power >= 0. memory: share of the old sums that an update
    keeps, in [0, 1). The same updates give the same times on every rank. UsageError for settings that cannot be.
    """

    bins: int = 10
    uniform: float = 0.2
    power: float = 0.5
    memory: float = 0.99
    least: int = 10
    _sums: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        fits = self.bins >= 1 and 0 < self.uniform <= 1 and 0 <= self.power < math.inf and self.least >= 1
        if not fits or not 0 <= self.memory < 1:
            expected = "bins >= 1, uniform in (0, 1], finite power >= 0, memory in [0, 1), least >= 1"
            raise UsageError(mismatch("Times that follow the losses.", expected, repr(self), "correct these"))

    def update(self, t: Tensor, losses: Tensor, *, reduce: Callable[[Tensor], object] | None = None) -> None:
        """After a step: what was lost at which time. The next draw follows it. Never synchronises.

        t: (B,) or (B, 1, ...), as drawn. losses: (B,) or (B, ...), >= 0, without importance weights; more axes are
        averaged. One that is no finite number is left out. reduce: adds up a tensor (2, bins) over the ranks in place,
        such as `torch.distributed.all_reduce`; without it each rank follows its own losses.
        Raises ShapeError when B differs.
        """
        if losses.ndim == 0 or t.numel() != len(losses):
            got = f"t {tuple(t.shape)}, losses {tuple(losses.shape)}"
            raise ShapeError(mismatch("One loss for each time.", "(B,) and (B, ...)", got, "keep the batch axis"))
        each = losses.detach().float().reshape(t.numel(), -1).mean(1)
        own = t.detach().reshape(-1).to(each.device)
        known = each.isfinite() & (each >= 0) & (own >= 0) & (own <= 1)
        # A sum over a one-hot table and no scatter, whose order is left to chance on a GPU.
        there = (bin_of(own, self.bins)[:, None] == torch.arange(self.bins, device=each.device)) & known[:, None]
        new = torch.stack([torch.where(there, each.clamp(max=_LARGEST)[:, None], 0.0).sum(0), there.float().sum(0)])
        if reduce is not None:
            reduce(new)
        old = torch.zeros(3, self.bins, device=new.device) if self._sums is None else self._sums.to(new.device)
        ever = (old[2] + new[1]).clamp(max=_LARGEST)
        self._sums = torch.cat([self.memory * old[:2] + new, ever[None]])

    def heights(self) -> Tensor:
        """(bins,), the density in use, of mean 1, at least `uniform`; on the device of the losses."""
        if self._sums is None:
            return torch.ones(self.bins)
        total, count, ever = self._sums
        follows = (total / count.clamp(min=1 / _LARGEST)) ** self.power
        mean = follows.mean()
        known = (ever >= self.least).all() & (mean > 0) & mean.isfinite()
        return torch.where(known, self.uniform + (1 - self.uniform) * follows / mean, 1.0)

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        chosen, u = torch.rand(2, n, generator=generator, device=device, dtype=dtype)
        edges = (self.heights().to(dtype).cumsum(0) / self.bins)[:-1].to(chosen.device)
        return torch.as_tensor((torch.searchsorted(edges, chosen, right=True) + u) / self.bins)

    def density(self, t: Tensor) -> Tensor:
        """As it is now; see `TimeSampler.density`."""
        inside = self.heights().to(t.device, t.dtype)[bin_of(t, self.bins)]
        return torch.where((t < 0) | (t > 1), 0.0, torch.where(t.isnan(), t, inside))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain JSON."""
        return {"sums": None if self._sums is None else self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as in the checkpoint. Raises UsageError for one with another number of bins."""
        sums = None if state["sums"] is None else torch.tensor(state["sums"])
        if sums is not None and sums.shape != (3, self.bins):
            got = f"{tuple(sums.shape)}"
            raise UsageError(
                mismatch("A state of other bins.", f"(3, {self.bins})", got, "use the bins it was made with")
            )
        self._sums = sums
