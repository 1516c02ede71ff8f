from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossdoctor.errors import UsageError
from lossdoctor.reference import Sampler, Trainer


@pytest.fixture
def sampler(trainer: Trainer) -> Sampler:
    trainer.run(20)
    return trainer.sampler()


def draw(sampler: Sampler, captions: list[str], seed: int = 0, **options: object) -> Tensor:
    return sampler(captions, randomness=torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def test_one_picture_per_caption(sampler: Sampler) -> None:
    pictures = draw(sampler, ["seven", "the digit 3", "a wombat"])
    assert pictures.shape == (3, 1, 8, 8)
    assert pictures.abs().max() <= 1
    assert not pictures.requires_grad


def test_randomness_decides_everything_and_the_global_state_nothing(sampler: Sampler) -> None:
    first = draw(sampler, ["seven", "three"])
    state = torch.get_rng_state()
    torch.randn(5)
    again = draw(sampler, ["seven", "three"])
    torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(sampler, ["seven", "three"], seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_caption_matters_and_its_neighbours_do_not(sampler: Sampler) -> None:
    first, other = draw(sampler, ["seven", "three"]), draw(sampler, ["seven", "eight"])
    assert torch.allclose(first[0], other[0], atol=1e-5)
    assert not torch.allclose(first[1], other[1], atol=1e-3)


def test_finer_steps_converge(sampler: Sampler) -> None:
    exact = draw(sampler, ["seven"] * 4, steps=64, solver="rk4")
    errors = [float((draw(sampler, ["seven"] * 4, steps=n) - exact).norm()) for n in (4, 16)]
    assert errors[1] < errors[0] / 8


def test_the_averaged_weights_are_used(trainer: Trainer, sampler: Sampler) -> None:
    before = draw(sampler, ["seven"])
    with torch.no_grad():
        for parameter in trainer.system.generator.parameters():
            parameter.zero_()
    assert torch.equal(draw(sampler, ["seven"]), before)
    with torch.no_grad():
        for parameter in trainer.ema.model.parameters():
            parameter.zero_()
    assert not torch.equal(draw(sampler, ["seven"]), before)


def test_wrong_requests_are_refused(sampler: Sampler) -> None:
    with pytest.raises(UsageError, match="few words"):
        draw(sampler, [])
    with pytest.raises(UsageError, match="solver"):
        draw(sampler, ["seven"], solver="magic")
    with pytest.raises(UsageError, match="steps"):
        draw(sampler, ["seven"], steps=0)
