"""Programs without a training and rules of one line, in a module that a new process can import."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossdoctor.arms import parse
from lossdoctor.clinic.program import Program
from lossdoctor.errors import UsageError
from lossdoctor.record import Record
from lossdoctor.rules import Cause, Clear, Outcome, Rule, RunView
from lossdoctor.rules.finding import Fired, say
from lossdoctor.store import Run, RunWriter

STEPS = 40
LOG = "trainings.txt"


def record(folder: Path, level: float, *, onset: int = 0, harm: float | None = 0.0, steps: int = STEPS) -> Run:
    """A run whose curve `level` is 0, and from step `onset` on this high."""
    noise = np.random.default_rng(0).normal(size=steps) * 1e-3
    with RunWriter(folder, {"kinds": {"flow": "velocity"}}) as writer:
        for step in range(steps):
            values = {"loss/flow": 1.0 + noise[step], "level": level * (step >= onset) + noise[step]}
            values |= {} if harm is None else {"eval/harm": harm}
            writer.append([Record(step, values, full=True, time=1e9 + step)])
    return writer.run()


class Fake(Program):
    """What the fault does is in its name's branch; every training leaves a line in a file beside the runs."""

    name = "fake"
    faults = ("weak-kl", "tight-clip")
    steps = STEPS

    def train(self, fault: str | None, seed: int, run: Path | None = None) -> Run:
        assert run is not None
        with open(run.parent / LOG, "a") as log:
            log.write(f"{run.name} {os.getpid()}\n")
        match fault:
            case "diverged":
                print("about to fail")
                raise UsageError("it cannot\n  be trained")
            case "huge-rate":
                os._exit(3)
            case "stuck-ema":
                (run / "half.txt").write_text("a beginning")
                time.sleep(float(os.environ.get("FAKE_SLEEP", "0")))
            case "slow-ema":
                return record(run.parent / f"elsewhere-{time.time_ns()}", 0.0)
        return record(run, self.level(fault), onset=STEPS * 45 // 100, harm=self.final(fault))

    def level(self, fault: str | None) -> float:
        return 5.0 if fault == "weak-kl" else 0.1

    def final(self, fault: str | None) -> float | None:
        return {"weak-kl": 2.0, "frozen-head": float("nan"), "empty-mask": None}.get(fault or "", 1.0)

    def harm(self, run: Run) -> float:
        return float(run["eval/harm"].values[-1])


class Other(Fake):
    name = "other"
    faults = ("weak-kl",)


class Dangerous(Fake):
    """Fails in all the ways there are."""

    name = "dangerous"
    faults = ("diverged", "huge-rate", "slow-ema", "weak-kl", "frozen-head", "empty-mask")


class Slow(Fake):
    name = "slow"
    faults = ("stuck-ema", "weak-kl")


@dataclass(frozen=True)
class Level(Rule):
    """The level is above a bar at the end."""

    code, name = "GRD102", "level-too-high"
    needs = ("level",)
    bar: float = 1.0
    p: float = 0.0

    def check(self, run: RunView) -> Outcome:
        if run.now("level") <= self.bar:
            return Clear()
        return Fired(
            (
                self.finding(
                    say("rule.RUN001", count=9, least=12, steps=40),
                    causes=[Cause("weight-too-small")],
                    p=self.p or None,
                ),
            )
        )


@dataclass(frozen=True)
class Hint(Rule):
    """Always there, and never an alarm."""

    code, name, severity = "PST301", "always-a-hint", "info"

    def check(self, run: RunView) -> Outcome:
        return Fired((self.finding(say("rule.RUN001", count=9, least=12, steps=40), causes=[Cause("overflow")]),))


@dataclass(frozen=True)
class ManyTests(Rule):
    """Clear after fifty tests, to be corrected for."""

    code, name = "VEL401", "many-tests"

    def check(self, run: RunView) -> Outcome:
        return Clear((1.0,) * 50)


@dataclass(frozen=True)
class Surer(Level):
    """As `Level`, by a test that is sure only of a long run."""

    code, name = "BAL801", "level-tested"

    def check(self, run: RunView) -> Outcome:
        if run.now("level") <= self.bar:
            return Clear((1.0,))
        p = 1e-9 if run.last_step == STEPS - 1 else 0.04
        return Fired(
            (self.finding(say("rule.RUN001", count=9, least=12, steps=40), causes=[Cause("weight-too-small")], p=p),)
        )


class Curable(Fake):
    """A program that arms can change, as a script under a Doctor. Four faults: one for each way a fix can go."""

    name = "curable"
    faults = ("slow-head", "empty-mask", "diverged", "null-rate")

    def train(self, fault: str | None, seed: int, run: Path | None = None) -> Run:
        assert run is not None
        arm, every = parse(os.environ["LOSSDOCTOR_ARM"]), int(os.environ["LOSSDOCTOR_EVERY"])
        with open(run.parents[2] / LOG, "a") as log:
            log.write(f"{self.name}-{fault} {arm} {seed} {self.steps}\n")
        ratio = 5e-6 if fault == "slow-head" else 1e-3
        for change in arm.of("lr"):
            ratio = change.applied(ratio)
        knobs = ["fix.look_at_mask"] if fault == "empty-mask" else []
        empty = bool(knobs) and not arm.of("knob")
        meta = {
            "heads": ["z_head"],
            "losses": {"flow": "velocity"},
            "experiment": {"arm": str(arm), "seeded": True, "conditions": 0, "knobs": knobs},
        }
        with RunWriter(run, meta) as writer:
            for step in range(0, self.steps, every):
                loss = math.nan if fault == "diverged" and 2 * step > self.steps else 0.0 if empty else 1 / (step + 1)
                values = {"step/z_head_update_ratio": ratio, "lr/z_head": ratio / 10, "loss/flow": loss}
                writer.append([Record(step, values, full=True)])
        if fault == "null-rate" and os.environ.get("FAKE_FAILS"):
            raise UsageError("it cannot be trained")
        return writer.run()
