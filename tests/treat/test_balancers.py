"""Balancers against the slow obvious way: real gradient vectors, autograd, and a training that follows the advice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import MGDAWeighting, PCGradWeighting

from lossdoctor.errors import UsageError
from lossdoctor.treat import (
    BALANCERS,
    Balancer,
    CosineWeighting,
    GradNorm,
    Measured,
    PCGrad,
    RatioController,
    balancer,
    measured,
)
from lossdoctor.treat.gradnorm import gradient
from lossdoctor.treat.measured import cosines
from lossdoctor.treat.pcgrad import coefficients

KINDS = ("velocity", "distill", "kl")
NAMES = ("flow", "dino", "kl")


def seen(
    vectors: np.ndarray,
    weights: list[float] | None = None,
    losses: list[float] | None = None,
    step: int = 0,
    nats: float = math.nan,
) -> Measured:
    k = len(vectors)
    names, kinds = NAMES[:k] or NAMES, KINDS[:k]
    if k > 3:
        names, kinds = tuple(f"l{i}" for i in range(k)), ("other",) * k
    return Measured(
        names, kinds, vectors @ vectors.T, np.array(weights or [1.0] * k), np.array(losses or [1.0] * k), step, nats
    )


def vectors(k: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(k, 30))


# What is measured


def test_a_gram_comes_back_from_norms_and_cosines() -> None:
    g = vectors(3, 0)
    gram = g @ g.T
    norms = np.sqrt(np.diagonal(gram))
    readings = {f"grad/{name}": norm for name, norm in zip(NAMES, norms, strict=True)}
    readings |= {f"loss/{name}": 0.5 for name in NAMES}
    for a, b in ((0, 1), (2, 0), (1, 2)):
        readings[f"grad_cos/{NAMES[a]}|{NAMES[b]}"] = gram[a, b] / norms[a] / norms[b]
    found = measured(readings, dict(zip(NAMES, KINDS, strict=True)), dict.fromkeys(NAMES, 2.0), 7)
    assert found is not None
    assert found.gram == pytest.approx(gram)
    assert (found.names, found.kinds, found.step) == (NAMES, KINDS, 7)
    assert found.norms == pytest.approx(norms)
    assert measured({**readings, "grad/kl": math.nan}, dict(zip(NAMES, KINDS, strict=True)), {"kl": 1.0}, 7) is None
    assert measured({}, {}, {}, 0) is None
    detached = {
        key: value for key, value in readings.items() if key != "grad/kl" and "|kl" not in key and "kl|" not in key
    }
    found = measured(detached, dict(zip(NAMES, KINDS, strict=True)), dict.fromkeys(NAMES, 2.0), 7)
    assert found is not None
    assert found.gram[2].tolist() == [0.0, 0.0, 0.0], "a loss without a gradient is a row of zeros"


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match=r"(?s)A balancer takes all of K losses.*got:"):
        Measured(("a", "b"), ("other", "other"), np.eye(3), np.ones(2), np.ones(2))


# PCGrad


def projected(g: np.ndarray, order: np.random.Generator) -> np.ndarray:
    """The paper's algorithm on the vectors themselves."""
    k, total = len(g), np.zeros(g.shape[1])
    for i in range(k):
        own = g[i].copy()
        for j in order.permutation([other for other in range(k) if other != i]):
            inner = own @ g[j]
            if inner < 0:
                own -= inner / (g[j] @ g[j]) * g[j]
        total += own
    return total


@given(k=st.integers(1, 8), seed=st.integers(0, 999))
@settings(deadline=None)
def test_pcgrad_from_the_gram_is_pcgrad_on_the_vectors(k: int, seed: int) -> None:
    g = vectors(k, seed)
    g[:, 0] += np.linspace(-3, 3, k)  # some of them conflict
    c = coefficients(g @ g.T, np.random.default_rng(seed))
    assert c @ g == pytest.approx(projected(g, np.random.default_rng(seed)), abs=1e-9)
    assert (c >= 1 - 1e-12).all()


def test_pcgrad_leaves_what_does_not_conflict() -> None:
    advice = PCGrad().advise(seen(np.eye(3)), {})
    assert (advice.factors, advice.reasons) == (dict.fromkeys(NAMES, 1.0), {})
    zero = PCGrad().advise(seen(np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])), {})
    assert all(math.isfinite(factor) for factor in zero.factors.values())


def test_pcgrad_of_two_that_conflict_helps_both() -> None:
    g = np.array([[1.0, 0.0], [-0.9, 0.3]])
    factors = PCGrad().advise(seen(g), {}).factors
    update = factors["flow"] * g[0] + factors["dino"] * g[1]
    assert g[1] @ (g[0] + g[1]) < 0 or g[0] @ (g[0] + g[1]) < 0.2
    assert update @ g[0] > 0
    assert update @ g[1] > 0


# GradNorm


@given(k=st.integers(2, 6), seed=st.integers(0, 99), alpha=st.floats(0, 3))
@settings(deadline=None)
def test_gradnorm_is_the_double_backward_form(k: int, seed: int, alpha: float) -> None:
    randomness = np.random.default_rng(seed)
    theta = torch.tensor(randomness.normal(size=12), requires_grad=True)
    parts = [torch.tensor(randomness.normal(size=12)) for _ in range(k)]
    w = torch.tensor(randomness.uniform(0.5, 2, k), requires_grad=True)
    losses = [((theta - part) ** 2).mean() for part in parts]
    first = torch.tensor(randomness.uniform(1, 3, k))
    norms = torch.stack([torch.autograd.grad(w[i] * losses[i], theta, create_graph=True)[0].norm() for i in range(k)])
    values = torch.stack([loss.detach() for loss in losses])
    rate = (values / first) / (values / first).mean()
    target = (norms.mean() * rate**alpha).detach()
    (expected,) = torch.autograd.grad((norms - target).abs().sum(), w)
    plain = (norms / w).detach().numpy()
    found = gradient(w.detach().numpy(), plain, values.numpy(), first.numpy(), alpha)
    assert found == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9)


def test_gradnorm_evens_gradients_out_and_keeps_the_sum() -> None:
    one = GradNorm(alpha=0.0, rate=0.2)
    g, factors = np.diag([10.0, 1.0, 0.1]), dict.fromkeys(NAMES, 1.0)
    for step in range(200):
        factors = one.advise(seen(g, step=step), factors).factors
    strength = np.array([10.0, 1.0, 0.1]) * np.array(list(factors.values()))
    assert strength.max() / strength.min() < 1.6
    assert sum(factors.values()) == pytest.approx(3.0)


def test_gradnorm_favours_what_has_fallen_least() -> None:
    one = GradNorm(alpha=1.0)
    one.advise(seen(np.eye(3), losses=[1.0, 1.0, 1.0]), {})
    factors = one.advise(seen(np.eye(3), losses=[0.1, 0.1, 1.0]), dict.fromkeys(NAMES, 1.0)).factors
    assert factors["kl"] > 1 > factors["flow"]
    assert one.advise(seen(np.eye(3), losses=[0.1, -0.1, 1.0]), factors).stopped
    with pytest.raises(UsageError, match="GradNorm"):
        GradNorm(alpha=-1)


# The ratio controller


def of_norms(*norms: float) -> np.ndarray:
    """(K, K) vectors of these norms that have something in common: cosines of 0.1."""
    k = len(norms)
    return np.diag(norms) @ np.linalg.cholesky(0.9 * np.eye(k) + 0.1)


@given(start=st.lists(st.floats(-2, 2), min_size=2, max_size=2), noise=st.floats(0, 0.2), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=60)
def test_wrong_by_100_it_is_in_the_band_within_six_measurements(start: list[float], noise: float, seed: int) -> None:
    randomness, one = np.random.default_rng(seed), RatioController()
    weights, factors = [1.0, 0.3 * 10 ** start[0], 0.2 * 10 ** start[1]], dict.fromkeys(NAMES, 1.0)
    norms = np.ones(3)
    for step in range(7):
        norms = np.exp(noise * randomness.normal(size=3))
        factors = one.advise(seen(of_norms(*norms), weights, step=step), factors).factors
    ratios = [weights[i] * factors[name] for i, name in enumerate(NAMES)]
    assert 0.2 * 0.7 <= ratios[1] / ratios[0] <= 0.5 * 1.4
    assert 0.1 * 0.7 <= ratios[2] / ratios[0] <= 0.3 * 1.4
    assert factors["flow"] == 1.0, "the anchor stays"


def test_inside_its_band_nothing_moves() -> None:
    one = RatioController(warmup=0)
    advice = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.49, 0.11]), {})
    assert (advice.factors, dict(advice.reasons)) == (dict.fromkeys(NAMES, 1.0), {})
    advice = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.51, 0.11]), {})
    assert set(advice.reasons) == {"dino"}
    assert "wanted 0.2 to 0.5" in advice.reasons["dino"]


def test_no_change_is_larger_than_the_slew_allows() -> None:
    one, factors = RatioController(slew=2.0, warmup=0), dict.fromkeys(NAMES, 1.0)
    for step in range(8):
        after = one.advise(seen(of_norms(1, 1, 1), [1.0, 1e-4, 1e3], step=step), factors).factors
        assert all(0.5 <= after[name] / factors[name] <= 2.0 for name in NAMES)
        factors = after


@pytest.mark.parametrize(
    ("vectors_", "why"), [(of_norms(1.0, 0.0, 0.2), "has no gradient"), (of_norms(1.0, 1e-9, 0.2), "at the limit")]
)
def test_a_band_that_cannot_be_reached_stops_it_with_the_reason(vectors_: np.ndarray, why: str) -> None:
    one, factors, advice = RatioController(warmup=0, limit=100.0), dict.fromkeys(NAMES, 1.0), None
    for step in range(12):
        advice = one.advise(seen(vectors_, step=step), factors)
        factors = advice.factors
    assert advice is not None
    assert advice.stopped is not None
    assert why in advice.stopped
    assert "dino" in advice.stopped
    assert factors["dino"] <= 100.0
    frozen = one.advise(seen(of_norms(1, 1, 1), [1.0, 9.0, 9.0]), factors)
    assert frozen.factors == factors, "what has stopped changes nothing more"


def test_without_an_anchor_it_says_so() -> None:
    two = Measured(("a", "b"), ("velocity", "velocity"), np.eye(2), np.ones(2), np.ones(2))
    assert "velocity" in str(RatioController().advise(two, {}).stopped)
    for wrong in (dict(bands={"kl": (0.3, 0.1)}), dict(slew=1.0), dict(memory=1.0), dict(limit=0.1)):
        with pytest.raises(UsageError, match="ratio controller"):
            RatioController(**wrong)  # type: ignore[arg-type]


def test_a_loss_that_is_off_stays_off() -> None:
    advice = RatioController(warmup=0).advise(seen(of_norms(1, 1, 1), [1.0, 0.0, 0.2]), {})
    assert advice.factors["dino"] == 1.0
    assert advice.stopped is None


def test_losses_that_share_no_parameter_are_left_alone() -> None:
    """The velocity of a detached latent: its gradient says nothing of what the others need."""
    apart = RatioController(warmup=0).advise(seen(np.eye(3), [1.0, 100.0, 100.0]), {})
    assert apart.factors == dict.fromkeys(NAMES, 1.0)
    assert "no parameter in common with flow" in str(apart.stopped)
    assert str(apart.stopped).endswith(": dino, kl")
    one = np.array([[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 1.0]])
    advice = RatioController(warmup=0).advise(seen(one, [1.0, 9.0, 9.0]), {})
    assert set(advice.reasons) == {"dino"}
    assert advice.stopped is None


def test_before_the_first_step_only_what_is_far_too_strong_is_made_weaker() -> None:
    one = RatioController()
    advice = one.begin(seen(of_norms(1, 1, 1), [1.0, 2.4, 30.0]), {})
    assert advice.factors == {"flow": 1.0, "dino": 1.0, "kl": pytest.approx(math.sqrt(0.03) / 30)}, "by any factor"
    assert set(advice.reasons) == {"kl"}
    weak = one.begin(seen(of_norms(1, 1, 1), [1.0, 1e-3, 1e-3]), {})
    assert weak.factors == dict.fromkeys(NAMES, 1.0)
    zero_head = np.diag([1.0, 50.0, 50.0])  # the velocity's only gradient is that of a head that begins at zero
    assert one.begin(seen(zero_head), {}).factors == dict.fromkeys(NAMES, 1.0)
    assert one.advise(seen(zero_head), {}).stopped is None, "which is no reason to give up"
    assert one.advise(seen(of_norms(1, 1, 1), [1.0, 9.0, 0.2]), {}).factors["dino"] < 1


def test_what_comes_near_by_itself_is_waited_for() -> None:
    one, factors = RatioController(), dict.fromkeys(NAMES, 1.0)
    for step in range(7):
        factors = one.advise(seen(of_norms(1, 1, 1.8**step), [1.0, 0.3, 0.005], step=step), factors).factors
    assert factors == dict.fromkeys(NAMES, 1.0)
    for step in range(12):
        factors = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.3, 0.005], step=step), factors).factors
    assert factors["kl"] > 10, "it no longer gains"


@pytest.mark.parametrize(("nats", "raised"), [(0.3, False), (5.0, True), (math.nan, True)])
def test_the_kl_of_a_posterior_at_its_prior_is_not_raised(nats: float, raised: bool) -> None:
    one, factors = RatioController(), dict.fromkeys(NAMES, 1.0)
    for step in range(3):
        factors = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.3, 0.002], step=step, nats=nats), factors).factors
    assert (factors["kl"] > 10) == raised
    for step in range(3):
        factors = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.3, 2.0], step=step, nats=nats), factors).factors
    assert factors["kl"] < 1, "but lowered it is"


def test_a_kl_that_holds_its_posterior_at_the_prior_is_lowered_although_it_looks_weak() -> None:
    """Of a Gaussian, the gradient of the KL by mu is mu: as long as the root of twice the KL."""
    for mu in (0.02, 0.2, 2.0):
        one, nats = RatioController(warmup=0), mu**2 / 2
        advice = one.advise(seen(of_norms(1, 1, mu), [1.0, 0.3, 0.5], nats=nats), {})
        at_a_nat = 0.5 * mu / math.sqrt(min(nats, 1.0))
        assert advice.factors["kl"] == pytest.approx(math.sqrt(0.03) / at_a_nat)
        assert ("knew 1 nat" in advice.reasons["kl"]) == (nats < 1)
        assert advice.factors["dino"] == 1.0
    rounding = RatioController(warmup=0).advise(seen(of_norms(1, 1, 1e-9), [1.0, 0.3, 0.5], nats=-1e-12), {})
    assert rounding.factors["kl"] == 1.0


def test_what_was_too_strong_is_lowered_to_the_middle_of_its_band_and_then_left_alone() -> None:
    """The edge of the band is far from the right weight where the ratio hardly follows it."""
    one, factors, noise = RatioController(bands={"kl": (0.1, 0.3)}, warmup=0), dict.fromkeys(NAMES, 1.0), None
    noise, found = np.random.default_rng(0), []
    for step in range(60):
        weight = 10.0 * factors["kl"]
        ratio = math.sqrt(0.03) * weight**0.4 * math.exp(0.15 * noise.normal())
        factors = one.advise(seen(of_norms(1, 1, ratio / weight), [1.0, 0.3, 10.0], step=step), factors).factors
        found.append(weight)
    assert 0.5 < found[-1] < 1.3, "at 2.5 times the weight the ratio is inside already"
    assert len(set(found[-30:])) == 1


def test_a_kl_that_is_waited_for_is_told_and_why() -> None:
    one, factors, told = RatioController(), dict.fromkeys(NAMES, 1.0), []
    for step in range(20):
        if step == 14:
            state, one = json.loads(json.dumps(one.state_dict())), RatioController()
            one.load_state_dict(state)
        nats = 0.04 if step < 17 else 4.0
        advice = one.advise(seen(of_norms(1, 1, 1), [1.0, 0.3, 0.002], step=step, nats=nats), factors)
        factors = advice.factors
        told.append(dict(advice.waits))
    assert [step for step, waits in enumerate(told) if waits] == list(range(11, 17))
    assert told[11]["kl"].startswith("kl is weak (0.01 of flow even if its posterior knew 1 nat of a sample")
    assert factors["kl"] > 1, "and raised then"


def test_too_strong_a_loss_is_lowered_for_as_long_as_it_takes() -> None:
    """A KL that holds its posterior down is about as strong as what it holds, whatever its weight."""
    one, factors = RatioController(), {**dict.fromkeys(NAMES, 1.0)}
    for step in range(40):
        weight = 100.0 * factors["kl"]
        settled = 0.2 * weight**0.3
        advice = one.advise(seen(of_norms(1, 0.3, settled / weight), [1.0, 1.0, 100.0], step=step), factors)
        factors = advice.factors
        assert advice.stopped is None
    assert 0.1 <= 0.2 * (100.0 * factors["kl"]) ** 0.3 <= 0.3


def test_after_raises_in_vain_a_loss_is_only_lowered() -> None:
    one, factors = RatioController(warmup=0), dict.fromkeys(NAMES, 1.0)
    reasons, step = dict[str, str](), 0
    while "follow" not in reasons.get("kl", ""):
        advice = one.advise(seen(of_norms(1, 0.3, 0.01 / factors["kl"]), step=step), factors)
        factors, reasons, step = advice.factors, dict(advice.reasons), step + 1
    assert (factors["kl"], advice.stopped) == (1.0, None)
    assert one.advise(seen(of_norms(1, 0.3, 0.01)), factors).factors["kl"] == 1.0
    for _ in range(3):
        factors = one.advise(seen(of_norms(1, 0.3, 3.0)), factors).factors
    assert factors["kl"] < 0.2


@pytest.mark.parametrize("answer", [1.0, 0.9])
def test_a_gradient_that_shrinks_as_its_weight_grows_is_not_chased(answer: float) -> None:
    """A KL on its way to 0 has ever less gradient: more weight makes it smaller still."""
    one, factors, told = RatioController(warmup=0, limit=1e9), dict.fromkeys(NAMES, 1.0), None
    most = 1.0
    for step in range(30):
        kl = 0.01 * factors["kl"] ** -answer
        advice = one.advise(seen(of_norms(1.0, 0.3, kl), step=step), factors)
        factors, told = advice.factors, advice.stopped or told
        most = max(most, factors["kl"])
    assert told is not None
    assert "kl does not follow its weight" in told
    assert factors["kl"] == 1.0, "put back"
    assert most < 1e5


def test_a_gradient_that_follows_slowly_is_still_brought_in() -> None:
    one, factors = RatioController(warmup=0), dict.fromkeys(NAMES, 1.0)
    for step in range(20):
        kl = 0.01 * factors["kl"] ** -0.4
        factors = one.advise(seen(of_norms(1.0, 0.3, kl), step=step), factors).factors
    assert 0.05 < 0.01 * factors["kl"] ** 0.6 < 0.35


def test_a_chase_survives_a_checkpoint() -> None:
    def run(restart: int | None) -> list[float]:
        one, factors, found = RatioController(warmup=0), dict.fromkeys(NAMES, 1.0), []
        for step in range(12):
            if step == restart:
                state, one = json.loads(json.dumps(one.state_dict())), RatioController(warmup=0)
                one.load_state_dict(state)
            factors = one.advise(seen(of_norms(1, 0.3, 0.01 / factors["kl"]), step=step), factors).factors
            found.append(factors["kl"])
        return found

    assert run(None) == run(1) == run(2) == run(3) == run(8)


# Cosine


@pytest.mark.parametrize(("angle", "factor"), [(0, 1.0), (90, 1.0), (180, 0.05), (120, 0.525)])
def test_a_loss_weighs_less_the_more_it_opposes(angle: float, factor: float) -> None:
    a = math.radians(angle)
    g = np.array([[1.0, 0.0], [3 * math.cos(a), 3 * math.sin(a)]])
    advice = CosineWeighting().advise(seen(g), {})
    assert advice.factors == pytest.approx({"flow": 1.0, "dino": factor})
    assert cosines(g @ g.T)[0, 1] == pytest.approx(math.cos(a), abs=1e-12)


def test_a_single_conflict_is_smoothed() -> None:
    one = CosineWeighting(memory=0.9)
    for step in range(5):
        one.advise(seen(np.eye(2), step=step), {})
    factors = one.advise(seen(np.array([[1.0, 0.0], [-1.0, 0.0]])), {}).factors
    assert 0.85 < factors["dino"] < 1.0


# All of them


MAKERS: list[Callable[[], Balancer]] = list(BALANCERS.values())


@pytest.mark.parametrize("make", MAKERS, ids=list(BALANCERS))
def test_the_same_measurements_give_the_same_advice_and_survive_a_checkpoint(make: Callable[[], Balancer]) -> None:
    def measurements(begin: int, end: int) -> list[Measured]:
        return [
            seen(vectors(3, n) * [[1.0], [0.01], [5.0]], losses=[1.0 / (n + 1), 0.5, 0.7], step=n)
            for n in range(begin, end)
        ]

    one, other, factors = make(), make(), dict.fromkeys(NAMES, 1.0)
    for m in measurements(0, 5):
        factors = one.advise(m, factors).factors
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    mine, theirs = dict(factors), dict(factors)
    for m in measurements(5, 10):
        mine, theirs = one.advise(m, mine).factors, other.advise(m, theirs).factors
        assert mine == theirs
    assert all(math.isfinite(factor) and factor >= 0 for factor in mine.values())


@pytest.mark.parametrize("make", MAKERS, ids=list(BALANCERS))
@pytest.mark.parametrize("size", [0.0, 1e-150, 1e150])
def test_gradients_of_any_size(make: Callable[[], Balancer], size: float) -> None:
    one, factors = make(), dict.fromkeys(NAMES, 1.0)
    for step in range(5):
        factors = one.advise(seen(vectors(3, step, size), step=step), factors).factors
    assert all(math.isfinite(factor) for factor in factors.values())


def test_a_balancer_by_name() -> None:
    assert isinstance(balancer("ratio"), RatioController)
    own = PCGrad(seed=3)
    assert balancer(own) is own
    with pytest.raises(
        UsageError, match=r"(?s)balance= names a balancer.*'config', 'cosine', 'gradnorm', 'pcgrad', 'ratio'"
    ):
        balancer("magic")


# torchjd


@pytest.mark.parametrize("k", [2, 3, 5])
def test_pcgrad_of_two_is_torchjds(k: int) -> None:
    """Its order is random, so that for more than two losses only the mean over many orders can be compared."""
    torch.manual_seed(0)
    g = vectors(k, k)
    g[:, 0] += np.linspace(-4, 4, k)
    theirs = PCGradWeighting()
    gram = torch.as_tensor(g @ g.T)
    many = 1 if k == 2 else 600
    expected = torch.stack([theirs(gram) for _ in range(many)]).mean(0).numpy()
    found = np.mean([coefficients(g @ g.T, np.random.default_rng(n)) for n in range(many)], 0)
    assert found == pytest.approx(expected, rel=1e-6 if k == 2 else 0.03)


def test_a_weighting_is_a_balancer_and_leaves_the_random_state() -> None:
    one = balancer(PCGradWeighting())
    assert one.name == "PCGradWeighting"
    state = torch.get_rng_state()
    g = vectors(3, 4)
    g[1] -= 3 * g[0]
    first, again = one.advise(seen(g, [1.0, 2.0, 0.5], step=7), {}), one.advise(seen(g, [1.0, 2.0, 0.5], step=7), {})
    assert first == again, "the step alone says how it is drawn"
    assert torch.equal(torch.get_rng_state(), state)
    weights = np.array([1.0, 2.0, 0.5])
    own = coefficients((g @ g.T) * np.outer(weights, weights), np.random.default_rng(0))
    assert list(first.factors.values()) == pytest.approx(own, rel=0.5)


def test_mgda_finds_the_shortest_vector() -> None:
    g = np.array([[1.0, 0.0], [0.0, 2.0]])
    factors = balancer(MGDAWeighting()).advise(seen(g), {}).factors
    combined = factors["flow"] * g[0] + factors["dino"] * g[1]
    assert np.linalg.norm(combined) == pytest.approx(2 / math.sqrt(5), rel=1e-2)


def test_what_is_no_weighting_is_refused_or_stops() -> None:
    with pytest.raises(UsageError, match="is no weighting of a Gram"):
        balancer(lambda gram: gram).advise(seen(np.eye(3)), {})
    assert "no weights" in str(balancer(lambda gram: -gram.diagonal()).advise(seen(np.eye(3)), {}).stopped)
