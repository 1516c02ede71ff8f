"""Preflight on the programs of the clinic: three styles of code, healthy and with their faults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lossdoctor as ld
from lossdoctor.clinic.programs import joint, noise_to_data, ring
from lossdoctor.clinic.programs.switch import Broken, switched
from lossdoctor.diagnose import Diagnosis


def of_ring(broken: Broken) -> dict[str, Any]:
    """Trigonometric path, the network says d x / d angle, t of shape (B, 1)."""
    model = ring.Network(broken)
    label = torch.arange(32) % ring.CLASSES

    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = torch.cos(ring.QUARTER * t), torch.sin(ring.QUARTER * t)
        turn = cos * z1 - sin * z0
        return cos * z0 + sin * z1, -turn if broken("target-sign") else z1 if broken("predicts-data") else turn

    return {
        "model": model,
        "optimizer": ring.build_optimizer(model, broken),
        "heads": {"flow_head": model.head},
        "losses": lambda: ring.losses(model, broken),
        "target": target,
        "sampler": lambda net, z, c, n: ring.sampler(broken)(ring.inference(net, broken), z, c, n),
        "velocity": model,
        "z0": torch.randn(32, 2),
        "z1": ring.ring(label),
        "cond": label,
        "null_cond": torch.full((32,), ring.NULL),
    }


def of_noise_to_data(broken: Broken) -> dict[str, Any]:
    """Linear path, t of shape (B,), dropout, a teacher; latents with a scale factor."""
    training = noise_to_data.Training(broken)
    z1, label, _ = training.data.draw(64, noise_to_data.scaled(broken))

    def target(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = z0 - z1 if broken("target-sign") else z1 if broken("predicts-data") else z1 - z0
        return torch.lerp(z0, z1, t), v

    sampler = noise_to_data.sampler(broken)
    return {
        "model": training.model,
        "optimizer": training.optimizer,
        "heads": {"flow_head": training.model.head, "projector": training.model.projector},
        "losses": lambda: training.losses()[0],
        "teacher": training.teacher,
        "target": target,
        "sampler": lambda net, z, c, n: sampler(noise_to_data.inference(net, broken), z, c, n),
        "velocity": training.model,
        "z0": torch.randn_like(z1),
        "z1": z1,
        "cond": label,
        "latent_scale": noise_to_data.SCALE,
    }


def of_joint(broken: Broken) -> dict[str, Any]:
    """Data at t = 0, v = noise - data, t of shape (B, 1, 1), a posterior."""
    training = joint.Training(broken)
    pictures, label = joint.draw(64)
    with torch.no_grad():
        mu, logvar, z = training.model.encode(pictures)

    def target(noise: Tensor, data: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = data - noise if broken("target-sign") else data if broken("predicts-data") else noise - data
        return (1 - t) * data + t * noise, v

    def kl(mu: Tensor, logvar: Tensor) -> Tensor:
        z = mu + (logvar / 2).exp() * torch.randn_like(mu)
        return joint.divergence(mu, logvar, z, broken)

    sampler = joint.sampler(broken)
    return {
        "model": training.model,
        "optimizer": training.optimizer,
        "heads": {"z_head": training.model.z_head, "flow_head": training.model.flow.head},
        "losses": training.losses,
        "target": target,
        "sampler": lambda net, z, c, n: sampler(joint.inference(net, broken), z, c, n),
        "velocity": training.model.flow,
        "kl": kl,
        "mu": mu,
        "logvar": logvar,
        "z0": torch.randn_like(z),
        "z1": training.scale * z,
        "cond": label,
        "t_source": 1.0,
    }


PROGRAMS = {
    "ring": (ring.Ring(), of_ring),
    "noise_to_data": (noise_to_data.NoiseToData(), of_noise_to_data),
    "joint": (joint.Joint(), of_joint),
}


def told(name: str, fault: str | None, seed: int = 0) -> Diagnosis:
    ld.seed_everything(seed)
    program, arguments = PROGRAMS[name]
    return ld.preflight.check(**arguments(switched(program, fault)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PROGRAMS)
def test_healthy_programs_are_clear(name: str, seed: int) -> None:
    diagnosis = told(name, None, seed)
    assert [str(finding.message) for finding in diagnosis.findings] == []
    assert {"SMP501", "VEL411", "VEL405", "CND601", "GRD101", "GRD105", "OPT702", "VEL407"} <= set(diagnosis.clear)


FAULTS = (
    ("ring", "target-sign", "VEL411", "target-sign"),
    ("ring", "predicts-data", "VEL411", "target-formula"),
    ("ring", "inference-sign", "SMP506", "inference-sign"),
    ("ring", "inference-scale", "SMP505", "path-derivative-missing"),
    ("ring", "inference-without-derivative", "SMP505", "path-derivative-missing"),
    ("ring", "short-grid", "SMP502", "sampler-grid"),
    ("ring", "stale-state", "SMP502", "sampler-state"),
    ("ring", "time-not-connected", "VEL405", "time-not-connected"),
    ("ring", "condition-ignored", "CND601", "condition-not-connected"),
    ("ring", "bypassed-head", "GRD105", "wrong-wiring"),
    ("ring", "head-not-in-optimizer", "OPT702", "not-in-optimizer"),
    ("ring", "decayed-heads", "OPT703", "weight-decay-on-head"),
    ("noise_to_data", "reversed-inference", "SMP506", "inference-time"),
    ("noise_to_data", "inference-scale", "SMP506", "inference-scale"),
    ("noise_to_data", "inference-other-condition", "SMP506", "inference-condition"),
    ("noise_to_data", "short-grid", "SMP502", "sampler-grid"),
    ("noise_to_data", "detached-distillation", "GRD101", "detached-branch"),
    ("noise_to_data", "detached-features", "GRD108", "detached-branch"),
    ("noise_to_data", "teacher-is-student", "DST206", "teacher-is-student"),
    ("noise_to_data", "trainable-teacher", "DST207", "teacher-trainable"),
    ("noise_to_data", "teacher-in-train-mode", "DST207", "teacher-in-train-mode"),
    ("noise_to_data", "unscaled-latent", "VEL407", "latent-scale"),
    ("noise_to_data", "doubly-scaled-latent", "VEL407", "latent-scale"),
    ("noise_to_data", "frozen-head", "GRD105", "frozen-head"),
    ("joint", "target-sign", "VEL411", "target-sign"),
    ("joint", "reversed-inference", "SMP506", "inference-time"),
    ("joint", "inference-sign", "SMP506", "inference-sign"),
    ("joint", "stale-state", "SMP502", "sampler-state"),
    ("joint", "kl-on-sample", "PST304", "kl-on-sample"),
    ("joint", "kl-on-scaled-latent", "PST303", "kl-on-scaled-latent"),
    ("joint", "kl-other-formula", "PST304", "kl-formula"),
    ("joint", "kl-half-lost", "PST307", "kl-reduction"),
    ("joint", "kl-mean-for-sum", "PST307", "kl-reduction"),
    ("joint", "detached-kl", "GRD101", "detached-branch"),
)


@pytest.mark.parametrize(("name", "fault", "code", "cause"), FAULTS)
def test_faults_of_the_clinic_are_named_before_the_first_step(name: str, fault: str, code: str, cause: str) -> None:
    findings = told(name, fault).findings
    assert (code, cause) in {(one.code, one.causes[0].code) for one in findings}, [str(f.message) for f in findings]
    if code[:3] != "GRD":  # what is not wired right has consequences of its own
        assert {one.code for one in findings if one.explained_by is None} == {code}, [str(f.message) for f in findings]
