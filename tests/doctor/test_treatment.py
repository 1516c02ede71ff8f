"""Balancing in a real training: what it changes, what it tells, and when it goes back."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.doctor.treatment import Treatment
from lossdoctor.errors import UsageError
from lossdoctor.probe import experiment, ledger
from lossdoctor.treat import Advice, Balancer, Measured, PCGrad


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.v, self.d, self.k = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 5), nn.Linear(16, 2)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).tanh()
        flow = (self.v(h) - x[:, :3].sin()).square().mean()
        dino = nn.functional.cross_entropy(self.d(h), x[:, 0].ge(0).long() + x[:, 1].ge(0).long())
        return {"flow": flow, "dino": dino, "kl": 0.5 * (self.k(h).square() + 0.1).mean()}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def train(
    model: Model, steps: int, weights: Mapping[str, float], *, begin: int = 0, state: Any = None, **options: Any
) -> tuple[ld.Run, dict[str, Any]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = {"every": 5, "strict": True, **options}
    with ld.Doctor(model, optimizer, **options) as doctor:
        if state is not None:
            doctor.load_state_dict(json.loads(json.dumps(state)))
        for step in range(begin, begin + steps):
            x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step))
            doctor.backward(model.losses(x), weights)
            optimizer.step()
            optimizer.zero_grad()
        state = doctor.state_dict()
    return doctor.run, state


def events(run: ld.Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events if event["kind"] == kind]


WRONG = [(100.0, 100.0), (0.01, 0.01), (100.0, 0.01), (0.01, 100.0), (1.0, 30.0)]


@pytest.mark.parametrize(("dino", "kl"), WRONG)
def test_wrong_weights_come_into_the_band(model: Model, dino: float, kl: float) -> None:
    run, _ = train(model, 120, {"flow": 1.0, "dino": 0.3 * dino, "kl": 0.2 * kl}, balance="ratio")
    strength = {name: run[f"grad_weighted/{name}"].values for name in ("flow", "dino", "kl")}
    late = {name: float((strength[name][-8:] / strength["flow"][-8:]).mean()) for name in strength}
    assert 0.1 <= late["dino"] <= 1.0
    assert 0.05 <= late["kl"] <= 0.6
    assert run["weight/flow"].values.tolist() == [1.0] * len(run["weight/flow"]), "the velocity stays as it is"
    assert run["balance/dino"].values[-1] != 1.0
    assert run["balance/age"].values.max() >= 5


def test_every_change_has_a_receipt(model: Model) -> None:
    run, _ = train(model, 120, {"flow": 1.0, "dino": 30.0, "kl": 0.2}, balance="ratio")
    first, *_ = events(run, "balance")
    assert first["balancer"] == "ratio"
    assert first["before"]["dino"] == 1.0
    assert first["step"] == 0, "before the first step is taken"
    assert 30.0 * first["after"]["dino"] == pytest.approx(run["weight/dino"].values[0])
    assert "wanted 0.2 to 0.5" in first["reasons"]["dino"]
    assert first["predicted"]["dino"] < 1, "it will fall more slowly"
    outcome, *_ = events(run, "balance_outcome")
    assert (outcome["verdict"], outcome["of_step"]) == ("kept", first["step"])
    assert set(outcome["losses_before"]) == set(outcome["losses_after"]) == {"flow", "dino", "kl"}
    assert run["weight/dino"].values[-1] == pytest.approx(30.0 * run["balance/dino"].values[-1])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_first_step_is_taken_with_weights_that_are_right(model: Model, micro_batches: int) -> None:
    """What a wrong one does can still be seen hundreds of steps later."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, weights = torch.randn(64, 4), {"flow": 1.0, "dino": 30.0, "kl": 0.2}
    with ld.Doctor(model, optimizer, balance="ratio", strict=True) as doctor:
        totals = [float(doctor.backward(model.losses(x), weights)) for _ in range(micro_batches)]
        got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    used = {name: doctor.run[f"weight/{name}"].values[0] for name in weights}
    assert used == pytest.approx({**weights, "dino": 30.0 * doctor.run["balance/dino"].values[0]})
    assert used["dino"] < 0.5
    losses = model.losses(x)
    total = torch.stack([used[name] * loss for name, loss in losses.items()]).sum()
    assert totals == pytest.approx([total.item()] * micro_batches)
    assert doctor.run["loss/total"].values[0] == pytest.approx(total.item())
    parts = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
    assert torch.allclose(got, micro_batches * torch.cat([part.flatten() for part in parts]), rtol=1e-4, atol=1e-7)
    linearity = doctor._patient.linearity.error
    assert linearity is not None
    assert linearity < 1e-5, "the gradients that were measured, with these weights, add up to the one that was used"


def test_receipts_are_told_in_words_to_sinks(model: Model, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(ld.sinks.JSONL):
        def event(self, event: Mapping[str, Any]) -> None:
            said.append(str(event.get("message")))

    tensorboard = ld.sinks.TensorBoard(tmp_path / "tb")
    sinks = [Heard(tmp_path / "run.jsonl"), tensorboard]
    train(model, 60, {"flow": 1.0, "dino": 30.0, "kl": 0.2}, balance="ratio", sinks=sinks)
    told = [one for one in said if "ratio" in one]
    assert told[0].startswith("ratio moves dino 1 -> 0.00836 (37.8 of flow, wanted 0.2 to 0.5)")
    assert told[1] == "the change of step 0 by ratio is kept"
    (file,) = (tmp_path / "tb").iterdir()
    assert told[0].encode() in file.read_bytes()


def test_a_reason_covers_what_moved_before_the_receipt(model: Model) -> None:
    """A change within the time of another is told with the next receipt, and so is its reason."""
    run, _ = train(model, 120, {"flow": 1.0, "dino": 30.0, "kl": 0.002}, balance="ratio")
    for event in events(run, "balance"):
        moved = {name for name in event["after"] if event["after"][name] != event["before"][name]}
        assert moved == set(event["reasons"]) == set(event["why"])
    told = ld.diagnose(run)
    assert told.treated is not None
    assert [receipt.step for receipt in told.treated.receipts] == [event["step"] for event in events(run, "balance")]
    assert run.meta["balance"] == "ratio"


@dataclass(slots=True)
class Harmful(Balancer):
    """Turns the velocity loss around."""

    name: str = "harmful"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        return Advice({**dict.fromkeys(seen.names, 1.0), "flow": 1.0 if seen.step < 20 else -20.0}, {})


def test_a_change_that_hurts_is_taken_back(model: Model) -> None:
    run, _ = train(model, 160, {"flow": 1.0, "dino": 0.3}, balance=Harmful())
    outcomes = events(run, "balance_outcome")
    assert outcomes[-1]["verdict"] == "rolled back"
    assert outcomes[-1]["hurt"] == ["flow"]
    (stopped,) = events(run, "balance_stopped")
    assert "rolled back" in stopped["reason"]
    assert run["balance/flow"].values[-1] == stopped["factors"]["flow"] == 1.0
    assert len(set(run["balance/flow"].values[-5:].tolist())) == 1, "nothing is tried again"


@dataclass(slots=True)
class Noted:
    """In place of an outlet: what was told."""

    told: list[dict[str, Any]] = field(default_factory=list)

    def event(self, kind: str, **facts: Any) -> None:
        self.told.append({"kind": kind, **facts})


@dataclass(slots=True)
class Greedy(Balancer):
    """A larger factor, and a much larger one later."""

    name: str = "greedy"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        return Advice({**dict.fromkeys(seen.names, 1.0), "flow": 5.0 if seen.step < 5 else 50.0}, {})


@dataclass(slots=True)
class Patient(Balancer):
    """Waits for a loss from step 3 to step 5, and from step 8 on."""

    name: str = "patient"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        waits = {"kl": f"since {seen.step}"} if seen.step in (3, 4, 5) or seen.step >= 8 else {}
        return Advice(dict(factors), {}, None, waits)


def test_what_is_waited_for_is_told_once_and_so_is_its_end() -> None:
    out, state = Noted(), None
    for begin in (0, 4):  # with a checkpoint in the middle of a wait
        treatment = Treatment(Patient(), out)  # type: ignore[arg-type]
        treatment.weigh({"kl": 1.0})
        if state is not None:
            treatment.load_state_dict(state)
        for step in range(begin, 4 if begin == 0 else 12):
            treatment.learn(step, {"grad/kl": 1.0, "loss/kl": 1.0}, {"kl": "kl"})
        state = json.loads(json.dumps(treatment.state_dict()))
    told = [(event["kind"], event["loss"], event.get("reason")) for event in out.told]
    waits, waited = ("balance_waits", "kl"), ("balance_waited", "kl", None)
    assert told == [(*waits, "since 3"), waited, (*waits, "since 8")]
    assert str(out.told[0]["message"]) == "patient leaves a weight as it is: since 3"


def test_where_going_back_hurts_too_only_the_weights_of_the_script_are_left() -> None:
    """Factors of a moment can be as bad as the ones they were replaced with."""
    out = Noted()
    treatment = Treatment(Greedy(), out)  # type: ignore[arg-type]
    treatment.weigh({"flow": 1.0})
    for step in range(20):
        loss = 1.0 if step < 6 else 3.0 ** (step - 5)
        treatment.learn(step, {"grad/flow": 1.0, "loss/flow": loss}, {"flow": "velocity"})
    outcomes = [told["verdict"] for told in out.told if told["kind"] == "balance_outcome"]
    assert outcomes == ["kept", "rolled back", "rolled back"]
    stopped = [told["factors"] for told in out.told if told["kind"] == "balance_stopped"]
    assert stopped == [{"flow": 5.0}, {"flow": 1.0}]
    assert treatment.factors == {"flow": 1.0}


@pytest.mark.parametrize(("other", "verdict"), [("velocity", "kept"), ("other", "rolled back")])
def test_a_distillation_that_rises_is_no_harm_where_a_velocity_can_be_asked(other: str, verdict: str) -> None:
    out = Noted()
    treatment = Treatment(Greedy(), out)  # type: ignore[arg-type]
    treatment.weigh({"flow": 1.0, "dino": 1.0})
    for step in range(5):
        told = {"grad/flow": 1.0, "loss/flow": 1.0, "grad/dino": 1.0, "loss/dino": 1.0 + 3 * step}
        treatment.learn(step, told, {"flow": other, "dino": "distill"})
    assert next(told["verdict"] for told in out.told if told["kind"] == "balance_outcome") == verdict


def test_a_balancer_that_stops_says_why_and_training_goes_on(model: Model) -> None:
    run, _ = train(model, 60, {}, balance="ratio", kinds={"flow": "other"})
    (stopped,) = events(run, "balance_stopped")
    assert "not exactly one velocity loss" in stopped["reason"]
    (found,) = [finding for finding in ld.diagnose(run).findings if finding.code == "BAL802"]
    assert str(found.message).startswith("The balancer ratio stopped at step 0: there is not exactly one velocity loss")
    assert len(run["loss/flow"]) == 60


def test_a_detached_loss_stops_the_controller_and_not_the_training(model: Model) -> None:
    """There is no weight that gives it a band; it used to go unsaid, because nothing was measured of it."""

    class Detached(Model):
        def losses(self, x: Tensor) -> dict[str, Tensor]:
            found = super().losses(x)
            return {**found, "kl": found["kl"].detach()}

    run, _ = train(Detached(), 60, {"flow": 1.0, "dino": 0.3, "kl": 0.2}, balance="ratio")
    (stopped,) = events(run, "balance_stopped")
    assert stopped["reason"] == "kl has no gradient, whatever its weight"
    assert len(run["loss/flow"]) == 60


@pytest.mark.parametrize("name", ["ratio", "gradnorm", "pcgrad", "config", "cosine"])
def test_a_checkpoint_goes_on_bit_for_bit(model: Model, name: str) -> None:
    other, weights = copy.deepcopy(model), {"flow": 1.0, "dino": 20.0, "kl": 0.01}
    train(model, 60, weights, balance=name)
    _, state = train(other, 30, weights, balance=name)
    train(other, 30, weights, begin=30, state=state, balance=name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("clock", [1, -1])
def test_a_balanced_run_leaves_out_one_pass_whatever_the_clock_says(
    model: Model, clock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, weights = copy.deepcopy(model), {"flow": 1.0, "dino": 20.0, "kl": 0.01}
    train(model, 60, weights, balance="pcgrad")
    looks: list[float] = []
    ticks = itertools.accumulate(itertools.cycle([1.0, 2.0, 4.0][::clock]))

    def perf_counter() -> float:
        looks.append(next(ticks))
        return looks[-1]

    monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=perf_counter))
    train(other, 60, weights, balance="pcgrad")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    # The clock is read before and after a pass: three at the first of twenty measured steps, then two.
    assert len(looks) == 2 * (3 + 19 * 2)


def test_a_checkpoint_keeps_what_the_next_plan_of_passes_is_made_from(model: Model) -> None:
    _, state = train(model, 30, {"flow": 1.0, "dino": 20.0, "kl": 0.01}, balance="ratio")
    kept = state["linearity"]
    assert kept["age"] == 13
    assert kept["norms"].keys() == {"flow", "dino", "kl"}
    assert kept["error"] > 0
    _, again = train(copy.deepcopy(model), 0, {}, state=state, balance="ratio")
    assert again["linearity"] == kept
    deeper = Model()
    deeper.more = nn.Linear(2, 2)
    _, anew = train(deeper, 0, {}, state=state, balance="ratio")
    assert anew["linearity"]["reach"] == {}
    assert anew["linearity"]["error"] is None


def test_the_next_step_is_the_sum_pcgrad_takes(model: Model) -> None:
    """One ordinary backward with the coefficients: the gradient is that of the weighted losses."""
    seen: list[Measured] = []

    @dataclass(slots=True)
    class Noted(PCGrad):
        def advise(self, now: Measured, factors: Mapping[str, float]) -> Advice:
            seen.append(now)
            return PCGrad.advise(self, now, factors)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(64, 4)
    with ld.Doctor(model, optimizer, every=2, balance=Noted(), strict=True) as doctor:
        for _ in range(2):
            doctor.backward(model.losses(x))
            got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
        factors = doctor._treatment.factors  # type: ignore[union-attr]
    own = list(model.parameters())
    each = {
        n: torch.autograd.grad(loss, own, retain_graph=True, materialize_grads=True)
        for n, loss in model.losses(x).items()
    }
    g = {name: torch.cat([part.flatten() for part in parts]) for name, parts in each.items()}
    stacked = torch.stack(list(g.values())).double()
    assert torch.allclose(torch.as_tensor(seen[0].gram), stacked @ stacked.T, rtol=1e-4, atol=1e-9)
    wanted = sum(factors[name] * g[name] for name in g)
    assert torch.allclose(torch.cat([p.flatten() for p in got]), wanted, rtol=1e-4, atol=1e-7)


def test_without_a_balancer_no_weight_changes_and_nothing_is_told(model: Model) -> None:
    run, state = train(model, 20, {"flow": 1.0, "dino": 30.0})
    assert set(run["weight/dino"].values.tolist()) == {30.0}
    assert not [name for name in run if name.startswith("balance/")]
    assert "balance" not in state


def test_an_unknown_balancer_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="balance= names a balancer"):
        ld.Doctor(model, torch.optim.SGD(model.parameters(), lr=0.1), balance="magic")


@pytest.mark.parametrize("gradients", ["off", "finite-difference"])
def test_without_gradients_there_is_nothing_to_balance(model: Model, gradients: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"(?s)A balancer needs the gradient of each loss.*leave gradients= out"):
        ld.Doctor(model, optimizer, balance="ratio", gradients=gradients)


@pytest.fixture
def _arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    experiment._experiment.cache_clear()
    monkeypatch.setenv("LOSSDOCTOR_ARM", "balance:ratio")
    yield
    experiment._experiment.cache_clear()


@pytest.mark.usefixtures("_arm")
def test_an_arm_can_balance(model: Model, tmp_path: Path) -> None:
    run, _ = train(model, 30, {"flow": 1.0, "dino": 30.0, "kl": 0.2})
    assert events(run, "balance")[0]["balancer"] == "ratio"
