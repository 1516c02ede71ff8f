"""What can be told of several ranks without having any; `tests/doctor/test_ranks.py` has some."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lossdoctor import linalg
from lossdoctor.probe.pending import Pending
from lossdoctor.probe.ranks import ranks_of
from lossdoctor.probe.schedule import LOOK_AHEAD, Together, schedule
from lossdoctor.probe.sharded import any_sharded, by_backward, reduces
from lossdoctor.probe.wrapped import must_wait, quiet, wrappers_of


def test_one_process_has_no_ranks() -> None:
    assert ranks_of(nn.Linear(2, 2)) is None
    assert wrappers_of(list(nn.Linear(2, 2).parameters())) == ()
    assert not must_wait([])
    assert not any_sharded([nn.Linear(2, 2)])
    assert reduces([nn.Linear(2, 2)])


def test_a_plan_is_followed_until_the_next_meeting() -> None:
    own = Together(schedule(lambda step: step % 5 == 0))
    assert own.due(5)
    assert not own.due(6)
    assert own.ahead(7) == 3
    own.agree(7, True, 4)
    assert [step for step in range(20) if own.due(step)] == [7, 11]
    own.agree(11, False, None)
    assert not any(own.due(step) for step in range(20))
    own.forget()
    assert own.due(5)


def test_a_schedule_that_is_never_due_again_is_not_asked_for_ever() -> None:
    asked = []
    own = Together(schedule(lambda step: bool(asked.append(step))))
    assert own.ahead(0) is None
    assert len(asked) == LOOK_AHEAD


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_a_fingerprint_is_of_the_bits(dtype) -> None:
    pieces = [torch.randn(5, 3).to(dtype), None, torch.randn(()).to(dtype), torch.zeros(0, dtype=dtype)]
    same = [None if piece is None else piece.clone() for piece in pieces]
    other = [pieces[0].t().clone().t(), *pieces[1:]]
    assert linalg.fingerprint(pieces) == linalg.fingerprint(same) == linalg.fingerprint(other)
    same[0].view(-1)[7] *= 1 + 2 ** (-7 if dtype == torch.bfloat16 else -10 if dtype == torch.float16 else -20)
    assert linalg.fingerprint(pieces) != linalg.fingerprint(same)
    assert linalg.fingerprint([pieces[2], None, pieces[2]]) != linalg.fingerprint([None, pieces[2], pieces[2]])
    assert linalg.fingerprint([]) == linalg.fingerprint([None]) == 0


def test_losses_are_taken_and_the_rest_waits_on() -> None:
    pending = Pending()
    pending.add(0, "loss/a", torch.tensor(1.0))
    pending.add(0, "note", 2.0)
    pending.add(1, "loss/a", 3.0)
    tensors, numbers = pending.take("loss/")
    assert [float(value) for value in (*tensors.values(), *numbers.values())] == [1.0, 3.0]
    assert list(pending.drain()[1].values()) == [2.0]


def test_a_backward_of_one_loss_leaves_no_trace() -> None:
    model, other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), torch.ones(2, 3, requires_grad=True)
    kept = torch.ones_like(model[0].weight)
    model[0].weight.grad = kept
    loss = model(other).sum()
    found = by_backward(loss, list(model.parameters()))
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert model[0].weight.grad is kept
    assert kept.eq(1).all()
    assert other.grad is None
    assert model[1].weight.grad is None


def test_forwards_of_a_wrapper_leave_no_trace_in_it() -> None:
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.require_forward_param_sync = True
    with quiet([wrapper, nn.Linear(1, 1)]):
        assert wrapper.require_forward_param_sync is False
    assert wrapper.require_forward_param_sync is True
