"""Schedules against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.treat import BetaTarget, Cyclical, WarmUp, free_bits


@given(steps=st.integers(1, 1000), step=st.integers(0, 2000), shape=st.sampled_from(["linear", "cosine"]))
def test_a_warm_up_rises_once_and_stays(steps: int, step: int, shape: str) -> None:
    ramp = WarmUp(steps, shape=shape)
    assert 0 <= ramp(step) <= ramp(step + 1) <= 1
    assert (ramp(0), ramp(steps), ramp(steps + step)) == (0.0, 1.0, 1.0)
    assert WarmUp(2 * steps, shape=shape)(steps) == pytest.approx(0.5)
    assert WarmUp(steps, 0.04, 0.07)(steps) == pytest.approx(0.07)


def test_cycles_are_those_of_the_paper() -> None:
    ramp = Cyclical(40, cycles=2, rising=0.5)
    assert [ramp(s) for s in (0, 5, 10, 19)] == pytest.approx([0, 0.5, 1, 1])
    assert [ramp(s) for s in (20, 25, 30, 39, 40, 99)] == pytest.approx([0, 0.5, 1, 1, 1, 1])


def test_free_bits_give_no_gradient_below_and_the_plain_one_above() -> None:
    kl = torch.tensor([[0.1, 2.0, 0.3], [0.1, 4.0, 0.9]], requires_grad=True)
    total = free_bits(kl, 0.5)
    assert total.item() == pytest.approx(0.5 + 3.0 + 0.6)
    total.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    assert torch.equal(free_bits(kl, 0.0), kl.mean(0).sum())
    for wrong in (lambda: free_bits(kl, -1.0), lambda: free_bits(kl[0], 0.5)):
        with pytest.raises(UsageError, match="Free bits are per dimension"):
            wrong()


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_a_target_is_reached_from_both_sides(start: float) -> None:
    control, kl = BetaTarget(target=3.0, beta=start, gain=0.05), 0.0
    for _ in range(3000):
        kl = 6.0 / (1 + control.beta)  # a larger weight makes it smaller
        control(kl)
    assert kl == pytest.approx(3.0, rel=0.05)
    again = BetaTarget(target=3.0, gain=0.05)
    again.load_state_dict(control.state_dict())
    assert again(2.0) == control(2.0)


def test_a_kl_that_is_no_number_changes_nothing() -> None:
    control = BetaTarget(target=1.0)
    assert [control(kl) for kl in (math.nan, math.inf, 0.0, -3.0)] == [1.0] * 4
    tight = BetaTarget(target=1.0, low=0.5, high=2.0, gain=1.0)
    assert [tight(1e9), tight(1e9)][-1] == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: WarmUp(0), lambda: WarmUp(5, shape="step"), lambda: Cyclical(2, cycles=5),
        lambda: Cyclical(9, rising=0),
        lambda: BetaTarget(target=0), lambda: BetaTarget(target=1, beta=1e9), lambda: BetaTarget(target=1, memory=1),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"(?s)expected:.*got:.*to do:"):
        wrong()  # type: ignore[operator]
