"""Caption to picture: the parts joined, and the three losses that train them at once.

    caption -> text encoder -> mu, logvar -> z0 -> flow(z_t, t, caption) -> z1 = scaled latent -> picture
                                              \\-> dino_head: what the teacher says of the picture

flow: velocity regression from z0 to z1; it also shapes z0. kl: q(z0 | caption) against the standard normal. dino:
distillation of the teacher into the picture student and into z0.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final, Protocol

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
from lossdoctor.reference.transformer import VelocityTransformer
from lossdoctor.reference.velocity import Velocity

KINDS: Final = {"dino": "distill", "kl": "kl", "flow": "velocity"}


class Autoencoder(Protocol):
    """A frozen way from pictures to latents of standard deviation about 1, and back.

    `image_vae.PictureVAE`, trained here, and `diffusers_vae.LatentAutoencoder`, which comes trained.
    """

    def encode(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, H, W), sampled with standard normal `noise` of that shape."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1]."""
        ...


class Teacher(Protocol):
    """Who is distilled: `distill.MomentumTeacher`, or `dinov2.FrozenTeacher`, which has no student."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Prototype logits (B, K), without gradient."""
        ...

    def follow(self, student: nn.Module | None) -> None:
        """One step towards the student, for a teacher that learns at all."""
        ...


class Generator(nn.Module):
    """Everything that is needed to go from a caption to a latent. Its average over training draws the samples."""

    velocity_type: ClassVar[type[Velocity]] = Velocity

    def __init__(self, config: ReferenceConfig, vocabulary: int) -> None:
        super().__init__()
        latent = config.autoencoder.latent
        self.text = TextEncoder(vocabulary, config.text)
        self.z_head = VariationalHead(config.text, latent)
        network = VelocityTransformer if config.velocity.kind == "transformer" else self.velocity_type
        self.velocity: Velocity | VelocityTransformer = network(config.velocity, latent, config.text.width)

    def source(self, tokens: Tokens, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Captions and standard normal noise (B, C, H, W) to cond (B, width), mu, logvar and z0, each (B, C, H, W)."""
        cond = observe.condition(self.text(tokens))
        mu, logvar = self.z_head(cond)
        return cond, mu, logvar, mu + (logvar / 2).exp() * noise

    def field(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """dx/dt as sampling calls it: x (B, C, H, W), t (B,) or (B, 1, ...), cond (B, width) to x's shape."""
        velocity: Tensor = self.velocity(x, t, cond)
        return velocity


class System(nn.Module):
    """The generator, the students and the teacher, and the frozen autoencoder.

    student: the picture student, which the teacher follows; None with a `teacher` that knows pictures already. Every
    formula is a method of its own, and a subclass may put in other parts: `reference.faults` does.
    """

    generator_type: ClassVar[type[Generator]] = Generator
    teacher_type: ClassVar[type[MomentumTeacher]] = MomentumTeacher

    def __init__(
        self,
        config: ReferenceConfig,
        vocabulary: int,
        student: nn.Module | None,
        autoencoder: Autoencoder,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        settings = config.distill
        self.settings, self.weight_settings = settings, config.weights
        self.generator = self.generator_type(config, vocabulary)
        self.dino_head = PrototypeHead(math.prod(config.autoencoder.latent), settings)
        self.student = student
        if teacher is None:
            assert student is not None
            teacher = self.teacher_type(student, settings.momentum)
        self.teacher: Teacher = teacher
        self.dino = DINOLoss(
            settings.prototypes,
            student_temp=settings.student_temp,
            teacher_temp=settings.teacher_temp,
            warmup_teacher_temp=settings.warmup_teacher_temp,
            warmup_steps=round(settings.warmup * config.train.steps),
            center_momentum=settings.center_momentum,
            # What is left out is that a student sees the very view of the teacher; the caption shows none.
            skip_same_view=student is not None,
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
        kl = self._kl(mu, logvar, z0)
        observe.posterior(mu, logvar, z=z0, kl=kl)
        z1 = self.encode(batch)
        return {"flow": self._flow(z0, z1, batch.t, cond), "dino": self._distill(batch, z0), "kl": kl}

    def weights(self) -> dict[str, float]:
        """How much each loss counts in the total, by name."""
        return {name: observe.knob(f"w_{name}", getattr(self.weight_settings, name)) for name in KINDS}

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """The data end z1 (B, C, H, W): the scaled latents of the pictures, without gradient."""
        return self.autoencoder.encode(batch.pictures, batch.target_noise)

    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return gaussian_kl(mu, logvar, reduction="sum")

    def _flow(self, z0: Tensor, z1: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x_t, v_target = self._on_path(z0, z1, t)
        v_pred = self.generator.velocity(x_t, t, cond)
        observe.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=self.generator.field)
        return self._flow_loss(v_pred, v_target, t)

    def _on_path(self, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and v_target."""
        return self.path.sample(z0, z1, t)

    def _flow_loss(self, v_pred: Tensor, v_target: Tensor, t: Tensor) -> Tensor:
        return flow_matching_loss(v_pred, v_target)

    def _distill(self, batch: Batch, z0: Tensor) -> Tensor:
        """Each teacher view teaches the student's other view and the caption: four pairs of equal weight.

        Without a picture student there is one view and one pair: the picture, and its caption.
        """
        self.dino.student_temp = observe.knob("student_temp", self.settings.student_temp)
        self.dino.final_teacher_temp = observe.knob("teacher_temp", self.settings.teacher_temp)
        views = torch.cat(batch.views)
        said = self.teacher(views).chunk(len(batch.views))
        heard = self._answers(views, z0)
        same = not self.dino.skip_same_view
        pairs = [(i, j) for i in range(len(said)) for j in range(len(heard)) if i != j or same]
        observe.distill(
            torch.cat([said[i] for i, _ in pairs]),
            torch.cat([heard[j] for _, j in pairs]),
            teacher_temp=self.dino.teacher_temp,
            student_temp=self.dino.student_temp,
            center=self.dino.center,
        )
        self._said = list(said)
        return self._cross_entropy(list(said), heard)

    def _answers(self, views: Tensor, z0: Tensor) -> list[Tensor]:
        """The students' logits (B, K): of the two views (2B, C, H, W), and of the caption."""
        seen = () if self.student is None else self.student(views).chunk(2)
        return [*seen, self.dino_head(z0)]

    def _cross_entropy(self, said: list[Tensor], heard: list[Tensor]) -> Tensor:
        loss: Tensor = self.dino(said, heard)
        return loss

    def update_teacher(self) -> None:
        """After the optimizer step: the teacher follows the student, its centre follows what it said last."""
        self.teacher.follow(self.student)
        self.dino.update(self._said)
