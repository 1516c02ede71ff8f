"""The training: picture autoencoder first, then the three losses at once; evaluation, checkpoints, exact resume."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lossdoctor import config as settings
from lossdoctor.errors import RunError, mismatch
from lossdoctor.metrics.reading import to_host
from lossdoctor.metrics.velocity import alignment
from lossdoctor.reference import checkpoint
from lossdoctor.reference.borrowed import digests, load_own_state, own_state, require_same
from lossdoctor.reference.captions import CaptionBook
from lossdoctor.reference.config import ReferenceConfig, validate
from lossdoctor.reference.data import Augmentation, Batch, Loader
from lossdoctor.reference.diffusers_vae import LatentAutoencoder
from lossdoctor.reference.dinov2 import FrozenTeacher
from lossdoctor.reference.ema import Ema
from lossdoctor.reference.image_vae import PictureVAE, train_autoencoder
from lossdoctor.reference.interrupt import deferred_interrupt
from lossdoctor.reference.optim import build_optimizer, set_rate
from lossdoctor.reference.parts import (
    autoencoder_of,
    in_memory,
    pictures_of,
    resolved,
    teaching_of,
    tokenizer_of,
    views_of,
)
from lossdoctor.reference.pictures import Pictures, some_of, split, stream
from lossdoctor.reference.sample import Sampler
from lossdoctor.reference.schedule import rate
from lossdoctor.reference.system import KINDS, Generator, System
from lossdoctor.reference.team import Team, team

if TYPE_CHECKING:
    from lossdoctor.doctor import Doctor

Phase = Literal["autoencoder", "teacher", "train"]

_EVALUATION_DRAWS = 4  # noise, times and captions per held-out picture
_ENDPOINT_ROWS = 256


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is: finished steps of total, and the losses of the last one, unweighted."""

    step: int
    total: int
    phase: Phase
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call of `run` ended with: finished training steps, whether it was interrupted, held-out values."""

    steps: int
    interrupted: bool = False
    evaluation: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class Trainer:
    """One training of the reference system; `run` does it, in as many calls as you like.

    Everything random comes from streams seeded by `config.seed`; the global random state is neither used nor moved, so
    a run depends on its configuration and the number of threads alone. digits: other pictures than those the settings
    name. Raises UsageError for settings, folders and files that no training can have, MissingExtraError without the
    packages they need. A subclass may put other parts in: `reference.faults` does.

    Under torchrun, and where torch.distributed is initialised, every rank makes a trainer; each takes its share of the
    batch, and gradients are averaged over the ranks.
    """

    system_type: ClassVar[type[System]] = System
    ema_type: ClassVar[type[Ema[Generator]]] = Ema

    def __init__(self, config: ReferenceConfig | None = None, digits: Pictures | None = None) -> None:
        config = config or ReferenceConfig()
        validate(config)
        self.config = config = resolved(config)
        self.team = team(config.device)
        seed, self.device = config.seed, self.team.device
        self.training_set, self.held_out = split(digits or pictures_of(config), config.data.held_out, seed)
        self.tokenizer = tokenizer_of(self.training_set, config.text)
        self.book = CaptionBook(self.tokenizer, self.training_set.ways)
        shape, (mean, std) = self.training_set.shape, self._brightness()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream(seed, "weights").initial_seed())
            self.autoencoder = autoencoder_of(config, shape)
            teaching = teaching_of(config, shape, mean, std)
            parts = (teaching.student, self.autoencoder, teaching.teacher)
            self.system = self.system_type(config, len(self.tokenizer), *parts).to(self.device)
        self.optimizer = self._build_optimizer()
        self.ema = self.ema_type(self.system.generator, config.train.ema)
        self.loader = self._loader(self.training_set, "training")
        self.team.check(self.loader.batch)
        self._losses: nn.Module | None = None
        self.step = 0
        self.autoencoder_ready = isinstance(self.autoencoder, LatentAutoencoder) and config.vae.scale == "config"
        self.teacher_ready = teaching.teacher is None

    def _brightness(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pictures, for a picture student."""
        if self.config.teacher.path is not None:
            return 0.0, 1.0
        pictures = in_memory(self.training_set, "A teacher", "teacher.path")
        return float(pictures.mean()), float(pictures.std())

    def patient(self) -> dict[str, Any]:
        """The arguments a Doctor of this training needs: `Doctor(**trainer.patient(), run=..., every=...)`."""
        return {
            "model": self.system,
            "optimizer": self.optimizer,
            "heads": self.system.heads(),
            "teacher": self.system.teacher,
            "ema": self.ema.model,
            "kinds": KINDS,
        }

    def sampler(self) -> Sampler:
        """Draws pictures from the averaged weights, as they are at each call."""
        return Sampler(self.ema.model, self.autoencoder, self.tokenizer, self.config.autoencoder.latent)

    # Training

    def prepare(self, on_progress: OnProgress | None = None) -> bool:
        """Get autoencoder and teacher ready unless that was done; otherwise `run` does it. False when interrupted."""
        return self._prepare(_Report(on_progress, self.config.train.progress_every, lambda: False, self.team))

    def run(
        self, steps: int | None = None, *, doctor: Doctor | None = None, on_progress: OnProgress | None = None
    ) -> Summary:
        """Train `steps` more steps (default: all that are left of `config.train.steps`), the autoencoder before them.

        doctor: measures the run; its step is set to this trainer's. on_progress: called every `progress_every` steps.
        At Ctrl-C, and when `on_progress` raises KeyboardInterrupt, the step in progress is finished and what there is
        returned; `run` or a checkpoint can go on from there. An interrupted autoencoder begins anew.
        """
        if doctor is not None and doctor.step != self.step:
            doctor.load_state_dict({"step": self.step})
        total, every = self.config.train.steps, self.config.train.progress_every
        goal = total if steps is None else min(total, self.step + steps)
        with deferred_interrupt() as interrupted:
            report = _Report(on_progress, every, interrupted, self.team)
            if self.step < goal and not self._prepare(report):
                return Summary(self.step, interrupted=True)
            self.system.train()
            while self.step < goal:
                losses = self._train_step(doctor)
                if not report(self.step, total, "train", losses):
                    return Summary(self.step, interrupted=True)
                if self.step % self.config.train.evaluate_every == 0 and self.step < total:
                    self.evaluate(doctor, endpoint=False)
        return Summary(self.step, evaluation=self.evaluate(doctor))

    @property
    def ready(self) -> bool:
        """Whether autoencoder and teacher are what the training needs."""
        return self.autoencoder_ready and self.teacher_ready

    def _prepare(self, report: _Report) -> bool:
        """Whether everything is ready; not when it was interrupted."""
        if not self.autoencoder_ready:
            if not isinstance(self.autoencoder, LatentAutoencoder):
                if not self._train_autoencoder(report):
                    return False
            else:
                seed = self.config.seed
                few = some_of(self.training_set, self.config.vae.measured_on, seed, "scale")
                self.autoencoder.measure(few, stream(seed, "scale noise"))
                self.autoencoder_ready = True
        if not self.teacher_ready:
            assert isinstance(self.system.teacher, FrozenTeacher)
            prototypes = self.config.distill.prototypes
            anchors = some_of(self.training_set, prototypes, self.config.seed, "prototypes")
            self.system.dino.center.copy_(self.system.teacher.look_at(anchors))
            self.teacher_ready = True
            return report(prototypes, prototypes, "teacher", {})
        return True

    def _train_autoencoder(self, report: _Report) -> bool:
        config, randomness = self.config, stream(self.config.seed, "autoencoder")
        pictures = in_memory(self.training_set, "An autoencoder", "vae.path")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(randomness.initial_seed())
            fresh = PictureVAE(config.autoencoder, self.training_set.shape).to(self.device)
        done = train_autoencoder(
            fresh,
            pictures,
            config.autoencoder,
            Augmentation(config.data.rotate, config.data.shift),
            randomness,
            each_step=lambda step, loss: report(step, config.autoencoder.steps, "autoencoder", {"vae": loss}),
        )
        if done:
            self.adopt(fresh.state_dict())
        return done

    def adopt(self, autoencoder: Mapping[str, Any]) -> None:
        """Take the state of a trained autoencoder of the same configuration, instead of training one.

        From `trainer.autoencoder.state_dict()`; with the same seed the run is the same to the last bit.
        """
        self.autoencoder.load_state_dict(autoencoder)
        self.autoencoder_ready = True

    def _train_step(self, doctor: Doctor | None) -> dict[str, Tensor]:
        train = self.config.train
        set_rate(self.optimizer, self._rate())
        if self._losses is None:
            # Only now, when all of the system is there to be sent to the other ranks.
            self._losses = self.team.wrapped(_Losses(self.system), unused=type(self) is not Trainer)
        rows = self.team.rows(self.loader.batch)
        losses: dict[str, Tensor] = self._losses(self.loader.draw(rows).to(self.device))
        weights = self.system.weights()
        if doctor is None:
            total = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros((), device=self.device))
            torch.autograd.backward(total)
        else:
            doctor.backward(losses, weights)
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.system.update_teacher()
        self.ema.update(self.system.generator)
        self.step += 1
        return losses

    def _build_optimizer(self) -> AdamW:
        return build_optimizer(self.system, self.config)

    def _rate(self) -> float:
        train = self.config.train
        return rate(self.step, train.steps, train.warmup, train.final_lr)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, doctor: Doctor | None = None, *, endpoint: bool = True) -> dict[str, float]:
        """The averaged generator on held-out pictures, on the same noise, times and captions at every call.

        `eval/flow_nmse`, `eval/flow_cos`, `eval/flow_speed_ratio` as in training; `eval/cond_ratio`: the loss with the
        captions of other pictures over the loss, 1 means that captions are ignored. With a doctor they are logged, and
        with `endpoint` the field is integrated too, whose values are added.
        """
        generator, loader = self.ema.model, self._loader(self.held_out, "evaluation", moved=False)
        rows = torch.arange(len(self.held_out)).repeat(_EVALUATION_DRAWS)[: self.config.train.evaluate_rows]
        batch = loader.assemble(self.held_out.rows(rows)).to(self.device)
        other = torch.randperm(len(rows), generator=loader.generator).to(self.device)
        cond, _, _, z0 = generator.source(batch.tokens, batch.source_noise)
        z1 = self.system.encode(batch)
        x_t, v_target = self.system.path.sample(z0, z1, batch.t)
        v_pred, v_other = (generator.velocity(x_t, batch.t, c) for c in (cond, cond[other]))
        readings = {f"eval/{key.replace('/', '_')}": v for key, v in alignment(v_pred, v_target).items()}
        readings["eval/cond_ratio"] = (v_other - v_target).square().mean() / (v_pred - v_target).square().mean()
        values = to_host(readings)
        if doctor is not None:
            doctor.log(values)
            if endpoint:
                few = slice(_ENDPOINT_ROWS)
                values |= doctor.endpoint(z0[few], z1[few], generator.field, cond[few], steps=(8, 16, 32, 64))
        return values

    # Checkpoints

    def save(self, path: str | Path) -> None:
        """Write everything the rest of the training depends on; see `resume`."""
        state = {
            "config": settings.dump(self.config),
            "step": self.step,
            "autoencoder_ready": self.autoencoder_ready,
            "teacher_ready": self.teacher_ready,
            "pictures": self.training_set.digest,
            "borrowed": digests(self.system),
            "system": own_state(self.system),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": torch.get_rng_state(),
        }
        checkpoint.save(path, state)

    @classmethod
    def resume(cls, path: str | Path, *, device: str | None = None, digits: Pictures | None = None) -> Trainer:
        """A trainer that goes on bit for bit where `save` was called, on `device` (default: the same).

        Raises RunError when the file is not a checkpoint, and where the pictures, or the weights of an autoencoder or a
        teacher from a folder, are not those it was trained with; UsageError when its settings are not known here.
        """
        state = checkpoint.load(path)
        config = settings.build(ReferenceConfig, tomllib.loads(state["config"]))
        trainer = cls(config if device is None else replace(config, device=device), digits)
        if state.get("pictures", "") != trainer.training_set.digest:
            rule, todo = "The pictures have changed.", "give back the folder it was trained on, or train again"
            raise RunError(mismatch(rule, "names and captions of the checkpoint", "other ones", todo))
        require_same(trainer.system, state.get("borrowed", {}))
        trainer.step, trainer.autoencoder_ready = state["step"], state["autoencoder_ready"]
        trainer.teacher_ready = state.get("teacher_ready", True)
        load_own_state(trainer.system, state["system"])
        for part in ("ema", "optimizer", "loader"):
            getattr(trainer, part).load_state_dict(state[part])
        torch.set_rng_state(state["rng"])
        return trainer

    def _loader(self, pictures: Pictures, purpose: str, *, moved: bool = True) -> Loader:
        return Loader(
            pictures,
            self.book,
            self.config.data,
            batch=self.config.train.batch,
            latent=self.config.autoencoder.latent,
            generator=stream(self.config.seed, purpose),
            moved=moved,
            views=views_of(self.config),
        )


class _Losses(nn.Module):
    """The losses of a batch as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.system.losses(batch)


@dataclass(frozen=True, slots=True)
class _Report:
    """Tells the progress, and answers whether to go on: all ranks end at the same step."""

    on_progress: OnProgress | None
    every: int
    interrupted: Callable[[], bool]
    team: Team

    def __call__(self, step: int, total: int, phase: Phase, losses: Mapping[str, Tensor]) -> bool:
        return not self.team.any(not self._told(step, total, phase, losses))

    def _told(self, step: int, total: int, phase: Phase, losses: Mapping[str, Tensor]) -> bool:
        if self.on_progress is not None and (step % self.every == 0 or step == total):
            try:
                self.on_progress(Progress(step, total, phase, to_host(losses)))
            except KeyboardInterrupt:
                return False
        return not self.interrupted()
