"""The sampler check: every mistake is named, and the same program without it is clear, however it is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis
from lossdoctor.flow import PATHS, SOLVERS, integrate
from lossdoctor.preflight.sampler import RULES
from lossdoctor.rules import Finding

CODES = {rule.code for rule in RULES}
Sampler = Callable[[Any, Tensor, Any, int], Tensor]


def ends(seed: int = 0, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (6, 5)
    return torch.randn(shape, generator=generator), 0.7 + 1.3 * torch.randn(shape, generator=generator)


def found(diagnosis: Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.code in CODES]


def only(diagnosis: Diagnosis) -> Finding:
    [finding] = found(diagnosis)
    assert str(finding.message)
    return finding


def assert_clear(diagnosis: Diagnosis) -> None:
    assert [str(finding.message) for finding in diagnosis.findings] == []
    assert set(diagnosis.clear) >= CODES, diagnosis.skipped


# Programs, each written in its own way. `slip` is a mistake, in the words of that program.


def plain(v, x, c, steps, *, factor=1.0, time=lambda t: t, length=lambda n: 1 / n, count=lambda n: n, grid=None):
    """Euler with t as (B, 1), from the source at 0."""
    for k in range(count(steps)):
        t = grid(k, steps) if grid else k / steps
        x = x + factor * length(steps) * v(x, torch.full((len(x), *(1,) * (x.ndim - 1)), time(t)), c)
    return x


def stale(v, z0, c, steps):
    x = z0
    for k in range(steps):
        x = x + v(z0, torch.full((len(x), 1), k / steps), c) / steps
    return x


def one_behind(v, x, c, steps):
    before = x
    for k in range(steps):
        x, before = x + v(before, torch.full((len(x), 1), k / steps), c) / steps, x
    return x


def frozen_time(v, x, c, steps):
    for _ in range(steps):
        x = x + v(x, torch.zeros(len(x), 1), c) / steps
    return x


def midpoint_time(v, x, c, steps):
    for k in range(steps):
        x = x + v(x, torch.full((len(x), 1), (k + 0.5) / steps), c) / steps
    return x


def midpoint(v, x, c, steps):
    for k in range(steps):
        t = torch.full((len(x), 1), k / steps)
        x = x + v(x + v(x, t, c) / (2 * steps), t + 1 / (2 * steps), c) / steps
    return x


def lost_predictor(v, x, c, steps):
    for k in range(steps):
        t, u = torch.full((len(x), 1), k / steps), torch.full((len(x), 1), (k + 1) / steps)
        x = x + (v(x, t, c) + v(x, u, c)) / (2 * steps)
    return x


def unused_midpoint(v, x, c, steps):
    """Pays for the midpoint and forgets to use it."""
    for k in range(steps):
        v(x, torch.full((len(x), 1), k / steps), c)
        x = x + v(x, torch.full((len(x), 1), (k + 0.5) / steps), c) / steps
    return x


BROKEN: dict[str, tuple[Sampler, str, str, str]] = {
    "sign": (lambda *a: plain(*a, factor=-1), "SMP506", "inference-sign", "wrong way"),
    "reversed": (lambda *a: plain(*a, time=lambda t: 1 - t), "SMP506", "inference-time", "1 - t"),
    "backwards": (
        lambda *a: plain(*a, factor=-1, time=lambda t: 1 - t), "SMP506", "inference-time", "both reversed",
    ),
    "stable diffusion": (lambda *a: plain(*a, factor=0.18215), "SMP506", "inference-scale", "Stable Diffusion"),
    "unscaled": (lambda *a: plain(*a, factor=1 / 0.13025), "SMP506", "inference-scale", "SDXL"),
    "factor": (lambda *a: plain(*a, factor=0.37), "SMP506", "inference-scale", "0.37"),
    "twice": (lambda *a: plain(*a, factor=2.0), "SMP506", "inference-scale", "2"),
    "angle": (lambda *a: plain(*a, factor=2 / math.pi), "SMP505", "path-derivative-missing", "angle"),
    "over": (
        lambda *a: plain(*a, length=lambda n: 1 / (n - 1), grid=lambda k, n: k / (n - 1)),
        "SMP502", "sampler-grid", "overshoots",
    ),
    "lengths": (lambda *a: plain(*a, length=lambda n: 1 / (n - 1)), "SMP502", "sampler-grid", "overshoots"),
    "points": (lambda *a: plain(*a, grid=lambda k, n: k / (n - 1)), "SMP502", "sampler-grid", "linspace"),
    "short": (lambda *a: plain(*a, count=lambda n: n - 1), "SMP502", "sampler-grid", "N - 1 steps"),
    "long": (lambda *a: plain(*a, count=lambda n: n + 1), "SMP502", "sampler-grid", "N + 1 steps"),
    "under": (
        lambda *a: plain(*a, length=lambda n: 1 / (n + 1), grid=lambda k, n: k / (n + 1)),
        "SMP502", "sampler-grid", "1/(N + 1)",
    ),
    "late": (lambda *a: plain(*a, grid=lambda k, n: (k + 1) / n), "SMP502", "sampler-grid", "(k + 1)/N"),
    "stale": (stale, "SMP502", "sampler-state", "never updated"),
    "one behind": (one_behind, "SMP502", "sampler-state", "step before"),
    "frozen time": (frozen_time, "SMP506", "inference-time", "never updated"),
    "lost predictor": (lost_predictor, "SMP502", "sampler-state", "without its predictor"),
    "midpoint time": (midpoint_time, "SMP502", "sampler-state", "Euler at midpoint times"),
    "unused midpoint": (unused_midpoint, "SMP502", "sampler-state", "Euler at midpoint times"),
    "index for time": (lambda *a: plain(*a, grid=lambda k, n: float(k)), "SMP506", "inference-time", "An index"),
    "scaled output": (lambda *a: plain(*a) / 0.18215, "SMP503", "latent-scale", "Stable Diffusion"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_mistake_is_named(name: str) -> None:
    sampler, code, cause, words = BROKEN[name]
    z0, z1 = ends()
    finding = only(preflight.check(sampler=sampler, z0=z0, z1=z1))
    assert (finding.code, finding.causes[0].code) == (code, cause), str(finding.message)
    assert words in str(finding.message)
    assert finding.evidence
    assert finding.fixes
    assert finding.message.text("zh-CN")


@pytest.mark.parametrize("name", ["sign", "points", "stale"])
def test_a_large_batch_is_judged_by_some_of_its_numbers(name: str) -> None:
    sampler, code, cause, _ = BROKEN[name]
    z0, z1 = ends(0, 40, 300)
    finding = only(preflight.check(sampler=sampler, z0=z0, z1=z1))
    assert (finding.code, finding.causes[0].code) == (code, cause), str(finding.message)
    assert_clear(preflight.check(sampler=midpoint, z0=z0, z1=z1))


def test_an_own_scale_factor_is_recognised() -> None:
    z0, z1 = ends()
    finding = only(preflight.check(sampler=lambda *a: plain(*a, factor=0.4321), z0=z0, z1=z1, latent_scale=0.4321))
    assert "latent_scale" in str(finding.message)


@pytest.mark.parametrize("path", PATHS.values(), ids=lambda path: path.name)
@pytest.mark.parametrize("source", [0.0, 1.0])
@pytest.mark.parametrize("name", ["sign", "stable diffusion", "over", "stale", "reversed"])
def test_mistakes_are_named_in_both_directions_of_time_and_on_curved_paths(name: str, source: float, path) -> None:
    broken, code, cause, _ = BROKEN[name]
    z0, z1 = ends()

    def turned(v, x, c, steps):
        """The same program for the other direction: its v points from data to noise."""
        return broken(lambda x, t, c: -v(x, 1 - t, c), x, c, steps)

    sampler = broken if source == 0.0 else turned
    target = lambda z0, z1, t: path.sample(z0, z1, t, source)  # noqa: E731
    diagnosis = preflight.check(sampler=sampler, target=target, z0=z0, z1=z1, t_source=source)
    finding = only(diagnosis)
    assert (finding.code, finding.causes[0].code) == (code, cause), str(finding.message)


def test_the_number_of_steps_that_a_solver_needs_is_no_mistake() -> None:
    z0, z1 = ends()
    for solver in SOLVERS:
        if solver != "euler_mid":
            assert_clear(
                preflight.check(
                    sampler=lambda v, x, c, n, s=solver: integrate(lambda x, t: v(x, t, c), x, n, s), z0=z0, z1=z1
                )
            )


def test_midpoint_times_are_only_mentioned_unless_two_calls_were_paid_for() -> None:
    z0, z1 = ends()
    assert only(preflight.check(sampler=midpoint_time, z0=z0, z1=z1)).severity == "info"
    assert only(preflight.check(sampler=unused_midpoint, z0=z0, z1=z1)).severity == "warning"


# Healthy programs


def rectified_flow(v, noise, label, steps):
    """linspace of N + 1 points, t a Python float."""
    x, times = noise, torch.linspace(0, 1, steps + 1).tolist()
    for t, u in itertools.pairwise(times):
        x = x + (u - t) * v(x, t, label)
    return x


def time_first(network, x, label, steps):
    """A network called as (t, x, label)."""
    for k in range(steps):
        x = x + network(torch.tensor(k / steps), x, label) / steps
    return x


def in_place(v, x, c, steps):
    """Writes into its state, passes t as (B,)."""
    for k in range(steps):
        x.add_(v(x, torch.full((len(x),), k / steps), c), alpha=1 / steps)
    return x


def thousand(v, x, c, steps):
    """Diffusion code: t runs from 1000 down to 0, v = noise - data, guidance on a doubled batch."""
    times = torch.linspace(1000, 0, steps + 1)
    for t, u in itertools.pairwise(times):
        both = torch.cat([x, x])
        without, along = v(both, t.repeat(len(both)), None if c is None else torch.cat([c, c])).chunk(2)
        x = x + (u - t) / 1000 * (without + 4.0 * (along - without))
    return x


def images(v, x, c, steps):
    """Heun with t of shape (B, 1, 1, 1)."""
    h = 1 / steps
    for k in range(steps):
        t = torch.full((len(x), 1, 1, 1), k * h)
        first = v(x, t, c)
        x = x + h / 2 * (first + v(x + h * first, t + h, c))
    return x


def sit_like(v, noise, c, steps):
    """Starts at t = 1 (noise) and goes down; v = noise - data."""
    x, h = noise, 1 / steps
    for k in range(steps):
        x = x - h * v(x, torch.full((len(x),), 1 - k * h), c)
    return x


def shifted(v, x, c, steps):
    """An uneven grid on purpose, as large images have it."""
    times = torch.linspace(0, 1, steps + 1)
    times = times / (times + 3 * (1 - times))
    for t, u in itertools.pairwise(times):
        x = x + (u - t) * v(x, t, c)
    return x


def points(v, x, c, steps):
    """N points are N - 1 steps: one less, and sound."""
    times = torch.linspace(0, 1, steps)
    for t, u in itertools.pairwise(times):
        x = x + (u - t) * v(x, t, c)
    return x


def half(v, x, c, steps):
    """A state in half precision."""
    x = x.half()
    for k in range(steps):
        x = x + v(x, torch.full((len(x),), k / steps), c) / steps
    return x.float()


def ddim(v, x, c, steps):
    """Both ends from the velocity on the trigonometric path, then the path to the next time."""
    for k in range(steps):
        t, u = math.pi / 2 * k / steps, math.pi / 2 * (k + 1) / steps
        slope = v(x, torch.full((len(x), 1), k / steps), c) * 2 / math.pi
        source, data = math.cos(t) * x - math.sin(t) * slope, math.sin(t) * x + math.cos(t) * slope
        x = math.cos(u) * source + math.sin(u) * data
    return x


HEALTHY: dict[str, tuple[Sampler, dict[str, Any]]] = {
    "rectified flow": (rectified_flow, {}),
    "t before x": (lambda v, x, c, n: time_first(lambda t, x, label: v(x, t, label), x, c, n), {}),
    "in place": (in_place, {}),
    "thousand": (thousand, {"t_source": 1.0}),
    "images": (images, {}),
    "sit": (sit_like, {"t_source": 1.0}),
    "sit with a target": (
        sit_like, {"t_source": 1.0, "target": lambda z0, z1, t: ((1 - t) * z1 + t * z0, z0 - z1)},
    ),
    "cosine": (
        rectified_flow,
        {
            "target": lambda z0, z1, t: (
                torch.cos(math.pi / 2 * t) * z0 + torch.sin(math.pi / 2 * t) * z1,
                math.pi / 2 * (torch.cos(math.pi / 2 * t) * z1 - torch.sin(math.pi / 2 * t) * z0),
            )
        },
    ),
    "smoothstep, a path without a name": (
        images,
        {
            "target": lambda z0, z1, t: (
                (1 - t * t * (3 - 2 * t)) * z0 + t * t * (3 - 2 * t) * z1, 6 * t * (1 - t) * (z1 - z0)
            )
        },
    ),
    "uneven": (shifted, {}),
    "points": (points, {}),
    "half": (half, {}),
    "ddim": (ddim, {"target": PATHS["trigonometric"].sample}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_programs_are_clear(name: str, seed: int) -> None:
    sampler, others = HEALTHY[name]
    z0, z1 = ends(seed, 6, 2, 4, 4)
    assert_clear(preflight.check(sampler=sampler, z0=z0, z1=z1, cond=torch.arange(6), **others))


# Predictions that are no velocity


def from_data(v, x, c, steps, *, derivative=True):
    """The network says z1 on the trigonometric path; the sampler makes a velocity of it. Starts a little late."""
    first = 1e-3
    for k in range(steps):
        t = first + (1 - first) * k / steps
        u = first + (1 - first) * (k + 1) / steps
        data = v(x, torch.full((len(x), 1), t), c)
        a, b = math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)
        source = (x - b * data) / max(a, 1e-3)
        slope = math.pi / 2 * (a * data - b * source) if derivative else data - source
        x = x + (u - t) * slope
    return x


def curved(kind: str):
    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t, v = PATHS["trigonometric"].sample(z0, z1, t)
        return x_t, {"data": z1, "velocity": v, "source": z0, "negative": -v, "straight": z1 - z0}[kind]

    return target


def test_a_sampler_that_knows_what_the_network_predicts_is_clear() -> None:
    z0, z1 = ends()
    assert_clear(preflight.check(sampler=from_data, target=curved("data"), z0=z0, z1=z1))
    assert_clear(preflight.check(sampler=lambda *a: plain(*a, factor=-1), target=curved("negative"), z0=z0, z1=z1))


def test_missing_derivatives_are_named() -> None:
    z0, z1 = ends()
    broken = lambda *a: from_data(*a, derivative=False)  # noqa: E731
    diagnosis = preflight.check(sampler=broken, target=curved("data"), z0=z0, z1=z1)
    finding = only(diagnosis)
    assert (finding.code, finding.causes[0].code) == ("SMP505", "path-derivative-missing"), str(finding.message)
    assert {one.code for one in diagnosis.findings} == {"SMP505"}, "to predict the data is no mistake of the target"


def test_the_straight_target_on_a_curved_path_leads_elsewhere() -> None:
    z0, z1 = ends()
    diagnosis = preflight.check(sampler=plain, target=curved("straight"), z0=z0, z1=z1)
    assert {one.code: one.causes[0].code for one in diagnosis.findings}["VEL411"] == "path-derivative-missing"
    assert found(diagnosis), "the sampler, which takes it for the velocity, misses z1"


def linear_from_data(v, x, c, steps):
    for k in range(steps):
        t = k / steps
        x = x + (v(x, torch.full((len(x), 1), t), c) - x) / (1 - t) / steps
    return x


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (linear_from_data, "predicted the data z1"),
        (lambda v, x, c, n: plain(lambda x, t, c: (x - v(x, t, c)) / t.clamp(min=1e-3), x, c, n), "the source z0"),
    ],
)
def test_another_prediction_than_the_trained_one_is_named(sampler: Sampler, words: str) -> None:
    z0, z1 = ends()
    finding = only(preflight.check(sampler=sampler, z0=z0, z1=z1))
    assert (finding.code, finding.causes[0].code) == ("SMP506", "inference-formula")
    assert words in str(finding.message)


# What no mistake explains, and what cannot be judged


def test_an_unknown_mistake_is_told_with_its_numbers() -> None:
    z0, z1 = ends()

    def sampler(v, x, c, steps):
        return rectified_flow(lambda x, t, c: v(x, t, c) * (1 + x.sin()), x, c, steps)

    finding = only(preflight.check(sampler=sampler, z0=z0, z1=z1))
    assert finding.code == "SMP501"
    assert "no known mistake explains it" in str(finding.message)
    assert {e.metric for e in finding.evidence} >= {"preflight/sampler_error@8", "preflight/sampler_order"}


def skipped(diagnosis: Diagnosis, code: str) -> str:
    return {key: f"{why.reason} {why.enable or ''}" for key, why in diagnosis.skipped}[code]


def test_a_random_sampler_is_left_out_by_name() -> None:
    z0, z1 = ends()
    noisy = lambda v, x, c, n: plain(v, x, c, n) + 0.1 * torch.randn_like(x)  # noqa: E731
    own_noise = lambda v, x, c, n: plain(v, torch.randn_like(x), c, n)  # noqa: E731
    for sampler in (noisy, own_noise):
        assert "random numbers" in skipped(preflight.check(sampler=sampler, z0=z0, z1=z1), "SMP501")


def test_equal_ends_are_left_out() -> None:
    z0, _ = ends()
    assert "no way to go" in skipped(preflight.check(sampler=plain, z0=z0, z1=z0.clone()), "SMP501")


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3,), (2, 3, 4, 4)], ids=str)
def test_any_shape_is_judged(shape: tuple[int, ...]) -> None:
    z0, z1 = torch.zeros(shape), ends(0, *shape)[1]
    assert_clear_sampler(preflight.check(sampler=rectified_flow, z0=z0, z1=z1))
    finding = only(preflight.check(sampler=lambda v, x, c, n: rectified_flow(lambda *a: -v(*a), x, c, n), z0=z0, z1=z1))
    assert finding.causes[0].code == "inference-sign"


def assert_clear_sampler(diagnosis: Diagnosis) -> None:
    assert not found(diagnosis)
    assert set(diagnosis.clear) >= CODES


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scale_and_precision_do_not_matter(scale: float, dtype: torch.dtype) -> None:
    z0, z1 = ((scale * one).to(dtype) for one in ends())
    assert_clear_sampler(preflight.check(sampler=rectified_flow, z0=z0, z1=z1))
    broken = lambda *a: plain(*a, count=lambda n: n - 1)  # noqa: E731
    assert only(preflight.check(sampler=broken, z0=z0, z1=z1)).causes[0].code == "sampler-grid"


def test_the_condition_must_arrive() -> None:
    z0, z1 = ends()
    cond = torch.arange(6)
    for lost in (None, torch.zeros(6, dtype=torch.int64)):
        finding = only(preflight.check(sampler=lambda v, x, c, n, o=lost: plain(v, x, o, n), z0=z0, z1=z1, cond=cond))
        assert (finding.code, finding.causes[0].code) == ("SMP506", "inference-condition")
    assert_clear(preflight.check(sampler=plain, z0=z0, z1=z1, cond=cond))


# A sampler that fails


def boom(v, x, c, n):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (boom, "RuntimeError: mat1 and mat2"),
        (lambda v, x, c: x, "TypeError"),
        (lambda v, x, c, n: None, "NoneType"),
        (lambda v, x, c, n: plain(v, x, c, n)[:2], "shape (2, 5, 2)"),
        (lambda v, x, c, n: plain(v, x, c, n) * math.nan, "NaN"),
        (lambda v, x, c, n: x, "never calls"),
        (lambda v, x, c, n: torch.stack([plain(v, x, c, n)] * 2), "trajectory"),
        (lambda v, x, c, n: plain(lambda x, t, c: v(x[:2], t[:2], c), x, c, n), "multiple of 6 rows"),
        (lambda v, x, c, n: plain(lambda x, t, c: v(x, t.expand(6, 5, 1), c), x, c, n), "another t"),
    ],
)
def test_a_sampler_that_cannot_be_used_is_told_and_the_others_go_on(sampler: Sampler, words: str) -> None:
    z0, z1 = ends(0, 6, 5, 2)
    diagnosis = preflight.check(sampler=sampler, z0=z0, z1=z1)
    [finding] = diagnosis.findings
    assert (finding.code, finding.subject, finding.severity) == ("PRE001", "sampler", "error")
    assert words in str(finding.message)
    assert "sampler(velocity, z0, cond, steps)" in str(finding.message) or "NaN" in words or "trajectory" in words
    assert "VEL407" in diagnosis.clear
    assert "see PRE001" in skipped(diagnosis, "SMP501")
