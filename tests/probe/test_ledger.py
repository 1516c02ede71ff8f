"""Per-loss gradients against the obvious way: one fresh forward and one backward per loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.linearity import CALIBRATE_EVERY, Linearity
from lossdoctor.probe.parameters import parameter_map


class Three(nn.Module):
    """A trunk with two heads; `kl` touches the trunk only, `flow` everything but `dino`'s head."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 8))
        self.flow_head = nn.Linear(8, 6)
        self.dino_head = nn.Linear(8, 5)
        self.to(dtype)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {
            "flow": (self.flow_head(h) - x).square().mean(),
            "kl": h.square().mean(),
            "dino": -self.dino_head(h).log_softmax(-1)[:, 0].mean(),
        }


def obvious(model: nn.Module, batches: list[Tensor], name: str) -> Tensor:
    """The gradient of one loss summed over micro-batches, as one float64 vector."""
    twin = copy.deepcopy(model).double()
    twin.zero_grad()
    for x in batches:
        loss = twin.losses(x.double())[name]
        if loss.requires_grad:
            loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in twin.parameters()])


def expected_gram(model: nn.Module, batches: list[Tensor], weights: dict[str, float]) -> Tensor:
    rows = [obvious(model, batches, name) for name in weights]
    total = sum(w * row for w, row in zip(weights.values(), rows, strict=True))
    matrix = torch.stack([*rows, total])
    return matrix @ matrix.T


def one_step(model, batches, weights, linearity, *, scale=None, factor=1.0, heads=()):
    ledger = Ledger(parameter_map(model, {h: getattr(model, h) for h in heads}, []), linearity)
    for x in batches:
        losses = model.losses(x)
        ledger.observe(losses, weights, modules=[model], scale=scale, foreign_backward=factor != 1.0)
        total = sum(weights[n] * loss for n, loss in losses.items()) * factor
        (total if scale is None else total * scale).backward()
        ledger.after_backward()
    gradients, error = ledger.settle()
    gram = gradients.gram[""]
    norms = {n: gram[i, i].sqrt().item() for i, n in enumerate(gradients.names) if gradients.measured[i]}
    linearity.learn(ledger, norms, None if error is None else float(error))
    model.zero_grad()
    return ledger, gradients, error


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    lengths = wanted.diagonal().clamp_min(0).sqrt()
    assert ((found - wanted).abs() <= tolerance * lengths.outer(lengths) + 1e-20).all(), f"{found}\n{wanted}"


WEIGHTS = {"flow": 1.0, "kl": 0.3, "dino": 2.0}


@pytest.mark.parametrize("micro", [1, 3])
def test_measured_and_derived_equal_the_obvious_way(micro: int) -> None:
    model, linearity = Three(), Linearity()
    batches = [torch.randn(9, 6) for _ in range(micro)]
    wanted = expected_gram(model, batches, WEIGHTS)
    _, first, error = one_step(model, batches, WEIGHTS, linearity)
    assert first.derived is None
    assert error is not None
    assert float(error) < 1e-6
    assert_same(first.gram[""], wanted)
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    _, second, error = one_step(model, batches, WEIGHTS, linearity)
    assert second.derived == "flow"
    assert error is None
    assert_same(second.gram[""], wanted)


def test_modules_add_up_and_a_derived_loss_is_exactly_silent_where_it_does_not_reach() -> None:
    model, linearity = Three(), Linearity()
    batch = [torch.randn(9, 6)]
    one_step(model, batch, WEIGHTS, linearity, heads=["dino_head"])
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    _, found, _ = one_step(model, batch, WEIGHTS, linearity, heads=["dino_head"])
    assert set(found.gram) == {"", "trunk", "flow_head", "dino_head"}
    assert_same(sum(g for m, g in found.gram.items() if m), found.gram[""])
    flow = found.names.index("flow")
    assert found.derived == "flow"
    assert not found.gram["dino_head"][flow].any()
    assert found.reached["dino_head"] == (False, False, True)
    assert found.reached["trunk"] == (True, True, True)


class Entered(torch.autograd.Function):
    """The identity, which counts how often a backward came through."""

    count = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        Entered.count += 1
        return grad


class OwnBranch(Three):
    """Like `Three`, with a branch that only one loss goes through, as a student that sees pictures has one."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(6, 12), nn.SiLU(), nn.Linear(12, 5))
        self.shares = False

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        found = super().losses(x)
        seen = Entered.apply(self.student(x)) if x.dtype == torch.float32 else self.student(x)
        found["dino"] = found["dino"] - seen.log_softmax(-1)[:, 1].mean()
        if self.shares:
            found["kl"] = found["kl"] + seen.square().mean()
        return found


def test_a_pass_stops_where_one_loss_is_alone() -> None:
    model, linearity, batches = OwnBranch(), Linearity(), [torch.randn(9, 6)]
    heads = ["dino_head", "student", "flow_head"]
    counts = []
    for _ in range(2):
        Entered.count = 0
        linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
        ledger, found, _ = one_step(model, batches, WEIGHTS, linearity, heads=heads)
        counts.append(Entered.count)
        assert_same(found.gram[""], expected_gram(model, batches, WEIGHTS))
        assert_same(sum(g for m, g in found.gram.items() if m), found.gram[""])
        assert found.reached["student"] == found.reached["dino_head"] == (False, False, True)
        assert found.reached["flow_head"] == (True, False, False)
    assert counts == [2, 1], "the pass of dino, and the real backward; then the real one alone"
    names = [n for n, _ in model.named_parameters()]
    rows = dict(zip(names, ledger.rows["dino"], strict=True))
    assert {n.split(".")[0] for n, g in rows.items() if g is not None} == {"trunk"}


def test_a_branch_that_a_second_loss_enters_later_is_still_right() -> None:
    """Between micro-batches of one step, and between steps: who else reaches it is measured there."""
    model, linearity = OwnBranch(), Linearity()
    batches = [torch.randn(9, 6), torch.randn(9, 6)]
    one_step(model, batches, WEIGHTS, linearity)
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    model.shares = True
    _, found, error = one_step(model, batches, WEIGHTS, linearity, heads=["student"])
    assert error is None
    assert_same(found.gram[""], expected_gram(model, batches, WEIGHTS))
    assert found.reached["student"] == (False, True, True)


def test_a_loss_without_weight_is_measured_where_it_is_alone() -> None:
    model, linearity, batch = OwnBranch(), Linearity(), [torch.randn(9, 6)]
    weights = {**WEIGHTS, "dino": 0.0}
    for _ in range(3):
        _, found, _ = one_step(model, batch, weights, linearity)
        assert_same(found.gram[""], expected_gram(model, batch, weights))


def test_losses_that_share_nothing_need_no_pass_at_all() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b, self.c = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)

        def losses(self, x: Tensor) -> dict[str, Tensor]:
            return {name: getattr(self, name)(x).square().mean() for name in "abc"}

    model, linearity, batch, weights = Apart(), Linearity(), [torch.randn(9, 6)], {"a": 1.0, "b": 0.1, "c": -2.0}
    for _ in range(2):
        ledger, found, _ = one_step(model, batch, weights, linearity)
        assert_same(found.gram[""], expected_gram(model, batch, weights))
        assert found.measured == (True, True, True)
    assert not any(piece is not None for row in ledger.rows.values() for piece in row)


def test_a_single_loss_needs_no_pass_once_it_has_been_measured() -> None:
    class One(Three):
        def losses(self, x: Tensor) -> dict[str, Tensor]:
            return {"flow": super().losses(x)["flow"]}

    model, linearity, batch = One(), Linearity(), [torch.randn(9, 6)]
    for passes in (1, 0, 0):
        ledger, found, _ = one_step(model, batch, {"flow": -0.5}, linearity)
        assert len(ledger.rows) == passes
        assert found.measured == (True,)
        assert_same(found.gram[""], expected_gram(model, batch, {"flow": -0.5}))


def test_descent_where_a_loss_is_alone() -> None:
    model, linearity, batch = OwnBranch(), Linearity(), [torch.randn(9, 6)]
    one_step(model, batch, WEIGHTS, linearity)
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    ledger, _, _ = one_step(model, batch, WEIGHTS, linearity)
    decrease = [torch.randn_like(p) for p in model.parameters()]
    flat = torch.cat([d.reshape(-1) for d in decrease]).double()
    wanted = torch.stack([obvious(model, batch, name) @ flat for name in WEIGHTS])
    torch.testing.assert_close(ledger.along(dict(enumerate(decrease))), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1e-9, 1e-5])
def test_a_gradient_that_rounding_would_drown_is_measured_directly(weight: float) -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    weights = {**WEIGHTS, "flow": weight}
    for _ in range(3):
        linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 0.5}
        _, found, _ = one_step(model, batch, weights, linearity)
        assert found.derived != "flow"
        assert_same(found.gram[""], expected_gram(model, batch, weights))


def test_sudden_cancellation_is_measured_directly_the_next_time() -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    one_step(model, batch, WEIGHTS, linearity)
    linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
    weights = {**WEIGHTS, "kl": 1e6}
    _, found, _ = one_step(model, batch, weights, linearity)
    assert found.derived == "kl", "predicted from the last norms and the weights of today"
    assert_same(found.gram[""], expected_gram(model, batch, weights))


def test_bfloat16_parameters_are_never_derived() -> None:
    model, linearity, batch = Three(torch.bfloat16), Linearity(), [torch.randn(9, 6, dtype=torch.bfloat16)]
    for _ in range(3):
        linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
        _, found, _ = one_step(model, batch, WEIGHTS, linearity)
        assert found.derived is None
        assert_same(found.gram[""], expected_gram(model, batch, WEIGHTS), 0.05)


def test_scaled_passes_are_divided_out() -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    for _ in range(2):
        linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
        _, found, _ = one_step(model, batch, WEIGHTS, linearity, scale=torch.tensor(65536.0))
        assert_same(found.gram[""], expected_gram(model, batch, WEIGHTS))


def test_a_backward_that_divides_the_loss_is_noticed() -> None:
    model, batch = Three(), [torch.randn(9, 6)]
    _, found, _ = one_step(model, batch, WEIGHTS, Linearity(), factor=0.25)
    assert_same(found.gram[""], expected_gram(model, batch, WEIGHTS) / 16)


def test_earlier_gradients_in_grad_are_not_counted() -> None:
    model, batch = Three(), [torch.randn(9, 6)]
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    _, found, _ = one_step(model, batch, WEIGHTS, Linearity())
    assert_same(found.gram[""], expected_gram(model, batch, WEIGHTS), 1e-4)


def test_constant_and_unreached_losses() -> None:
    class Odd(Three):
        def losses(self, x: Tensor) -> dict[str, Tensor]:
            return {**super().losses(x), "gan": torch.tensor(0.7), "aside": (x.clone().requires_grad_() ** 2).sum()}

    model, weights = Odd(), {**WEIGHTS, "gan": 1.0, "aside": 1.0}
    _, found, _ = one_step(model, [torch.randn(9, 6)], weights, Linearity())
    gan, aside = found.names.index("gan"), found.names.index("aside")
    assert found.measured == (True, True, True, False, True)
    assert not found.reached[""][gan]
    assert not found.reached[""][aside]
    assert not found.gram[""][aside].any()


def test_a_loss_missing_from_some_micro_batches() -> None:
    model, linearity = Three(), Linearity()
    first, second = torch.randn(9, 6), torch.randn(9, 6)
    ledger = Ledger(parameter_map(model, {}, []), linearity)
    for x, names in ((first, ("flow", "kl")), (second, ("flow", "kl", "dino"))):
        losses = {n: loss for n, loss in model.losses(x).items() if n in names}
        ledger.observe(losses, {n: WEIGHTS[n] for n in names}, modules=[model])
        sum(WEIGHTS[n] * loss for n, loss in losses.items()).backward()
        ledger.after_backward()
    found, _ = ledger.settle()
    rows = {
        "flow": obvious(model, [first, second], "flow"),
        "kl": obvious(model, [first, second], "kl"),
        "dino": obvious(model, [second], "dino"),
    }
    matrix = torch.stack([*rows.values(), sum(WEIGHTS[n] * row for n, row in rows.items())])
    assert_same(found.gram[""], matrix @ matrix.T)


def accumulated(model: nn.Module, batches: list[Tensor], between, *, names=None, scale=None) -> tuple[float, Ledger]:
    """|total| / |sum of what every backward brought|, with `between` called after each but the last."""
    ledger = Ledger(parameter_map(model, {}, []), Linearity())
    for n, x in enumerate(batches):
        losses = {k: v for k, v in model.losses(x).items() if names is None or k in names[n]}
        ledger.observe(losses, {k: WEIGHTS[k] for k in losses}, modules=[model], scale=scale)
        total = sum(WEIGHTS[k] * loss for k, loss in losses.items())
        (total if scale is None else total * scale).backward()
        ledger.after_backward()
        if n < len(batches) - 1:
            between(model)
    found, _ = ledger.settle()
    if found.accumulated is None:
        return -1.0, ledger
    return float((found.gram[""][-1, -1] / found.accumulated).sqrt()), ledger


BETWEEN = {
    "nothing": lambda model: None,
    "to none": lambda model: model.zero_grad(set_to_none=True),
    "to zero": lambda model: model.zero_grad(set_to_none=False),
    "clip": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01),
    "halve": lambda model: [p.grad.mul_(0.5) for p in model.parameters()],
    "one layer": lambda model: model.flow_head.zero_grad(),
}


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_micro_batches_lost_in_between_is_counted(between: str, scale: float | None) -> None:
    model, batches = Three(), [torch.randn(9, 6) for _ in range(4)]
    whole = sum(WEIGHTS[n] * obvious(model, batches, n) for n in WEIGHTS)
    found, ledger = accumulated(model, batches, BETWEEN[between], scale=None if scale is None else torch.tensor(scale))
    if between == "nothing":
        assert found == 1.0, "exactly: nothing had to be computed"
        assert not ledger.lost
    else:
        there = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double() / (scale or 1.0)
        assert found == pytest.approx(float(there.norm() / whole.norm()), rel=1e-4)
        assert found < 0.999


@pytest.mark.parametrize("between", ["nothing", "to none", "to zero"])
def test_gradients_left_over_from_an_earlier_step_are_not_counted(between: str) -> None:
    model, batches = Three(), [torch.randn(9, 6) for _ in range(3)]
    last, whole = (sum(WEIGHTS[n] * obvious(model, some, n) for n in WEIGHTS) for some in (batches[-1:], batches))
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    found, _ = accumulated(model, batches, BETWEEN[between])
    expected = 1.0 if between == "nothing" else float(last.norm() / whole.norm())
    assert found == pytest.approx(expected, rel=1e-4)


def test_one_backward_or_different_losses_say_nothing_about_accumulation() -> None:
    model, x = Three(), torch.randn(9, 6)
    assert accumulated(model, [x], BETWEEN["nothing"])[0] == -1.0
    turns = [("flow", "kl"), ("dino",)]
    for between in ("nothing", "to none"):
        assert accumulated(model, [x, x], BETWEEN[between], names=turns)[0] == -1.0


def test_equal_micro_batches_lose_all_but_their_share() -> None:
    model, n = Three(), 4
    x = torch.randn(9, 6)
    assert accumulated(model, [x] * n, BETWEEN["to none"])[0] == pytest.approx(1 / n, rel=1e-4)


def test_gradients_are_not_kept_alive_after_the_step() -> None:
    model, x = Three(), torch.randn(9, 6)
    _, ledger = accumulated(model, [x, x], BETWEEN["nothing"])
    assert ledger._seen == []
    assert ledger.disturbed() == []


def test_linearity_is_measured_again_and_again() -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    derived = [one_step(model, batch, WEIGHTS, linearity)[1].derived for _ in range(2 * CALIBRATE_EVERY + 3)]
    assert [n for n, name in enumerate(derived) if name is None] == [0, CALIBRATE_EVERY + 1, 2 * CALIBRATE_EVERY + 2]


def test_unfreezing_a_parameter_starts_anew() -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    model.dino_head.weight.requires_grad_(False)
    one_step(model, batch, WEIGHTS, linearity)
    model.dino_head.weight.requires_grad_(True)
    _, found, _ = one_step(model, batch, WEIGHTS, linearity)
    assert found.derived is None
    assert_same(found.gram[""], expected_gram(model, batch, WEIGHTS))


def test_grad_is_untouched_by_the_extra_passes() -> None:
    model, x = Three(), torch.randn(9, 6)
    ledger = Ledger(parameter_map(model, {}, []), Linearity())
    ledger.observe(model.losses(x), WEIGHTS, modules=[model])
    assert all(p.grad is None for p in model.parameters())


def test_descent_is_the_first_order_decrease() -> None:
    model, linearity, batch = Three(), Linearity(), [torch.randn(9, 6)]
    for _ in range(2):
        linearity.seconds = {"flow": 9.0, "kl": 1.0, "dino": 1.0}
        ledger, found, _ = one_step(model, batch, WEIGHTS, linearity)
        decrease = [1e-3 * torch.randn_like(p) for p in model.parameters()]
        long = torch.cat([d.reshape(-1).double() for d in decrease])
        wanted = torch.stack([obvious(model, batch, n) @ long for n in found.names])
        assert torch.allclose(ledger.along(dict(enumerate(decrease))), wanted, atol=1e-9, rtol=1e-4)
