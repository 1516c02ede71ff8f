"""Runs to report on: a whole one as the Doctor would record it, with everything a report must show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lossdoctor.record import Record
from lossdoctor.store import MemoryWriter, Run

STEPS, EVERY, START = 1200, 20, 1_700_000_000.0
LOSSES = {"flow": 1.0, "dino": 0.5, "kl": 0.01}
MODULES = ("text_encoder", "z_head", "flow_head")


def losses_at(step: int, noise: np.random.Generator) -> dict[str, float]:
    late = 1 - math.exp(-step / 150)
    jitter = noise.normal(1, 0.04, 3)
    return {
        "loss/flow": (2.1 - 1.7 * late) * jitter[0],
        "loss/dino": (4.16 - 2.9 * late) * jitter[1],
        "loss/kl": (0.4 + 20 * late) * jitter[2],
    }


def measured_at(step: int, noise: np.random.Generator) -> dict[str, float]:
    late = 1 - math.exp(-step / 300)
    j = noise.normal(1, 0.03, 20).tolist()
    strength = {"flow": 0.9 * j[0], "dino": 0.6 * (1 - 0.7 * late) * j[1], "kl": 2.5 * late * j[2] + 1e-4}
    values: dict[str, float] = {"grad/total": 1.1 * j[3]}
    for name, weight in LOSSES.items():
        values |= {
            f"weight/{name}": weight,
            f"grad/{name}": strength[name],
            f"grad_weighted/{name}": weight * strength[name],
            f"descent/{name}": 1e-3 * strength[name],
        }
        for module in MODULES:
            if (name, module) not in (("kl", "flow_head"), ("dino", "flow_head")):
                values[f"grad_module/{name}/{module}"] = 0.5 * strength[name] * j[4]
    values |= {
        "grad_share/flow": 0.85 * j[5],
        "grad_share/dino": 1 - 0.85 * j[5] + 0.02,
        "grad_share/kl": -0.02,
        "grad_cos/dino|flow": 0.12 * j[6],
        "grad_cos/flow|kl": -0.3 * j[7],
        "grad_cos/dino|kl": 0.01 * j[8],
    }
    for head in ("z_head", "flow_head"):
        values[f"step/{head}_update_ratio"] = 2e-3 * math.exp(-step / 800) * j[9]
    values |= {
        "ent/teacher": 3.9 - 2.5 * late,
        "ent/student": 4.1 - 2.4 * late * j[10],
        "ent/teacher_mi": 0.1 + 2.1 * late,
        "distill/kl": 0.3 * j[11],
        "distill/agreement": 0.1 + 0.75 * late,
        "mu/abs_mean": 0.1 + 0.9 * late * j[12],
        "logvar/mean": -1.4 * late * j[13],
        "std/mean": 1 - 0.5 * late,
        "z_init/mean": 0.01 * (j[14] - 1),
        "z_init/var": 1 + 0.2 * late * j[15],
        "kl/per_dim": 0.02 + 0.6 * late,
        "posterior/active_units": min(1.0, 0.2 + late),
        "posterior/snr": 3.5 * late,
        "flow/nmse": (1.1 - 0.82 * late) * j[16],
        "flow/cos": 0.05 + 0.8 * late,
        "flow/speed_ratio": 0.2 + 0.7 * late,
        "flow/cond_gain_cos": 0.2 * late,
        "flow/cond_ratio": 1 + 0.9 * late * j[17],
        "flow/time_ratio": 1 + 2 * late,
        "flow/time_reversal": 1 + 3 * late,
    }
    for tenth in range(10):
        edge = 0.2 + 0.02 * (tenth - 4.5) ** 2
        values |= {f"flow/nmse_t{tenth}": edge * (1.3 - late), f"flow/cos_t{tenth}": (1 - edge) * late}
        values[f"flow/count_t{tenth}"] = 13.0
    return values


def endpoint_at(step: int) -> dict[str, float]:
    values = {"flow/endpt_sw_floor": 0.041, "flow/endpt_std_ratio": 0.97 - 0.3 * math.exp(-step / 300)}
    for count in (8, 16, 32, 64):
        values[f"flow/endpt_rmse@{count}"] = 0.98 - 0.6 / count + math.exp(-step / 300)
        values[f"flow/endpt_rmse_shuffled@{count}"] = 1.31
        values[f"flow/ode_error@{count}"] = 1.7 / count
        values[f"flow/endpt_sw@{count}"] = 0.05 + 0.3 / count + 0.2 * math.exp(-step / 300)
    return values


@pytest.fixture(scope="session")
def whole_run() -> Run:
    noise = np.random.default_rng(0)
    kinds = {"flow": "velocity", "dino": "distill"}
    meta = {
        "kinds": kinds,
        "model": "CaptionToImage",
        "parameters": 412_345,
        "seed": 0,
        "versions": {"torch": "2.13.0"},
    }
    writer = MemoryWriter({**meta, "git": "0123456789ab"})
    clock = START
    for step in range(STEPS):
        clock += 0.05
        values = losses_at(step, noise)
        values["loss/total"] = sum(weight * values[f"loss/{name}"] for name, weight in LOSSES.items())
        full = step % EVERY == 0
        writer.append([Record(step, values | (measured_at(step, noise) if full else {}), full=full, time=clock)])
        if step % 300 == 299:
            writer.append([Record(step + 1, endpoint_at(step), time=clock)])
    return writer.run()


@pytest.fixture(scope="session")
def troubled_run() -> Run:
    """Almost nothing measured, a loss that became NaN, names of the user's own, and failures."""
    writer = MemoryWriter({"kinds": {}})
    for step in range(40):
        values = {"loss/kl": math.nan if step > 20 else 1.0 / (step + 1), "loss/a|b `c`": math.inf, "accuracy": 0.5}
        writer.append([Record(step, values, full=step % 10 == 0, time=START + step)])
    writer.event("failure", step=3, measurement="flow", error="ShapeError: (8,) and (8, 1)\nexpected one shape")
    writer.event("sink_failure", step=7, sink="csv", error="OSError(28)")
    writer.event("stopped", step=39, error="KeyboardInterrupt()")
    writer.event("knob", name="w", value=1)
    return writer.run()


@pytest.fixture(scope="session")
def empty_run() -> Run:
    return MemoryWriter().run()
