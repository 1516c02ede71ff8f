"""Noise to data by class, while features in the middle of the network learn from a teacher that sees the clean data.

The data are made-up latents of an image autoencoder: of standard deviation 5.49 as they come, of 1 after the usual
factor. Every class has four styles that no label tells; the distillation is to find them. The teacher is a slow copy of
the network, centred and sharpened; dropout makes its mode matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.switch import Broken, switched
from lossdoctor.flow import LogitNormal, Uniform
from lossdoctor.losses import DINOLoss, distillation_cross_entropy
from lossdoctor.reference.edits import clipped_at, decay_at, edited, mixed, scaled_by

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""velocity(x, t, label): x (B, D), t (B,), label (B,) to (B, D)."""

CLASSES, NULL, STYLES = 8, 8, 4
DIMENSIONS, PROTOTYPES = 12, 64
SCALE, RAW_STD = 0.18215, 5.49
BATCH = 256


class NoiseToData(Program):
    """A velocity and a distillation that share most of a network, with dropout, clipping and two slow copies."""

    name = "noise_to_data"
    faults = (
        "weak-distillation", "strong-distillation", "weak-velocity", "tight-clip", "huge-rate",
        "detached-distillation", "detached-features", "empty-mask", "distillation-formula", "half-precision-overflow",
        "sharp-teacher", "saturated-student", "uniform-teacher", "warm-teacher", "collapsed-teacher",
        "frozen-teacher", "teacher-is-student", "trainable-teacher", "teacher-in-train-mode",
        "target-sign", "predicts-data", "broadcast-target", "starved-edges", "time-not-connected", "bypassed-head",
        "unscaled-latent", "doubly-scaled-latent", "reversed-inference", "inference-sign", "inference-scale",
        "inference-other-condition", "short-grid", "stale-state",
        "condition-ignored", "shuffled-condition", "null-rate",
        "head-not-in-optimizer", "frozen-head", "slow-head", "decayed-heads",
        "stuck-ema", "half-precision-ema", "slow-ema",
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
        """How far samples are from the data, over how far other data are, plus the share of styles not told apart."""
        far = run["flow/endpt_sw@64"].values[-1] / run["flow/endpt_sw_floor"].values[-1]
        return float(far + 1 - run["eval/purity"].values[-1])


class Training:
    """Network, copies, optimizer, and one step after the other."""

    def __init__(self, broken: Broken) -> None:
        self.broken, self.done = broken, 0
        self.data = Data()
        self.model = Network(broken)
        if broken("half-precision-overflow"):
            self.model.projector.prototypes.half()
        self.teacher = self.model
        if not broken("teacher-is-student"):
            self.teacher = copy.deepcopy(self.model).requires_grad_(broken("trainable-teacher"))
            self.teacher.train(broken("teacher-in-train-mode"))
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        if broken("half-precision-ema"):
            self.ema.bfloat16()
        self.optimizer = build_optimizer(self.model, broken)
        self.dino = build_distillation(broken)
        self.field = inference(self.model, broken)

    def doctor(self, run: Path | None, seed: int, every: int) -> ld.Doctor:
        """The doctor of this training."""
        return ld.Doctor(
            self.model,
            self.optimizer,
            run=run,
            meta={"seed": seed},
            heads={"flow_head": self.model.head, "projector": self.model.projector},
            teacher=self.teacher,
            ema=self.ema,
            kinds={"cfm": "velocity", "align": "distill"},
            every=every,
            live=False,
        )

    def step(self, doctor: ld.Doctor) -> None:
        """One step of the optimizer and what follows it."""
        broken = self.broken
        w_align = 2e-5 if broken("weak-distillation") else 200.0 if broken("strong-distillation") else 0.2
        w_cfm = 1e-4 if broken("weak-velocity") else 1.0
        weights = {"cfm": ld.knob("w_cfm", w_cfm), "align": ld.knob("w_align", w_align)}
        losses, taught = self.losses()
        doctor.backward(losses, weights)
        nn.utils.clip_grad_norm_(self.model.parameters(), clipped_at(0.005 if broken("tight-clip") else 5.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.dino.update(taught)
        if not broken("frozen-teacher"):
            follow(self.teacher, self.model, 0.97)
        if not broken("stuck-ema"):
            follow(self.ema, self.model, decay_at(self.done, 0.99999 if broken("slow-ema") else 0.98))
        self.done += 1

    def losses(self) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a fresh batch, and what the teacher said; both handed to the doctor on the way."""
        broken = self.broken
        z1, label, _ = self.data.draw(BATCH, scaled(broken))
        z0 = torch.randn_like(z1)
        if broken("shuffled-condition"):
            label = label[torch.randperm(BATCH)]
        null_rate = ld.knob("null_rate", 0.1)
        label = label.where(torch.rand(BATCH) >= (0.7 if broken("null-rate") else null_rate), NULL)

        t = mixed(LogitNormal(0.0, 0.3) if broken("starved-edges") else Uniform()).sample(BATCH)
        x_t, v_target = torch.lerp(z0, z1, t[:, None]), z1 - z0
        if broken("target-sign"):
            v_target = z0 - z1
        if broken("predicts-data"):
            v_target = z1
        features = self.model.features(x_t, t)
        v_pred = self.model.velocity(features, label)
        said = self.model.projector(features.detach() if broken("detached-features") else features)
        ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=label, velocity=self.field)
        error = v_pred - (v_target[:, None] if broken("broadcast-target") else v_target)

        with torch.set_grad_enabled(broken("trainable-teacher")):
            taught = self.teacher.says(z1, torch.ones(BATCH))
        told = t > (300 if broken("empty-mask") else 0.3)  # noisier data say nothing of their style
        return {"cfm": error.square().mean(), "align": self.distillation(taught[told], said[told])}, taught

    def distillation(self, taught: Tensor, said: Tensor) -> Tensor:
        """The cross-entropy of the student against the teacher."""
        dino, broken = self.dino, self.broken
        if broken("detached-distillation"):
            said = said.detach()
        ld.distill(taught, said, teacher_temp=dino.teacher_temp, student_temp=dino.student_temp, center=dino.center)
        if not len(said):
            return said.sum()
        if broken("distillation-formula"):  # the student's temperature is forgotten
            return distillation_cross_entropy(
                taught, said, teacher_temp=dino.teacher_temp, student_temp=1.0, center=dino.center
            )
        if broken("half-precision-overflow"):  # a softmax by hand
            odds = ((taught - dino.center.half()) / dino.final_teacher_temp).exp()
            return -(odds / odds.sum(1, keepdim=True) * (said / dino.student_temp).log_softmax(1)).sum(1).mean()
        loss: Tensor = dino(taught, said)
        return loss

    @torch.no_grad()
    def evaluate(self, doctor: ld.Doctor, samples: int) -> None:
        """Sample with the average, and look which prototypes it gives to which styles."""
        torch.manual_seed(0)  # on the same samples, whatever the seed of the training
        ema = copy.deepcopy(self.ema).float()
        z1, label, style = self.data.draw(samples, scaled(self.broken))
        doctor.endpoint(torch.randn_like(z1), z1, inference(ema, self.broken), label, solver=sampler(self.broken))
        table = torch.zeros(PROTOTYPES, CLASSES * STYLES)
        prototype = ema.says(z1, torch.ones(samples)).argmax(1)
        table.index_put_((prototype, STYLES * label + style), torch.ones(samples), accumulate=True)
        doctor.log({"eval/purity": table.amax(1).sum() / samples})


class Data:
    """Latents around a centre for every style of every class. They are the same whatever the seed of the training."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        classes = torch.randn(CLASSES, 1, DIMENSIONS, generator=generator)
        styles = torch.randn(CLASSES, STYLES, DIMENSIONS, generator=generator)
        centres = classes + styles
        self.centres = centres / centres.std()

    def draw(self, n: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (n, D) of standard deviation 5.49 times `scale`, labels (n,) and styles (n,)."""
        label, style = torch.randint(CLASSES, (n,)), torch.randint(STYLES, (n,))
        latents = RAW_STD * (self.centres[label, style] + 0.1 * torch.randn(n, DIMENSIONS))
        return scale * latents, label, style


def scaled(broken: Broken) -> float:
    """What the latents are multiplied with."""
    scale = 1.0 if broken("unscaled-latent") else SCALE**2 if broken("doubly-scaled-latent") else SCALE
    return scaled_by(scale)


class Network(nn.Module):
    """The velocity, and what is said of the features on the way to it, before the label is known."""

    def __init__(self, broken: Broken, width: int = 128, frequencies: int = 8) -> None:
        super().__init__()
        self.broken = broken
        self.inlet = nn.Linear(DIMENSIONS, width)
        self.time = nn.Linear(2 * frequencies, width)
        self.label = nn.Embedding(CLASSES + 1, width)
        self.early = nn.ModuleList([block(width), block(width)])
        self.late = block(width)
        self.head = nn.Linear(width, DIMENSIONS)
        self.projector = Projector(width)
        self.register_buffer("frequencies", torch.arange(1.0, frequencies + 1) * (math.pi / 2 / 1000))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) in [0, 1] to (B, width)."""
        angles = (1000 * t)[:, None] * self.get_buffer("frequencies")
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        features: Tensor = self.inlet(x) + (0 * time if self.broken("time-not-connected") else time)
        for early in self.early:
            features = features + early(features)
        return features

    def velocity(self, features: Tensor, label: Tensor) -> Tensor:
        """Features (B, width) and labels (B,) to (B, D)."""
        named = self.label(label)
        hidden: Tensor = features + (0 * named if self.broken("condition-ignored") else named)
        hidden = hidden + self.late(hidden)
        velocity: Tensor = hidden[:, :DIMENSIONS] if self.broken("bypassed-head") else self.head(hidden)
        return velocity

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity (B, D) at x (B, D), t (B,) in [0, 1], for labels (B,)."""
        return self.velocity(self.features(x, t), label)

    def says(self, x: Tensor, t: Tensor) -> Tensor:
        """Which prototypes (B, K) the features resemble."""
        logits: Tensor = self.projector(self.features(x, t))
        return logits


def block(width: int) -> nn.Sequential:
    """The residual part of a layer."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, width)
    )


class Projector(nn.Module):
    """Features to cosines with the prototypes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.GELU())]
        self.project = nn.Sequential(*hidden, nn.Linear(width, 32))
        self.prototypes = nn.Linear(32, PROTOTYPES, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) to (B, K) in [-1, 1]."""
        prototypes = F.normalize(self.prototypes.weight, dim=1)
        return F.linear(F.normalize(self.project(features), dim=1).to(prototypes.dtype), prototypes)


def build_distillation(broken: Broken) -> DINOLoss:
    """The loss with its temperatures and its moving centre."""
    wrong = {"sharp-teacher": 0.001, "collapsed-teacher": 0.02, "warm-teacher": 0.2, "uniform-teacher": 7.0}
    teacher_temp = next((temperature for name, temperature in wrong.items() if broken(name)), 0.07)
    return DINOLoss(
        PROTOTYPES,
        student_temp=ld.knob("student_temp", 0.1 / 50 if broken("saturated-student") else 0.1),
        teacher_temp=ld.knob("teacher_temp", teacher_temp),
        center_momentum=1.0 if broken("collapsed-teacher") and not edited("center_teacher") else 0.9,
        skip_same_view=False,
    )


def inference(model: Network, broken: Broken) -> Field:
    """The velocity as sampling calls it."""

    def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if broken("inference-other-condition"):
            label = torch.zeros_like(label)
        v: Tensor = model(x, 1 - t if broken("reversed-inference") else t, label)
        return -v if broken("inference-sign") else SCALE * v if broken("inference-scale") else v

    return velocity


def sampler(broken: Broken) -> Callable[[Field, Tensor, Tensor, int], Tensor]:
    """Euler's method from noise to data."""

    def euler(velocity: Field, z0: Tensor, label: Tensor, steps: int) -> Tensor:
        x, before = z0, z0
        size = 1 / (steps - 1 if broken("short-grid") else steps)
        for k in range(steps):
            v = velocity(before if broken("stale-state") else x, torch.full((len(x),), k * size), label)
            before, x = x, x + size * v
        return x

    return euler


def build_optimizer(model: Network, broken: Broken) -> torch.optim.AdamW:
    """Each head in a group of its own, without weight decay."""
    rate, decay = 0.2 if broken("huge-rate") else 2e-3, 0.02 if broken("decayed-heads") else 0.0
    slow = 1e-5 if broken("slow-head") else 1.0
    heads = [
        {"params": list(model.head.parameters()), "lr": slow * rate, "weight_decay": decay},
        {"params": list(model.projector.parameters()), "lr": rate, "weight_decay": decay},
    ]
    if broken("head-not-in-optimizer"):
        heads.pop()
    if broken("frozen-head"):
        model.projector.requires_grad_(False)
    body = [p for name, p in model.named_parameters() if name.split(".")[0] not in ("head", "projector")]
    return torch.optim.AdamW([{"params": body, "weight_decay": 0.02}, *heads], lr=rate, eps=1e-5, fused=True)


@torch.no_grad()
def follow(copied: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of a slow copy towards the model."""
    for kept, live in zip(copied.parameters(), model.parameters(), strict=True):
        kept.lerp_(live.to(kept.dtype), 1 - decay)
