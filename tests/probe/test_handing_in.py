"""Schedules, pending scalars, weighted sums and merged batches: the small parts between user and ledger."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lossdoctor.errors import UsageError
from lossdoctor.probe.capture import Capture, detached, times
from lossdoctor.probe.pending import Pending, by_step
from lossdoctor.probe.schedule import Every, schedule
from lossdoctor.probe.snapshot import DistillBatch, FlowBatch, PosteriorBatch
from lossdoctor.probe.weighted import named_losses, named_weights, weighted_total


def test_schedules() -> None:
    assert [s for s in range(10) if schedule(4).due(s)] == [0, 4, 8]
    assert [s for s in range(10) if schedule(lambda step: step in (1, 5)).due(s)] == [1, 5]
    own = Every(3)
    assert schedule(own) is own
    for bad in (0, -1, True, "50", None, 1.5):
        with pytest.raises(UsageError, match="every"):
            schedule(bad)


def test_pending_scalars_keep_steps_apart_and_average_micro_batches() -> None:
    pending = Pending()
    pending.add(0, "loss/a", torch.tensor(1.0, requires_grad=True))
    pending.add(0, "loss/a", torch.tensor(3.0))
    pending.add(1, "lr", 0.5)
    pending.add(1, "loss/vector", torch.tensor([1.0, 3.0], dtype=torch.float16))
    pending.add(1, "nan", math.nan)
    assert pending.at(0, "loss/")["a"].item() == 3.0
    tensors, numbers = pending.drain()
    assert not any(t.requires_grad for t in tensors.values())
    steps = by_step([*((k, float(t)) for k, t in tensors.items()), *numbers.items()])
    assert steps[0] == {"loss/a": 2.0}
    assert steps[1]["lr"] == 0.5
    assert steps[1]["loss/vector"] == 2.0
    assert math.isnan(steps[1]["nan"])
    assert pending.drain() == ({}, {})


def test_losses_weights_and_total() -> None:
    given = {"a": torch.tensor(2.0), "v": torch.tensor([1.0, 3.0]), "none": None, "start": 0.0}
    losses = named_losses(given)
    assert {k: float(v) for k, v in losses.items()} == {"a": 2.0, "v": 2.0, "start": 0.0}
    weights = named_weights(given, losses, {"v": 0.5, "none": 3.0})
    assert weights == {"a": 1.0, "v": 0.5, "start": 1.0}
    assert float(weighted_total(losses, weights)) == 3.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: named_losses([torch.tensor(1.0)]), "takes named losses.*got:      list"),
        (lambda: named_losses({"a": "high"}), "loss 'a' is not a tensor.*got:      str"),
        (lambda: named_losses({"a": None}), "got no loss"),
        (lambda: named_weights({"flow": 1}, {}, {"flwo": 2.0}), "unknown losses: 'flwo'.*expected: names among 'flow'"),
    ],
)
def test_wrong_use_is_explained(call, message) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        call()


def flow_batch(n: int, **more) -> FlowBatch:
    v = torch.randn(n, 3)
    return FlowBatch(v, v + 1, torch.rand(n), torch.rand(n, 1), **more)


def test_micro_batches_become_one() -> None:
    capture = Capture()
    assert capture.flow() is None
    capture.flows = [flow_batch(4, cond=torch.ones(4, 2)), flow_batch(6, cond=torch.zeros(6, 2))]
    joined = capture.flow()
    assert joined.v_pred.shape == (10, 3)
    assert joined.t_like.shape == (10, 1)
    assert joined.cond.sum() == 8
    capture.posteriors = [PosteriorBatch(torch.ones(2, 3), torch.ones(2, 3), kl=torch.tensor(k)) for k in (1.0, 3.0)]
    assert capture.posterior().kl.item() == 2.0
    capture.distills = [DistillBatch(torch.ones(2, 5), torch.ones(2, 5), 0.1, 0.1, torch.zeros(5)) for _ in range(3)]
    assert capture.distill().teacher_logits.shape == (6, 5)
    assert capture.distill().center.shape == (5,)


def test_batches_that_do_not_fit_leave_the_last() -> None:
    last = flow_batch(3, x_t=torch.zeros(3, 3))
    for first in (
        flow_batch(2),
        flow_batch(2, x_t=torch.zeros(2, 4)),
        flow_batch(2, x_t=torch.zeros(2, 3), t_source=1.0),
    ):
        assert Capture(flows=[first, last]).flow() is last
    scalar = FlowBatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.tensor(0.3))
    assert Capture(flows=[scalar, scalar]).flow() is scalar


@pytest.mark.parametrize(
    "cond",
    [{"label": torch.arange(4)}, ["a", "b", "c", "d"], (torch.zeros(4), "word"), np.zeros(4), object()],
    ids=["dict", "texts", "tuple", "array", "object"],
)
def test_conditions_that_cannot_be_joined_leave_the_last_batch(cond) -> None:
    batches = [flow_batch(4, cond=cond), flow_batch(4, cond=cond)]
    assert Capture(flows=batches).flow() is batches[-1]


def test_a_setting_that_all_micro_batches_share_is_one() -> None:
    model = torch.nn.Linear(3, 3)
    for velocity in (model.forward, model, lambda x, t, c: x):
        batches = [flow_batch(4, velocity=velocity, t_source=0), flow_batch(4, velocity=velocity, t_source=0.0)]
        assert len(Capture(flows=batches).flow().v_pred) == 8


def test_the_precision_is_that_of_the_flow_or_else_of_what_was_handed_in() -> None:
    def precision(capture: Capture) -> list[torch.dtype]:
        return [dtype for _, enabled, dtype in capture.autocast.states if enabled]

    x, logits = torch.zeros(2, 3), {"teacher_temp": 1.0, "student_temp": 1.0}
    for hand_in in (
        lambda capture: capture.add_posterior(x, x, None, None),
        lambda capture: capture.add_distill(x, x, **logits),
    ):
        capture = Capture()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hand_in(capture)
        hand_in(capture)
        assert precision(capture) == [torch.bfloat16]
        capture.add_flow(x, x, 0.5)
        assert precision(capture) == []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hand_in(capture)
        assert precision(capture) == []


def test_detached_keeps_the_nest() -> None:
    x = torch.ones(2, requires_grad=True)
    nest = detached({"a": [x, (x, "text")], "b": None})
    assert not nest["a"][0].requires_grad
    assert not nest["a"][1][0].requires_grad
    assert nest["a"][1][1] == "text"
    assert nest["b"] is None


def test_times_of_every_shape() -> None:
    for t in (torch.tensor(0.5), torch.full((3,), 0.5), torch.full((3, 1), 0.5), torch.full((3, 1, 1, 1), 0.5)):
        assert times(t, 3).tolist() == [0.5] * 3
