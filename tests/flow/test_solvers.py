"""Solvers: order against theory, the exact grid, both directions, and the same steps as torchdiffeq."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torchdiffeq
from torch import Tensor

from lossdoctor.errors import MissingExtraError, ShapeError, UsageError
from lossdoctor.flow import SOLVERS, Field, dopri5, integrate, observed_order, trajectory

START = torch.tensor([[0.5, 0.2], [-0.3, 0.4], [0.1, -0.7]], dtype=torch.float64)
every_solver = pytest.mark.parametrize("name", list(SOLVERS))
both_directions = pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])


def _vortex(x: Tensor, t: Tensor) -> Tensor:
    """Turns each point about the origin at speed r^2 (1 + 3 t): nonlinear, coupled and non-autonomous."""
    speed = x.square().sum(1, keepdim=True) * (1 + 3 * t[:, None])
    return speed * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def _vortex_solution(x: Tensor, t_start: float, t_end: float) -> Tensor:
    angle = x.square().sum(1) * (t_end + 1.5 * t_end**2 - t_start - 1.5 * t_start**2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)


def _saturation(x: Tensor, t: Tensor) -> Tensor:
    """Each coordinate runs into 1 ever faster: artanh x grows by t + t^3 / 3."""
    return (1 - x.square()) * (1 + t.square())[:, None]


def _saturation_solution(x: Tensor, t_start: float, t_end: float) -> Tensor:
    return torch.tanh(torch.atanh(x) + t_end + t_end**3 / 3 - t_start - t_start**3 / 3)


PROBLEMS = {"vortex": (_vortex, _vortex_solution), "saturation": (_saturation, _saturation_solution)}


def _order(field: Field, end: Tensor, name: str, t_start: float, t_end: float) -> float:
    steps = (32, 64, 128, 256)
    solutions = [integrate(field, START, count, name, t_start=t_start, t_end=t_end) for count in steps]
    return float(observed_order(torch.stack([(solution - end).norm() for solution in solutions]), steps))


def test_catalogue_is_sorted_and_named() -> None:
    assert list(SOLVERS) == sorted(SOLVERS)
    assert all(name == solver.name for name, solver in SOLVERS.items())


@every_solver
@both_directions
@pytest.mark.parametrize("problem", PROBLEMS)
def test_observed_order_is_the_nominal_one(name: str, problem: str, t_start: float, t_end: float) -> None:
    field, solution = PROBLEMS[problem]
    order = _order(field, solution(START, t_start, t_end), name, t_start, t_end)
    assert order == pytest.approx(SOLVERS[name].order, abs=0.1)


def test_euler_mid_is_second_order_only_for_velocities_without_state() -> None:
    def wind(x: Tensor, t: Tensor) -> Tensor:
        return torch.exp(-t)[:, None] * torch.ones_like(x)

    end = START + 1 - math.exp(-1)
    assert _order(wind, end, "euler", 0.0, 1.0) == pytest.approx(1, abs=0.1)
    assert _order(wind, end, "euler_mid", 0.0, 1.0) == pytest.approx(2, abs=0.1)


@every_solver
def test_number_of_evaluations(name: str) -> None:
    calls: list[Tensor] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return _vortex(x, t)

    integrate(counted, START, 7, name)
    assert len(calls) == 7 * SOLVERS[name].evaluations
    assert all(t.shape == (3,) and t.dtype == torch.float64 for t in calls)
    times = torch.cat(calls)
    assert times.min() >= 0.0
    assert times.max() <= 1.0


def test_where_each_one_step_solver_looks() -> None:
    seen: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    expected = {
        "euler": [0.0, 0.5],
        "euler_mid": [0.25, 0.75],
        "heun": [0.0, 0.5, 0.5, 1.0],
        "midpoint": [0.0, 0.25, 0.5, 0.75],
        "rk4": [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0],
    }
    for name, times in expected.items():
        seen.clear()
        integrate(watched, START, 2, name)
        assert seen == times, name


@both_directions
@pytest.mark.parametrize(("name", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_same_steps_as_torchdiffeq(name: str, theirs: str, t_start: float, t_end: float) -> None:
    grid = torch.linspace(t_start, t_end, 12, dtype=torch.float64)

    def swapped(t: Tensor, x: Tensor) -> Tensor:
        return _vortex(x, t.expand(len(x)))

    expected = torchdiffeq.odeint(swapped, START, grid, method=theirs)
    path = list(trajectory(_vortex, START, 11, name, t_start=t_start, t_end=t_end))
    torch.testing.assert_close(torch.stack([state for _, state in path]), expected, rtol=1e-12, atol=1e-12)


def test_rk4_against_its_tableau_written_out() -> None:
    """torchdiffeq's "rk4" is the 3/8 rule, another method of order 4: compare with the classical one step by step."""
    x, h = START, 1 / 5
    for k in range(5):
        t = torch.full((3,), k * h, dtype=torch.float64)
        a = _vortex(x, t)
        b = _vortex(x + h * a / 2, t + h / 2)
        c = _vortex(x + h * b / 2, t + h / 2)
        d = _vortex(x + h * c, t + h)
        x = x + h * (a / 6 + b / 3 + c / 3 + d / 6)
    torch.testing.assert_close(integrate(_vortex, START, 5, "rk4"), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10, 49, 1000])
@both_directions
def test_grid_does_not_drift(steps: int, t_start: float, t_end: float) -> None:
    times = [t for t, _ in trajectory(lambda x, _: x * 0, START, steps, t_start=t_start, t_end=t_end)]
    assert times == [t_start + k * (t_end - t_start) / steps for k in range(steps)] + [t_end]
    assert len(times) == steps + 1


@every_solver
def test_trajectory_runs_from_the_source_to_what_integrate_returns(name: str) -> None:
    states = [state for _, state in trajectory(_vortex, START, 6, name)]
    assert torch.equal(states[0], START)
    assert torch.equal(states[-1], integrate(_vortex, START, 6, name))
    assert torch.equal(states[2], integrate(_vortex, START, 2, name, t_end=2 / 6))


@every_solver
def test_backward_undoes_forward(name: str) -> None:
    there = integrate(_vortex, START, 500, name)
    back = integrate(_vortex, there, 500, name, t_start=1.0, t_end=0.0)
    torch.testing.assert_close(back, START, rtol=0, atol=2e-2 if SOLVERS[name].order == 1 else 1e-5)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_do_not_stall(name: str, dtype: torch.dtype) -> None:
    """1,000 steps of 0.001 starting from 1: in half precision 1 + 0.001 is 1, or far from it."""
    start = torch.ones(4, 2, dtype=dtype)
    seen: set[torch.dtype] = set()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        seen.update((x.dtype, t.dtype))
        return torch.ones_like(x)

    end = integrate(drift, start, 1000, name)
    assert end.dtype == dtype
    assert torch.equal(end, torch.full_like(start, 2.0))
    assert seen == {dtype, torch.float32}


@every_solver
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), (2, 3, 4, 4), (0, 2)])
def test_any_shape(name: str, shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, dtype=torch.float64)
    assert integrate(lambda x, _: -x, start, 4, name).shape == shape


@every_solver
def test_a_bad_sample_stays_apart(name: str) -> None:
    start = START.clone()
    start[1, 0] = math.nan
    end = integrate(_vortex, start, 4, name)
    assert end.isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(end[[0, 2]], integrate(_vortex, START, 4, name)[[0, 2]])


@every_solver
def test_nothing_is_read_from_the_device(name: str) -> None:
    start = START.to("meta")  # a meta tensor has no data: reading any raises
    error = (integrate(_vortex, start, 3, name) - start).norm()
    assert observed_order(torch.stack([error, error]), (3, 6)).is_meta


def test_gradients_flow_through_an_integration() -> None:
    start = START.clone().requires_grad_()
    integrate(lambda x, _: 2 * x, start, 3).sum().backward()
    assert start.grad is not None
    torch.testing.assert_close(start.grad, torch.full_like(START, (1 + 2 / 3) ** 3))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"euler \| euler_mid \| heun \| midpoint \| rk4"):
        integrate(_vortex, START, 4, "rk45")
    for steps in (0, -1):
        with pytest.raises(UsageError, match="steps >= 1"):
            trajectory(_vortex, START, steps)  # at once, not at the first step
    for flat in (lambda x, _: x[:, 0], lambda x, _: x[:, :1]):
        with pytest.raises(ShapeError, match="shape of the state"):
            integrate(flat, START, 4)
        with pytest.raises(ShapeError, match="shape of the state"):
            dopri5(flat, START)


@both_directions
@pytest.mark.parametrize("problem", PROBLEMS)
def test_dopri5_meets_its_tolerance(problem: str, t_start: float, t_end: float) -> None:
    field, solution = PROBLEMS[problem]
    asked: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.extend(t.tolist())
        return field(x, t)

    expected = solution(START, t_start, t_end)
    end = dopri5(watched, START, rtol=1e-9, atol=1e-9, t_start=t_start, t_end=t_end)
    torch.testing.assert_close(end, expected, rtol=0, atol=5e-9)
    assert min(t_start, t_end) <= min(asked)
    assert max(asked) <= max(t_start, t_end)
    coarse = dopri5(field, START, rtol=1e-2, atol=1e-2, t_start=t_start, t_end=t_end)
    assert (coarse - expected).norm() > (end - expected).norm()


def test_dopri5_never_asks_beyond_the_end() -> None:
    """A large state that hardly moves: the probe for the first step size would look at t = 10."""
    asked: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.extend(t.tolist())
        return torch.exp(-t)[:, None] * torch.ones_like(x)

    end = dopri5(watched, START + 1000)
    assert max(asked) == 1.0
    torch.testing.assert_close(end, START + 1000 + 1 - math.exp(-1))


def test_dopri5_agrees_with_a_fine_grid_in_float32() -> None:
    start = START.float()
    end = dopri5(_vortex, start, rtol=1e-6, atol=1e-6)
    assert end.dtype == torch.float32
    torch.testing.assert_close(end, integrate(_vortex, start, 500, "rk4"), rtol=1e-4, atol=1e-5)


def test_dopri5_keeps_half_precision_at_the_border() -> None:
    end = dopri5(lambda x, _: torch.ones_like(x), torch.ones(2, 2, dtype=torch.bfloat16))
    assert torch.equal(end, torch.full((2, 2), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_dopri5_refuses_a_broken_field(bad: float) -> None:
    with pytest.raises(UsageError, match="integrated adaptively"):
        dopri5(lambda x, _: x * bad, START)


def test_dopri5_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[ode\]"):
        dopri5(_vortex, START)


@pytest.mark.parametrize("order", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
def test_observed_order_reads_a_power_law(order: float, scale: float) -> None:
    steps = [8, 16, 32, 64]
    errors = [scale * count**-order for count in steps]
    assert observed_order(errors, steps).item() == pytest.approx(order, abs=1e-9)
    assert observed_order(torch.tensor(errors), steps).item() == pytest.approx(order, abs=1e-4)


def test_observed_order_is_the_least_squares_slope() -> None:
    steps, errors = [4, 7, 20, 33, 90], torch.rand(5, dtype=torch.float64) + 0.1
    design = torch.stack([torch.tensor(steps, dtype=torch.float64).log().neg(), torch.ones(5, dtype=torch.float64)], 1)
    slope = torch.linalg.lstsq(design, errors.log()[:, None]).solution[0]
    torch.testing.assert_close(observed_order(errors, steps), slope[0])


def test_observed_order_where_there_is_none() -> None:
    assert not observed_order([1.0, 0.0, 0.1], [1, 2, 4]).isfinite()
    assert observed_order([1.0, math.nan], [1, 2]).isnan()
    for steps in ([], [8], [8, 8], [0, 8]):
        with pytest.raises(UsageError, match="two different steps"):
            observed_order([1.0] * len(steps), steps)
    with pytest.raises(ShapeError, match="belong together"):
        observed_order([1.0, 0.5], [8, 16, 32])
