"""Extra forwards of a sharded model, in one process; `tests/doctor/test_ranks.py` has several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossdoctor.probe.in_step import InStep, OutOfStepError
from lossdoctor.probe.ranks import RanksError
from lossdoctor.probe.sharded import groups_of, state_of


class Net(nn.Module):
    """Two parts and a parameter of the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, how: str = "") -> Tensor:
        x = self.first(x) * self.gain
        if how == "fails":
            raise RuntimeError("half-way")
        return x if how == "half" else self.second(x)


@pytest.fixture
def net() -> Iterator[Any]:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        pytest.skip("this torch shards parameters on GPUs only")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    model: Any = Net()
    for part in (model.first, model.second, model):
        fully_shard(part, reshard_after_forward=part is model.first)
    model(torch.ones(2, 3)).sum().backward()
    yield model
    dist.destroy_process_group()


def now(model: nn.Module) -> list[Any]:
    """Everything a forward could leave behind."""
    found: list[Any] = []
    for state in filter(None, map(state_of, model.modules())):
        found += [state._training_state, state._state_ctx.iter_forward_root, len(state._comm_ctx.post_forward_order)]
        for group in groups_of(state):
            found += [group._sharded_state, group._training_state, len(group._post_forward_indices)]
            found.append(group._all_gather_result is None)
    return found


@pytest.mark.parametrize("how", ["", "half", "fails"])
def test_a_forward_leaves_no_trace(net: Any, how: str) -> None:
    net.first.set_modules_to_forward_prefetch([net.second])  # which half a forward does not come to
    before, x = now(net), torch.ones(2, 3)
    with torch.no_grad():
        try:
            with InStep().forwards():
                net(x, how)
                assert now(net) != before, "a forward does leave traces"
        except RuntimeError:
            assert how == "fails"
    assert now(net) == before
    torch.manual_seed(0)
    same = Net()
    with torch.no_grad():
        for p in (*net.parameters(), *same.parameters()):
            p.mul_(2.0)
    assert torch.allclose(net(x), same(x)), "the next forward gathers what the step made of the parameters"


def test_whole_parameters_are_whole_again(net: Any) -> None:
    net.first.unshard()
    before = now(net)
    with torch.no_grad(), InStep().forwards():
        net(torch.ones(2, 3))
        assert now(net) != before
    assert now(net) == before


@dataclass
class Two:
    """This rank, and another that says what it is told to."""

    other: list[bytes]
    said: list[bytes] = field(default_factory=list)

    def gather(self, word: bytes) -> list[bytes]:
        self.said.append(word)
        return [word, self.other.pop(0)]


def test_ranks_ask_together_or_not_at_all(net: Any) -> None:
    x = torch.ones(2, 3)
    together: Any = Two([b"turn: asking", b"turn: done"])
    with torch.no_grad(), InStep(together).forwards():
        net(x)
    assert together.said == [b"turn: asking", b"turn: done"]
    less: Any = Two([b"turn: done"])
    with pytest.raises(OutOfStepError, match="rank 1: done"), torch.no_grad(), InStep(less).forwards():
        net(x)
    more: Any = Two([b"turn: asking"])
    with pytest.raises(OutOfStepError, match="rank 1: asking"), InStep(more).forwards():
        pass
    failing: Any = Two([b"turn: asking"])
    with pytest.raises(ZeroDivisionError), InStep(failing).forwards():
        raise ZeroDivisionError
    assert failing.said == [b"turn: failed"]
    elsewhere: Any = Two([b'{"step": 3}'])
    with pytest.raises(RanksError), InStep(elsewhere).forwards():
        pass
