"""The target check: v_target against the derivative of the user's own x_t."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis
from lossdoctor.flow import PATHS

Target = Callable[[Tensor, Tensor, Tensor], Any]
CODES = {"VEL409", "VEL411"}


def ends(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape or (6, 5), generator=generator), 2 * torch.randn(shape or (6, 5), generator=generator)


def told(target: Target, *, shape: tuple[int, ...] = (6, 5), **others: Any) -> Diagnosis:
    z0, z1 = ends(*shape)
    return preflight.check(target=target, z0=z0, z1=z1, **others)


def on(path: str, what: Callable[[Tensor, Tensor, Tensor], Tensor], source: float = 0.0) -> Target:
    """x_t of a known path, and `what` of z0, z1 and the true velocity."""

    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t, v = PATHS[path].sample(z0, z1, t, source)
        return x_t, what(z0, z1, v)

    return target


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("source", [0.0, 1.0])
def test_the_right_target_of_every_path_is_clear(path: str, source: float) -> None:
    for shape in ((6, 5), (1, 2), (3,), (2, 3, 4, 4)):
        diagnosis = told(on(path, lambda z0, z1, v: v, source), shape=shape, t_source=source)
        assert set(diagnosis.clear) >= CODES, diagnosis.findings


HEALTHY: dict[str, tuple[Target, float]] = {
    "lerp": (lambda z0, z1, t: (torch.lerp(z0, z1, t), z1 - z0), 0.0),
    "noise to data": (lambda noise, data, t: ((1 - t) * data + t * noise, noise - data), 1.0),
    "minimal sigma": (lambda z0, z1, t: ((1 - (1 - 1e-4) * t) * z0 + t * z1, z1 - (1 - 1e-4) * z0), 0.0),
    "t as (B,)": (lambda z0, z1, t: (flat(z0, z1, t), z1 - z0), 0.0),
    "float32 inside": (lambda z0, z1, t: (torch.lerp(z0.float(), z1.float(), t.float()), (z1 - z0).float()), 0.0),
    "half precision inside": (lambda z0, z1, t: (torch.lerp(z0, z1, t).bfloat16(), (z1 - z0).bfloat16()), 0.0),
    "squared cosine": (
        lambda z0, z1, t: (
            torch.cos(math.pi * t / 2) ** 2 * z0 + torch.sin(math.pi * t / 2) ** 2 * z1,
            math.pi / 2 * torch.sin(math.pi * t) * (z1 - z0),
        ),
        0.0,
    ),
    "a noisy bridge": (lambda z0, z1, t: (torch.lerp(z0, z1, t) + 0.1 * torch.randn_like(z0), z1 - z0), 0.0),
}


def flat(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """A program that adds the axes itself, and trips over those that are there."""
    if t.ndim != 1:
        raise ValueError(f"t must be (B,), got {tuple(t.shape)}")
    return torch.lerp(z0, z1, t[:, None])


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_targets_are_clear(name: str) -> None:
    target, source = HEALTHY[name]
    diagnosis = told(target, t_source=source)
    assert set(diagnosis.clear) >= CODES, diagnosis.findings


BROKEN: dict[str, tuple[Target, str, str]] = {
    "sign": (on("linear", lambda z0, z1, v: -v), "target-sign", "minus d x_t / dt"),
    "data": (on("linear", lambda z0, z1, v: z1), "target-formula", "v_target is z1"),
    "source": (on("trigonometric", lambda z0, z1, v: z0), "target-formula", "v_target is z0"),
    "straight": (on("trigonometric", lambda z0, z1, v: z1 - z0), "path-derivative-missing", "alpha'(t)"),
    "straight polynomial": (on("polynomial", lambda z0, z1, v: z1 - z0), "path-derivative-missing", "alpha'(t)"),
    "angle": (on("trigonometric", lambda z0, z1, v: 2 / math.pi * v), "path-derivative-missing", "angle"),
    "scaled": (on("linear", lambda z0, z1, v: 0.18215 * v), "target-formula", "0.18215 times"),
    "sum": (on("linear", lambda z0, z1, v: z1 + z0), "target-formula", "two formulas"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_target_is_instead_is_named(name: str) -> None:
    target, cause, words = BROKEN[name]
    [finding] = [one for one in told(target).findings if one.code in CODES]
    assert (finding.code, finding.causes[0].code) == ("VEL411", cause)
    assert words in str(finding.message)
    assert finding.message.text("zh-CN")


def test_the_noise_of_a_learned_source_is_told_from_the_source() -> None:
    z0, z1 = ends()
    mu, logvar = torch.ones(6, 5), torch.full((6, 5), -1.0)
    noise = (z0 - mu) / (logvar / 2).exp()
    diagnosis = preflight.check(
        target=lambda a, b, t: (torch.lerp(a, b, t), noise.to(a)), z0=z0, z1=z1, mu=mu, logvar=logvar
    )
    [finding] = [one for one in diagnosis.findings if one.code == "VEL411"]
    assert "mu + std * noise" in str(finding.message)


def test_time_that_runs_the_other_way_than_declared_is_told() -> None:
    [finding] = [f for f in told(HEALTHY["noise to data"][0], t_source=0.0).findings if f.code == "VEL411"]
    assert finding.causes[0].code == "time-reversed"
    assert "t_source says 0" in str(finding.message)


def test_broadcast_shapes_are_told() -> None:
    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.flatten()  # (B,) against (B, 1): all pairs
        return (1 - t) * z0 + t * z1, z1 - z0

    [finding] = [one for one in told(target, shape=(6, 1)).findings if one.code in CODES]
    assert (finding.code, finding.causes[0].code) == ("VEL409", "broadcast-shapes")
    assert "(6, 6)" in str(finding.message)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda z0, z1: z0, "TypeError"),
        (lambda z0, z1, t: z0, "a pair of tensors"),
        (lambda z0, z1, t: (z0, z1, t), "tuple of 3"),
        (lambda z0, z1, t: (z0 / 0, z1 - z0), "NaN"),
        (lambda z0, z1, t: (z0, None), "NoneType"),
    ],
)
def test_a_target_that_cannot_be_used_is_told(target: Target, words: str) -> None:
    [finding] = told(target).findings
    assert (finding.code, finding.subject) == ("PRE001", "target")
    assert words in str(finding.message)
