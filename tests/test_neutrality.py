"""With the doctor on, training is bit for bit what it is without: each step of everything that could be disturbed."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.probe.sketch import Sketch

STEPS = {1: 60, 7: 200}
"""How long a training is watched, by how often it is measured."""


class Program(nn.Module):
    """Encoder with a posterior, a velocity network and a student head; dropout and BatchNorm where they hurt."""

    def __init__(self, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.BatchNorm1d if batch_norm else (lambda width: nn.Identity())
        self.encoder = nn.Sequential(nn.Linear(6, 24), norm(24), nn.SiLU(), nn.Dropout(dropout), nn.Linear(24, 8))
        self.z_head = nn.Linear(8, 8)
        self.velocity_net = nn.Sequential(nn.Linear(4 + 1 + 6, 32), norm(32), nn.SiLU(), nn.Dropout(dropout))
        self.flow_head = nn.Linear(32, 4)
        self.dino_head = nn.Linear(4, 7)
        self.teacher = nn.Linear(4, 7)
        self.teacher.requires_grad_(False)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.flow_head(self.velocity_net(torch.cat([x, t, cond], -1)))

    def losses(self, cond: Tensor, z1: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.z_head(self.encoder(cond)).chunk(2, -1)
        z0 = mu + (logvar / 2).exp() * torch.randn_like(mu)
        t = torch.rand(len(z1), 1)
        x_t, target = (1 - t) * z0 + t * z1, z1 - z0
        v = self.velocity(x_t, t, cond)
        ld.flow(v, target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=self.velocity)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        ld.posterior(mu, logvar, z=z0, kl=kl)
        with torch.no_grad():
            wanted = self.teacher(z1)
        student = self.dino_head(z0)
        ld.distill(wanted, student, teacher_temp=0.07, student_temp=0.1)
        dino = -((wanted / 0.07).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1).mean()
        return {"flow": (v - target).square().mean(), "dino": dino, "kl": kl}


@dataclass(frozen=True)
class Setting:
    """One way to train. `micro` batches are accumulated per step."""

    dropout: float = 0.0
    batch_norm: bool = False
    bf16: bool = False
    scaler: bool = False
    micro: int = 1
    clip: float | None = None
    optimizers: int = 1
    ema: bool = False
    set_to_none: bool = True
    optimizer: Any = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=dict)


WEIGHTS = {"flow": 1.0, "dino": 0.5, "kl": 1e-2}


def snapshot(program: Program, optimizers: list[torch.optim.Optimizer], ema: nn.Module | None) -> dict[str, Any]:
    return {
        "weights": [p.detach().clone() for p in program.parameters()],
        "buffers": [b.clone() for b in program.buffers()],
        "grads": [None if p.grad is None else p.grad.clone() for p in program.parameters()],
        "requires": [p.requires_grad for p in program.parameters()],
        "modes": [m.training for m in program.modules()],
        "ema": None if ema is None else [p.clone() for p in ema.parameters()],
        "optimizer": [copy.deepcopy(o.state_dict()) for o in optimizers],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def train(setting: Setting, every: int | None = None, gradients: str = "exact") -> Iterator[dict[str, Any]]:
    """Every state of a training, watched where it is measured every so many steps."""
    ld.seed_everything(3)
    program = Program(setting.dropout, setting.batch_norm)
    ema = copy.deepcopy(program).requires_grad_(False) if setting.ema else None
    trained = [p for p in program.parameters() if p.requires_grad]
    halves = [trained] if setting.optimizers == 1 else [trained[:5], trained[5:]]
    optimizers = [setting.optimizer(half, lr=1e-2, **setting.options) for half in halves]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=20) if setting.scaler else None
    doctor = contextlib.nullcontext()
    if every is not None:
        doctor = ld.Doctor(
            program,
            optimizers,
            heads={"z_head": program.z_head, "flow_head": program.flow_head, "dino_head": program.dino_head},
            teacher=program.teacher,
            ema=ema,
            every=every,
            gradients=gradients,
            strict=True,
        )
    with doctor as active:
        for _ in range(STEPS.get(every, max(STEPS.values()))):
            for _ in range(setting.micro):
                cond, z1 = torch.randn(48, 6), torch.randn(48, 4)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16):
                    losses = program.losses(cond, z1)
                losses = {name: loss / setting.micro for name, loss in losses.items()}
                if active is not None:
                    active.backward(losses, WEIGHTS, scaler=scaler)
                else:
                    total = losses["flow"] * 1.0 + losses["dino"] * 0.5 + losses["kl"] * 1e-2
                    (total if scaler is None else scaler.scale(total)).backward()
            if scaler is not None:
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
            if setting.clip is not None:
                nn.utils.clip_grad_norm_(program.parameters(), setting.clip)
            for optimizer in optimizers:
                optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            state = snapshot(program, optimizers, ema)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=setting.set_to_none)
            if ema is not None:
                with torch.no_grad():
                    for slow, fast in zip(ema.parameters(), program.parameters(), strict=True):
                        slow.lerp_(fast, 0.01)
            yield state


@cache
def unwatched(name: str) -> list[dict[str, Any]]:
    """The training that every watched one is compared with."""
    return list(train(SETTINGS[name]))


def assert_equal(a: Any, b: Any, where: str) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{n}]")
    else:
        assert a == b, where


EVERYTHING = Setting(dropout=0.2, batch_norm=True, bf16=True, micro=2, clip=0.5, optimizers=2, ema=True)
SETTINGS = {
    "plain": Setting(),
    "everything": EVERYTHING,
    "dropout": Setting(dropout=0.3),
    "batch_norm": Setting(batch_norm=True),
    "bf16": Setting(bf16=True),
    "accumulation": Setting(micro=3, set_to_none=False),
    "clipping": Setting(clip=0.1),
    "two_optimizers": Setting(optimizers=2),
    "ema": Setting(ema=True),
    "grad_scaler": Setting(scaler=True, clip=1.0),
    "sgd_momentum": replace(EVERYTHING, optimizer=torch.optim.SGD, options={"momentum": 0.9}),
    "fused": Setting(options={"fused": True}),
    "foreach": Setting(options={"foreach": True}),
}


def compare(name: str, every: int, gradients: str = "exact") -> None:
    plain, steps = unwatched(name), 0
    for step, watched in enumerate(train(SETTINGS[name], every, gradients)):
        assert_equal(plain[step], watched, f"step {step}")
        steps += 1
    assert steps == STEPS[every]


@pytest.mark.parametrize("every", STEPS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_is_bit_identical(name: str, every: int) -> None:
    compare(name, every)


@pytest.mark.parametrize("name", ["everything", "grad_scaler", "accumulation"])
def test_every_step_is_bit_identical_with_sketched_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossdoctor.probe.sketch.SIZE", 2)  # then even small weights are sketched
    covered, passes = [], Sketch.passes

    def noted(sketch: Sketch, *given: Any) -> Any:
        found = passes(sketch, *given)
        covered.append(len(found.covered))
        return found

    monkeypatch.setattr(Sketch, "passes", noted)
    compare(name, 1, "sketch")
    assert set(covered) == {5}, "all but the smallest"
    assert len(covered) == STEPS[1] * SETTINGS[name].micro


def test_the_comparison_can_fail() -> None:
    """A watcher that draws one number, or moves one buffer, is seen."""
    states = unwatched("batch_norm")
    changed = copy.deepcopy(states[5])
    changed["buffers"][0] += 1e-6
    with pytest.raises(AssertionError, match=r"buffers\[0\]"):
        assert_equal(states[5], changed, "step 5")
    with pytest.raises(AssertionError):
        assert_equal(states[5], states[6], "step 5")
