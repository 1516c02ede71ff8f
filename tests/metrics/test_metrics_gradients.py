"""Norms, shares, cosines and reach from a Gram matrix, against the gradients themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.metrics import gradients
from lossdoctor.metrics.reading import to_host
from lossdoctor.probe.snapshot import Gradients

NAMES = ("kl", "flow", "dino", "aux")


def snapshot(vectors: np.ndarray, weights: list[float], modules: dict[str, slice], **changes: object) -> Gradients:
    """vectors: (K, P) unweighted loss gradients."""
    rows = np.concatenate([vectors, (np.asarray(weights)[:, None] * vectors).sum(0, keepdims=True)])
    names = NAMES[: len(vectors)]
    settings: dict[str, object] = {
        "names": names,
        "weights": torch.tensor(weights, dtype=torch.float64),
        "gram": {
            m: torch.tensor(rows[:, where] @ rows[:, where].T) for m, where in {"": slice(None), **modules}.items()
        },
        "measured": (True,) * len(names),
        "reached": {m: (True,) * len(names) for m in modules},
    }
    return Gradients(**{**settings, **changes})  # type: ignore[arg-type]


def twin(vectors: np.ndarray, weights: list[float], modules: dict[str, slice]) -> dict[str, float]:
    names = NAMES[: len(vectors)]
    total = sum(w * g for w, g in zip(weights, vectors, strict=True))
    out = {"grad/total": math.sqrt((total**2).sum())}
    for name, w, g in zip(names, weights, vectors, strict=True):
        out[f"weight/{name}"] = w
        out[f"grad/{name}"] = math.sqrt((g**2).sum())
        out[f"grad_weighted/{name}"] = w * math.sqrt((g**2).sum())
        if (total**2).sum() != 0:
            out[f"grad_share/{name}"] = w * float(g @ total) / float(total @ total)
        for module, where in modules.items():
            out[f"grad_module/{name}/{module}"] = math.sqrt((g[where] ** 2).sum())
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if a < b and vectors[i].any() and vectors[j].any():
                norms = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
                out[f"grad_cos/{a}|{b}"] = float(vectors[i] @ vectors[j]) / norms
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[float]]:
    k = draw(st.integers(1, 4))
    scales = draw(st.lists(st.sampled_from([1e-10, 1e-3, 1.0, 1e8]), min_size=k, max_size=k))
    weights = draw(st.lists(st.sampled_from([0.0, 1e-5, 0.5, 1.0, 30.0, -1.0]), min_size=k, max_size=k))
    vectors = np.random.default_rng(draw(st.integers(0, 2**16))).normal(size=(k, 12)) * np.array(scales)[:, None]
    if draw(st.booleans()):
        vectors[draw(st.integers(0, k - 1))] = 0
    return vectors, weights


@given(cases())
def test_everything_follows_from_the_vectors(case: tuple[np.ndarray, list[float]]) -> None:
    vectors, weights = case
    modules = {"encoder": slice(0, 5), "head": slice(5, 12)}
    found = to_host(gradients.measure.deferred(snapshot(vectors, weights, modules)))
    expected = twin(vectors, weights, modules)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@given(cases())
def test_shares_of_all_losses_sum_to_one(case: tuple[np.ndarray, list[float]]) -> None:
    found = gradients.measure(snapshot(*case, {}))
    shares = [float(value) for key, value in found.items() if key.startswith("grad_share/")]
    if shares:
        assert math.fsum(shares) == pytest.approx(1, abs=1e-4 + 1e-10 * max(map(abs, shares)))


def test_an_unmeasured_loss_keeps_only_its_weight() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 8))
    found = gradients.measure(snapshot(vectors, [1.0, 2.0, 3.0], {"head": slice(0, 4)}, measured=(True, False, True)))
    assert {key for key in found if "flow" in key} == {"weight/flow"}
    assert "grad_cos/dino|kl" in found
    assert "grad/total" in found


def test_unreached_is_absent_and_reached_by_nothing_is_zero() -> None:
    vectors = np.ones((2, 8))
    vectors[:, :4] = 0
    reached = {"encoder": (True, False), "head": (True, True)}
    found = gradients.measure(
        snapshot(vectors, [1.0, 1.0], {"encoder": slice(0, 4), "head": slice(4, 8)}, reached=reached)
    )
    assert float(found["grad_module/kl/encoder"]) == 0.0
    assert "grad_module/flow/encoder" not in found
    assert float(found["grad_module/flow/head"]) == pytest.approx(2.0)


def test_cosines_are_named_in_alphabetical_order_and_stay_in_range() -> None:
    vector = np.full((1, 3), 0.1)
    found = gradients.measure(snapshot(np.concatenate([vector, vector, -vector]), [1.0, 1.0, 1.0], {}))
    assert {k: round(float(v), 9) for k, v in found.items() if k.startswith("grad_cos")} == {
        "grad_cos/flow|kl": 1.0,
        "grad_cos/dino|kl": -1.0,
        "grad_cos/dino|flow": -1.0,
    }
    assert all(-1 <= float(v) <= 1 for k, v in found.items() if k.startswith("grad_cos"))


def test_nan_is_kept() -> None:
    vectors = np.ones((2, 4))
    vectors[1, 2] = math.nan
    found = gradients.measure(snapshot(vectors, [1.0, 1.0], {}))
    for key in ("grad/flow", "grad/total", "grad_share/flow", "grad_cos/flow|kl"):
        assert math.isnan(float(found[key])), key
    assert float(found["grad/kl"]) == 2.0


def test_a_derived_row_below_zero_by_rounding_is_a_zero_gradient() -> None:
    gram = torch.tensor([[-1e-18, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = gradients.strengths(("kl",), torch.ones(1, dtype=torch.float64), gram, (True,))
    assert float(found["grad/kl"]) == 0.0
    assert float(found["grad/total"]) == 2.0


@pytest.mark.parametrize(
    ("arrived", "expected"), [(16.0, 1.0), (4.0, 0.5), (0.0, 0.0), (-1e-18, 0.0), (math.nan, None)]
)
def test_accumulation_is_what_arrived_over_what_every_backward_brought(arrived: float, expected: float | None) -> None:
    sixteen = torch.tensor(16.0, dtype=torch.float64)
    found = gradients.accumulation(torch.tensor(arrived, dtype=torch.float64), sixteen)
    assert float(found["grad/accumulation"]) == pytest.approx(math.nan if expected is None else expected, nan_ok=True)
    assert gradients.accumulation(sixteen, torch.tensor(0.0)) == {}


def test_accumulation_holds_the_total_against_the_sum() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 6))
    whole = snapshot(vectors, [1.0, 0.5], {})
    assert "grad/accumulation" not in gradients.measure(whole)
    lost = snapshot(vectors, [1.0, 0.5], {}, accumulated=9 * whole.gram[""][-1, -1])
    assert float(gradients.measure(lost)["grad/accumulation"]) == pytest.approx(1 / 3)


def test_without_gram_only_weights() -> None:
    bare = Gradients(("kl",), torch.tensor([0.5], dtype=torch.float64), {}, (False,), {})
    assert {k: float(v) for k, v in gradients.measure(bare).items()} == {"weight/kl": 0.5}
