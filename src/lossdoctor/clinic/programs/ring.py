"""Eight Gaussians on a ring: conditional flow matching in two dimensions along a curved path.

Noise z0 goes to a point z1 of the Gaussian that the label names, on x_t = cos(angle) z0 + sin(angle) z1; the angle goes
from 0 to a quarter turn with t. The network says dx/d angle. A second loss looks at where the path would end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.switch import Broken, switched
from lossdoctor.flow import LogitNormal, Uniform
from lossdoctor.reference.edits import clipped_at, decay_at, mixed

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""velocity(x, t, label): x (B, 2), t (B, 1), label (B,) to (B, 2)."""

CLASSES, NULL = 8, 8
QUARTER = math.pi / 2
BATCH = 256


class Ring(Program):
    """Two losses in one small network, an exponential average of it, and a sampler of its own."""

    name = "ring"
    faults = (
        "bypassed-head", "weak-velocity", "opposed-losses", "tight-clip", "empty-mask", "diverged", "huge-rate",
        "target-sign", "target-off-path", "predicts-data", "broadcast-target", "starved-edges", "time-not-connected",
        "reversed-inference", "inference-sign", "inference-scale", "inference-without-derivative",
        "inference-other-condition", "short-grid", "stale-state",
        "condition-ignored", "shuffled-condition", "null-rate",
        "head-not-in-optimizer", "frozen-head", "slow-head", "decayed-heads",
        "stuck-ema", "half-precision-ema", "slow-ema",
    )  # fmt: skip
    steps = 500
    samples = 1024

    def train(self, fault: str | None, seed: int, run: Path | None = None) -> ld.Run:
        """See `Program.train`."""
        broken = switched(self, fault)
        ld.seed_everything(seed)
        model = Network(broken)
        ema = copy.deepcopy(model).requires_grad_(False)
        if broken("half-precision-ema"):
            ema.bfloat16()
        optimizer = build_optimizer(model, broken)
        every = max(1, self.steps // 50)
        with ld.Doctor(
            model,
            optimizer,
            run=run,
            heads={"flow_head": model.head},
            ema=ema,
            every=every,
            live=False,
            meta={"seed": seed},
        ) as doctor:
            for step in range(self.steps):
                weights = {"flow": 1e-4 if broken("weak-velocity") else 1.0, "end": 10.0}
                doctor.backward(losses(model, broken), weights)
                nn.utils.clip_grad_norm_(model.parameters(), clipped_at(0.01 if broken("tight-clip") else 5.0))
                optimizer.step()
                optimizer.zero_grad()
                if not broken("stuck-ema"):
                    follow(ema, model, decay_at(step, 0.99999 if broken("slow-ema") else 0.98))
            torch.manual_seed(0)  # the same samples, whatever the seed of the training
            label = torch.randint(CLASSES, (self.samples,))
            noise, points = torch.randn(self.samples, 2), ring(label)
            field = inference(copy.deepcopy(ema).float(), broken)
            doctor.endpoint(noise, points, field, label, solver=sampler(broken))
        return doctor.run

    def harm(self, run: ld.Run) -> float:
        """How far the samples of 64 steps are from the ring, over how far other points of the ring are."""
        return float(run["flow/endpt_sw@64"].values[-1] / run["flow/endpt_sw_floor"].values[-1])


class Network(nn.Module):
    """dx/d angle from the point, its time and its label."""

    def __init__(self, broken: Broken, width: int = 128, frequencies: int = 8) -> None:
        super().__init__()
        self.broken = broken
        self.inlet = nn.Linear(2, width)
        self.time = nn.Linear(2 * frequencies, width)
        self.label = nn.Embedding(CLASSES + 1, width)
        self.trunk = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, 2)
        self.register_buffer("frequencies", torch.arange(1.0, frequencies + 1) * QUARTER)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x (B, 2), t (B, 1), label (B,) to (B, 2)."""
        angles = t * self.get_buffer("frequencies")
        time, named = self.time(torch.cat([angles.sin(), angles.cos()], 1)), self.label(label)
        if self.broken("time-not-connected"):
            time = 0 * time
        if self.broken("condition-ignored"):
            named = 0 * named
        hidden = self.trunk(self.inlet(x) + time + named)
        turn: Tensor = hidden[:, :2] if self.broken("bypassed-head") else self.head(hidden)
        return turn


def losses(model: Network, broken: Broken) -> dict[str, Tensor]:
    """The two losses of a fresh batch, handed to the doctor on the way."""
    label = torch.randint(CLASSES, (BATCH,))
    z0, z1 = torch.randn(BATCH, 2), ring(label)
    if broken("shuffled-condition"):
        label = label[torch.randperm(BATCH)]
    null_rate = ld.knob("null_rate", 0.1)
    label = label.where(torch.rand(BATCH) >= (0.7 if broken("null-rate") else null_rate), NULL)

    t = mixed(LogitNormal(0.0, 0.3) if broken("starved-edges") else Uniform()).sample(BATCH)[:, None]
    cos, sin = torch.cos(QUARTER * t), torch.sin(QUARTER * t)
    x_t, v_target = cos * z0 + sin * z1, QUARTER * (cos * z1 - sin * z0)
    if broken("target-sign"):
        v_target = -v_target
    if broken("target-off-path"):
        v_target = z1 - z0
    if broken("predicts-data"):
        v_target = z1
    turn = model(x_t, t, label)
    v_pred = QUARTER * turn
    ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=label, velocity=inference(model, broken))

    error = v_pred - (v_target[:, None] if broken("broadcast-target") else v_target)
    end = sin * x_t - cos * turn if broken("opposed-losses") else sin * x_t + cos * turn
    late = t[:, 0] > (500.0 if broken("empty-mask") else 0.5)
    away = ((end - z1).square().mean(1) * late).sum() / late.sum().clamp(min=1)
    if broken("diverged"):  # the root of what exceeds a tolerance, until nothing does
        away = (away - 0.015).sqrt()
    return {"flow": error.square().mean(), "end": away}


def inference(model: Network, broken: Broken) -> Field:
    """The velocity as sampling calls it."""

    def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if broken("inference-other-condition"):
            label = torch.zeros_like(label)
        turn: Tensor = model(x, 1 - t if broken("reversed-inference") else t, label)
        if broken("inference-scale"):
            return turn
        if broken("inference-without-derivative"):
            cos, sin = torch.cos(QUARTER * t), torch.sin(QUARTER * t)
            return (sin * x + cos * turn) - (cos * x - sin * turn)
        return -QUARTER * turn if broken("inference-sign") else QUARTER * turn

    return velocity


def sampler(broken: Broken) -> Callable[[Field, Tensor, Tensor, int], Tensor]:
    """Euler's method from noise to points on the ring."""

    def euler(velocity: Field, z0: Tensor, label: Tensor, steps: int) -> Tensor:
        x, before = z0, z0
        size = 1 / (steps - 1 if broken("short-grid") else steps)
        for k in range(steps):
            v = velocity(before if broken("stale-state") else x, x.new_full((len(x), 1), k * size), label)
            before, x = x, x + size * v
        return x

    return euler


def ring(label: Tensor) -> Tensor:
    """Points (B, 2) of the Gaussians that are named: of standard deviation 1 all together."""
    angle = label * (2 * math.pi / CLASSES)
    return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(len(label), 2)


def build_optimizer(model: Network, broken: Broken) -> torch.optim.AdamW:
    """The head in a group of its own, without weight decay."""
    rate = 0.2 if broken("huge-rate") else 2e-3
    head: dict[str, Any] = {
        "params": list(model.head.parameters()),
        "lr": rate * (1e-5 if broken("slow-head") else 1.0),
        "weight_decay": 0.02 if broken("decayed-heads") else 0.0,
    }
    if broken("frozen-head"):
        model.head.requires_grad_(False)
    body = [p for name, p in model.named_parameters() if not name.startswith("head")]
    heads = [] if broken("head-not-in-optimizer") else [head]
    return torch.optim.AdamW([{"params": body}, *heads], lr=rate, weight_decay=0.02, fused=True)


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the average towards the model."""
    for kept, live in zip(ema.parameters(), model.parameters(), strict=True):
        kept.lerp_(live.to(kept.dtype), 1 - decay)
