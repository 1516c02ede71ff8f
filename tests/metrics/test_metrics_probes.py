"""Probes of models whose answers are known: what is ignored scores 1, what is wrong shows, nothing is left behind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossdoctor.errors import ShapeError
from lossdoctor.metrics import probes
from lossdoctor.metrics.reading import resolved
from lossdoctor.probe.snapshot import FlowBatch

FIELD = {f"flow/{key}" for key in ("time_reversal", "field_mismatch", "field_scale", "field_reversed")}
ALL = {*FIELD, *(f"flow/{key}" for key in ("cond_gain_cos", "cond_ratio", "field_other_cond", "time_ratio"))}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wide(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *(1,) * (like.ndim - 1)) if t.ndim else t


def make(
    model: Callable[[Tensor, Tensor, Any], Tensor], samples: int = 96, t_shape: tuple[int, ...] = (), **changes: Any
) -> FlowBatch:
    """A batch whose v_pred is what `model` answers; the target is the exact field of the classes."""
    rng = generator(1)
    labels = torch.arange(samples) % 4
    t = torch.rand(samples, generator=rng)
    x_t = torch.randn(samples, 3, generator=rng)
    t_like = t.reshape(samples, *t_shape)
    with torch.no_grad():
        v_pred = model(x_t, t_like, labels)
    batch = FlowBatch(v_pred, exact(x_t, t, labels), t, t_like, x_t=x_t, cond=labels, velocity=model)
    return replace(batch, **changes)


def exact(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return torch.stack([c - 1.5, 3 * wide(t, x)[:, 0], x[:, 0]], 1)


def almost(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return exact(x, t, c) + 0.1


def measure(batch: FlowBatch, **settings: Any) -> dict[str, float]:
    found = probes.measure(batch, generator=settings.pop("generator", generator()), **settings)
    return {key: float(value) for key, value in resolved(found).items()}


@pytest.mark.parametrize("settings", [{}, {"batch_coupled": True}, {"stochastic": True}], ids=str)
@pytest.mark.parametrize("t_shape", [(), (1,), (1, 1)])
def test_a_model_that_listens_is_worse_off_with_the_wrong_question(
    settings: dict[str, Any], t_shape: tuple[int, ...]
) -> None:
    shapes = []

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        shapes.append(t.shape[1:])
        return almost(x, t, c)

    found = measure(make(velocity, t_shape=t_shape), **settings)
    assert found.keys() == ALL
    assert found["flow/cond_ratio"] > 10
    assert found["flow/cond_gain_cos"] > 0.1
    assert found["flow/time_ratio"] > 10
    assert found["flow/time_reversal"] > 10
    assert found["flow/field_mismatch"] == 0.0
    assert set(shapes) == {t_shape}


@pytest.mark.parametrize("settings", [{}, {"batch_coupled": True}, {"stochastic": True}], ids=str)
def test_what_is_ignored_scores_exactly_one(settings: dict[str, Any]) -> None:
    layer = nn.Linear(3, 3)
    found = measure(make(lambda x, t, c: layer(x)), **settings)
    assert found["flow/cond_ratio"] == found["flow/time_ratio"] == found["flow/time_reversal"] == 1.0
    assert found["flow/cond_gain_cos"] == 0.0


def test_the_ratios_are_those_of_a_plain_loop_over_all_samples() -> None:
    batch = make(almost, samples=24)
    found = measure(batch)
    assert batch.x_t is not None
    loss = float((almost(batch.x_t, batch.t, batch.cond) - batch.v_target).square().mean())
    at_reversed = float((almost(batch.x_t, 1 - batch.t, batch.cond) - batch.v_target).square().mean())
    assert found["flow/time_reversal"] == pytest.approx(at_reversed / loss, rel=1e-5)


def test_reversed_time_is_below_one() -> None:
    found = measure(make(lambda x, t, c: almost(x, 1 - t, c)))
    assert found["flow/time_reversal"] < 0.1


def test_inference_that_calls_another_field_shows() -> None:
    batch = make(almost)
    found = measure(replace(batch, velocity=lambda x, t, c: 2 * almost(x, t, c)))
    assert found["flow/field_mismatch"] == pytest.approx(1.0, rel=1e-5)
    zero = measure(replace(batch, v_pred=torch.zeros_like(batch.v_pred)))
    assert {"flow/field_mismatch", "flow/field_scale", "flow/field_reversed"}.isdisjoint(zero)


@pytest.mark.parametrize("settings", [{}, {"batch_coupled": True}, {"stochastic": True}], ids=str)
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, 1000.0])
def test_the_factor_between_training_and_inference_is_named(factor: float, settings: dict[str, Any]) -> None:
    batch = make(almost)
    found = measure(replace(batch, velocity=lambda x, t, c: factor * almost(x, t, c)), **settings)
    assert found["flow/field_scale"] == pytest.approx(factor, rel=1e-5)
    assert found["flow/field_mismatch"] == pytest.approx(abs(factor - 1), rel=1e-5, abs=1e-6)


def test_inference_that_runs_time_backwards_is_named() -> None:
    batch = make(almost)
    found = measure(replace(batch, velocity=lambda x, t, c: almost(x, 1 - t, c)))
    assert found["flow/field_reversed"] == pytest.approx(0, abs=1e-6)
    assert found["flow/field_mismatch"] > 0.3
    right = measure(batch)
    assert right["flow/field_reversed"] > 0.3


def test_inference_without_the_condition_is_named() -> None:
    batch = make(almost)
    found = measure(replace(batch, velocity=lambda x, t, c: almost(x, t, torch.zeros_like(c))))
    assert found["flow/field_other_cond"] == found["flow/field_mismatch"] > 0.3
    right = measure(batch)
    assert right["flow/field_other_cond"] > 0.3
    assert right["flow/field_mismatch"] == 0.0


def test_what_explains_a_mismatch_is_that_of_a_plain_loop() -> None:
    batch = make(almost, samples=24)
    other = nn.Linear(3, 3)
    found = measure(replace(batch, velocity=lambda x, t, c: other(x) + almost(x, t, c)))
    with torch.no_grad():
        asked = {"true": batch.t, "reversed": 1 - batch.t}
        given = {name: (other(batch.x_t) + almost(batch.x_t, t, batch.cond)).double() for name, t in asked.items()}
    v = batch.v_pred.double()
    assert found["flow/field_scale"] == pytest.approx(float((given["true"] * v).sum() / (v * v).sum()), rel=1e-5)
    for name, key in (("true", "field_mismatch"), ("reversed", "field_reversed")):
        assert found[f"flow/{key}"] == pytest.approx(float((given[name] - v).norm() / v.norm()), rel=1e-5)


class Dropped(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.drop, self.scale = nn.Dropout(0.1), scale

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.drop(almost(x, t, c)) * self.scale


@pytest.mark.parametrize("known", [False, True])
def test_dropout_is_no_mismatch_and_hides_no_ratio(known: bool) -> None:
    model = Dropped()
    torch.manual_seed(0)
    mismatches = [
        measure(make(model, 512), generator=generator(seed), stochastic=known)["flow/field_mismatch"]
        for seed in range(20)
    ]
    noise = math.sqrt(2 * 0.1 / 0.9)  # |a - b| / |mean| of two draws: what a plain difference would read
    assert np.mean(np.square(mismatches)) < 0.2 * noise**2
    torch.manual_seed(0)
    batch = make(model, 512)
    other = measure(replace(batch, velocity=Dropped(2)), stochastic=known)["flow/field_mismatch"]
    assert other > 0.6


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0])
def test_dropout_does_not_shrink_the_factor(known: bool, factor: float) -> None:
    torch.manual_seed(0)
    batch = make(Dropped(), 2048)
    scales = [
        measure(replace(batch, velocity=Dropped(factor)), generator=generator(seed), stochastic=known)[
            "flow/field_scale"
        ]
        for seed in range(10)
    ]
    # The plain least-squares factor would be 10 % too small: dropout adds a ninth to the power of v_pred.
    assert np.mean(scales) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("known", [False, True])
def test_dropout_does_not_hide_that_time_runs_backwards(known: bool) -> None:
    class Backwards(Dropped):
        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return super().forward(x, 1 - t, c)

    torch.manual_seed(0)
    batch = make(Dropped(), 2048)
    found = [
        measure(replace(batch, velocity=Backwards()), generator=generator(seed), stochastic=known) for seed in range(10)
    ]
    reversed_, asked = (np.mean([x[f"flow/{key}"] ** 2 for x in found]) for key in ("field_reversed", "field_mismatch"))
    # Two draws of one field differ by 2/9 of its power; what is left of that is below a fifth.
    assert reversed_ < 0.2 * 2 / 9 < asked


def test_the_mismatch_estimate_is_unbiased_in_the_square() -> None:
    # Three draws of one field: the unclamped square is 0 on average, so about half of the readings are exactly 0.
    torch.manual_seed(1)
    field = torch.randn(64, 8)
    squares = []
    for _ in range(400):
        v_pred, a, b = (field + torch.randn(64, 8) for _ in range(3))
        square = ((a - v_pred).square().sum() + (b - v_pred).square().sum()) / 2 - (a - b).square().sum()
        squares.append(float(square))
        found = probes.answers(v_pred, field, {"true": a}, {}, again=b)["flow/field_mismatch"]
        assert float(found) == pytest.approx(
            math.sqrt(max(0.0, float(square)) / float(v_pred.square().sum())), rel=1e-3
        )
    assert abs(np.mean(squares)) < 4 * np.std(squares) / 20


@pytest.mark.parametrize("known", [False, True])
def test_all_questions_meet_the_same_dropout_mask(known: bool) -> None:
    layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    torch.manual_seed(3)
    found = measure(make(lambda x, t, c: layer(x)), stochastic=known)
    assert found["flow/cond_ratio"] == found["flow/time_ratio"] == found["flow/time_reversal"] == 1.0


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.randn])
def test_python_and_numpy_randomness_are_noticed_too(draw: Callable[[], float]) -> None:
    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return x * draw()

    found = measure(make(velocity))
    assert found["flow/cond_ratio"] == found["flow/time_ratio"] == 1.0


class Counted(nn.Module):
    def __init__(self, inner: Callable[[Tensor, Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.inner, self.sizes = inner, list[int]()

    def forward(self, x: Tensor, t: Tensor, c: Any) -> Tensor:
        self.sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return self.inner(x, t, c)


@pytest.mark.parametrize(
    ("settings", "inner", "sizes"),
    [
        ({}, almost, [4 * 50]),
        ({"stochastic": True}, almost, [50] * 4),
        ({"stochastic": True}, Dropped(), [50] * 5),
        ({}, Dropped(), [4 * 50] + [50] * 4),
        ({"batch_coupled": True}, almost, [200] * 4),
        ({"batch_coupled": True}, Dropped(), [200] * 5),
    ],
)
def test_forwards_are_as_few_as_the_model_allows(
    settings: dict[str, Any], inner: Callable[[Tensor, Tensor, Any], Tensor], sizes: list[int]
) -> None:
    model = Counted(inner)
    measure(make(inner, 200, velocity=model), **settings)
    assert model.sizes == sizes


@pytest.mark.parametrize(("samples", "asked"), [(1, 1), (32, 32), (33, 32), (128, 32), (129, 33), (1000, 250)])
def test_a_quarter_but_at_least_thirty_two(samples: int, asked: int) -> None:
    assert probes.sub_batch(samples) == asked


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.norm(almost(x, t, c))


def test_batch_norm_is_asked_with_the_batch_it_was_trained_on() -> None:
    model = Normed()
    batch = make(model, 200)
    assert measure(batch, batch_coupled=True)["flow/field_mismatch"] == 0.0
    assert measure(batch, batch_coupled=False)["flow/field_mismatch"] > 0.01
    assert model.training


def test_one_sample_and_constant_questions_have_no_ratio() -> None:
    assert measure(make(almost, 1)).keys() == FIELD
    batch = make(almost, cond=torch.zeros(96, dtype=torch.int64), v_target=torch.zeros(96, 3))
    assert {"flow/cond_ratio", "flow/cond_gain_cos", "flow/field_other_cond"}.isdisjoint(measure(batch))
    half = torch.full((96,), 0.5)
    found = measure(make(almost, t=half, t_like=half))
    assert {"flow/time_ratio", "flow/time_reversal", "flow/field_reversed"}.isdisjoint(found)


def test_a_scalar_time_stays_a_scalar() -> None:
    t = torch.tensor(0.25)
    asked = []

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        asked.append((t.ndim, float(t)))
        return x * t + c[:, None]

    batch = make(almost, velocity=velocity, t=t.expand(96), t_like=t)
    assert "flow/time_ratio" not in measure(batch)
    assert set(asked) == {(0, 0.25), (0, 0.75)}


CONDITIONS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda c: c,
    "texts": lambda c: [f"a {int(label)}" for label in c],
    "nest": lambda c: {"label": c, "extra": [c.float()[:, None].expand(-1, 4), None], "scale": 1.0},
    "mixed": lambda c: (c, [f"a {int(label)}" for label in c]),
}
LABEL: dict[str, Callable[[Any], Tensor]] = {
    "tensor": lambda c: c,
    "texts": lambda c: torch.tensor([int(text[2:]) for text in c]),
    "nest": lambda c: (c["label"] + c["extra"][0][:, 0].long()) // 2,
    "mixed": lambda c: (c[0] + torch.tensor([int(text[2:]) for text in c[1]])) // 2,
}


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("settings", [{}, {"batch_coupled": True}, {"stochastic": True}], ids=str)
def test_conditions_of_any_kind_are_permuted_as_one(kind: str, settings: dict[str, Any]) -> None:
    seen = []

    def velocity(x: Tensor, t: Tensor, c: Any) -> Tensor:
        seen.append(LABEL[kind](c))
        return almost(x, t, LABEL[kind](c))

    batch = make(almost)
    found = measure(replace(batch, cond=CONDITIONS[kind](batch.cond), velocity=velocity), **settings)
    assert found.keys() == ALL
    assert found["flow/cond_ratio"] > 10
    if settings:
        true, permuted = seen[0], seen[-1]
        assert bool((true != permuted).all())
        assert sorted(true.tolist()) == sorted(permuted.tolist())


@pytest.mark.parametrize("cond", [None, object(), torch.ones(7, 7), "a word"], ids=["none", "object", "shared", "word"])
def test_a_condition_that_cannot_be_split_is_passed_on_and_not_probed(cond: Any) -> None:
    def velocity(x: Tensor, t: Tensor, c: Any) -> Tensor:
        assert c is cond
        return almost(x, t, torch.zeros(len(x)))

    assert measure(make(almost, cond=cond, velocity=velocity)).keys() == {*FIELD, "flow/time_ratio"}


def test_nothing_to_ask_is_nothing_measured() -> None:
    assert measure(make(almost, velocity=None)) == {}
    assert measure(make(almost, x_t=None)) == {}
    empty = torch.zeros(0, 3)
    assert measure(FlowBatch(empty, empty, empty[:, 0], empty[:, 0], x_t=empty, velocity=almost)) == {}


def test_the_answer_must_have_the_shape_of_the_question() -> None:
    with pytest.raises(ShapeError, match=r"expected: \(96, 3\)"):
        measure(make(almost, velocity=lambda x, t, c: x.sum(1)), batch_coupled=True)
    with pytest.raises(ShapeError, match="tuple"):
        measure(make(almost, velocity=lambda x, t, c: (x,)))


def test_nan_shows() -> None:
    found = measure(make(lambda x, t, c: almost(x, t, c) * math.nan))
    assert all(math.isnan(value) for value in found.values())
    assert "flow/field_mismatch" in found


def test_the_answers_come_in_the_precision_of_the_training() -> None:
    layer = nn.Linear(3, 3)
    dtypes = []

    def velocity(x: Tensor, t: Tensor, c: Any) -> Tensor:
        out = layer(x)
        dtypes.append(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = make(velocity)
        found = measure(batch)
    assert set(dtypes) == {torch.bfloat16}
    assert found["flow/field_mismatch"] < 1e-6


def streams() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()


def test_deterministic_probes_draw_nothing_from_the_global_streams() -> None:
    before = streams()
    measure(make(almost, cond=CONDITIONS["nest"](torch.arange(96) % 4), velocity=lambda x, t, c: x))
    assert streams() == before
