"""The sampler of the times, named to `ld.flow`: the run tells its density, in the direction of the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lossdoctor as ld
from lossdoctor.flow import Stepwise, TimeSampler, Uniform
from lossdoctor.treat import LossAdaptive

EARLY = Stepwise((3.0, 1.0))


def train(sampler: TimeSampler, *, t_source: float = 0.0, device: str = "cpu") -> ld.Run:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=5, strict=True) as doctor:
        for step in range(20):
            t, weight = sampler.weighted(32, generator=torch.Generator().manual_seed(step))
            x = torch.randn(32, 2, generator=torch.Generator().manual_seed(step)).to(device)
            t, weight = t.to(device), weight.to(device)
            predicted = model(torch.cat([x, t[:, None]], 1))
            error = (predicted - x.sin()).square().mean(1)
            ld.flow(predicted, x.sin(), t, t_source=t_source, times=sampler)
            doctor.backward({"flow": (weight * error).mean()})
            if isinstance(sampler, LossAdaptive):
                sampler.update(t, error)
            optimizer.step()
            optimizer.zero_grad()
    return doctor.run


def heights(run: ld.Run, place: int = -1) -> list[float]:
    return [float(run[f"flow/density_t{tenth}"].values[place]) for tenth in range(10)]


@pytest.mark.parametrize(("t_source", "expected"), [(0.0, [1.5] * 5 + [0.5] * 5), (1.0, [0.5] * 5 + [1.5] * 5)])
def test_the_density_is_told_from_source_to_target(t_source: float, expected: list[float]) -> None:
    run = train(EARLY, t_source=t_source)
    assert heights(run) == pytest.approx(expected)
    assert run["flow/density_t0"].steps.tolist() == [0, 5, 10, 15], "at measured steps only"
    assert run.meta["times"]["sampler"] == "Stepwise(shares=(3.0, 1.0))"


def test_a_density_that_learns_is_told_as_it_was_at_the_draw() -> None:
    run = train(LossAdaptive())
    assert heights(run, 0) == [1.0] * 10
    assert heights(run)[0] != 1.0
    assert sum(heights(run)) == pytest.approx(10)
    assert run.meta["times"]["sampler"].startswith("LossAdaptive(bins=10")


def test_without_a_sampler_nothing_is_told() -> None:
    assert "times" in train(Uniform()).meta
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        x = torch.randn(8, 2)
        predicted = model(x)
        ld.flow(predicted, x, torch.rand(8))
        doctor.backward({"flow": (predicted - x).square().mean()})
        optimizer.step()
    assert "times" not in doctor.run.meta
    assert "flow/density_t0" not in doctor.run
