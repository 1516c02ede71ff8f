"""Times that follow the losses: unbiased with their weights, and less noisy where a bin is bad."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.flow import EdgeWeighted, LogitNormal, TimeMixture, TimeSampler, Uniform
from lossdoctor.treat import LossAdaptive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bad_end(t: Tensor) -> Tensor:
    """A loss that is a hundred times as large in the last tenth."""
    return torch.where(t >= 0.9, 100.0, 1.0)


def taught(loss: Callable[[Tensor], Tensor] = bad_end, **settings: float) -> LossAdaptive:
    sampler = LossAdaptive(**settings)  # type: ignore[arg-type]
    for step in range(50):
        t = sampler.sample(200, generator=seeded(step))
        sampler.update(t, loss(t))
    return sampler


def test_it_goes_where_the_losses_are() -> None:
    sampler = taught()
    # Nine bins of root 1 and one of root 10, mean 1.9; a fifth of the times is uniform.
    expected = [0.2 + 0.8 / 1.9] * 9 + [0.2 + 0.8 * 10 / 1.9]
    assert sampler.heights().tolist() == pytest.approx(expected, rel=1e-4)
    assert sampler.tenths().tolist() == pytest.approx(expected, rel=1e-4)
    times = sampler.sample(20_000, generator=seeded(1)).numpy()
    counted = torch.histc(torch.from_numpy(times), 10, 0, 1).numpy()
    assert scipy.stats.chisquare(counted, [2000 * height for height in expected]).pvalue > 1e-3
    assert sampler.weight(torch.linspace(0, 1, 101)).max() <= 1 / 0.2


def test_it_is_uniform_until_it_knows_every_bin() -> None:
    sampler = LossAdaptive(least=5)
    assert sampler.heights().tolist() == [1.0] * 10
    t = torch.linspace(0, 0.85, 200)
    sampler.update(t, t)
    assert sampler.heights().tolist() == [1.0] * 10, "nobody was in the last tenth"
    sampler.update(torch.full((5,), 0.95), torch.full((5,), 9.0))
    assert sampler.heights().argmax() == 9


class Flow(nn.Module):
    """A small velocity in the plane, of two moons of Gaussians, worst near t = 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

    def losses(self, t: Tensor, generator: torch.Generator) -> Tensor:
        z0 = torch.randn(len(t), 2, generator=generator)
        angle = 2 * math.pi * torch.rand(len(t), generator=generator)
        z1 = 3 * torch.stack([angle.cos(), angle.sin()], 1)
        x = (1 - t)[:, None] * z0 + t[:, None] * z1
        error = (self.net(torch.cat([x, t[:, None]], 1)) - (z1 - z0)).square().mean(1)
        return error * torch.where(t > 0.9, 30.0, 1.0)

    def gradient(self, t: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
        loss = (weight * self.losses(t, generator)).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.parameters()))])


def estimates(flow: Flow, sampler: TimeSampler, times: int = 400, batch: int = 64) -> Tensor:
    found = []
    for seed in range(times):
        generator = seeded(seed)
        t, weight = sampler.weighted(batch, generator=generator)
        found.append(flow.gradient(t, weight, generator))
    return torch.stack(found).double()


def adapted(flow: Flow) -> LossAdaptive:
    sampler = LossAdaptive()
    for seed in range(100):
        generator = seeded(10_000 + seed)
        t = sampler.sample(64, generator=generator)
        sampler.update(t, flow.losses(t, generator))
    return sampler


def test_the_gradient_of_a_flow_is_unbiased_under_every_sampler() -> None:
    """The mean over 400 batches against the gradient over a grid of uniform times, within four standard errors."""
    flow = Flow()
    generator = seeded(77)
    even = (torch.arange(400_000) + 0.5) / 400_000
    exact = flow.gradient(even, torch.ones_like(even), generator).double()
    samplers = [Uniform(), EdgeWeighted(), TimeMixture((LogitNormal(), Uniform()), (0.8, 0.2)), adapted(flow)]
    for sampler in samplers:
        found = estimates(flow, sampler)
        error = found.std(0) / math.sqrt(len(found))
        off = ((found.mean(0) - exact) / error).abs()
        assert off.median() < 1.5, sampler
        assert off.max() < 4.5, sampler
    # Without weights it is another gradient, so that the test above can fail.
    t = LogitNormal().sample(400_000, generator=seeded(5))
    assert (flow.gradient(t, torch.ones_like(t), generator).double() - exact).norm() > 0.3 * exact.norm()


def test_it_lowers_the_noise_of_the_gradient_where_a_bin_is_bad() -> None:
    flow = Flow()
    noise = {name: estimates(flow, one).var(0).sum() for name, one in (("even", Uniform()), ("own", adapted(flow)))}
    assert noise["own"] < 0.6 * noise["even"], noise


def test_ranks_that_add_up_have_the_same_times() -> None:
    t = [torch.rand(50, generator=seeded(rank)) for rank in (1, 2)]
    sums = []
    for own in t:
        LossAdaptive().update(own, bad_end(own), reduce=lambda part: sums.append(part.clone()))
    both = [LossAdaptive(), LossAdaptive()]
    for sampler, own in zip(both, t, strict=True):
        sampler.update(own, bad_end(own), reduce=lambda part: part.copy_(sums[0] + sums[1]))
    assert torch.equal(both[0].heights(), both[1].heights())
    alone = LossAdaptive()
    alone.update(torch.cat(t), bad_end(torch.cat(t)))
    assert alone.heights().tolist() == pytest.approx(both[0].heights().tolist())


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    sampler, other = taught(), LossAdaptive()
    other.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert torch.equal(other.sample(50, generator=seeded()), sampler.sample(50, generator=seeded()))
    fresh = LossAdaptive()
    fresh.load_state_dict(json.loads(json.dumps(LossAdaptive().state_dict())))
    assert fresh.heights().tolist() == [1.0] * 10
    with pytest.raises(UsageError, match="A state of other bins"):
        LossAdaptive(bins=4).load_state_dict(sampler.state_dict())


def test_what_is_no_loss_is_left_out() -> None:
    sampler, t = taught(), torch.tensor([0.05, 0.15, 0.25, 0.35, math.nan, 2.0])
    before = sampler.heights()
    sampler.update(t, torch.tensor([math.nan, math.inf, -1.0, -math.inf, 1.0, 1.0]))
    assert sampler.heights().tolist() == pytest.approx(before.tolist(), rel=1e-5)
    for losses in (torch.zeros(1000), torch.full((1000,), 3e38), torch.full((1000,), 1e-38)):
        extreme = LossAdaptive(least=1)
        extreme.update(torch.linspace(0, 1, 1000), losses)
        assert extreme.heights().tolist() == pytest.approx([1.0] * 10)


def test_shapes_and_no_graph() -> None:
    sampler = LossAdaptive(least=1)
    pixels = torch.ones(20, 3, 4, 4, requires_grad=True)
    sampler.update(torch.linspace(0, 1, 20)[:, None, None, None], pixels * 2)
    assert not sampler.heights().requires_grad
    assert sampler.sample(0).shape == (0,)
    for losses in (torch.tensor(1.0), torch.ones(3)):
        with pytest.raises(ShapeError, match="One loss for each time"):
            sampler.update(torch.rand(20), losses)


@pytest.mark.parametrize(
    "wrong", [{"bins": 0}, {"uniform": 0.0}, {"uniform": 1.5}, {"power": -1.0}, {"memory": 1.0}, {"least": 0}]
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"(?s)follow the losses.*expected:.*got:.*to do:"):
        LossAdaptive(**wrong)  # type: ignore[arg-type]
