"""Sketched gradients against the gradients themselves, sketched by the same signs: what a pass must give, exactly."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossdoctor import linalg
from lossdoctor.errors import UsageError
from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.linearity import Linearity
from lossdoctor.probe.parameters import ParameterMap, parameter_map
from lossdoctor.probe.sketch import EXACT_UP_TO, Sketch, checked_mode

M = 8


@dataclass(frozen=True)
class Case:
    """model and the function that gives its losses. covered: names of the parameters that are sketched."""

    model: nn.Module
    losses: Callable[[nn.Module], list[Tensor]]
    covered: tuple[str, ...]
    tolerance: float = 1e-5


def mlp(bias: bool = True) -> nn.Sequential:
    layers = nn.Linear(20, 64, bias=bias), nn.Tanh(), nn.Linear(64, 64, bias=bias), nn.Tanh(), nn.Linear(64, 40, bias)
    return nn.Sequential(*layers)


ALL = ("0.weight", "2.weight", "4.weight")
OUTER = ("0.weight", "4.weight")


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def square(y: Tensor) -> Tensor:
    return y.float().square().mean() if y.dtype != torch.float64 else y.square().mean()


class Own(nn.Module):
    """A weight of its own, used by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.W = nn.Parameter(x(*shape or (40, 40)) / 6)
        self.function = function

    def forward(self) -> Tensor:
        return self.function(self.W)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(30, 40), nn.Linear(40, 40)
        self.out = nn.Linear(40, 30, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.inner(self.embedding(tokens)).relu())


def autocast(model: nn.Module) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return [square(model(x(16, 20))), (model(x(16, 20)) + model(x(16, 20))).float().sum()]


def tensor_hook(model: nn.Module) -> list[Tensor]:
    y = model[0](x(16, 20))
    y.register_hook(lambda grad: 3 * grad)
    return [square(model[1:](y))]


def with_hook(kind: str, module: int, change: Callable[..., Any]) -> nn.Sequential:
    model = mlp()
    getattr(model[module], kind)(change)
    return model


def frozen_middle() -> nn.Sequential:
    model = mlp()
    model[2].weight.requires_grad_(False)
    return model


def penalty(model: nn.Module) -> list[Tensor]:
    a = x(9, 20).requires_grad_()
    (slope,) = torch.autograd.grad(model(a).sum(), a, create_graph=True)
    return [square(slope), square(model(a))]


def weight_hook() -> nn.Sequential:
    model = mlp()
    model[2].weight.register_hook(lambda grad: 5 * grad)
    return model


def attention(length: int, inputs: int = 3) -> Callable[[nn.Module], list[Tensor]]:
    q, k, v = x(2, 5, 48), x(2, length, 48), x(2, length, 48) + 1
    if inputs < 3:
        q, k, v = (q, q, q) if inputs == 1 else (q, k, k)
    return lambda model: [square(model(q, k, v, need_weights=False)[0]), model(q, k, v)[0].sum()]


def conv(kind: type[nn.Module], *settings: Any, shape: tuple[int, ...], **more: Any) -> Case:
    return Case(kind(*settings, **more), lambda model: [square(model(x(*shape))), model(x(*shape)).sum()], ("weight",))


def exact(case: Case) -> Case:
    return Case(case.model, case.losses, ())


def plain(model: nn.Module) -> list[Tensor]:
    return [square(model(x(16, 20))), model[:3](x(16, 20)).sum(), model[:1](x(16, 20)).sum()]


def twice(model: nn.Module) -> list[Tensor]:
    return [square(model[2](model[2](model[:2](x(16, 20))))), model[:2](x(16, 20)).sum()]


def own(function: Callable[[Tensor], Tensor], *shape: int, covered: bool = True) -> Case:
    return Case(Own(function, *shape), lambda model: [square(model())], ("W",) if covered else ())


def many(W: Tensor) -> Tensor:
    a = x(9, 40)
    return (a @ W).tanh() @ W.t() + F.linear(a, W) + (W @ a.t()).t() + torch.addmm(a, a, W.mT, alpha=0.3, beta=2)


def parts(W: Tensor) -> Tensor:
    a = x(9, 40)
    p, q, r = W.chunk(3)
    return F.linear(a, p) * F.linear(a, q) + F.linear(a, r) + (a[:, :15] @ W.t().split([15, 25])[0])[:, :30]


CASES = {
    "linear": lambda: Case(mlp(), plain, ALL),
    "no bias, so that a pass ends at the first layer": lambda: Case(mlp(bias=False), plain, ALL),
    "more dimensions": lambda: Case(mlp(), lambda m: [square(m(x(3, 5, 20))), m(x(2, 2, 3, 20)).sum()], ALL),
    "not contiguous": lambda: Case(mlp(), lambda m: [square(m(x(3, 20, 5).transpose(1, 2)))], ALL),
    "no batch": lambda: Case(mlp(), lambda m: [square(m(x(20)))], ALL),
    "called twice": lambda: Case(mlp(), twice, ("0.weight", "2.weight")),
    "unused by the losses": lambda: Case(mlp(), lambda m: [m[0](x(16, 20)).sum()], ("0.weight",)),
    "used without gradients too": lambda: Case(mlp(), lambda m: [square(m(m(x(9, 20)).detach()[:, :20]))], ALL),
    "recomputed": lambda: Case(mlp(), lambda m: [square(checkpoint(m, x(9, 20), use_reentrant=False))], ALL),
    "autocast": lambda: Case(mlp(), autocast, ALL, 2e-2),
    "bfloat16": lambda: Case(mlp().bfloat16(), lambda m: [square(m(x(16, 20).bfloat16()))], ALL, 2e-2),
    "float64": lambda: Case(mlp().double(), lambda m: [square(m(x(16, 20).double()))], ALL, 1e-6),
    "self-attention": lambda: Case(
        nn.MultiheadAttention(48, 4, batch_first=True), attention(5, inputs=1), ("in_proj_weight", "out_proj.weight")
    ),
    "cross-attention": lambda: Case(
        nn.MultiheadAttention(48, 4, batch_first=True), attention(6, inputs=2), ("in_proj_weight", "out_proj.weight")
    ),
    "three inputs": lambda: Case(
        nn.MultiheadAttention(48, 4, batch_first=True), attention(6), ("in_proj_weight", "out_proj.weight")
    ),
    "recurrent cell": lambda: Case(
        nn.GRUCell(20, 40), lambda m: [square(m(x(9, 20), m(x(9, 20))))], ("weight_ih", "weight_hh")
    ),
    "conv1d": lambda: conv(nn.Conv1d, 12, 40, 5, stride=2, padding=2, dilation=2, shape=(3, 12, 30)),
    "conv2d": lambda: conv(nn.Conv2d, 12, 40, 3, padding="same", shape=(3, 12, 9, 8)),
    "conv2d, no batch": lambda: conv(nn.Conv2d, 12, 40, 3, shape=(12, 9, 8)),
    "conv2d, reflected": lambda: conv(nn.Conv2d, 12, 40, 3, padding=1, padding_mode="reflect", shape=(2, 12, 9, 8)),
    "conv3d": lambda: conv(nn.Conv3d, 6, 40, 3, shape=(2, 6, 5, 6, 7)),
    "transposed": lambda: conv(nn.ConvTranspose2d, 40, 12, 4, 2, 1, shape=(3, 40, 5, 6)),
    "transposed, output padding": lambda: conv(
        nn.ConvTranspose2d, 40, 12, 3, 2, 1, output_padding=1, shape=(3, 40, 5, 6)
    ),
    "a middle that is frozen": lambda: Case(frozen_middle(), lambda m: [square(m(x(9, 20)))], OUTER),
    "a gradient penalty": lambda: Case(mlp(), penalty, ALL),
    "one sample at a time": lambda: Case(mlp(), lambda m: [square(torch.func.vmap(m)(x(9, 20)))], ALL),
    "sparse": lambda: own(lambda W: (x(9, 40) * (x(9, 40) > 0.5)).to_sparse() @ W),
    "by hand": lambda: own(many),
    "with itself": lambda: own(lambda W: x(9, 40) @ (W @ W)),
    "in parts": lambda: own(parts, 90, 40),
    "hook on a tensor": lambda: Case(mlp(), tensor_hook, ALL),
    "hook on the lowest tensor": lambda: Case(mlp(bias=False), tensor_hook, ALL),
    "backward hook": lambda: Case(
        with_hook("register_full_backward_hook", 2, lambda m, into, out: (into[0] * 2,)), plain, ALL
    ),
    "backward pre-hook": lambda: Case(
        with_hook("register_full_backward_pre_hook", 2, lambda m, out: (out[0] * 2,)), plain, ALL
    ),
    "old backward hook": lambda: Case(
        with_hook("register_backward_hook", 2, lambda m, into, out: tuple(2 * g for g in into)), plain, OUTER
    ),
    "hook on a weight": lambda: Case(weight_hook(), plain, OUTER),
    "tied with an embedding": lambda: Case(
        Tied(), lambda m: [square(m(torch.arange(28).reshape(4, 7)))], ("inner.weight",)
    ),
    "weight norm": lambda: Case(
        nn.utils.parametrizations.weight_norm(nn.Linear(20, 64)), lambda m: [square(m(x(9, 20)))], ()
    ),
    "grouped": lambda: exact(conv(nn.Conv2d, 16, 40, 3, groups=2, shape=(3, 16, 9, 8))),
    "room for another patch": lambda: exact(
        conv(nn.ConvTranspose1d, 40, 12, 3, dilation=2, output_padding=1, shape=(3, 40, 5))
    ),
    "in a sum of squares too": lambda: own(lambda W: x(9, 40) @ W + W.square().mean(), covered=False),
    "through a view": lambda: own(lambda W: x(9, 80) @ W.view(80, 20), covered=False),
    "einsum": lambda: own(lambda W: torch.einsum("bti,oi->bto", x(2, 9, 40), W), covered=False),
    "batched": lambda: own(lambda W: torch.bmm(x(2, 9, 40), W.expand(2, 40, 40)), covered=False),
    "small": lambda: own(lambda W: x(9, 12) @ W, 12, 12, covered=False),
    "complex": lambda: own(lambda W: (x(9, 40).to(W.dtype) @ W).abs(), covered=False),
}


def differences(case: Case) -> tuple[float, tuple[str, ...]]:
    """Largest relative error over losses and parameters, and the parameters covered."""
    where = parameter_map(case.model, {}, [])
    losses = case.losses(case.model)
    wanted = [torch.autograd.grad(loss, where.parameters, retain_graph=True, allow_unused=True) for loss in losses]
    sketch = Sketch(where, 3, M)
    passes = sketch.passes(losses, case.model.modules())
    worst = 0.0
    for loss, gradients in zip(losses, wanted, strict=True):
        for i, (found, gradient) in enumerate(zip(passes.gradients(loss, where.parameters), gradients, strict=True)):
            held = sketch.held(i, gradient)
            assert (found is None) == (held is None), "unused is not zero, and zero not unused"
            if found is not None:
                assert found.shape == held.shape
                worst = max(worst, float((found - held).norm() / held.norm().clamp_min(1e-12)))
    names = [name for name, p in case.model.named_parameters() if p.requires_grad]
    return worst, tuple(names[i] for i in sorted(passes.covered))


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("name", CASES)
def test_a_pass_gives_the_sketch_of_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    if name == "complex":
        case.model.W = nn.Parameter(case.model.W.detach().to(torch.complex64))
    worst, covered = differences(case)
    assert covered == case.covered
    assert worst <= case.tolerance


def test_a_recomputed_block_is_computed_once_for_all_it_saved() -> None:
    model, calls = mlp(), []

    def block(a: Tensor) -> Tensor:
        calls.append(1)
        return model(a)

    loss = square(checkpoint(block, x(9, 20), use_reentrant=False))
    Sketch(parameter_map(model, {}, []), 0, M).passes([loss])
    assert len(calls) == 2, "one forward, one for all saved activations"


# Properties of the sketch itself


def drawn(where: ParameterMap, seed: int, size: int = M) -> Sketch:
    sketch = Sketch(where, seed, size)
    sketch.signs = {i: sketch._draw(i) for i in range(len(where.parameters))}
    return sketch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_sketch_is_linear(dtype: torch.dtype) -> None:
    where = ParameterMap((nn.Parameter(torch.zeros(50, 6, 3, 3, dtype=dtype)),), (("a",),))
    sketch = drawn(where, 5)
    a, b = x(50, 6, 3, 3).to(dtype), (x(50, 6, 3, 3) ** 2).to(dtype)
    both = 2 * sketch.held(0, a) - 3 * sketch.held(0, b)
    assert both.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert both.shape == (8, 8)
    together = sketch.held(0, 2 * a.double() - 3 * b.double())
    assert torch.allclose(both.double(), together, atol=1e-4)
    assert sketch.held(0, None) is None


def test_half_precision_does_not_overflow_in_a_sketch() -> None:
    where = ParameterMap((nn.Parameter(torch.zeros(500, 500, dtype=torch.float16)),), (("a",),))
    assert drawn(where, 0).held(0, torch.full((500, 500), 6e4, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (12, 100), (64, 3, 3, 3)])
def test_inner_products_are_right_on_average_over_the_signs(shape: tuple[int, ...]) -> None:
    where = ParameterMap((nn.Parameter(torch.zeros(shape)),), (("a",),))
    a, b = x(*shape), x(*shape) ** 2 - 0.8
    a[0] += 2.0  # neither of full rank nor flat
    draws = 600
    found = torch.empty(draws, 3, dtype=torch.float64)
    for seed in range(draws):
        sketch = drawn(where, seed)
        s, t = sketch.held(0, a).double(), sketch.held(0, b).double()
        found[seed] = torch.stack([(s * s).sum(), (t * t).sum(), (s * t).sum()])
    wanted = torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]).double()
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - wanted).abs() < 4 * error).all()
    assert (found.std(0) < 0.8 * wanted[:2].prod().sqrt()).all(), "the average must mean something"


def test_signs_differ_between_steps_and_weights_and_are_the_same_again() -> None:
    where = ParameterMap((nn.Parameter(torch.zeros(50, 60)), nn.Parameter(torch.zeros(50, 60))), (("a",), ("a",)))
    state = torch.get_rng_state()
    one, again, other = drawn(where, 1), drawn(where, 1), drawn(where, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.signs[0][0], again.signs[0][0])
    assert one.signs[0][0].unique().tolist() == [-1, 1]
    for different in (one.signs[1][0], other.signs[0][0], one.signs[0][1][:50]):
        assert abs(float((one.signs[0][0] * different).float().mean())) < 0.2


# In the ledger


class Three(nn.Module):
    """A trunk with two heads, wide enough to be sketched but for `small`; `kl` touches the trunk only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(24, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 48))
        self.flow_head = nn.Linear(48, 24)
        self.dino_head = nn.Linear(48, 40)
        self.small = nn.LayerNorm(48)

    def losses(self, a: Tensor) -> dict[str, Tensor]:
        h = self.trunk(a)
        return {
            "flow": (self.flow_head(h) - a).square().mean(),
            "kl": h.square().mean(),
            "dino": -self.dino_head(h).log_softmax(-1)[:, 0].mean() + (self.small(h) - 1).square().mean(),
        }


WEIGHTS = {"flow": 1.0, "kl": 0.3, "dino": 2.0, "gan": 1.0, "aside": 1.0}


def step(
    model: nn.Module, batches: list[Tensor], seed: int | None, linearity: Linearity, scale: Tensor | None = None
) -> tuple[Ledger, Any, Any]:
    where = parameter_map(model, {}, [])
    ledger = Ledger(where, linearity, sketch=None if seed is None else Sketch(where, seed, M))
    for a in batches:
        losses = model.losses(a)
        weights = {name: WEIGHTS[name] for name in losses}
        ledger.observe(losses, weights, modules=list(model.modules()), scale=scale)
        total = sum(weights[name] * loss for name, loss in losses.items())
        (total if scale is None else total * scale).backward()
        ledger.after_backward()
    gradients, error = ledger.settle()
    norms = {n: float(gradients.gram[""][i, i].sqrt()) for i, n in enumerate(gradients.names)}
    linearity.learn(ledger, norms, None if error is None else float(error))
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    return ledger, gradients, error


def averaged(model: nn.Module, batches: list[Tensor], draws: int, **options: Any) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for seed in range(draws):
        model.zero_grad()
        for module, gram in step(model, batches, seed, Linearity(), **options)[1].gram.items():
            found.setdefault(module, []).append(gram)
    return {module: torch.stack(grams).mean(0) for module, grams in found.items()}


@pytest.mark.parametrize("scale", [None, torch.tensor(1024.0)])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_ledger_tells_the_same_as_with_exact_gradients(micro: int, scale: Tensor | None) -> None:
    model, batches = Three(), [x(33, 24) * (n + 1) for n in range(micro)]
    _, exact, _ = step(model, batches, None, Linearity())
    found = averaged(model, batches, 40, scale=scale)
    model.zero_grad()
    ledger, one, error = step(model, batches, 7, Linearity(), scale=scale)
    assert error is not None
    assert float(error) < 1e-6
    assert one.reached == exact.reached
    assert one.measured == exact.measured
    assert one.sketched == {"", "trunk", "flow_head", "dino_head"}
    assert torch.allclose(one.gram["small"], exact.gram["small"], rtol=1e-4, atol=1e-12)
    for module, gram in exact.gram.items():
        lengths = gram.diagonal().sqrt()
        assert torch.allclose(one.gram[module][-1, -1], gram[-1, -1], rtol=1e-5), "the total is known exactly"
        assert ((found[module] - gram).abs() <= 0.12 * lengths.outer(lengths) + 1e-15).all()
    weights = one.weights @ one.gram[""][:-1, -1] / one.gram[""][-1, -1]
    assert float(weights) == pytest.approx(1.0, abs=1e-6), "shares sum to 1"
    norms = torch.linalg.vector_norm(ledger.lengths(range(len(ledger.where.parameters))))
    whole = exact.gram[""][-1, -1].sqrt() * (1.0 if scale is None else float(scale))
    assert float(norms) == pytest.approx(float(whole), rel=1e-5)


def test_a_derived_loss_follows_from_sketches_too() -> None:
    model, batch, linearity = Three(), [x(33, 24)], Linearity()
    _, first, _ = step(model, batch, 5, linearity)
    model.zero_grad()
    _, second, _ = step(model, batch, 5, linearity)
    assert first.derived is None
    assert second.derived == "flow"
    for module in first.gram:
        scale = first.gram[module].diagonal().max()
        assert torch.allclose(first.gram[module] / scale, second.gram[module] / scale, atol=1e-4)
    assert not second.gram["dino_head"][second.names.index("flow")].any()


def test_a_gradient_left_over_from_before_is_not_counted() -> None:
    model, batch = Three(), [x(33, 24)]
    step(model, batch, None, Linearity())
    before = [p.grad.clone() for p in model.parameters()]
    _, found, _ = step(model, batch, 5, Linearity())
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(model.parameters(), before, strict=True))
    model.zero_grad()
    _, exact, _ = step(model, batch, None, Linearity())
    assert float(found.gram[""][-1, -1].sqrt()) == pytest.approx(float(exact.gram[""][-1, -1].sqrt()), rel=0.3)
    for fill in (None, 0.0):
        for p in model.parameters():
            p.grad = None if fill is None else torch.zeros_like(p)
        _, again, _ = step(model, batch, 5, Linearity())
        assert torch.allclose(again.gram[""][-1, -1], exact.gram[""][-1, -1], rtol=1e-5)


def test_what_is_lost_between_micro_batches_is_counted_in_sketches() -> None:
    model, batches = Three(), [x(33, 24)] * 4
    where = parameter_map(model, {}, [])
    ledger = Ledger(where, Linearity(), sketch=Sketch(where, 0, M))
    for a in batches:
        losses = model.losses(a)
        ledger.observe(losses, WEIGHTS, modules=[model])
        sum(WEIGHTS[n] * loss for n, loss in losses.items()).backward()
        ledger.after_backward()
        last = [p.grad for p in model.parameters()]
        model.zero_grad()
    for p, grad in zip(model.parameters(), last, strict=True):
        p.grad = grad
    found, _ = ledger.settle()
    assert float((found.gram[""][-1, -1] / found.accumulated).sqrt()) == pytest.approx(0.25, rel=0.2)


def test_a_weight_used_otherwise_in_a_later_micro_batch_stays_right() -> None:
    class Changing(Three):
        def losses(self, a: Tensor) -> dict[str, Tensor]:
            losses = super().losses(a)
            return losses if len(a) == 33 else {**losses, "kl": losses["kl"] + self.trunk[0].weight.square().sum()}

    for batches in ([x(33, 24), x(34, 24)], [x(34, 24), x(33, 24)]):
        model = Changing()
        _, found, error = step(model, batches, 3, Linearity())
        assert float(error) < 1e-6, "the sketches of the losses add up to that of the gradient"
        assert found.measured == (True, True, True)


def test_one_loss_constant_losses_and_unreached_parameters() -> None:
    class One(Three):
        def losses(self, a: Tensor) -> dict[str, Tensor]:
            return {"flow": super().losses(a)["flow"]}

    class Odd(Three):
        def losses(self, a: Tensor) -> dict[str, Tensor]:
            aside = (a.clone().requires_grad_() ** 2).sum()
            return {**super().losses(a), "gan": torch.tensor(0.7), "aside": aside}

    model = One()
    ledger, found, error = step(model, [x(33, 24)], 3, Linearity())
    assert float(error) < 1e-6, "its pass is measured against the total once; later the total is enough"
    assert found.reached["dino_head"] == (False,)
    dino = [i for i, labels in enumerate(ledger.where.labels) if "dino_head" in labels]
    assert all(ledger.rows["flow"][i] is None for i in dino)
    gram = found.gram[""]
    assert torch.allclose(gram[0, 0], gram[-1, -1], rtol=1e-5), "one loss is the total, whose length is known"
    _, odd, _ = step(Odd(), [x(33, 24)], 3, Linearity())
    assert odd.measured == (True, True, True, False, True)
    assert not any(reached[3] or reached[4] for reached in odd.reached.values())


def test_the_source_gradient_is_exact() -> None:
    model = Three()
    where = parameter_map(model, {}, [])
    a = x(33, 24)
    z1 = a * 2.0
    z1.requires_grad_()
    losses = model.losses(z1)
    wanted = torch.autograd.grad(losses["flow"], z1, retain_graph=True)[0]
    ledger = Ledger(where, Linearity(), sketch=Sketch(where, 0, M))
    ledger.observe(losses, WEIGHTS, modules=[model], z1=z1, z1_loss="flow")
    assert torch.equal(ledger.source(z1)[0], wanted)


def test_the_first_order_decrease_is_right_on_average() -> None:
    model, batch = Three(), [x(33, 24)]
    generator = torch.Generator().manual_seed(4)
    exact_ledger, exact, _ = step(model, batch, None, Linearity())
    decrease = [
        (1e-3 * p.grad + 1e-4 * torch.randn(p.shape, generator=generator)).reshape(-1) for p in model.parameters()
    ]
    wanted = exact_ledger.along(dict(enumerate(decrease)))
    found = []
    for seed in range(40):
        model.zero_grad()
        ledger, _, _ = step(model, batch, seed, Linearity())
        found.append(ledger.along(dict(enumerate(decrease))))
    found = torch.stack(found)
    bound = exact.gram[""].diagonal()[:-1].sqrt() * linalg.squares([decrease])[0].sqrt()
    assert ((found.mean(0) - wanted).abs() <= 0.06 * bound).all()
    assert ((found - wanted).abs() <= 0.6 * bound).all()


def test_the_decrease_is_the_difference_of_two_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an update of a millionth of the weights, and taken in several turns, as if the update had been sketched."""
    monkeypatch.setattr("lossdoctor.probe.sketch._ROWS_OF", 200)
    model = Three()
    ledger, _, _ = step(model, [x(33, 24)], 0, Linearity())
    before = [p.detach().clone() for p in model.parameters()]
    after = [p + 1e-6 * torch.randn_like(p) for p in before]
    update = [b.double() - a.double() for b, a in zip(before, after, strict=True)]
    wanted = ledger.along(dict(enumerate(update)))
    found = ledger.along(dict(enumerate(before))) - ledger.along(dict(enumerate(after)))
    length = linalg.squares([update])[0].sqrt()
    for name, value, right in zip(ledger.losses, found, wanted, strict=True):
        assert abs(value - right) <= 1e-3 * length * linalg.squares([ledger.rows.get(name) or ledger.total])[0].sqrt()


def test_nothing_stays_on_the_graph_or_in_memory() -> None:
    """No hook is left for the real backward, and of the activations' projections nothing outlives the passes."""
    model, rows = Three(), 37
    where = parameter_map(model, {}, [])
    ledger = Ledger(where, Linearity(), sketch=Sketch(where, 0, M))
    losses = model.losses(x(rows, 24))
    ledger.observe(losses, WEIGHTS, modules=[model])
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lossdoctor.probe.sketch.Passes._arrived", lambda *_: shares.append(1))
        sum(WEIGHTS[n] * loss for n, loss in losses.items()).backward()
    ledger.after_backward()
    assert not shares
    del losses
    gc.collect()
    with_rows = [o for o in gc.get_objects() if type(o) is Tensor and o.ndim == 2 and len(o) == rows]
    assert not with_rows
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_auto_goes_by_the_number_of_trained_parameters() -> None:
    few, many = [torch.zeros(3, requires_grad=True)], [torch.empty(EXACT_UP_TO + 1, device="meta", requires_grad=True)]
    assert checked_mode("auto", few) == "exact"
    assert checked_mode("auto", many) == "sketch"
    assert checked_mode("auto", [many[0].detach()]) == "exact", "what is frozen has no gradient"
    assert checked_mode("sketch", few) == "sketch"
    with pytest.raises(UsageError, match="gradients= names a mode"):
        checked_mode("fast", few)
