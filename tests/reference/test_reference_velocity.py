from __future__ import annotations

import pytest
import torch

from lossdoctor.flow import integrate, observed_order
from lossdoctor.reference.config import VelocityConfig
from lossdoctor.reference.velocity import Velocity

LATENT = (2, 2, 2)


@pytest.fixture
def network() -> Velocity:
    """A network whose last layer has left zero, as after some training."""
    torch.manual_seed(0)
    network = Velocity(VelocityConfig(width=32, blocks=2, embedding=16), LATENT, condition=6).double()
    torch.nn.init.normal_(network.head.weight, std=0.2)
    return network


def arguments(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, *LATENT).double(), torch.rand(batch).double(), torch.randn(batch, 6).double()


def test_training_begins_from_a_field_at_rest() -> None:
    network = Velocity(VelocityConfig(width=32), LATENT, condition=6).double()
    assert network(*arguments()).abs().max() == 0


def test_time_comes_in_any_shape(network: Velocity) -> None:
    x, t, cond = arguments()
    for shape in [(5,), (5, 1), (5, 1, 1, 1)]:
        assert torch.equal(network(x, t.reshape(shape), cond), network(x, t, cond))


def test_samples_do_not_mix(network: Velocity) -> None:
    x, t, cond = arguments()
    together = network(x, t, cond)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone)


def test_state_time_and_caption_all_matter(network: Velocity) -> None:
    x, t, cond = arguments()
    v = network(x, t, cond)
    for changed in [(x + 0.1, t, cond), (x, (t + 0.5) % 1, cond), (x, t, -cond)]:
        assert (network(*changed) - v).abs().mean() > 1e-3


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_field_is_smooth_enough_for_every_solver(network: Velocity, solver: str, order: int) -> None:
    x, _, cond = arguments()
    counts = (16, 32, 64)

    def end(steps: int, by: str) -> torch.Tensor:
        return integrate(lambda z, t: network(z, t, cond), x, steps, by)

    with torch.no_grad():
        exact = end(256, "rk4")
        errors = [float((end(n, solver) - exact).norm()) for n in counts]
    assert float(observed_order(errors, counts)) == pytest.approx(order, abs=0.2)
