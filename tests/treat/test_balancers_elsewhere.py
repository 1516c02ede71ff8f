"""What two independent packages compute from the gradient vectors themselves, from the Gram alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conflictfree.grad_operator import ConFIG_update, ConFIG_update_double, PCGradOperator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd import aggregation

from lossdoctor.treat import ConFIG, Measured, balancer
from lossdoctor.treat.conflict_free import coefficients
from lossdoctor.treat.pcgrad import coefficients as pcgrad


def gradients(k: int, seed: int) -> np.ndarray:
    """(K, 40), of norms from 0.01 to 100, some of them in conflict."""
    randomness = np.random.default_rng(seed)
    g = randomness.normal(size=(k, 40))
    g[:, 0] += np.linspace(-4, 4, k)
    return g * 10 ** randomness.uniform(-2, 2, (k, 1))


def told(g: np.ndarray, weights: np.ndarray | None = None) -> Measured:
    k = len(g)
    w = np.ones(k) if weights is None else weights
    return Measured(tuple(f"l{i}" for i in range(k)), ("other",) * k, g @ g.T, w, np.ones(k))


def close(found: np.ndarray, wanted: Tensor | np.ndarray, rel: float = 1e-6) -> None:
    wanted = np.asarray(wanted)
    assert np.linalg.norm(found - wanted) <= rel * np.linalg.norm(wanted)


@given(k=st.integers(2, 6), seed=st.integers(0, 199))
@settings(deadline=None)
def test_config_is_conflictfrees(k: int, seed: int) -> None:
    g = gradients(k, seed)
    update = coefficients(g @ g.T) @ g
    close(update, ConFIG_update(torch.as_tensor(g, dtype=torch.float32)), 1e-3)  # it takes no other precision
    close(update, aggregation.ConFIG()(torch.as_tensor(g)))
    cosine = (g @ update) / np.linalg.norm(g, axis=1) / np.linalg.norm(update)
    assert cosine == pytest.approx(np.full(k, cosine.mean()), abs=1e-6), "the same with all of them"


@given(seed=st.integers(0, 199))
@settings(deadline=None)
def test_two_losses_are_the_published_special_case(seed: int) -> None:
    g = gradients(2, seed)
    close(coefficients(g @ g.T) @ g, ConFIG_update_double(*torch.as_tensor(g)))


def test_config_of_gradients_that_depend_on_each_other() -> None:
    """Three in a plane: more equations than directions, solved by least squares as there."""
    g = np.array([[1.0, 0.2, 0.0], [-0.3, 1.0, 0.0], [2.0, 1.4, 0.0]])
    close(coefficients(g @ g.T) @ g, aggregation.ConFIG()(torch.as_tensor(g)))
    opposed = np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert coefficients(opposed @ opposed.T) == pytest.approx([0.0, 0.0], abs=1e-9), "nothing serves both"
    assert coefficients(np.diag([4.0, 0.0, 1.0])) == pytest.approx([0.75, 0.0, 1.5]), "unused is not divided by"


def test_config_weighs_the_weighted_gradients() -> None:
    g, w = gradients(3, 5), np.array([0.5, 2.0, 30.0])
    factors = ConFIG().advise(told(g, w), {}).factors
    close(np.array(list(factors.values())) * w @ g, aggregation.ConFIG()(torch.as_tensor(w[:, None] * g)))


def test_config_turns_no_loss_around() -> None:
    """The one in the middle of two others would get a negative coefficient; all stay what they were."""
    g = np.array([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [1.0, 0.0, 0.1]])
    assert coefficients(g @ g.T)[2] < 0
    assert ConFIG().advise(told(g), {"l1": 0.5}).factors == {"l0": 1.0, "l1": 0.5, "l2": 1.0}


@given(seed=st.integers(0, 99))
@settings(deadline=None)
def test_pcgrad_of_two_is_conflictfrees(seed: int) -> None:
    g = gradients(2, seed)
    theirs = PCGradOperator().calculate_gradient(torch.as_tensor(g))
    ours = pcgrad(g @ g.T, np.random.default_rng(0)) @ g
    # They divide by the number of losses.
    close(ours / np.linalg.norm(ours), theirs / theirs.norm())


SAME: list[tuple[Callable[[], object], Callable[[], Callable[[Tensor], Tensor]]]] = [
    (aggregation.AlignedMTLWeighting, aggregation.AlignedMTL),
    (aggregation.IMTLGWeighting, aggregation.IMTLG),
    (aggregation.MGDAWeighting, aggregation.MGDA),
]


@pytest.mark.parametrize(("weighting", "aggregator"), SAME, ids=["aligned_mtl", "imtl_g", "mgda"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_weighting_gives_what_torchjd_makes_of_the_vectors(
    weighting: Callable[[], object], aggregator: Callable[[], Callable[[Tensor], Tensor]], k: int
) -> None:
    g = np.random.default_rng(k).normal(size=(k, 40)) * np.linspace(0.5, 2, k)[:, None]
    w = np.linspace(1.5, 0.5, k)
    factors = balancer(weighting()).advise(told(g, w), {}).factors  # type: ignore[arg-type]
    wanted = aggregator()(torch.as_tensor(w[:, None] * g))
    close(np.array(list(factors.values())) * w @ g, wanted, 1e-5)
