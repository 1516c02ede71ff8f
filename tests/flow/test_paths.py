"""Paths: ends, exact velocities, shapes of time, both directions, and recognising a path from a batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.flow import (
    PATHS,
    Linear,
    Path,
    Polynomial,
    Scheduled,
    Trigonometric,
    check_times,
    expand_time,
    fit_path,
    source_time,
)


def _sigmoid(t: Tensor) -> Tensor:
    """A smooth step with exact ends that no other path has."""
    return t * t * (3 - 2 * t)


CURVED = Scheduled(lambda t: 1 - _sigmoid(t), _sigmoid)
EVERY = [*PATHS.values(), Polynomial(1.0), Polynomial(3.5), CURVED]
every_path = pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.name}{getattr(path, 'power', '')}")
both_directions = pytest.mark.parametrize("t_source", [0.0, 1.0])


def _batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return z0, z1, torch.rand(shape[0], generator=generator, dtype=torch.float64)


def test_catalogue_is_sorted_and_named() -> None:
    assert list(PATHS) == sorted(PATHS) == ["linear", "polynomial", "trigonometric"]
    assert all(name == path.name for name, path in PATHS.items())


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact(path: Path, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert path.alpha(ends).tolist() == [1.0, 0.0]
    assert path.beta(ends).tolist() == [0.0, 1.0]


@every_path
@both_directions
def test_sample_meets_source_and_data(path: Path, t_source: float) -> None:
    z0, z1, _ = _batch(4, 3)
    assert torch.equal(path.sample(z0, z1, t_source, t_source)[0], z0)
    assert torch.equal(path.sample(z0, z1, 1 - t_source, t_source)[0], z1)


@every_path
def test_derivatives_agree_with_autograd(path: Path) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    for value, slope in ((path.alpha(t), path.d_alpha(t)), (path.beta(t), path.d_beta(t))):
        (expected,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)


@every_path
@both_directions
def test_velocity_is_the_derivative_of_the_point(path: Path, t_source: float) -> None:
    z0, z1, t = _batch(64, 2, 3)
    t, h = 0.01 + 0.98 * t, 1e-6
    _, velocity = path.sample(z0, z1, t, t_source)
    ahead, behind = (path.sample(z0, z1, t + sign * h, t_source)[0] for sign in (1, -1))
    torch.testing.assert_close(velocity, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-7)


def test_formulas_written_out() -> None:
    z0, z1, t = _batch(16, 3)
    s, quarter = t[:, None], math.pi / 2
    expected = {
        "linear": ((1 - s) * z0 + s * z1, z1 - z0),
        "trigonometric": (
            (quarter * s).cos() * z0 + (quarter * s).sin() * z1,
            quarter * ((quarter * s).cos() * z1 - (quarter * s).sin() * z0),
        ),
        "polynomial": ((1 - s**2) * z0 + s**2 * z1, 2 * s * (z1 - z0)),
    }
    for name, path in PATHS.items():
        torch.testing.assert_close(path.sample(z0, z1, t), expected[name], rtol=1e-12, atol=1e-12)
        x_t, v_target = path.sample(z0, z1, 1 - t, t_source=1.0)
        torch.testing.assert_close((x_t, -v_target), expected[name], rtol=1e-12, atol=1e-12)


def test_trigonometric_keeps_the_variance() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    at = Trigonometric().coefficients(t)
    torch.testing.assert_close(at.alpha**2 + at.beta**2, torch.ones_like(t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("like", [(6,), (6, 5), (6, 6), (6, 3, 2, 2)])
def test_every_shape_of_time_gives_the_same_point(shape: tuple[int, ...], like: tuple[int, ...]) -> None:
    z0, z1, t = _batch(*like)
    expected = torch.stack([(1 - time) * a + time * b for a, b, time in zip(z0, z1, t, strict=True)])
    torch.testing.assert_close(Linear().sample(z0, z1, t.reshape(shape))[0], expected)


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3]])])
def test_one_time_serves_the_whole_batch(t: Tensor | float) -> None:
    z0, z1, _ = _batch(5, 2, 3, dtype=torch.float32)
    torch.testing.assert_close(Linear().sample(z0, z1, t)[0], 0.7 * z0 + 0.3 * z1)
    assert expand_time(t, z0).shape == (5, 1, 1)


def test_a_python_time_is_not_rounded() -> None:
    z0, z1, _ = _batch(2, 3)
    assert torch.equal(Linear().sample(z0, z1, 0.3)[0], (1 - 0.3) * z0 + 0.3 * z1)


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple),
    like=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
)
def test_time_is_one_per_sample_or_refused(shape: tuple[int, ...], like: tuple[int, ...]) -> None:
    t, samples = torch.rand(shape), torch.zeros(like)
    single = t.numel() == 1
    per_sample = len(shape) > 0 and shape[0] == like[0] and all(size == 1 for size in shape[1:])
    if single or per_sample:
        expanded = expand_time(t, samples)
        assert expanded.shape == (like[0],) + (1,) * (len(like) - 1)
        assert torch.equal(expanded.flatten(), t.flatten().expand(like[0]))
    else:
        with pytest.raises(ShapeError, match="one time per sample"):
            expand_time(t, samples)


def test_refuses_what_would_broadcast() -> None:
    z0, z1, t = _batch(4, 4)
    with pytest.raises(ShapeError, match=r"\(4, 1\)"):
        Linear().sample(z0, z1[:, :1], t)
    with pytest.raises(ShapeError, match="one time per sample"):
        Linear().sample(z0, z1, t[None])
    with pytest.raises(ShapeError, match="one time per sample"):
        Linear().sample(z0[0, 0], z1[0, 0], t[0])
    with pytest.raises(UsageError, match=r"0\.0 or 1\.0"):
        Linear().sample(z0, z1, t, t_source=0.5)


def test_an_empty_batch_stays_empty() -> None:
    z = torch.zeros(0, 3)
    x_t, v_target = Linear().sample(z, z, torch.zeros(0))
    assert x_t.shape == v_target.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_path
def test_half_precision_loses_only_the_last_rounding(path: Path, dtype: torch.dtype) -> None:
    z0, z1, t = _batch(32, 4, dtype=dtype)
    t = t.float()
    for got, wide in zip(path.sample(z0, z1, t), path.sample(z0.float(), z1.float(), t), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, wide.to(dtype))


def test_dtype_follows_the_samples_not_the_time() -> None:
    z0, z1, t = _batch(3, 2, dtype=torch.float32)
    assert Linear().sample(z0, z1, t.double())[0].dtype == torch.float32
    assert Linear().sample(z0.double(), z1, t.half())[0].dtype == torch.float64
    whole = torch.tensor([[0], [255]])
    assert Linear().sample(whole, whole, torch.tensor([0, 1]))[0].dtype == torch.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_samples_stay_bad_and_stay_apart(bad: float) -> None:
    z0, z1, t = _batch(3, 2)
    z0[1, 0] = bad
    for tensor in Linear().sample(z0, z1, t):
        assert tensor.isfinite().tolist() == [[True, True], [False, True], [True, True]]


def test_gradients_reach_both_ends_and_the_time() -> None:
    z0, z1, t = (tensor.requires_grad_() for tensor in _batch(4, 2))
    x_t, v_target = Trigonometric().sample(z0, z1, t)
    for gradient in torch.autograd.grad((x_t + v_target).sum(), (z0, z1, t)):
        assert gradient.abs().min() > 0


def test_scheduled_derivatives_work_in_every_grad_mode() -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    expected = 6 * t * (1 - t)
    assert torch.allclose(CURVED.d_beta(t), expected)
    with torch.no_grad():
        assert torch.allclose(CURVED.d_beta(t), expected)
    with torch.inference_mode():
        assert torch.allclose(CURVED.d_beta(t.clone()), expected)


def test_scheduled_uses_the_derivatives_it_is_given() -> None:
    path = Scheduled(lambda t: 1 - t, lambda t: t, d_alpha=lambda t: -5 * torch.ones_like(t), d_beta=torch.ones_like)
    assert path.d_alpha(torch.tensor([0.5])).item() == -5
    assert path.d_beta(torch.tensor([0.5])).item() == 1


def test_scheduled_refuses_a_path_that_goes_elsewhere() -> None:
    with pytest.raises(UsageError, match=r"alpha\(0\) = 0, alpha\(1\) = 1"):
        Scheduled(lambda t: t, lambda t: 1 - t)
    with pytest.raises(UsageError, match="swap or flip"):
        Scheduled(lambda t: torch.full_like(t, math.nan), lambda t: t)
    with pytest.raises(ShapeError, match="each time by itself"):
        Scheduled(lambda t: 1 - t.mean(), lambda t: t)
    Scheduled(lambda t: 1 - (1 - 1e-2) * t, lambda t: t)  # a noise floor at the data end is a path


@pytest.mark.parametrize("power", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_polynomial_refuses_an_infinite_speed(power: float) -> None:
    with pytest.raises(UsageError, match="power >= 1"):
        Polynomial(power)


def test_source_time_is_an_involution() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(source_time(t, 0.0), t)
    assert torch.equal(source_time(source_time(t, 1.0), 1.0), t)


def test_check_times() -> None:
    for fine in (torch.tensor([0.0, 1.0, 1.00005]), torch.tensor(0.5), torch.zeros(0), torch.tensor([0, 1])):
        check_times(fine)
    for wrong in ([0.5, 1.2], [-0.1], [500.0], [math.nan, 0.5], [math.inf]):
        with pytest.raises(UsageError, match="0 <= t <= 1"):
            check_times(torch.tensor(wrong))
    check_times(torch.tensor([1.2]), tolerance=0.3)


@pytest.mark.parametrize("name", list(PATHS))
@both_directions
@settings(deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from([(1, 8), (7, 3), (16, 2, 2, 2)]))
def test_fit_finds_the_path_and_clears_its_target(
    name: str, t_source: float, seed: int, shape: tuple[int, ...]
) -> None:
    z0, z1, t = _batch(*shape, seed=seed, dtype=torch.float32)
    t = 0.1 + 0.8 * t
    x_t, v_target = PATHS[name].sample(z0, z1, t, t_source)
    fit = fit_path(x_t, z0, z1, t, t_source, v_target=v_target)
    assert fit.names == tuple(PATHS)
    assert fit.residual.shape == fit.mismatch.shape == (len(PATHS),)
    assert fit.names[int(fit.residual.argmin())] == name
    value, fits = fit.target_mismatch(1e-4)
    assert bool(fits)
    assert value.item() < 1e-4


def test_fit_residual_and_mismatch_are_relative_errors() -> None:
    z0, z1, t = _batch(8, 3)
    x_t, v_target = torch.randn(2, 8, 3, dtype=torch.float64)
    fit = fit_path(x_t, z0, z1, t, v_target=v_target)
    for index, path in enumerate(PATHS.values()):
        x_path, v_path = path.sample(z0, z1, t)
        assert fit.residual[index].item() == pytest.approx(float((x_t - x_path).norm() / x_t.norm()))
        assert fit.mismatch[index].item() == pytest.approx(float((v_target - v_path).norm() / v_target.norm()))


def test_fit_sees_wrong_targets() -> None:
    z0, z1, t = _batch(32, 4)
    x_t, v_target = Trigonometric().sample(z0, z1, t)
    wrong = {"sign": (-v_target, 2.0), "half": (0.5 * v_target, 1.0), "double": (2 * v_target, 0.5)}
    for target, expected in wrong.values():
        value, fits = fit_path(x_t, z0, z1, t, v_target=target).target_mismatch(1e-4)
        assert bool(fits)
        assert value.item() == pytest.approx(expected)
    straight, _ = fit_path(x_t, z0, z1, t, v_target=z1 - z0).target_mismatch(1e-4)
    assert straight.item() > 0.1


def test_fit_knows_when_no_path_fits() -> None:
    z0, z1, t = _batch(32, 4)
    x_t, v_target = CURVED.sample(z0, z1, t)
    for batch in (
        fit_path(x_t, z0, z1, t, v_target=v_target),
        fit_path(torch.zeros_like(x_t), z0, z1, t, v_target=v_target),
        fit_path(torch.full_like(x_t, math.nan), z0, z1, t, v_target=v_target),
        fit_path(Linear().sample(z0, z1, t)[0], z0, z1, t, 1.0, v_target=v_target),
    ):
        assert not batch.target_mismatch(1e-3)[1]


@pytest.mark.parametrize("name", list(PATHS))
def test_fit_does_not_accuse_where_all_paths_meet(name: str) -> None:
    z0, z1, _ = _batch(8, 3)
    x_t, v_target = PATHS[name].sample(z0, z1, 1.0)
    value, fits = fit_path(x_t, z0, z1, 1.0, v_target=v_target).target_mismatch(1e-4)
    assert bool(fits)
    assert value.item() < 1e-9


def test_fit_keeps_a_bad_target_bad() -> None:
    z0, z1, t = _batch(8, 3)
    x_t, v_target = Linear().sample(z0, z1, t)
    v_target[0, 0] = math.nan
    value, fits = fit_path(x_t, z0, z1, t, v_target=v_target).target_mismatch(1e-4)
    assert bool(fits)
    assert value.isnan()


def test_fit_refuses_other_shapes() -> None:
    z0, z1, t = _batch(4, 3)
    with pytest.raises(ShapeError, match="v_target"):
        fit_path(z0, z0, z1, t, v_target=z1[:, :1])
    with pytest.raises(ShapeError, match="z1"):
        fit_path(z0, z0, z1[:2], t, v_target=z1)


@every_path
def test_nothing_is_read_from_the_device(path: Path) -> None:
    z = torch.empty(4, 3, device="meta")  # a meta tensor has no data: reading any raises
    t = torch.empty(4, device="meta")
    x_t, v_target = path.sample(z, z, t, 1.0)
    fit = fit_path(x_t, z, z, t, v_target=v_target)
    assert all(tensor.is_meta for tensor in (x_t, v_target, fit.residual, *fit.target_mismatch(0.1)))
