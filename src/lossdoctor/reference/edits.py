"""Edits that the fixes of findings ask for, each behind a knob of its name, so that an experiment arm can make them.

An arm for an edit is the program as its user would have it after writing what the fix says, and no more. Only faulty
programs have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossdoctor.ablate.fixes import EDIT
from lossdoctor.flow import TimeSampler, Uniform
from lossdoctor.probe import observe

_MIXED = 0.25
"""The share of uniform times in the sentence `fix.mix_uniform_times`."""


def edited(edit: str) -> float:
    """What the running experiment sets an edit of `rules.fixes` to: its number, or 1; 0 where it is not made."""
    return float(observe.knob(f"{EDIT}{edit}", 0))


def clipped_at(norm: float) -> float:
    """The norm to clip the gradient at: `raise_clip`."""
    return edited("raise_clip") or norm


def decay_at(update: int, decay: float) -> float:
    """The decay of an average at its n-th update, counted from 0: `lower_ema_decay`, `warm_up_ema`."""
    lower = edited("lower_ema_decay") or decay
    return min(lower, (1 + update) / (10 + update)) if edited("warm_up_ema") else lower


def scaled_by(factor: float) -> float:
    """What the latents are multiplied with: `scale_latents`."""
    return factor * (edited("scale_latents") or 1.0)


def mixed(times: TimeSampler) -> TimeSampler:
    """Where the times of a training are drawn: `mix_uniform_times`."""
    return _Mixed(times) if edited("mix_uniform_times") else times


@dataclass(frozen=True, slots=True)
class _Mixed(TimeSampler):
    """A share of uniform times among those of `usual`."""

    usual: TimeSampler

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        uniform, chosen, usual = (
            times.sample(n, generator=generator, device=device, dtype=dtype)
            for times in (Uniform(), Uniform(), self.usual)
        )
        return uniform.where(chosen < _MIXED, usual)

    def density(self, t: Tensor) -> Tensor:
        """See `TimeSampler.density`."""
        return _MIXED + (1 - _MIXED) * self.usual.density(t)
