"""A picture autoencoder and the flow that is to draw its latents, trained at once, as latent diffusion does one by one.

Pictures of one blob go to mu, logvar and a sample z; its scaled, detached copy is the data end of the flow, at t = 0 as
in diffusion code. Steps gather the gradients of two micro-batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.switch import Broken, switched
from lossdoctor.flow import LogitNormal, Uniform, energy_distance
from lossdoctor.losses import gaussian_kl
from lossdoctor.reference.edits import clipped_at, decay_at, mixed

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""velocity(x, t, label): x (B, C, L), t (B, 1, 1), label (B,) to (B, C, L)."""

CLASSES, SIDE = 8, 8
PIXELS, LATENT = SIDE * SIDE, (4, 2)
DIMENSIONS = math.prod(LATENT)
W_RECON, W_KL = 50.0, 0.01
BATCH, MICRO_BATCHES = 128, 2


class Joint(Program):
    """Reconstruction, KL and velocity; two parts that share nothing but the latent."""

    name = "joint"
    faults = (
        "weak-kl", "strong-kl", "deterministic-code", "detached-kl", "kl-not-applied", "tight-clip", "diverged",
        "kl-on-sample", "kl-on-scaled-latent", "kl-mean-for-sum", "kl-half-lost", "kl-other-formula", "huge-rate",
        "unclamped-logvar", "shrinking-latent", "lost-accumulation",
        "target-sign", "predicts-data", "broadcast-target", "starved-edges", "time-not-connected", "bypassed-head",
        "reversed-inference", "inference-sign", "inference-other-condition", "short-grid", "stale-state",
        "condition-ignored", "shuffled-condition",
        "head-not-in-optimizer", "frozen-head", "slow-head", "decayed-heads",
        "stuck-ema", "half-precision-ema", "slow-ema", "ema-per-micro-batch",
    )  # fmt: skip
    steps = 500
    samples = 768

    def train(self, fault: str | None, seed: int, run: Path | None = None) -> ld.Run:
        """See `Program.train`."""
        ld.seed_everything(seed)
        training = Training(switched(self, fault))
        with training.doctor(run, seed, every=max(1, self.steps // 50)) as doctor:
            for _ in range(self.steps):
                training.step(doctor)
            training.evaluate(doctor, self.samples)
        return doctor.run

    def harm(self, run: ld.Run) -> float:
        """How far drawn pictures are from real ones, over how far others are, plus nats to code one, per dimension."""
        return float(run["eval/far"].values[-1] + run["eval/nats"].values[-1] / DIMENSIONS)


class Training:
    """Model, average, optimizer, and one step after the other."""

    def __init__(self, broken: Broken) -> None:
        self.broken, self.done = broken, 0
        self.model = Model(broken)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        if broken("half-precision-ema"):
            self.ema.bfloat16()
        self.optimizer = build_optimizer(self.model, broken)
        self.field = inference(self.model.flow, broken)
        with torch.no_grad():  # as latent diffusion does: on the first batch
            self.scale = 1 / self.model.encode(draw(BATCH)[0])[2].std()

    def doctor(self, run: Path | None, seed: int, every: int) -> ld.Doctor:
        """The doctor of this training."""
        heads = {"z_head": self.model.z_head, "flow_head": self.model.flow.head}
        extra = {"seed": seed}
        return ld.Doctor(
            self.model, self.optimizer, run=run, heads=heads, ema=self.ema, every=every, live=False, meta=extra
        )

    def step(self, doctor: ld.Doctor) -> None:
        """One step of the optimizer, over the micro-batches."""
        broken = self.broken
        w_kl = ld.knob("w_kl", W_KL * (1e-4 if broken("weak-kl") else 1e3 if broken("strong-kl") else 1.0))
        w_recon = ld.knob("w_recon", W_RECON * (1e3 if broken("deterministic-code") else 1.0))
        weights = {"recon": w_recon, "kl": 1.0 if broken("kl-not-applied") else w_kl, "flow": 1.0}
        for _ in range(MICRO_BATCHES):
            if broken("lost-accumulation"):
                self.optimizer.zero_grad()
            doctor.backward({name: loss / MICRO_BATCHES for name, loss in self.losses().items()}, weights)
            if broken("ema-per-micro-batch"):
                follow(self.ema, self.model, 0.98)
        nn.utils.clip_grad_norm_(self.model.parameters(), clipped_at(0.02 if broken("tight-clip") else 20.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not (broken("stuck-ema") or broken("ema-per-micro-batch")):
            follow(self.ema, self.model, decay_at(self.done, 0.99999 if broken("slow-ema") else 0.98))
        self.done += 1

    def losses(self) -> dict[str, Tensor]:
        """The three losses of a fresh micro-batch, handed to the doctor on the way."""
        pictures, label = draw(BATCH)
        seen = blinded(pictures) if self.broken("unclamped-logvar") else pictures
        mu, logvar, z = self.model.encode(seen)
        recon = (self.model.decode(z) - pictures).square().mean()
        if self.broken("diverged"):  # the root of what exceeds a tolerance, until nothing does
            recon = (recon - 0.006).sqrt()
        kl = divergence(mu, logvar, z, self.broken)
        ld.posterior(mu, logvar, z=z, kl=kl)
        return {"recon": recon, "kl": kl, "flow": self.velocity_loss(z, label)}

    def velocity_loss(self, z: Tensor, label: Tensor) -> Tensor:
        """The flow leads from data at t = 0 to noise at t = 1, and sampling goes back."""
        broken = self.broken
        data = self.scale * (z if broken("shrinking-latent") else z.detach())
        noise = torch.randn_like(data)
        if broken("shuffled-condition"):
            label = label[torch.randperm(len(label))]
        t = mixed(LogitNormal(0.0, 0.2) if broken("starved-edges") else Uniform()).sample(len(data))[:, None, None]
        x_t, v_target = (1 - t) * data + t * noise, noise - data
        if broken("target-sign"):
            v_target = data - noise
        if broken("predicts-data"):
            v_target = data
        v_pred: Tensor = self.model.flow(x_t, t, label)
        ld.flow(v_pred, v_target, t, x_t=x_t, z0=noise, z1=data, cond=label, velocity=self.field, t_source=1.0)
        error = v_pred - (v_target[:, None] if broken("broadcast-target") else v_target)
        return error.square().mean()

    @torch.no_grad()
    def evaluate(self, doctor: ld.Doctor, samples: int) -> None:
        """Sample with the average; draw pictures, and reconstruct others."""
        torch.manual_seed(0)  # on the same pictures, whatever the seed of the training
        ema, euler = copy.deepcopy(self.ema).float(), sampler(self.broken)
        pictures, label = draw(samples)
        others, _ = draw(samples)
        mu, logvar, z = ema.encode(pictures)
        field, noise = inference(ema.flow, self.broken), torch.randn_like(z)
        doctor.endpoint(noise, self.scale * z, field, label, solver=euler, t_source=1.0)
        drawn = ema.decode(euler(field, noise, label, 64) / self.scale)
        far = energy_distance(drawn, others) / energy_distance(pictures, others)
        recon = (ema.decode(z) - pictures).square().mean()
        nats = W_RECON / W_KL * recon + gaussian_kl(mu, logvar, reduction="sum")
        doctor.log({"eval/far": far, "eval/recon": recon, "eval/nats": nats})


class Model(nn.Module):
    """The autoencoder and the flow."""

    def __init__(self, broken: Broken, width: int = 128) -> None:
        super().__init__()
        self.broken = broken
        self.encoder = mlp(PIXELS, width)
        self.z_head = nn.Linear(width, 2 * DIMENSIONS)
        self.decoder = nn.Sequential(mlp(DIMENSIONS, width), nn.Linear(width, PIXELS))
        self.flow = Flow(broken, width)

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 8, 8) to mu, logvar and a sample z, each (B, C, L)."""
        mu, logvar = self.z_head(self.encoder(pictures.flatten(1))).view(-1, 2, *LATENT).unbind(1)
        if not self.broken("unclamped-logvar"):
            logvar = logvar.clamp(-30, 20)
        return mu, logvar, mu + (logvar / 2).exp() * torch.randn_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, L) to pictures (B, 8, 8)."""
        pictures: Tensor = self.decoder(z.flatten(1)).view(-1, SIDE, SIDE)
        return pictures


class Flow(nn.Module):
    """The velocity, from data to noise."""

    def __init__(self, broken: Broken, width: int, frequencies: int = 8) -> None:
        super().__init__()
        self.broken = broken
        self.inlet = nn.Linear(DIMENSIONS, width)
        self.time = nn.Linear(2 * frequencies, width)
        self.label = nn.Embedding(CLASSES, width)
        self.trunk = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, DIMENSIONS)
        self.register_buffer("frequencies", torch.arange(1.0, frequencies + 1) * (math.pi / 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """See `Field`."""
        angles = t.flatten(1) * self.get_buffer("frequencies")
        time, named = self.time(torch.cat([angles.sin(), angles.cos()], 1)), self.label(label)
        if self.broken("time-not-connected"):
            time = 0 * time
        if self.broken("condition-ignored"):
            named = 0 * named
        hidden = self.trunk(self.inlet(x.flatten(1)) + time + named)
        velocity: Tensor = hidden[:, :DIMENSIONS] if self.broken("bypassed-head") else self.head(hidden)
        return velocity.view_as(x)


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def divergence(mu: Tensor, logvar: Tensor, z: Tensor, broken: Broken) -> Tensor:
    """The KL of the posterior from the standard normal: summed over dimensions, a mean over samples."""
    if broken("detached-kl"):
        mu, logvar = mu.detach(), logvar.detach()
    if broken("kl-on-sample"):
        return 0.5 * (z.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
    if broken("kl-on-scaled-latent"):
        mu, logvar = 0.18215 * mu, logvar + 2 * math.log(0.18215)
    if broken("kl-other-formula"):
        return ((0.3 * mu) ** 6 + 0.5 * (logvar.exp() - 1 - logvar)).flatten(1).sum(1).mean()
    kl = gaussian_kl(mu, logvar, reduction="per_dim" if broken("kl-mean-for-sum") else "sum")
    return 2 * kl if broken("kl-half-lost") else kl


def inference(flow: Flow, broken: Broken) -> Field:
    """The velocity as sampling calls it."""

    def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if broken("inference-other-condition"):
            label = torch.zeros_like(label)
        v: Tensor = flow(x, 1 - t if broken("reversed-inference") else t, label)
        return -v if broken("inference-sign") else v

    return velocity


def sampler(broken: Broken) -> Callable[[Field, Tensor, Tensor, int], Tensor]:
    """Euler's method from noise at t = 1 to data at t = 0."""

    def euler(velocity: Field, noise: Tensor, label: Tensor, steps: int) -> Tensor:
        x, before = noise, noise
        size = 1 / (steps - 1 if broken("short-grid") else steps)
        for k in range(steps):
            v = velocity(before if broken("stale-state") else x, x.new_full((len(x), 1, 1), 1 - k * size), label)
            before, x = x, x - size * v
        return x

    return euler


def draw(n: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 8, 8) of a blob near one of eight places on a circle, and the number of the place (n,)."""
    label = torch.randint(CLASSES, (n,))
    angle = label * (2 * math.pi / CLASSES)
    centre = 3.5 + 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.4 * torch.randn(n, 2)
    width, brightness = 0.8 + 0.8 * torch.rand(n, 1, 1), 0.6 + 0.8 * torch.rand(n, 1, 1)
    pixels = torch.arange(float(SIDE))
    down, across = (pixels - centre[:, :1]).square(), (pixels - centre[:, 1:]).square()
    blob = brightness * torch.exp(-(down[:, :, None] + across[:, None, :]) / (2 * width.square()))
    return blob + 0.05 * torch.randn(n, SIDE, SIDE), label


def blinded(pictures: Tensor) -> Tensor:
    """As a camera sees them that one time in twenty is blinded, by noise of 200 times the brightness."""
    return pictures + 200 * torch.randn_like(pictures) * (torch.rand(len(pictures), 1, 1) < 0.05)


def build_optimizer(model: Model, broken: Broken) -> torch.optim.AdamW:
    """Each head in a group of its own, without weight decay."""
    rate, decay = 0.2 if broken("huge-rate") else 2e-3, 0.02 if broken("decayed-heads") else 0.0
    slow = 1e-5 if broken("slow-head") else 1.0
    heads = [
        {"params": list(model.z_head.parameters()), "lr": slow * rate, "weight_decay": decay},
        {"params": list(model.flow.head.parameters()), "lr": rate, "weight_decay": decay},
    ]
    if broken("head-not-in-optimizer"):
        heads.pop()
    if broken("frozen-head"):
        model.flow.head.requires_grad_(False)
    body = [p for name, p in model.named_parameters() if not name.startswith(("z_head", "flow.head"))]
    return torch.optim.AdamW([{"params": body, "weight_decay": 0.02}, *heads], lr=rate, fused=True)


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the average towards the model."""
    for kept, live in zip(ema.parameters(), model.parameters(), strict=True):
        kept.lerp_(live.to(kept.dtype), 1 - decay)
