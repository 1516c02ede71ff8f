"""The velocity family against plain loops, theory and its own promises about shapes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError
from lossdoctor.flow.paths import PATHS
from lossdoctor.metrics import velocity
from lossdoctor.probe.snapshot import FlowBatch

SHAPES = [(1,), (6,), (1, 1), (1, 5), (12, 3), (8, 2, 3, 2)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def drawn(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def twin(pred: Tensor, target: Tensor, times: Tensor, t_source: float) -> dict[str, float]:
    p, v = (x.double().numpy().reshape(len(x), -1) for x in (pred, target))
    t = (times if t_source == 0.0 else 1 - times).float().numpy()
    out: dict[str, float] = {}

    def summary(rows: list[int], suffix: str) -> None:
        power = sum(float((v[i] ** 2).sum()) for i in rows)
        if power:
            out["flow/nmse" + suffix] = sum(float(((p[i] - v[i]) ** 2).sum()) for i in rows) / power
        cosines = [
            float(p[i] @ v[i]) / (np.linalg.norm(p[i]) * np.linalg.norm(v[i]))
            for i in rows
            if p[i].any() and v[i].any()
        ]
        if cosines:
            out["flow/cos" + suffix] = float(np.mean(cosines))

    summary(list(range(len(p))), "")
    speeds = [np.linalg.norm(p[i]) / np.linalg.norm(v[i]) for i in range(len(p)) if v[i].any()]
    if speeds:
        out["flow/speed_ratio"] = float(np.mean(speeds))
        out["flow/nmse_zero"] = 1.0
        if len(p) > 1:
            out["flow/nmse_mean"] = float(v.var(0).mean() / (v**2).mean())
    out["flow/mse_zero"] = float((v**2).mean())
    for b in range(10):
        rows = [i for i in range(len(p)) if min(int(np.float32(t[i] * np.float32(10))), 9) == b]
        summary(rows, f"_t{b}")
        out[f"flow/count_t{b}"] = len(rows)
    return {**out, "flow/t_min": t.min(), "flow/t_max": t.max(), "flow/t_unique": len(set(t.tolist()))}


@settings(deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_everything_matches_plain_loops(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, t_source: float, zeros: bool, seed: int
) -> None:
    pred, target = drawn(shape, seed, scale).to(dtype), drawn(shape, seed + 1).to(dtype)
    if zeros:
        target[0], pred[-1] = 0, 0
    t = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed))
    t[0] = seed % 2
    found = velocity.measure(FlowBatch(pred, target, t, t, t_source=t_source))
    expected = twin(pred, target, t, t_source)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(value, rel=2e-4, abs=1e-5), key
        assert found[key].ndim == 0


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e10, 1e15])
def test_scale_does_not_matter(scale: float) -> None:
    pred, target = drawn((16, 4), 0), drawn((16, 4), 1)
    at_one, found = velocity.alignment(pred, target), velocity.alignment(pred * scale, target * scale)
    for key in ("flow/nmse", "flow/cos", "flow/speed_ratio"):
        assert float(found[key]) == pytest.approx(float(at_one[key]), rel=1e-4), key


def test_half_precision_does_not_overflow() -> None:
    large = torch.full((4, 100), 6e4, dtype=torch.float16)
    found = velocity.alignment(-large, large)
    assert {k: float(v) for k, v in found.items() if k != "flow/mse_zero"} == {
        "flow/nmse": pytest.approx(4.0),
        "flow/cos": pytest.approx(-1.0),
        "flow/speed_ratio": pytest.approx(1.0),
    }


@pytest.mark.parametrize("shape", [(7,), (6, 1), (6, 5), (4, 3, 2)])
def test_the_reduction_of_the_loss_is_read_off(shape: tuple[int, ...]) -> None:
    pred, target = drawn(shape, 0), drawn(shape, 1)
    square = (pred - target).square()
    dimensions = square[0].numel()
    for loss, expected in (
        (square.mean(), 1.0),
        (square.sum() / len(square), dimensions),
        (square.sum(), square.numel()),
    ):
        found = velocity.alignment(pred, target, loss=loss)["flow/loss_ratio"]
        assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(velocity.alignment(pred, target, loss=0.0)["flow/loss_ratio"]) == 0.0
    assert math.isnan(float(velocity.alignment(pred, target, loss=torch.tensor(math.nan))["flow/loss_ratio"]))
    assert "flow/loss_ratio" not in velocity.alignment(pred, target)
    assert "flow/loss_ratio" not in velocity.alignment(target, target, loss=1.0)


def test_a_loss_that_broadcasts_has_no_constant_ratio() -> None:
    ratios = []
    for seed in range(0, 20, 2):
        pred, target = drawn((32,), seed, 0.1), drawn((32,), seed + 1)
        loss = (pred[:, None] - (pred + 0.1 * target)[None]).square().mean()  # (B, 1) against (B,)
        found = velocity.alignment(pred, pred + 0.1 * target, loss=loss)
        ratios.append(float(found["flow/loss_ratio"]))
        assert float(found["flow/loss_ratio_pairs"]) == pytest.approx(1, rel=1e-5)
    assert np.std(ratios) / np.mean(ratios) > 0.05


def test_a_perfect_prediction_and_an_all_zero_one() -> None:
    target = drawn((20, 7), 0)
    perfect, nothing = velocity.alignment(target, target), velocity.alignment(torch.zeros_like(target), target)
    assert float(perfect["flow/nmse"]) == 0.0
    assert float(perfect["flow/cos"]) == pytest.approx(1.0)
    assert float(perfect["flow/cos"]) <= 1.0
    assert (float(nothing["flow/nmse"]), float(nothing["flow/speed_ratio"])) == (1.0, 0.0)
    assert "flow/cos" not in nothing


def test_an_all_zero_target_defines_nothing() -> None:
    zero = torch.zeros(5, 3)
    assert velocity.alignment(drawn((5, 3), 0), zero) == {"flow/mse_zero": torch.tensor(0.0)}
    assert velocity.trivial(zero) == {}


def test_the_best_prediction_for_independent_gaussians_has_its_known_floor() -> None:
    # x_t = (1-t) z0 + t z1: E[z1 - z0 | x_t] = (2t - 1) / ((1-t)^2 + t^2) x_t; NMSE pi/4, cos 0.463 for one dimension.
    z0, z1 = drawn((200_000, 1), 0), drawn((200_000, 1), 1)
    t = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(2))
    best = (2 * t - 1) / ((1 - t) ** 2 + t**2) * ((1 - t) * z0 + t * z1)
    found = velocity.alignment(best, z1 - z0)
    assert float(found["flow/nmse"]) == pytest.approx(math.pi / 4, abs=0.01)
    assert float(found["flow/mse_zero"]) == pytest.approx(2.0, abs=0.02)
    wide = [drawn((20_000, 64), seed) for seed in (0, 1)]
    t = t[:20_000]
    best = (2 * t - 1) / ((1 - t) ** 2 + t**2) * ((1 - t) * wide[0] + t * wide[1])
    assert float(velocity.alignment(best, wide[1] - wide[0])["flow/nmse"]) == pytest.approx(math.pi / 4, abs=0.01)


def test_trivial_predictors_score_what_they_would_score() -> None:
    target = drawn((50, 4), 0) + torch.tensor([3.0, 0.0, -1.0, 0.5])
    found = velocity.trivial(target)
    by_hand = velocity.alignment(target.mean(0).expand_as(target), target)
    assert float(found["flow/nmse_mean"]) == pytest.approx(float(by_hand["flow/nmse"]), rel=1e-5)
    assert float(found["flow/nmse_zero"]) == 1.0
    assert "flow/nmse_mean" not in velocity.trivial(target[:1])


def test_edges_of_time_are_in_the_outer_bins() -> None:
    t = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.0, -1e-5, 1 + 1e-5])
    found = velocity.by_time(torch.ones(7, 2), torch.ones(7, 2), t)
    counts = [int(found[f"flow/count_t{i}"]) for i in range(10)]
    assert counts == [2, 1, 0, 1, 0, 0, 0, 1, 0, 2]
    assert "flow/nmse_t2" not in found
    assert int(found["flow/t_unique"]) == 7


def test_time_runs_from_source_to_target_whichever_way_the_user_counts() -> None:
    pred, target, t = drawn((30, 3), 0), drawn((30, 3), 1), torch.rand(30, generator=torch.Generator().manual_seed(0))
    forward, backward = velocity.by_time(pred, target, 1 - t), velocity.by_time(pred, target, t, t_source=1.0)
    assert forward == backward


def test_nan_stays_in_its_own_bin() -> None:
    t = torch.tensor([0.05, 0.55])
    found = velocity.by_time(torch.tensor([[math.nan], [1.0]]), torch.ones(2, 1), t)
    assert math.isnan(float(found["flow/nmse_t0"]))
    assert math.isnan(float(found["flow/cos_t0"]))
    assert float(found["flow/nmse_t5"]) == 0.0
    lost = velocity.by_time(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([math.nan, 0.55]))
    assert sum(int(lost[f"flow/count_t{i}"]) for i in range(10)) == 1
    assert math.isnan(float(velocity.alignment(torch.tensor([[math.inf], [1.0]]), torch.ones(2, 1))["flow/cos"]))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1), (4, 1, 1)])
def test_time_may_have_any_sensible_shape(shape: tuple[int, ...]) -> None:
    found = velocity.by_time(torch.ones(4, 2, 2), torch.ones(4, 2, 2), torch.full(shape, 0.25))
    assert int(found["flow/count_t2"]) == 4
    assert int(found["flow/t_unique"]) == 1


@pytest.mark.parametrize("shape", [(3,), (1, 4), (4, 2), (2,), (4, 4)])
def test_time_that_would_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="one time per sample"):
        velocity.check(torch.ones(4, 2), torch.ones(4, 2), torch.zeros(shape))


def test_velocities_that_would_broadcast_are_refused_by_name() -> None:
    with pytest.raises(ShapeError, match=r"v_pred \(4, 1\), v_target \(4,\)"):
        velocity.alignment(torch.ones(4, 1), torch.ones(4))
    with pytest.raises(ShapeError, match=r"z1 \(4, 2\)"):
        velocity.check(torch.ones(4, 1), torch.ones(4, 1), 0.5, z1=torch.ones(4, 2))
    with pytest.raises(ShapeError):
        velocity.check(torch.tensor(1.0), torch.tensor(1.0), 0.5)
    with pytest.raises(UsageError, match="t_source"):
        velocity.check(torch.ones(4, 1), torch.ones(4, 1), 0.5, t_source=0.5)
    with pytest.raises(UsageError, match="0 <= t <= 1"):
        velocity.check_times(torch.tensor([0.2, 999.0]))


@settings(deadline=None)
@given(st.sampled_from([(6, 3), (4, 3, 2, 2), (5, 2, 4)]), st.integers(0, 50))
def test_scales_match_plain_loops(shape: tuple[int, ...], seed: int) -> None:
    z0, z1 = drawn(shape, seed, 2.0), drawn(shape, seed + 1, 0.3) + 1
    z1[:, 0] *= 5
    found = velocity.scales(z0, z1)
    channels = [z1[:, c].double().numpy() for c in range(shape[1])]
    stds = [c.std() for c in channels]
    expected = {
        "flow/z0_std": z0.double().numpy().std(),
        "flow/z1_std": z1.double().numpy().std(),
        "flow/z1_mean_abs": np.mean([abs(c.mean()) for c in channels]),
        "flow/z1_std_spread": np.std(stds) / np.mean(stds),
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-4), key


def test_scales_of_little() -> None:
    assert velocity.scales() == {}
    assert velocity.scales(torch.zeros(0, 3), torch.zeros(0, 3)) == {}
    assert set(velocity.scales(z1=torch.ones(4))) == {"flow/z1_std", "flow/z1_mean_abs"}
    assert "flow/z1_std_spread" not in velocity.scales(z1=torch.ones(4, 3))


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("t_source", [0.0, 1.0])
def test_the_right_target_fits_its_path_and_a_wrong_one_does_not(name: str, t_source: float) -> None:
    z0, z1 = drawn((64, 3, 2), 0), drawn((64, 3, 2), 1)
    t = torch.rand(64, generator=torch.Generator().manual_seed(2))
    x_t, v = PATHS[name].sample(z0, z1, t, t_source)
    right = velocity.target_mismatch(v, x_t, z0, z1, t, t_source=t_source)
    assert float(right["flow/target_mismatch"]) == pytest.approx(0, abs=1e-3)
    assert float(right["flow/target_scale"]) == pytest.approx(1, rel=1e-3)
    wrong_sign = velocity.target_mismatch(-v, x_t, z0, z1, t, t_source=t_source)
    assert float(wrong_sign["flow/target_mismatch"]) == pytest.approx(2, rel=1e-3)
    assert float(wrong_sign["flow/target_scale"]) == pytest.approx(-1, rel=1e-3)
    doubled = velocity.target_mismatch(2 * v, x_t, z0, z1, t, t_source=t_source)
    assert float(doubled["flow/target_mismatch"]) == pytest.approx(0.5, rel=1e-3)
    assert float(doubled["flow/target_scale"]) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_the_scale_of_the_target_is_the_least_squares_factor(name: str) -> None:
    z0, z1 = drawn((64, 3), 0), drawn((64, 3), 1)
    t = torch.rand(64, generator=torch.Generator().manual_seed(2))
    x_t, v = PATHS[name].sample(z0, z1, t)
    target = 0.3 * v + drawn((64, 3), 5)
    slope = np.linalg.lstsq(v.double().numpy().reshape(-1, 1), target.double().numpy().reshape(-1), rcond=None)[0]
    found = velocity.target_mismatch(target, x_t, z0, z1, t)
    assert float(found["flow/target_scale"]) == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e10])
def test_the_scale_of_the_latents_does_not_matter(scale: float) -> None:
    z0, z1, t = drawn((64, 3), 0, scale), drawn((64, 3), 1, scale), torch.rand(64)
    x_t, v = PATHS["linear"].sample(z0, z1, t)
    assert float(velocity.target_mismatch(-v, x_t, z0, z1, t)["flow/target_scale"]) == pytest.approx(-1, rel=1e-4)


def test_a_path_that_stands_still_has_no_scale() -> None:
    same, t = drawn((8, 3), 0), torch.rand(8)
    found = velocity.target_mismatch(torch.ones(8, 3), same, same, same, t)
    assert "flow/target_scale" not in found
    shown = velocity.target_mismatch(torch.full((8, 3), math.nan), same, same, drawn((8, 3), 0), t)
    assert all(math.isnan(float(value)) for value in shown.values())


def test_a_straight_target_on_a_curved_path_is_a_mismatch() -> None:
    z0, z1, t = drawn((64, 3), 0), drawn((64, 3), 1), torch.rand(64, generator=torch.Generator().manual_seed(2))
    x_t, _ = PATHS["trigonometric"].sample(z0, z1, t)
    assert float(velocity.target_mismatch(z1 - z0, x_t, z0, z1, t)["flow/target_mismatch"]) > 0.3


def test_no_path_no_mismatch() -> None:
    z0, z1, t = drawn((64, 3), 0), drawn((64, 3), 1), torch.rand(64)
    assert velocity.target_mismatch(z1 - z0, drawn((64, 3), 5), z0, z1, t) == {}
    same = torch.ones(4, 3)
    assert velocity.target_mismatch(torch.zeros(4, 3), same, same, same, torch.rand(4)) == {}


def test_bfloat16_points_still_fit_their_path() -> None:
    z0, z1, t = drawn((64, 3), 0), drawn((64, 3), 1), torch.rand(64)
    x_t, v = PATHS["linear"].sample(z0.bfloat16(), z1.bfloat16(), t)
    found = velocity.target_mismatch(v, x_t, z0.bfloat16(), z1.bfloat16(), t)
    assert float(found["flow/target_mismatch"]) < 0.02


def test_the_source_gradient_is_the_rate_at_which_descent_shrinks_the_latent() -> None:
    z1 = drawn((8, 5), 0).double()
    gradient = drawn((8, 5), 1).double()
    rate = float(velocity.source_gradient(gradient, z1)["flow/source_gradient"])
    h = 1e-6
    assert rate == pytest.approx(float(z1.norm() - (z1 - h * gradient).norm()) / h, rel=1e-4)
    pulled = velocity.source_gradient(z1, z1)
    assert float(pulled["flow/source_gradient"]) == pytest.approx(float(z1.norm()))
    assert velocity.source_gradient(gradient, torch.zeros_like(z1)) == {}
    with pytest.raises(ShapeError):
        velocity.source_gradient(gradient, z1[:4])


CONDITIONS: dict[str, tuple[Any, int, float]] = {
    "labels": (torch.tensor([2, 0, 0, 1, 0, 2]), 3, 3 / 6),
    "features": (torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 1], [0, 1], [0, 1]]), 3, 4 / 6),
    "texts": (["a cat", "", "", "a dog", "", ""], 3, 4 / 6),
    "nest": ({"label": torch.tensor([1, 1, 2, 2, 1, 1]), "flag": torch.tensor([0, 1, 0, 0, 0, 0]), "n": 3}, 3, 3 / 6),
    "all different": (torch.arange(6), 6, 1 / 6),
    "all equal": (torch.zeros(6, 4), 1, 1.0),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_counted(name: str) -> None:
    cond, distinct, share = CONDITIONS[name]
    for seed in range(3):
        found = velocity.conditions(cond, 6, generator=torch.Generator().manual_seed(seed))
        assert int(found["flow/cond_distinct"]) == distinct
        assert float(found["flow/cond_mode_share"]) == pytest.approx(share)


def test_conditions_that_cannot_be_compared_are_not_counted() -> None:
    for cond in (None, object(), torch.ones(5), "a word", {"setting": 1.0}):
        assert velocity.conditions(cond, 6) == {}
    assert velocity.conditions(torch.zeros(0), 0) == {}
    assert float(velocity.conditions(torch.zeros(1, 3), 1)["flow/cond_mode_share"]) == 1.0


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30))
def test_conditions_match_a_plain_count(labels: list[int]) -> None:
    found = velocity.conditions(torch.tensor(labels), len(labels))
    counts = Counter(labels)
    assert int(found["flow/cond_distinct"]) == len(counts)
    assert float(found["flow/cond_mode_share"]) == pytest.approx(max(counts.values()) / len(labels))


def test_measure_uses_everything_it_is_given() -> None:
    z0, z1, t = drawn((10, 3), 0), drawn((10, 3), 1), torch.rand(10)
    x_t, v = PATHS["linear"].sample(z0, z1, t)
    batch = FlowBatch(v + 1, v, t, t[:, None], x_t=x_t, z0=z0, z1=z1, cond=torch.arange(10) % 3)
    found = velocity.measure(batch, loss=torch.tensor(2.0))
    assert {"flow/z0_std", "flow/z1_std", "flow/target_mismatch", "flow/nmse_mean", "flow/cos"} <= found.keys()
    assert float(found["flow/loss_ratio"]) == pytest.approx(2.0)
    assert int(found["flow/cond_distinct"]) == 3
    assert found.keys() >= velocity.by_time(v, v, t).keys()
    with pytest.raises(ShapeError):
        velocity.measure(FlowBatch(v, v[:, :1], t, t))


def test_an_empty_batch_has_no_metrics() -> None:
    empty, t = torch.zeros(0, 3), torch.zeros(0)
    assert velocity.measure(FlowBatch(empty, empty, t, t, x_t=empty, z0=empty, z1=empty)) == {}
