"""What functions keep for their backward is the same after a pass as before it, whatever the pass did to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossdoctor.probe.belongings import Belongings
from lossdoctor.probe.obstacles import Obstacles, obstacles


class Keeper(torch.autograd.Function):
    """x -> 2 x, keeping things in every way there is; `spoil` is what the backward does to them."""

    spoil = "nothing"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.full_like(x, 2.0))
        ctx.tensor = torch.tensor([1.0, float("nan")])
        ctx.inside = {"list": [torch.ones(2), "word"], "number": 1}
        ctx.inside["itself"] = ctx.inside
        ctx.sparse = torch.eye(2).to_sparse()
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (two,) = ctx.saved_tensors
        found = grad * two
        {
            "nothing": lambda: None,
            "saved": lambda: two.add_(1.0),
            "saved unseen": lambda: two.data.add_(1.0),
            "counted": lambda: two.mul_(1.0),
            "attribute": lambda: ctx.tensor.fill_(0.0),
            "dropped": lambda: ctx.__dict__.pop("tensor"),
            "new": lambda: setattr(ctx, "more", 1),
            "replaced": lambda: ctx.inside.update(number=2),
            "emptied": lambda: ctx.inside["list"].pop(0),
            "deep": lambda: ctx.inside["list"][0].add_(1.0),
            "sparse": lambda: ctx.sparse._values().add_(1.0),
        }[Keeper.spoil]()
        return found


SPOILS = ["saved", "saved unseen", "counted", "attribute", "dropped", "new", "replaced", "emptied", "deep", "sparse"]


def kept(node: Any) -> list[Any]:
    held = node.__dict__
    listed = held["inside"]["list"]
    (saved,) = node.saved_tensors
    values = [saved, held["tensor"].nan_to_num(9.0), listed[0], held["sparse"].to_dense()]
    return [*(v.clone() for v in values), listed[1:], held["inside"]["number"], sorted(held), saved._version]


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def graph() -> tuple[Tensor, Tensor, Any]:
    x = torch.ones(3, requires_grad=True)
    loss = Keeper.apply(x).sum()
    (node,) = obstacles([loss]).custom
    return x, loss, node


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_a_pass_spoils_is_put_back(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "spoil", spoil)
    x, loss, node = graph()
    before, belongings = kept(node), Belongings()
    for _ in range(2):
        with belongings.kept([node]):
            (found,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert found.tolist() == [2.0] * 3
        assert same(kept(node), before)
    assert belongings.restored == {type(node)}
    assert not belongings.trusted
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 3


def test_without_putting_back_the_comparison_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for spoil in SPOILS:
        monkeypatch.setattr(Keeper, "spoil", spoil)
        x, loss, node = graph()
        before = kept(node)
        torch.autograd.grad(loss, x, retain_graph=True)
        try:
            unchanged = same(kept(node), before)
        except (AttributeError, KeyError, RuntimeError):
            unchanged = False
        assert not unchanged, spoil


def test_a_function_is_trusted_once_it_has_run_and_left_everything_alone() -> None:
    x, loss, node = graph()
    belongings = Belongings()
    with belongings.kept([node]):
        pass
    assert not belongings.trusted, "it has not run"
    with belongings.kept([node]):
        torch.autograd.grad(loss, x, retain_graph=True)
    assert belongings.trusted == {type(node)}
    assert not belongings.restored


def test_what_a_failing_pass_has_spoiled_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "spoil", "saved")
    x, loss, node = graph()
    before, belongings = kept(node), Belongings()

    def run_out() -> None:
        with belongings.kept([node]):
            torch.autograd.grad(loss, x, retain_graph=True)
            raise MemoryError

    with pytest.raises(MemoryError):
        run_out()
    assert same(kept(node), before)


def test_a_reentrant_checkpoint_is_refused_only_where_grad_has_other_readers() -> None:
    reentrant, free = Obstacles(reentrant=True), Obstacles()
    plain, read = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    read.register_post_accumulate_grad_hook(lambda p: None)
    assert reentrant.refusal([plain], several=False) is None
    assert "DistributedDataParallel" in str(reentrant.refusal([plain], several=True))
    assert "optimizer in the backward" in str(reentrant.refusal([plain, read], several=False))
    assert free.refusal([plain, read], several=True) is None
    assert "ordinary backwards only" in str(free.refusal([plain, read], several=False, sharded=True))
    assert free.refusal([plain], several=False, sharded=True) is None
