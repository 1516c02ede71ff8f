"""Balancing where training is not one plain backward: accumulation, mixed precision, compiled.

Several ranks are in `test_ranks.py`, where they are at hand.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.treat import Advice, Balancer, Measured

WRONG = {"flow": 1.0, "dino": 30.0, "kl": 0.002}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.v, self.d, self.k = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.v(h), self.d(h), self.k(h)


def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    v, d, k = model(x)
    label = x[:, 0].ge(0).long() + x[:, 1].ge(0).long()
    flow = (v.float() - x[:, :3].sin()).square().mean()
    return {"flow": flow, "dino": nn.functional.cross_entropy(d.float(), label), "kl": k.float().square().mean()}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def factors(run: ld.Run) -> dict[str, list[float]]:
    return {name: run[f"balance/{name}"].values.tolist() for name in WRONG if f"balance/{name}" in run}


def train(
    model: nn.Module,
    *,
    steps: int = 20,
    micro: int = 1,
    autocast: bool = False,
    scaler: Any = None,
    weights: Mapping[str, float] = WRONG,
    begin: int = 0,
    state: Any = None,
    **options: Any,
) -> tuple[ld.Run, dict[str, Any]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    options = {"every": lambda step: step % 4 == 0, "balance": "ratio", **options}
    with ld.Doctor(model, optimizer, strict=True, **options) as doctor:
        if state is not None:
            doctor.load_state_dict(json.loads(json.dumps(state)))
        for step in range(begin, begin + steps):
            x = torch.randn(48, 4, generator=torch.Generator().manual_seed(step))
            for part in x.chunk(micro):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    found = losses(model, part)
                doctor.backward({name: loss / micro for name, loss in found.items()}, weights, scaler=scaler)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        kept = doctor.state_dict()
    return doctor.run, kept


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_accumulated_gradients_are_balanced_as_those_of_the_whole_batch(model: Model) -> None:
    """But for the first step, which begins with the factors that its first micro-batch asks for."""
    other = copy.deepcopy(model)
    whole, _ = train(model)
    parts, _ = train(other, micro=3)
    for name, values in factors(whole).items():
        assert factors(parts)[name] == pytest.approx(values, rel=0.05)
    assert factors(whole)["dino"][-1] < 0.1
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-2, atol=1e-3)


def test_a_scaler_changes_no_factor_by_one_bit(model: Model) -> None:
    other = copy.deepcopy(model)
    plain, _ = train(model)
    scaled, _ = train(other, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    assert factors(plain) == factors(scaled)
    assert same(model, other)


def test_half_precision_comes_to_the_factors_of_full_precision(model: Model) -> None:
    other = copy.deepcopy(model)
    full, _ = train(model)
    half, _ = train(other, autocast=True, scaler=torch.amp.GradScaler("cpu"))
    for name, values in factors(full).items():
        assert factors(half)[name] == pytest.approx(values, rel=0.1)
    assert len(half["loss/flow"]) == 20


def test_a_compiled_model_is_balanced_like_itself(model: Model) -> None:
    other = copy.deepcopy(model)
    eager, _ = train(model)
    compiled, _ = train(torch.compile(other, backend="aot_eager"))  # type: ignore[arg-type]
    for name, values in factors(eager).items():
        assert factors(compiled)[name] == pytest.approx(values, rel=0.01)
    torch._dynamo.reset()


def test_between_measurements_the_factors_stay_and_their_age_is_told(model: Model) -> None:
    run, _ = train(model, steps=41)
    age, dino, used = run["balance/age"], run["balance/dino"], run["weight/dino"]
    assert age.steps.tolist() == used.steps.tolist() == list(range(0, 41, 4))
    in_use = dict(zip(dino.steps.tolist(), dino.values.tolist(), strict=True))
    assert [w / WRONG["dino"] for w in used.values] == pytest.approx([in_use.get(step, 1.0) for step in age.steps])
    changed = [4, *(step for step in in_use if in_use[step] != in_use.get(step + 4, in_use[step]))]
    for step, steps in zip(age.steps.tolist(), age.values.tolist(), strict=True):
        kl_too = [at for at in changed if at < step]
        assert steps <= step - max(kl_too, default=0)
    assert 4.0 in age.values, "set at the last measurement, four steps ago"
    assert age.values[-1] > 4.0, "in its band it is left alone, and the age grows"


@dataclass(slots=True)
class Harmful(Balancer):
    """Turns the velocity loss around at step 8."""

    name: str = "harmful"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        return Advice({**dict.fromkeys(seen.names, 1.0), "flow": 1.0 if seen.step < 8 else -30.0}, {})


@pytest.mark.parametrize("cut", [9, 13, 21])
def test_a_change_is_judged_across_a_checkpoint(model: Model, cut: int) -> None:
    """Whether what is to be taken back was still open when the checkpoint was written makes no difference."""
    other, weights = copy.deepcopy(model), {"flow": 1.0, "dino": 0.3}
    whole, _ = train(model, steps=40, weights=weights, balance=Harmful())
    _, state = train(other, steps=cut, weights=weights, balance=Harmful())
    rest, kept = train(other, steps=40 - cut, begin=cut, weights=weights, state=state, balance=Harmful())
    assert kept["balance"]["off"] is not None
    assert "rolled back" in kept["balance"]["off"]
    assert same(model, other)
    assert whole["balance/flow"].values[-1] == rest["balance/flow"].values[-1] == 1.0
