"""The scale check: the size of z1, as a whole and channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossdoctor import preflight


def latents(std: float, mean: float = 0.0, shape: tuple[int, ...] = (16, 4, 8, 8)) -> Tensor:
    return mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "z1",
    [
        latents(1.0),
        latents(0.6),
        latents(2.0),
        latents(0.25, 0.5, (8, 3, 16, 16)),  # pixels in [0, 1]
        latents(1.0).half(),
        latents(1.0, shape=(64, 2)),
    ],
    ids=["one", "narrow", "wide", "pixels", "half", "points"],
)
def test_usual_scales_are_clear(z1: Tensor) -> None:
    assert "VEL407" in preflight.check(z1=z1).clear


@pytest.mark.parametrize(
    ("z1", "words", "cause"),
    [
        (latents(5.49), "not multiplied by 0.18215", "latent-scale"),
        (latents(7.6), "not multiplied by 0.13025", "latent-scale"),
        (latents(0.182), "multiplied by 0.18215 twice", "latent-scale"),
        (latents(30.0), "to bring it to 1", "latent-scale"),
        (latents(0.05), "to bring it to 1", "latent-scale"),
        (latents(1.0, 6.0), "Its shift is missing", "latent-offset"),
        (latents(1.0) * torch.tensor([1.0, 1.0, 0.01, 1.0])[:, None, None], "Channel 2", "latent-scale"),
        (latents(1.0) + torch.tensor([0.0, 9.0, 0.0, 0.0])[:, None, None], "Channel 1", "latent-offset"),
        (torch.full((8, 4, 4, 4), 3.0), "throughout", "latent-scale"),
    ],
)
def test_other_scales_are_named(z1: Tensor, words: str, cause: str) -> None:
    [finding] = preflight.check(z1=z1).findings
    assert (finding.code, finding.causes[0].code) == ("VEL407", cause)
    assert words in str(finding.message)


def test_the_own_factor_comes_first() -> None:
    [finding] = preflight.check(z1=latents(1 / 0.31), latent_scale=0.31).findings
    assert "latent_scale" in str(finding.message)
    assert finding.severity == "error"


@pytest.mark.parametrize(
    ("raw", "own", "words"),
    [
        (1 / 0.13025, 0.18215, "fit the factor 0.13025 (SDXL)"),
        (1 / 0.18215, 0.13025, "fit the factor 0.18215 (Stable Diffusion)"),
        (1 / 1.5305, 0.18215, "fit the factor 1.5305 (Stable Diffusion 3)"),
        (1 / 0.4, 0.05, "The factor that brings it to 1 is 0.4"),
    ],
)
def test_a_factor_of_another_autoencoder_is_named(raw: float, own: float, words: str) -> None:
    [finding] = preflight.check(z1=latents(own * raw), latent_scale=own).findings
    assert finding.code == "VEL407"
    assert words in str(finding.message)


@pytest.mark.parametrize("std", [0.7, 0.85, 1.0, 1.15, 1.9])
def test_the_right_factor_on_unusual_pictures_is_clear(std: float) -> None:
    assert "VEL407" in preflight.check(z1=latents(std), latent_scale=0.8).clear


def test_a_flow_between_two_wide_ends_is_clear() -> None:
    assert "VEL407" in preflight.check(z0=latents(10.0), z1=latents(12.0)).clear


def test_few_numbers_are_left_out_by_name() -> None:
    reasons = {code: str(why.reason) for code, why in preflight.check(z1=torch.ones(1, 3)).skipped}
    assert "3 numbers" in reasons["VEL407"]
