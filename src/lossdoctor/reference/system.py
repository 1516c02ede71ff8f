"""Caption to picture: the parts joined, and the three losses that train them at once.

    caption -> text encoder -> mu, logvar -> z0 -> flow(z_t, t, caption) -> z1 = scaled latent -> picture
                                              \\-> dino_head: what the teacher says of the picture

flow: velocity regression from z0 to z1; it also shapes z0. kl: q(z0 | caption) against the standard normal. dino:
distillation of the teacher into the picture student and into z0.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from lossdoctor.flow import Linear
from lossdoctor.losses import DINOLoss, flow_matching_loss, gaussian_kl
from lossdoctor.probe import observe
from lossdoctor.reference.captions import Tokens
from lossdoctor.reference.config import ReferenceConfig
from lossdoctor.reference.data import Batch
from lossdoctor.reference.distill import MomentumTeacher, PrototypeHead
from lossdoctor.reference.text import TextEncoder, VariationalHead
from lossdoctor.reference.velocity import Velocity

KINDS: Final = {"dino": "distill", "kl": "kl", "flow": "velocity"}


class Autoencoder(Protocol):
    """A frozen way from pictures to latents of standard deviation about 1, and back."""

    def encode(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, H, W), sampled with standard normal `noise` of that shape."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1]."""
        ...


class Teacher(Protocol):
    """Who is distilled."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Prototype logits (B, K), without gradient."""
        ...

    def follow(self, student: nn.Module) -> None:
        """One step towards the student, for a teacher that learns at all."""
        ...


class Generator(nn.Module):
    """Everything that is needed to go from a caption to a latent. Its average over training draws the samples."""

    def __init__(self, config: ReferenceConfig, vocabulary: int) -> None:
        super().__init__()
        latent = config.autoencoder.latent
        self.text = TextEncoder(vocabulary, config.text)
        self.z_head = VariationalHead(config.text, latent)
        self.velocity = Velocity(config.velocity, latent, config.text.width)

    def source(self, tokens: Tokens, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Captions and standard normal noise (B, C, H, W) to cond (B, width), mu, logvar and z0, each (B, C, H, W)."""
        cond = observe.condition(self.text(tokens))
        mu, logvar = self.z_head(cond)
        return cond, mu, logvar, mu + (logvar / 2).exp() * noise


class System(nn.Module):
    """The generator, the students and the teacher, and the frozen autoencoder."""

    def __init__(self, config: ReferenceConfig, vocabulary: int, student: nn.Module, autoencoder: Autoencoder) -> None:
        super().__init__()
        settings = config.distill
        self.settings = settings
        self.generator = Generator(config, vocabulary)
        self.dino_head = PrototypeHead(math.prod(config.autoencoder.latent), settings)
        self.student = student
        self.teacher: Teacher = MomentumTeacher(student, settings.momentum)
        self.dino = DINOLoss(
            settings.prototypes,
            student_temp=settings.student_temp,
            teacher_temp=settings.teacher_temp,
            warmup_teacher_temp=settings.warmup_teacher_temp,
            warmup_steps=round(settings.warmup * config.train.steps),
            center_momentum=settings.center_momentum,
        )
        self.autoencoder = autoencoder
        self.path = Linear()
        self._said: list[Tensor] = []

    def heads(self) -> dict[str, nn.Module]:
        """The last layers of the three losses, by the names the Doctor reports them under."""
        return {"z_head": self.generator.z_head, "flow_head": self.generator.velocity.head, "dino_head": self.dino_head}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The three unweighted losses of one batch, 0-d each, handed to the active doctor on the way."""
        cond, mu, logvar, z0 = self.generator.source(batch.tokens, batch.source_noise)
        kl = gaussian_kl(mu, logvar, reduction="sum")
        observe.posterior(mu, logvar, z=z0, kl=kl)
        with torch.no_grad():
            z1 = self.autoencoder.encode(batch.pictures, batch.target_noise)
        return {"flow": self._flow(z0, z1, batch.t, cond), "dino": self._distill(batch, z0), "kl": kl}

    def _flow(self, z0: Tensor, z1: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x_t, v_target = self.path.sample(z0, z1, t)
        v_pred = self.generator.velocity(x_t, t, cond)
        observe.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=self.generator.velocity)
        return flow_matching_loss(v_pred, v_target)

    def _distill(self, batch: Batch, z0: Tensor) -> Tensor:
        """Each teacher view teaches the student's other view and the caption: four pairs of equal weight."""
        self.dino.student_temp = observe.knob("student_temp", self.settings.student_temp)
        self.dino.final_teacher_temp = observe.knob("teacher_temp", self.settings.teacher_temp)
        views = torch.cat(batch.views)
        said = self.teacher(views).chunk(2)
        heard = [*self.student(views).chunk(2), self.dino_head(z0)]
        pairs = [(i, j) for i in range(len(said)) for j in range(len(heard)) if i != j]
        observe.distill(
            torch.cat([said[i] for i, _ in pairs]),
            torch.cat([heard[j] for _, j in pairs]),
            teacher_temp=self.dino.teacher_temp,
            student_temp=self.dino.student_temp,
            center=self.dino.center,
        )
        self._said = list(said)
        loss: Tensor = self.dino(said, heard)
        return loss

    def update_teacher(self) -> None:
        """After the optimizer step: the teacher follows the student, its centre follows what it said last."""
        self.teacher.follow(self.student)
        self.dino.update(self._said)
