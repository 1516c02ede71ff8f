"""The sampler check on programs as large ones are built: a scheduler whose grid is shifted, a denoiser over Karras'
sigmas, a method that keeps earlier slopes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis

SCALE = 0.18215


class Scheduler:
    """Sigmas from 1 to 1/1000 and then 0, shifted; times in thousands; `step` moves one along."""

    def __init__(self, steps: int, slip: str) -> None:
        even = torch.linspace(1.0, 0.001, steps)
        sigmas = 3 * even / (1 + 2 * even)
        self.timesteps = 1000 * (even if slip == "unshifted times" else sigmas)
        if slip == "reversed":
            self.timesteps = 1000 - self.timesteps
        self.sigmas, self.slip, self.index = torch.cat([sigmas, torch.zeros(1)]), slip, 0

    def step(self, v: Tensor, sample: Tensor) -> Tensor:
        by = self.sigmas[self.index + 1] - self.sigmas[self.index]
        self.index += 1
        match self.slip:
            case "sign":
                by = -by
            case "own lengths":
                by = torch.tensor(-1 / (len(self.timesteps) - 1))
            case "factor":
                by = SCALE * by
            case "half":
                by = by / 2
        return sample + by * v


def pipeline(slip: str) -> dict[str, Any]:
    """Guided on a doubled batch; v = noise - data, t from 1000 down."""

    def sampler(net: Any, latents: Tensor, prompt: Tensor, steps: int) -> Tensor:
        scheduler, first = Scheduler(steps, slip), latents
        for k, t in enumerate(scheduler.timesteps):
            given = torch.cat([first if slip == "stale" else latents] * 2)
            if slip == "scaled input":
                given = SCALE * given
            asked = {
                "frozen time": scheduler.timesteps[0],
                "middle": 500 * (scheduler.sigmas[k] + scheduler.sigmas[k + 1]),
                "next": 1000 * scheduler.sigmas[k + 1],
            }.get(slip, t)
            without, along = net(given, asked.expand(len(given)), torch.cat([0 * prompt, prompt])).chunk(2)
            v = without + 3.5 * (along - without)
            if slip == "takes it for the data":
                v = (latents - v) / (t / 1000)
            latents = scheduler.step(v, latents)
        return latents / SCALE if slip == "scaled output" else latents

    return {"sampler": sampler, "t_source": 1.0}


class Denoiser(nn.Module):
    """x - sigma v, asked with t of shape (B, 1, 1, 1) in thousands."""

    def __init__(self, net: Any, slip: str) -> None:
        super().__init__()
        self.net, self.slip = net, slip

    def forward(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        wide = (sigma * torch.ones(len(x))).reshape(-1, 1, 1, 1)
        v = self.net(x, 1000 * (1 - wide if self.slip == "reversed" else wide), cond)
        return x - wide * v


def karras(slip: str) -> dict[str, Any]:
    """Heun over Karras' sigmas, the last step by Euler as the second slope would divide by 0."""

    def sampler(net: Any, noise: Tensor, cond: Any, steps: int) -> Tensor:
        model, x = Denoiser(net, slip), noise
        ramp = torch.linspace(1, 0.002 ** (1 / 7), steps) ** 7
        for sigma, to in zip(ramp, [*ramp[1:], torch.zeros(())], strict=True):
            slope = (x - model(x, sigma, cond)) / sigma
            if to > 0:
                state = x if slip == "predictor" else x + (to - sigma) * slope
                at = sigma if slip == "corrector" else to
                slope = (slope + (state - model(state, at, cond)) / at) / 2
            x = x + (to - sigma) * slope
        return x

    return {"sampler": sampler, "t_source": 1.0}


def two_step(slip: str) -> dict[str, Any]:
    """Adams and Bashforth's second method on the trigonometric path: one call a step, and the slope before."""

    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
        return a * z0 + b * z1, math.pi / 2 * (a * z1 - b * z0)

    def sampler(net: Any, x: Tensor, cond: Any, steps: int) -> Tensor:
        first, before = x, None
        for k in range(steps):
            t = torch.full((len(x), 1, 1, 1), 0.3 if slip == "one time" else k / steps)
            slope = net(first if slip == "stale" else x, 1 - t if slip == "reversed" else t, cond)
            slope = slope * {"sign": -1.0, "factor": 0.37, "angle": 2 / math.pi}.get(slip, 1.0)
            both = slope if before is None else 1.5 * slope - 0.5 * before
            before, x = slope, x + both / (steps - 1 if slip == "points" else steps)
        return x

    return {"sampler": sampler, "target": target}


PROGRAMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "pipeline": pipeline,
    "karras": karras,
    "two_step": two_step,
}


def told(program: str, slip: str = "") -> Diagnosis:
    generator = torch.Generator().manual_seed(1)
    z0, z1 = (torch.randn(6, 2, 3, 4, generator=generator) for _ in range(2))
    return preflight.check(z0=z0, z1=z1, cond=torch.randn(6, 5, generator=generator), **PROGRAMS[program](slip))


@pytest.mark.parametrize("program", PROGRAMS)
def test_healthy_pipelines_are_clear(program: str) -> None:
    diagnosis = told(program)
    assert [str(finding.message) for finding in diagnosis.findings] == []
    assert {"SMP501", "SMP502", "SMP503", "SMP505", "SMP506"} <= set(diagnosis.clear)


BROKEN = (
    ("pipeline", "sign", "SMP506", "wrong way"),
    ("pipeline", "reversed", "SMP506", "1 - t"),
    ("pipeline", "factor", "SMP506", "Stable Diffusion"),
    ("pipeline", "half", "SMP506", "with 0.5:"),
    ("pipeline", "stale", "SMP502", "never updated"),
    ("pipeline", "frozen time", "SMP506", "never updated"),
    ("pipeline", "middle", "SMP502", "Euler at midpoint times"),
    ("pipeline", "next", "SMP502", "one step ahead"),
    ("pipeline", "own lengths", "SMP502", "N/(N - 1) of the way"),
    ("pipeline", "unshifted times", "SMP502", "from two grids"),
    ("pipeline", "scaled input", "SMP506", "its state times 0.18215"),
    ("pipeline", "scaled output", "SMP503", "Stable Diffusion"),
    ("pipeline", "takes it for the data", "SMP506", "predicted the data z1"),
    ("karras", "reversed", "SMP506", "1 - t"),
    ("karras", "predictor", "SMP502", "without its predictor"),
    ("karras", "corrector", "SMP502", "time of the first"),
    ("two_step", "sign", "SMP506", "wrong way"),
    ("two_step", "reversed", "SMP506", "1 - t"),
    ("two_step", "factor", "SMP506", "0.37"),
    ("two_step", "angle", "SMP505", "angle"),
    ("two_step", "stale", "SMP502", "never updated"),
    ("two_step", "one time", "SMP506", "t = 0.3 in every step"),
    ("two_step", "points", "SMP502", "N/(N - 1) of the way"),
)


@pytest.mark.parametrize(("program", "slip", "code", "words"), BROKEN)
def test_every_mistake_is_named_on_their_grids(program: str, slip: str, code: str, words: str) -> None:
    [finding] = told(program, slip).findings
    assert (finding.code, finding.certainty) == (code, "confirmed"), str(finding.message)
    assert words in str(finding.message)
    assert finding.message.text("zh-CN")


def test_a_little_time_left_out_at_both_ends_is_no_mistake() -> None:
    def sampler(net: Any, x: Tensor, cond: Any, steps: int) -> Tensor:
        times = torch.linspace(1e-3, 1 - 1e-3, steps + 1)
        for t, u in itertools.pairwise(times):
            middle = x + (u - t) / 2 * net(x, t, cond)
            x = x + (u - t) * net(middle, (t + u) / 2, cond)
        return x

    z0, z1 = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    assert [str(finding.message) for finding in preflight.check(sampler=sampler, z0=z0, z1=z1).findings] == []


def test_times_in_thousands_do_not_disturb_a_network_that_predicts_the_data() -> None:
    """Asked a thousand times too far away, the field would be no number any more."""

    def sampler(net: Any, x: Tensor, cond: Any, steps: int) -> Tensor:
        times = torch.linspace(1, 1 / 1000, steps)
        for t, u in zip(times, [*times[1:], torch.zeros(())], strict=True):
            x = x + (u - t) * (x - net(x, 1000 * t, cond)) / t
        return x

    z0, z1 = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    given = {"target": lambda z0, z1, t: (t * z0 + (1 - t) * z1, z1), "t_source": 1.0}
    assert [str(one.message) for one in preflight.check(sampler=sampler, z0=z0, z1=z1, **given).findings] == []
