"""Update ratios, clipping and slow copies, against whole parameter vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.metrics import steps
from lossdoctor.probe.snapshot import HeadUpdate, Shadow, Updates

SCALES = [0.0, 1e-10, 1e-3, 1.0, 1e8]


def norms(vectors: list[np.ndarray]) -> torch.Tensor:
    return torch.tensor([np.linalg.norm(v) for v in vectors], dtype=torch.float32)


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    before, delta, grad = ([rng.normal(size=size) * draw(st.sampled_from(SCALES)) for size in sizes] for _ in range(3))
    return before, delta, grad


@given(heads())
def test_a_head_is_measured_as_if_from_its_parameters(
    case: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]],
) -> None:
    before, delta, grad = case
    update = HeadUpdate(norms(before), norms(delta), norms(grad), torch.tensor([len(v) for v in before]), 1e-3, None)
    found = steps.head("h", update)
    ratios = [np.linalg.norm(d) / (np.linalg.norm(b) + 1e-12) for b, d in zip(before, delta, strict=True) if b.any()]
    rms = {name: math.sqrt((np.concatenate(v) ** 2).mean()) for name, v in {"b": before, "d": delta}.items()}
    expected = {
        "step/h_rms_update": rms["d"] / max(rms["b"], 1e-3),
        "step/h_grad_norm": np.linalg.norm(np.concatenate(grad)),
        "lr/h": 1e-3,
    }
    if ratios:
        expected["step/h_update_ratio"] = np.mean(ratios)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(value, rel=1e-5, abs=1e-30), key


def test_a_zero_initialised_final_layer_does_not_explode_the_ratio() -> None:
    update = HeadUpdate(
        torch.tensor([2.0, 0.0]), torch.tensor([0.2, 5.0]), torch.ones(2), torch.tensor([4, 4]), 0.1, 0.0
    )
    found = steps.head("h", update)
    assert float(found["step/h_update_ratio"]) == pytest.approx(0.1)
    assert float(found["wd/h"]) == 0.0
    all_zero = HeadUpdate(torch.zeros(2), torch.ones(2), torch.ones(2), torch.tensor([4, 4]))
    assert "step/h_update_ratio" not in steps.head("h", all_zero)


def test_nan_parameters_are_not_mistaken_for_zero_ones() -> None:
    update = HeadUpdate(torch.tensor([1.0, math.nan]), torch.ones(2), torch.ones(2), torch.tensor([1, 1]))
    found = steps.head("h", update)
    assert math.isnan(float(found["step/h_update_ratio"]))
    assert math.isnan(float(found["step/h_rms_update"]))


def test_a_head_without_parameters_has_no_metrics() -> None:
    none = torch.zeros(0)
    assert steps.head("h", HeadUpdate(none, none, none, none, 0.1, 0.1)) == {}


@pytest.mark.parametrize(
    ("pre", "post", "expected"),
    [
        (4.0, 1.0, 0.25),
        (4.0, 4.0, None),
        (4.0, 4.0 * (1 + 3e-7), None),
        (4.0, 4.0 * (1 - 1e-5), 1 - 1e-5),
        (1e-20, 1e-21, 0.1),
        (0.0, 0.0, None),
        (2.0, 6.0, 3.0),
        (math.nan, 1.0, math.nan),
        (math.inf, 1.0, 0.0),
    ],
)
def test_clip_ratio_exists_only_when_the_gradient_changed(pre: float, post: float, expected: float | None) -> None:
    found = steps.clipping(torch.tensor(pre), torch.tensor(post))
    if expected is None:
        assert found == {}
    else:
        assert float(found["grad/clip_ratio"]) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def shadow(live: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> Shadow:
    gap, distance = (live - old).square().sum(), (live - new).square().sum()
    return Shadow((new - old).square().sum(), old.square().sum(), gap, distance, live.square().sum())


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.996, 0.9999, 0.9999999])
def test_ema_momentum_is_recovered_from_one_update(momentum: float) -> None:
    live, old = torch.randn(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    new = momentum * old + (1 - momentum) * live
    found = steps.shadows(ema=shadow(live, old, new))
    assert 1 - float(found["ema/momentum"]) == pytest.approx(1 - momentum, rel=1e-6)
    assert steps.shadows(teacher=shadow(live, old, new))["teacher/momentum"] == found["ema/momentum"]
    expected = float(((live - new).square().sum() / live.square().sum()).sqrt())
    assert float(found["ema/distance"]) == pytest.approx(expected)
    assert found.keys() == {"ema/momentum", "ema/distance"}


def test_a_frozen_teacher_has_not_moved_and_a_stuck_ema_has_momentum_one() -> None:
    live, old = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    found = steps.shadows(ema=shadow(live, old, old), teacher=shadow(live, old, old))
    assert float(found["teacher/moved"]) == 0.0
    assert float(found["ema/momentum"]) == 1.0
    assert float(found["teacher/momentum"]) == 1.0


def test_teacher_movement_is_relative_to_the_teacher_before() -> None:
    old = torch.ones(4)
    found = steps.shadows(teacher=Shadow(moved=torch.tensor(0.04), old=old.square().sum()))
    assert {key: round(float(value), 6) for key, value in found.items()} == {"teacher/moved": 0.1}


def test_what_coincides_has_distance_zero_and_no_momentum() -> None:
    same = torch.ones(3)
    found = steps.shadows(ema=shadow(same, same, same), teacher=None)
    assert {key: float(value) for key, value in found.items()} == {"ema/distance": 0.0}
    assert steps.shadows(ema=shadow(torch.zeros(3), torch.zeros(3), torch.zeros(3))) == {}
    assert steps.shadows() == {}


def test_measure_is_the_sum_of_its_parts() -> None:
    update = HeadUpdate(torch.ones(2), torch.ones(2), torch.ones(2), torch.tensor([1, 1]), 0.1, 0.2)
    descent = torch.tensor([0.5, -0.25, 7.0], dtype=torch.float64)
    updates = Updates(
        {"a": update, "b": update},
        ("flow", "kl", "aux"),
        descent,
        (True, True, False),
        torch.tensor(2.0),
        torch.tensor(1.0),
    )
    found = steps.measure(updates, teacher=Shadow(torch.tensor(1.0), torch.tensor(1.0)))
    parts = ("update_ratio", "rms_update", "grad_norm")
    per_head = {key for h in "ab" for key in (*(f"step/{h}_{part}" for part in parts), f"lr/{h}", f"wd/{h}")}
    assert found.keys() == per_head | {"descent/flow", "descent/kl", "grad/clip_ratio", "teacher/moved"}
    assert float(found["descent/kl"]) == -0.25
    assert steps.measure(Updates({})) == {}
