"""Schedules at work in a training: the numbers used, the run told once, and rules that wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.errors import UsageError
from lossdoctor.probe import experiment


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.v, self.k = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).tanh()
        return {"flow": (self.v(h) - x[:, :2]).square().mean(), "kl": self.k(h).square().mean()}


def train(
    weights: Mapping[str, Any], steps: int = 40, *, micro: int = 1, model: Model | None = None, **options: Any
) -> ld.Run:
    model = model or Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with ld.Doctor(model, optimizer, every=2, strict=True, **options) as doctor:
        for step in range(steps):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            for _ in range(micro):
                doctor.backward(model.losses(x), weights)
            optimizer.step()
            optimizer.zero_grad()
    return doctor.run


def schedules(run: ld.Run) -> list[dict[str, Any]]:
    return [event for event in run.events if event["kind"] == "schedule"]


def test_a_schedule_as_a_weight_is_followed_and_told_once() -> None:
    ramp = ld.treat.WarmUp(20, end=0.5)
    run = train({"flow": 1.0, "kl": ramp}, micro=2)
    weight = run["weight/kl"]
    assert weight.values.tolist() == pytest.approx([ramp(int(step)) for step in weight.steps])
    (told,) = schedules(run)
    assert (told["target"], told["until"], told["step"]) == ("weight/kl", 20, 0)
    assert told["schedule"] == "WarmUp(steps=20, start=0.0, end=0.5, shape='linear')"


def test_it_is_the_training_that_the_numbers_make() -> None:
    ramp, model, plain = ld.treat.Cyclical(20, cycles=2), Model(), Model()
    train({"kl": ramp}, model=model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for step in range(40):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        losses = plain.losses(x)
        (losses["flow"] + losses["kl"] * ramp(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_rules_wait_for_it_and_say_so() -> None:
    """A KL of almost no weight, for good or as the beginning of a warm-up."""
    faint = {"flow": 1.0, "kl": 1e-6}
    kinds = {"rec": "velocity"}
    assert "GRD102" in [f.code for f in ld.diagnose(train(faint, 80, kinds=kinds)).findings]
    warming = train({"flow": 1.0, "kl": ld.treat.WarmUp(8000, end=1e-4)}, 80, kinds=kinds)
    told = ld.diagnose(warming)
    reasons = {code: str(skipped.reason) for code, skipped in told.skipped}
    assert reasons["GRD102"].startswith("weight/kl follows a schedule up to step 8,000, and the run ends at 79")
    assert not [finding for finding in told.findings if finding.loss == "kl"]


def test_a_function_of_the_users_names_no_end() -> None:
    (told,) = schedules(train({"kl": lambda step: 0.1 * (step > 10)}))
    assert told["until"] is None


def test_a_target_for_the_kl_is_no_schedule() -> None:
    with pytest.raises(UsageError, match=r"(?s)A target is no schedule.*weight of 'kl'.*pass its beta"):
        train({"kl": ld.treat.BetaTarget(3.0)})


def test_a_weight_that_is_a_tensor_stays_one() -> None:
    run = train({"kl": torch.tensor(0.25)})
    assert set(run["weight/kl"].values.tolist()) == {0.25}
    assert schedules(run) == []


def test_a_temperature_in_one_line() -> None:
    model, seen = Model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ramp = ld.treat.teacher_warm_up(10)
    assert (ramp(0), ramp(5), ramp(10), ramp(99)) == pytest.approx((0.04, 0.055, 0.07, 0.07))
    with ld.Doctor(model, optimizer, every=2, strict=True) as doctor:
        for _ in range(14):
            temperature = ld.treat.scheduled("teacher_temp", ramp)
            seen.append(temperature)
            logits = model.v(model.body(torch.randn(16, 4)).tanh())
            ld.distill(logits.detach(), logits, teacher_temp=temperature, student_temp=0.1)
            doctor.backward({"dino": logits.square().mean()})
            optimizer.step()
            optimizer.zero_grad()
    assert seen == [ramp(step) for step in range(14)]
    assert doctor.run["distill/teacher_temp"].values.tolist() == pytest.approx([ramp(step) for step in range(0, 14, 2)])
    assert [(event["target"], event["until"]) for event in schedules(doctor.run)] == [("teacher_temp", 10)]
    assert doctor.run.meta["knobs"] == {"teacher_temp": 0.04}
    assert ld.treat.scheduled("teacher_temp", ramp, 5) == pytest.approx(0.055), "after the doctor, with a step"
    with pytest.raises(UsageError, match=r"(?s)teacher_temp follows a schedule.*pass the optimizer step"):
        ld.treat.scheduled("teacher_temp", ramp)


@pytest.fixture
def _arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    experiment._experiment.cache_clear()
    monkeypatch.setenv("LOSSDOCTOR_ARM", "warmup:kl=30+knob:teacher_temp*2")
    yield
    experiment._experiment.cache_clear()


@pytest.mark.usefixtures("_arm")
def test_an_arm_changes_a_schedule_and_its_own_is_told() -> None:
    with pytest.raises(UsageError, match="teacher_temp"):
        train({"kl": 1.0})  # the script has no such knob
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with ld.Doctor(model, optimizer, every=2, strict=True) as doctor:
        assert ld.treat.scheduled("teacher_temp", ld.treat.teacher_warm_up(10)) == pytest.approx(0.08)
        doctor.backward(model.losses(torch.randn(4, 4)))
        optimizer.step()
    assert [(event["target"], event["until"]) for event in schedules(doctor.run)] == [
        ("teacher_temp", 10), ("weight/kl", 30),
    ]  # fmt: skip
