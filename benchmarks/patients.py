"""Trainings to treat: three programs of the clinic and two of `two_losses`, each with an illness and a remedy.

`train` runs one and grades it on data it has not seen. What an arm can say is said by an arm (`lossdoctor.arms`);
`Plan` adds what no arm says. Results are kept in a file, so that a benchmark that is begun again trains nothing twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import two_losses
from torch import Tensor

import lossdoctor as ld
from lossdoctor.ablate.effects import Effect, effect
from lossdoctor.clinic.programs import BY_NAME, joint, noise_to_data
from lossdoctor.clinic.programs.reference import SETTINGS
from lossdoctor.clinic.programs.switch import switched
from lossdoctor.config import override
from lossdoctor.flow import TimeSampler, Uniform, energy_distance, integrate
from lossdoctor.losses import gaussian_kl
from lossdoctor.metrics.velocity import alignment, by_time
from lossdoctor.probe.experiment import ARM, SEED
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.reference.faults import sick
from lossdoctor.reference.system import System
from lossdoctor.treat import Balancer, free_bits

SMALL: Mapping[str, Any] = {**SETTINGS, "train.batch": 32, "autoencoder.steps": 200, "train.evaluate_every": 10**6}
"""The clinic's reference system, with smaller batches and a shorter autoencoder."""
Grades = dict[str, float]
Dose = Callable[[int, Mapping[str, Tensor]], Mapping[str, float]]
"""Optimizer step and unweighted losses to factors on the weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wrong and what is done, under one name that stands for all of it.

    arm: of the house's language. fault: of the clinic. balance, dose: makers of something fresh for each training.
    times: in place of the program's. bits: per dimension for free. settings: of the reference system.
    """

    name: str
    arm: str = "baseline"
    fault: str | None = None
    balance: Callable[[], Balancer] | None = None
    dose: Callable[[], Dose] | None = None
    times: TimeSampler | None = None
    bits: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


class Dosed(ld.Doctor):
    """A Doctor under which weights follow a `Dose`."""

    dose: Dose | None = None

    def backward(self, losses: Any, weights: Any = None, **given: Any) -> Tensor:
        """See `Doctor.backward`."""
        if self.dose is not None:
            factors = self.dose(self._out.step, losses)
            weights = {name: weight * factors.get(name, 1.0) for name, weight in weights.items()}
        return super().backward(losses, weights, **given)


def dosed(plan: Plan, **given: Any) -> Dosed:
    """The doctor of a training: measures, and treats as planned."""
    doctor = Dosed(live=False, balance=None if plan.balance is None else plan.balance(), **given)
    doctor.dose = None if plan.dose is None else plan.dose()
    return doctor


def followed(doctor: Dosed, step: Callable[[ld.Doctor], object], steps: int) -> ld.Run:
    """The run of so many steps; at its end nothing is rolled out, as grades are taken by hand."""
    with doctor:
        for _ in range(steps):
            step(doctor)
        doctor.close(rollout=False)
    return doctor.run


# The reference system


class _FreeBits(System):
    bits = 0.0

    def _kl(self, mu: Tensor, logvar: Tensor, z0: Tensor) -> Tensor:
        return free_bits(0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1), self.bits)


@lru_cache(maxsize=8)
def _autoencoder(seed: int) -> dict[str, Any]:
    trainer = Trainer(replace(override(ReferenceConfig(), SMALL), seed=seed))
    trainer.prepare()
    return trainer.autoencoder.state_dict()


def reference(plan: Plan, seed: int, steps: int, every: int) -> tuple[ld.Run, Grades]:
    config = replace(override(ReferenceConfig(), {**SMALL, "train.steps": steps, **plan.settings}), seed=seed)
    if plan.bits:
        system = type("Bits", (_FreeBits,), {"bits": plan.bits})
        trainer: Trainer = type("Bits", (Trainer,), {"system_type": system})(config)
    else:
        trainer = Trainer(config) if plan.fault is None else sick(config, plan.fault)
    trainer.adopt(_autoencoder(seed))
    if plan.times is not None:
        trainer.loader.times = plan.times
    trainer.system.train()
    run = followed(dosed(plan, **trainer.patient(), every=every), trainer._train_step, steps)
    return run, _grades_of_reference(trainer)


@torch.no_grad()
def _grades_of_reference(trainer: Trainer) -> Grades:
    """Velocity and posterior of the averaged generator, distillation of the live heads, on held-out digits."""
    system, generator = trainer.system.eval(), trainer.ema.model
    values = trainer.evaluate(endpoint=False)
    loader = trainer._loader(trainer.held_out, "evaluation", moved=False)
    batch = loader.assemble(trainer.held_out)
    cond, mu, logvar, z0 = generator.source(batch.tokens, batch.source_noise)
    z1 = system.encode(batch)
    reached = integrate(lambda x, t: generator.field(x, t, cond), z0, steps=16, solver="euler")
    x_t, v_target = system.path.sample(z0, z1, batch.t)
    by_bin = by_time(generator.velocity(x_t, batch.t, cond), v_target, batch.t)
    _, _, _, live = system.generator.source(batch.tokens, batch.source_noise)
    said, heard = system.teacher(batch.pictures), system.dino_head(live)
    return {
        "nmse": values["eval/flow_nmse"],
        "cos": values["eval/flow_cos"],
        "kl": float(gaussian_kl(mu, logvar, reduction="per_dim")),
        "agree": float((said.argmax(1) == heard.argmax(1)).float().mean()),
        "prototypes": float(len(set(said.argmax(1).tolist()))),
        "sigma": float((logvar / 2).exp().mean()),
        "far": float(energy_distance(reached.flatten(1), z1.flatten(1))),
        **_edges(by_bin),
    }


def _edges(by_bin: Mapping[str, Tensor]) -> Grades:
    """The error near both ends of time."""
    ends = [float(v) for k, v in by_bin.items() if k.startswith("flow/nmse_t") and k[-1] in "09"]
    return {"edge": sum(ends) / len(ends)} if ends else {}


# Jointly trained autoencoder and flow


class _Joint(joint.Training):
    plan: Plan

    def losses(self) -> dict[str, Tensor]:
        if not self.plan.bits:
            return super().losses()
        pictures, label = joint.draw(joint.BATCH)
        mu, logvar, z = self.model.encode(pictures)
        kl = free_bits(0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1), self.plan.bits)
        ld.posterior(mu, logvar, z=z, kl=kl)
        recon = (self.model.decode(z) - pictures).square().mean()
        return {"recon": recon, "kl": kl, "flow": self.velocity_loss(z, label)}


def joint_program(plan: Plan, seed: int, steps: int, every: int) -> tuple[ld.Run, Grades]:
    ld.seed_everything(seed)
    training = _Joint(switched(BY_NAME["joint"], plan.fault))
    training.plan = plan
    heads = {"z_head": training.model.z_head, "flow_head": training.model.flow.head}
    doctor = dosed(plan, model=training.model, optimizer=training.optimizer, heads=heads, every=every)
    return followed(doctor, training.step, steps), _grades_of_joint(training)


@torch.no_grad()
def _grades_of_joint(training: joint.Training, samples: int = 512) -> Grades:
    torch.manual_seed(0)  # the same pictures and noise, whatever the seed of the training
    ema = training.ema
    (pictures, label), (others, _) = joint.draw(samples), joint.draw(samples)
    mu, logvar, z = ema.encode(pictures)
    data, noise = training.scale * z, torch.randn_like(z)
    t = torch.rand(samples, 1, 1)
    fit = alignment(ema.flow((1 - t) * data + t * noise, t, label), noise - data)
    field, euler = joint.inference(ema.flow, training.broken), joint.sampler(training.broken)
    drawn = ema.decode(euler(field, noise, label, 32) / training.scale)
    far = energy_distance(drawn.flatten(1), others.flatten(1)) / energy_distance(pictures.flatten(1), others.flatten(1))
    return {
        "nmse": float(fit["flow/nmse"]),
        "cos": float(fit["flow/cos"]),
        "kl": float(gaussian_kl(mu, logvar, reduction="per_dim")),
        "recon": float((ema.decode(z) - pictures).square().mean()),
        "active": float((mu.flatten(1).var(0) > 0.01).sum()),
        "far": float(far),
    }


# Noise to data, with a distillation


def noise_program(plan: Plan, seed: int, steps: int, every: int) -> tuple[ld.Run, Grades]:
    ld.seed_everything(seed)
    training = noise_to_data.Training(switched(BY_NAME["noise_to_data"], plan.fault))
    model = training.model
    doctor = dosed(
        plan,
        model=model,
        optimizer=training.optimizer,
        heads={"flow_head": model.head, "projector": model.projector},
        teacher=training.teacher,
        kinds={"cfm": "velocity", "align": "distill"},
        every=every,
    )
    with mock.patch.object(noise_to_data, "Uniform", return_value=plan.times or Uniform()):
        run = followed(doctor, training.step, steps)
    return run, _grades_of_noise(training)


@torch.no_grad()
def _grades_of_noise(training: noise_to_data.Training, samples: int = 512) -> Grades:
    torch.manual_seed(0)
    ema, live = training.ema, training.model.eval()
    z1, label, style = training.data.draw(samples, noise_to_data.SCALE)
    z0, t = torch.randn_like(z1), torch.rand(samples)
    v_pred = ema(torch.lerp(z0, z1, t[:, None]), t, label)
    fit = alignment(v_pred, z1 - z0)
    euler = noise_to_data.sampler(training.broken)
    reached = euler(noise_to_data.inference(ema, training.broken), z0, label, 32)
    other = training.data.draw(samples, noise_to_data.SCALE)[0]
    said = training.teacher.says(z1, torch.ones(samples)).argmax(1)
    heard = live.says(torch.lerp(z0, z1, torch.full((samples, 1), 0.7)), torch.full((samples,), 0.7)).argmax(1)
    table = torch.zeros(noise_to_data.PROTOTYPES, noise_to_data.CLASSES * noise_to_data.STYLES)
    table.index_put_((said, noise_to_data.STYLES * label + style), torch.ones(samples), accumulate=True)
    return {
        "nmse": float(fit["flow/nmse"]),
        "cos": float(fit["flow/cos"]),
        "agree": float((said == heard).float().mean()),
        "purity": float(table.amax(1).sum() / samples),
        "far": float(energy_distance(reached, z1) / energy_distance(other, z1)),
        **_edges(by_time(v_pred, z1 - z0, t)),
    }


# Two losses


def small_program(make: Callable[[int], Any]) -> Callable[[Plan, int, int, int], tuple[ld.Run, Grades]]:
    def program(plan: Plan, seed: int, steps: int, every: int) -> tuple[ld.Run, Grades]:
        model, how = make(seed), plan.settings.get("optimizer", "sgd")
        maker: Any = torch.optim.Adam if how == "adam" else torch.optim.SGD
        optimizer = maker(model.parameters(), lr=model.rate[how])
        with dosed(
            plan, model=model, optimizer=optimizer, kinds=model.kinds, every=lambda step: step % every == 0
        ) as doctor:
            weights = dict.fromkeys(model.kinds, 1.0)
            two_losses.trained(model, optimizer, seed, steps, lambda losses: doctor.backward(losses, weights))
        return doctor.run, two_losses.grades(model)

    return program


PROGRAMS = {
    "conflict": small_program(two_losses.Conflict),
    "imbalance": small_program(two_losses.Imbalance),
    "joint": joint_program,
    "noise_to_data": noise_program,
    "reference": reference,
}


# One training, and many


def train(program: str, plan: Plan, seed: int, steps: int, every: int = 50) -> dict[str, Any]:
    """Grades, the weighted gradients at measured steps, what the balancer told, and the processor's seconds."""
    began = time.process_time()
    os.environ[ARM], os.environ[SEED] = plan.arm, str(seed)
    try:
        run, grades = PROGRAMS[program](plan, seed, steps, every)
    finally:
        del os.environ[ARM], os.environ[SEED]
    found: dict[str, Any] = {"grades": grades, "seconds": time.process_time() - began, "events": {}}
    strengths = [name for name in run if name.startswith("grad_weighted/")]
    found["strength"] = {name.removeprefix("grad_weighted/"): run[name].values.tolist() for name in strengths}
    found["steps"] = run[strengths[0]].steps.tolist() if strengths else []
    found["factors"] = {
        name.removeprefix("balance/"): run[name].values.tolist() for name in run if name.startswith("balance/")
    }
    for event in run.events:
        if event["kind"].startswith("balance") and event["kind"] != "balance":
            found["events"].setdefault(event["kind"], []).append(event.get("reason") or event.get("verdict"))
    return found


class Ledger:
    """Results by name, in a JSON-lines file that grows by one line per training."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, dict[str, Any]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            self.known = {key: value for line in lines for key, value in line.items()}

    def of(self, program: str, plan: Plan, seed: int, steps: int, every: int = 50) -> dict[str, Any]:
        """The result of this training, which is done now if it was not done before."""
        key = f"{program}|{plan.name}|{seed}|{steps}|{every}"
        if key not in self.known:
            self.known[key] = train(program, plan, seed, steps, every)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: self.known[key]}) + "\n")
            print(f"{key}: {self.known[key]['seconds']:.1f} s", flush=True)
        found: dict[str, Any] = self.known[key]
        return found

    def seeds(self, program: str, plan: Plan, seeds: int, steps: int, every: int = 50) -> dict[int, dict[str, Any]]:
        """Seed to result, of the first so many seeds."""
        return {seed: self.of(program, plan, seed, steps, every) for seed in range(seeds)}


def compared(before: Mapping[int, Any], after: Mapping[int, Any], grade: str) -> Effect:
    """What became of a grade, over the seeds that both have."""
    found = effect(*({seed: result["grades"][grade] for seed, result in side.items()} for side in (before, after)))
    assert found is not None
    return found


def one_thread() -> None:
    """As many processes as there are cores may train at once; threads would wait for each other."""
    torch.set_num_threads(1)
