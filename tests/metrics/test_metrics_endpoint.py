"""Endpoints of fields whose flow is known, and each judgement against a plain computation."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.flow.distances import energy_distance, sliced_wasserstein
from lossdoctor.flow.solvers import SOLVERS, integrate
from lossdoctor.metrics import endpoint
from lossdoctor.metrics.reading import resolved

STEPS = (8, 16, 32, 64)
BENT = torch.tensor([[0.0, 1.5, 0.3], [-1.5, 0.2, 0.0], [0.1, -0.4, 0.5]])


def drawn(samples: int, seed: int, width: int = 3) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))


def bent(x: Tensor, t: Tensor, c: Any) -> Tensor:
    """A nonlinear field that depends on time."""
    return torch.tanh(x @ BENT.to(x).T) + torch.sin(3 * t.reshape(-1, 1))


def measure(*args: Any, **settings: Any) -> dict[str, float]:
    return {key: float(value) for key, value in endpoint.measure(*args, **settings).items()}


def straight(z0: Tensor, z1: Tensor) -> Any:
    """The field that moves each z0 to its own z1, by position in the batch."""
    return lambda x, t, c: (z1 - z0)[: len(x)]


def test_straight_paths_arrive_exactly() -> None:
    z0, z1 = drawn(40, 0), drawn(40, 1)
    found = measure(z0, z1, straight(z0, z1))
    for k in STEPS:
        assert found[f"flow/endpt_rmse@{k}"] == pytest.approx(0, abs=1e-5)
        assert found[f"flow/endpt_rmse_heun@{k}"] == pytest.approx(0, abs=1e-5)
        assert found[f"flow/ode_error@{k}"] == pytest.approx(0, abs=1e-5)
        assert found[f"flow/endpt_sw@{k}"] == pytest.approx(found["flow/endpt_sw_floor"], abs=1e-4)
        assert found[f"flow/endpt_energy@{k}"] == pytest.approx(found["flow/endpt_energy_floor"], abs=1e-4)
    assert found["flow/endpt_std_ratio"] == pytest.approx(1, rel=1e-5)
    assert found["flow/straightness"] == pytest.approx(0, abs=1e-9)
    # All errors are rounding: they show no order, and saying 0 would call a perfect sampler broken.
    assert {"flow/ode_order", "flow/ode_order_heun"}.isdisjoint(found)


@pytest.mark.parametrize("t_source", [0.0, 1.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_order_of_the_solver_is_observed(solver: str, order: int, t_source: float) -> None:
    z0, z1 = drawn(80, 0).double(), drawn(80, 1).double()
    found = measure(z0, z1, bent, solver=solver, t_source=t_source)
    assert found["flow/ode_order"] == pytest.approx(order, abs=0.15)
    assert found["flow/ode_order_heun"] == pytest.approx(2, abs=0.15)
    errors = [found[f"flow/ode_error@{k}"] for k in STEPS]
    assert errors == sorted(errors, reverse=True)


def by_hand(
    velocity: Any, z0: Tensor, cond: Any, steps: int, *, length: float = 1.0, stale: bool = False, late: bool = False
) -> Tensor:
    """Euler, as written in a script, with the mistakes one makes there.

    length: of the time it goes through. stale: always asks about the state it began with. late: always at the end.
    """
    x = z0
    for k in range(steps):
        t = length if late else length * k / steps
        x = x + length / steps * velocity(z0 if stale else x, torch.full((len(x),), t).to(x), cond)
    return x


def test_a_sampler_of_ones_own_is_judged_as_the_solver_it_is() -> None:
    z0, z1, labels = drawn(50, 0).double(), drawn(50, 1).double(), torch.arange(50) % 5
    mine, theirs = measure(z0, z1, bent, labels, solver=by_hand), measure(z0, z1, bent, labels, solver="euler")
    beside = {key for key in mine if "euler" in key}
    replayed = {key for key in mine if "sampler" in key}
    assert mine.keys() - beside - replayed == theirs.keys()
    assert max(mine[key] for key in replayed) < 1e-6, "Euler's method replays itself"
    assert {key: mine[key] for key in beside} == {key: mine[key.replace("_euler", "")] for key in beside}
    for key, value in theirs.items():
        if key != "flow/straightness":
            assert mine[key] == pytest.approx(value, rel=1e-5), key
    heun = measure(z0, z1, bent, labels, solver="heun")
    assert mine["flow/straightness"] == heun["flow/straightness"], "the states of a foreign sampler are not seen"


@pytest.mark.parametrize("fault", [{}, {"stale": True}, {"late": True}, {"length": 0.9}], ids=str)
def test_a_stale_state_or_a_wrong_grid_does_not_solve_the_field(fault: dict[str, Any]) -> None:
    z0, z1 = drawn(50, 0).double(), drawn(50, 1).double()
    found = measure(z0, z1, bent, solver=functools.partial(by_hand, **fault))
    assert (found["flow/ode_order"] > 0.8) == (not fault)
    assert (found["flow/ode_error@64"] < 0.05) == (not fault)
    assert (found["flow/sampler_lag@8"] > 0.02) == bool(fault.keys() & {"stale", "late"})
    assert (found["flow/sampler_gap@8"] > 0.02) == (not fault.keys() <= {"stale"})


def test_a_sampler_may_write_into_its_state_and_count_time_its_own_way() -> None:
    z0, z1 = drawn(50, 0).double(), drawn(50, 1).double()
    kept = z0.clone()

    def backwards(velocity: Any, z: Tensor, cond: Any, steps: int) -> Tensor:
        for k in range(steps):
            z -= velocity(z, torch.full((len(z), 1), 1 - k / steps).to(z), cond) / steps
        return z

    def reversed_field(x: Tensor, t: Tensor, c: Any) -> Tensor:
        return -bent(x, 1 - t, c)

    found = measure(z0, z1, reversed_field, solver=backwards, t_source=1.0)
    assert torch.equal(z0, kept)
    assert found["flow/ode_order"] == pytest.approx(1, abs=0.15)


def test_a_sampler_that_returns_something_else_is_told() -> None:
    z0, z1 = drawn(8, 0), drawn(8, 1)
    for wrong in (lambda v, z, c, k: z[:4], lambda v, z, c, k: [z], lambda v, z, c, k: None):
        with pytest.raises(ShapeError, match=r"(?s)A sampler leads from z0 to z1_hat.*expected: \(8, 3\)"):
            endpoint.measure(z0, z1, bent, steps=(2,), solver=wrong)


def test_each_number_is_that_of_a_plain_computation() -> None:
    z0, z1 = drawn(50, 0), drawn(50, 1)
    found = measure(z0, z1, bent, steps=(4, 9))
    ends = {k: integrate(lambda x, t: bent(x, t, None), z0, k).double().numpy() for k in (4, 9)}
    reference = integrate(lambda x, t: bent(x, t, None), z0, 18, "rk4").double().numpy()
    target, start = z1.double().numpy(), z0.double().numpy()
    for k, end in ends.items():
        assert found[f"flow/endpt_rmse@{k}"] == pytest.approx(math.sqrt(((end - target) ** 2).mean()), rel=1e-5)
        error = np.linalg.norm(end - reference) / np.linalg.norm(reference)
        assert found[f"flow/ode_error@{k}"] == pytest.approx(error, rel=1e-4)
    assert found["flow/endpt_std_ratio"] == pytest.approx(ends[9].std() / target.std(), rel=1e-5)
    state, deviations, path = z0, [], torch.tensor(ends[9] - start)
    for k in range(9):
        v = bent(state, torch.full((50,), k / 9), None)
        deviations.append(float((v.double() - path).square().sum(1).mean()))
        state = state + v / 9
    assert found["flow/straightness"] == pytest.approx(
        np.mean(deviations) / float(path.square().sum(1).mean()), rel=1e-4
    )


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_time_may_run_backwards_with_any_solver(solver: str) -> None:
    z0, z1 = drawn(20, 0), drawn(20, 1)
    forward = measure(z0, z1, bent, solver=solver, steps=(4, 8))
    # The same curve, told in the other direction of time.
    backward = measure(z0, z1, lambda x, t, c: -bent(x, 1 - t, c), solver=solver, steps=(4, 8), t_source=1.0)
    assert forward.keys() == backward.keys()
    for key, value in forward.items():
        assert backward[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_the_pairing_means_something_only_when_the_source_determines_the_target() -> None:
    labels = torch.arange(60) % 3
    z0, noise = drawn(60, 0), drawn(60, 1)
    paired = measure(z0, -z0, straight(z0, -z0), labels)
    assert paired["flow/endpt_rmse@64"] < 0.01 < 0.5 < paired["flow/endpt_rmse_shuffled@64"]
    independent = measure(z0, noise, straight(z0, drawn(60, 2)), labels)
    assert independent["flow/endpt_rmse@64"] == pytest.approx(math.sqrt(2), rel=0.15)
    assert independent["flow/endpt_rmse_shuffled@64"] == pytest.approx(independent["flow/endpt_rmse@64"], rel=0.15)


def test_shuffling_stays_within_the_condition() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    z0 = torch.zeros(5, 2)
    z1 = torch.tensor([[0.0, 0], [1, 1], [10, 10], [13, 13], [99, 99]])
    found = measure(z0, z1, straight(z0, z1), labels, steps=(2,))
    assert found["flow/endpt_rmse_shuffled@2"] == pytest.approx(math.sqrt((1 + 1 + 9 + 9) / 4), rel=1e-5)
    texts = measure(z0, z1, straight(z0, z1), [f"a {int(c)}" for c in labels], steps=(2,))
    assert texts == found


@pytest.mark.parametrize("cond", [torch.arange(6), object(), torch.ones(3)], ids=["all different", "opaque", "shared"])
def test_without_two_of_a_kind_there_is_no_shuffled_twin(cond: Any) -> None:
    z0, z1 = drawn(6, 0), drawn(6, 1)
    found = measure(z0, z1, bent, cond, steps=(2, 4))
    assert not any("shuffled" in key for key in found)
    assert "flow/ode_order" in found


def test_the_floor_compares_like_with_like() -> None:
    z1, found = drawn(400, 1), {64: drawn(400, 5)}
    numbers = endpoint.distribution(found, z1, generator=torch.Generator().manual_seed(0))
    # Another sample of the same distribution is no further away than real data is from itself.
    assert float(numbers["flow/endpt_sw@64"]) == pytest.approx(float(numbers["flow/endpt_sw_floor"]), rel=0.5)
    assert float(numbers["flow/endpt_energy@64"]) < 2 * float(numbers["flow/endpt_energy_floor"])
    far = endpoint.distribution({64: found[64] + 3}, z1, generator=torch.Generator().manual_seed(0))
    assert float(far["flow/endpt_sw@64"]) == pytest.approx(3, rel=0.1)
    assert far["flow/endpt_sw_floor"] == numbers["flow/endpt_sw_floor"]


def test_distances_are_between_the_two_random_halves() -> None:
    z1, hat = drawn(21, 1).double(), drawn(21, 2).double()
    found = endpoint.distribution({8: hat}, z1, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    order = torch.randperm(21, generator=generator)
    mine, other = order[:10], order[10:20]
    directions = torch.randn(3, 128, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    assert torch.equal(found["flow/endpt_energy@8"], energy_distance(hat[other], z1[mine]))
    assert torch.equal(found["flow/endpt_energy_floor"], energy_distance(z1[other], z1[mine]))
    assert torch.equal(found["flow/endpt_sw@8"], sliced_wasserstein(hat[other], z1[mine], directions=directions))


@pytest.mark.parametrize(("t_ndim", "shape"), [(0, ()), (1, (-1,)), (2, (-1, 1)), (4, (-1, 1, 1, 1))])
def test_time_is_shaped_as_asked(t_ndim: int, shape: tuple[int, ...]) -> None:
    seen = set()

    def velocity(x: Tensor, t: Tensor, c: Any) -> Tensor:
        seen.add(tuple(-1 if n == len(x) else n for n in t.shape))
        return x

    measure(drawn(70, 0), drawn(70, 1), velocity, steps=(2,), t_ndim=t_ndim)
    assert seen == {shape}


def test_the_reference_is_solved_on_a_part_with_its_own_conditions() -> None:
    labels = torch.arange(200) % 5
    sizes = set()

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        sizes.add((len(x), torch.equal(c, labels[: len(x)])))
        return bent(x, t, c) + c[:, None]

    found = measure(drawn(200, 0), drawn(200, 1), velocity, labels)
    assert sizes == {(200, True), (endpoint.REFERENCE_SAMPLES, True)}
    assert found["flow/ode_order"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_few_samples_give_what_they_can(samples: int) -> None:
    found = measure(drawn(samples, 0), drawn(samples, 1), bent, steps=(2, 4))
    assert ("flow/endpt_sw_floor" in found) == (samples == 4)
    assert ("flow/endpt_rmse_shuffled@2" in found) == (samples > 1)
    assert "flow/endpt_rmse@2" in found


def test_one_number_of_steps_has_an_error_but_no_order() -> None:
    found = measure(drawn(8, 0), drawn(8, 1), bent, steps=(5,))
    assert "flow/ode_error@5" in found
    assert "flow/ode_order" not in found


def test_a_field_that_stands_still_or_explodes() -> None:
    z0, z1 = drawn(8, 0), drawn(8, 1)
    still = measure(z0, z1, lambda x, t, c: torch.zeros_like(x), steps=(2, 4))
    assert "flow/straightness" not in still
    broken = measure(z0, z1, lambda x, t, c: x * math.nan, steps=(2, 4))
    for key in ("flow/endpt_rmse@2", "flow/endpt_sw@4", "flow/ode_error@2", "flow/ode_order", "flow/straightness"):
        assert math.isnan(broken[key]), key
    assert math.isfinite(broken["flow/endpt_sw_floor"])
    constant = measure(z0, torch.ones(8, 3), bent, steps=(2,))
    assert "flow/endpt_std_ratio" not in constant


def test_the_model_runs_in_the_callers_precision_and_without_graph() -> None:
    layer = torch.nn.Linear(3, 3)
    dtypes = set()

    def velocity(x: Tensor, t: Tensor, c: Any) -> Tensor:
        out = layer(x)
        dtypes.add((out.dtype, out.requires_grad))
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = endpoint.measure(drawn(8, 0), drawn(8, 1), velocity, steps=(2, 4))
    assert dtypes == {(torch.bfloat16, False)}
    assert found["flow/endpt_rmse@2"].dtype == torch.float32


def test_global_randomness_is_not_touched_and_repetition_gives_the_same() -> None:
    z0, z1 = drawn(40, 0), drawn(40, 1)
    before = torch.get_rng_state()
    assert measure(z0, z1, bent) == measure(z0, z1, bent)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_latents_are_integrated_and_judged() -> None:
    z0, z1 = drawn(40, 0).bfloat16(), drawn(40, 1).bfloat16()
    found = measure(z0, z1, bent, steps=(2, 4))
    exact = measure(z0.float(), z1.float(), bent, steps=(2, 4))
    assert found["flow/endpt_rmse@4"] == pytest.approx(exact["flow/endpt_rmse@4"], rel=0.02)


def test_wrong_use_is_told() -> None:
    z0, z1 = drawn(4, 0), drawn(4, 1)
    with pytest.raises(ShapeError, match=r"z0 \(4, 3\), z1 \(4, 2\)"):
        endpoint.measure(z0, z1[:, :2], bent)
    for bad in ((), (0, 4), (-1,)):
        with pytest.raises(UsageError, match="number of steps"):
            endpoint.measure(z0, z1, bent, steps=bad)
    with pytest.raises(UsageError, match="euler"):
        endpoint.measure(z0, z1, bent, solver="ddim")
    with pytest.raises(UsageError, match="t_source"):
        endpoint.measure(z0, z1, bent, t_source=0.5)
    assert endpoint.measure(z0[:0], z1[:0], bent) == {}


def test_nothing_is_resolved_before_it_is_asked() -> None:
    deferred = endpoint.measure.deferred(drawn(8, 0), drawn(8, 1), bent, steps=(2, 4))
    assert resolved(deferred) == endpoint.measure(drawn(8, 0), drawn(8, 1), bent, steps=(2, 4))
