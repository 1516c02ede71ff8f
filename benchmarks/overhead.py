"""What watching costs, as ratios in one interleaved run.

    python benchmarks/overhead.py [--rounds 40] [--batch 128 512] [--threads 2] [--write docs/overhead.md]

Each round takes one training step of the reference system in each of these ways, one after the other, so that a machine
that slows down slows them all; a ratio is taken within a round, and its median and quartiles over the rounds are shown,
by the wall's clock and in processor time of all threads. The first batch size is that of the reference system.

plain      the weighted sum and its backward, no doctor
off-due    with the doctor, a step that is not measured
before due the step before a measured one, which also remembers the EMA and the teacher
due        a measured step with everything on, the run file included
gradients  a measured step with per-loss gradients alone
template   what people paste: K + 1 backward passes, and `.item()` per parameter for every norm
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from meter import Took, ratios, spread, timed
from torch import Tensor, nn

from lossdoctor.doctor import Doctor
from lossdoctor.probe import observe
from lossdoctor.probe.linearity import CALIBRATE_EVERY
from lossdoctor.reference import ReferenceConfig, Trainer

EVERY = 50
WARM_UP = 5


class Bench:
    """One reference system, trained in several ways by turns; every way does the same useful work."""

    def __init__(self, folder: Path, batch: int) -> None:
        config = ReferenceConfig()
        self.trainer = Trainer(replace(config, train=replace(config.train, batch=batch)))
        self.trainer.system.train()
        weights = self.trainer.config.weights
        self.weights = {"flow": weights.flow, "dino": weights.dino, "kl": weights.kl}
        self._next_due = False
        self.full = self._doctor(folder / "full")
        self.gradients = self._doctor(folder / "gradients")

    def _doctor(self, run: Path) -> Doctor:
        doctor = Doctor(**self.trainer.patient(), run=run, every=lambda step: self._next_due, strict=True)
        observe.deactivate(doctor)
        return doctor

    def losses(self) -> dict[str, Tensor]:
        return self.trainer.system.losses(self.trainer.loader.draw())

    def finish(self) -> None:
        trainer = self.trainer
        nn.utils.clip_grad_norm_([p for g in trainer.optimizer.param_groups for p in g["params"]], 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.system.update_teacher()
        trainer.ema.update(trainer.system.generator)

    def plain(self) -> None:
        losses = self.losses()
        terms = [self.weights[name] * loss for name, loss in losses.items()]
        (terms[0] + terms[1] + terms[2]).backward()  # type: ignore[no-untyped-call]
        self.finish()

    def watched(self, doctor: Doctor, *, listens: bool, then_due: bool) -> Callable[[], None]:
        def step() -> None:
            self._next_due = then_due
            doctor.backward(self.losses(), self.weights)
            self.finish()

        def run() -> None:
            if listens:
                observe.activate(doctor)
            step()
            observe.deactivate(doctor)

        return run

    def template(self) -> None:
        losses = self.losses()
        parameters = [p for p in self.trainer.system.parameters() if p.requires_grad]
        for loss in losses.values():
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            sum(p.grad.norm().item() ** 2 for p in parameters if p.grad is not None)
            for p in parameters:
                p.grad = None
        terms = [self.weights[name] * loss for name, loss in losses.items()]
        (terms[0] + terms[1] + terms[2]).backward()  # type: ignore[no-untyped-call]
        sum(p.grad.norm().item() ** 2 for p in parameters if p.grad is not None)
        self.finish()


def hooked(bench: Bench, doctor: Doctor, step: Callable[[], object]) -> Took:
    """One step with only this doctor's hooks on the optimizer."""
    optimizer = bench.trainer.optimizer
    hooks = [
        optimizer.register_step_pre_hook(doctor._course.before_step),
        optimizer.register_step_post_hook(doctor._course.after_step),
    ]
    took = timed(step)
    for hook in hooks:
        hook.remove()
    return took


def measure(rounds: int, batch: int) -> dict[str, list[Took]]:
    """Seconds of each way in each round."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), batch)
        for doctor in (bench.full, bench.gradients):
            doctor._course.stepping.remove()
        found: dict[str, list[Took]] = {}
        for number in range(WARM_UP + rounds):
            ways: dict[str, Callable[[], Took]] = {
                "plain": lambda: timed(bench.plain),
                "template": lambda: timed(bench.template),
            }
            for name, doctor, listens in (("", bench.full, True), ("gradients", bench.gradients, False)):
                off, before, due = (
                    bench.watched(doctor, listens=listens, then_due=flag) for flag in (False, True, False)
                )
                steps = {"off-due": off, "before due": before, "due": due}
                if name:
                    steps = {"-": off, "--": before, name: due}
                for way, step in steps.items():
                    ways[way] = lambda d=doctor, s=step: hooked(bench, d, s)  # type: ignore[misc]
            for way, run in ways.items():
                took = run()
                if number >= WARM_UP:
                    found.setdefault(way, []).append(took)
            print(f"batch {batch}: round {number + 1} of {WARM_UP + rounds}", file=sys.stderr)
        for doctor in (bench.full, bench.gradients):
            doctor.close(rollout=False)
    return found


def blocks(rounds: int, length: int = EVERY) -> dict[str, list[Took]]:
    """The same over blocks of `length` whole steps: plain, watched, and watched without live diagnosis.

    All ways train one system: of two that are alike, one is slower by up to 2 % for where it lies in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), ReferenceConfig().train.batch)
        trainer, doctors = bench.trainer, {}
        for doctor in (bench.full, bench.gradients):
            doctor.close(rollout=False)
        for way, live in (("watched", True), ("not live", False)):
            doctors[way] = Doctor(**trainer.patient(), run=Path(folder) / way, every=length, live=live)
            observe.deactivate(doctors[way])
            doctors[way]._course.stepping.remove()

        def step(way: str) -> Took:
            if way == "plain":
                return timed(lambda: trainer._train_step(None))
            observe.activate(doctors[way])
            took = hooked(bench, doctors[way], lambda: trainer._train_step(doctors[way]))
            observe.deactivate(doctors[way])
            return took

        ways = ["plain", *doctors]
        found: dict[str, list[Took]] = {way: [] for way in ways}
        for number in range(1 + rounds):
            # Step by step and by turns the first: what else the machine does then hits all alike.
            each: dict[str, list[Took]] = {way: [] for way in ways}
            for at in range(length):
                for way in ways[at % 3 :] + ways[: at % 3]:
                    each[way].append(step(way))
            if number:
                for way, took in each.items():
                    found[way].append(Took(*map(sum, zip(*took, strict=True))))
            print(f"blocks: {number} of {rounds}", file=sys.stderr)
        for doctor in doctors.values():
            doctor.close(rollout=False)
    return found


def medians(found: dict[str, list[Took]], clock: str) -> dict[str, float]:
    return {way: statistics.median(ratios(found, way, clock)) for way in found}


def table(found: dict[str, list[Took]]) -> str:
    return "\n".join(
        f"| {way} | {spread(ratios(found, way, 'wall'), 3)} | {spread(ratios(found, way, 'processor'), 3)} "
        f"| {1e3 * statistics.median(took.wall for took in found[way]):.1f} |"
        for way in ("plain", "off-due", "before due", "due", "gradients", "template")
    )


def middle(values: list[float]) -> str:
    """The median and where it lies, 95 %, by drawing the rounds again."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return f"{np.median(values):.3f} (95 %: {low:.3f} to {high:.3f}; {len(values)} blocks)"


def bars(found: dict[str, list[Took]], averages: dict[str, list[Took]]) -> str:
    rows = []
    both = [medians(found, clock) for clock in ("wall", "processor")]
    whole = {
        way: [middle(ratios(averages, way, clock)) for clock in ("wall", "processor")]
        for way in ("watched", "not live")
    }
    extra = [f"{m['gradients'] - 1:.2f} against {m['template'] - 1:.2f}" for m in both]
    rows.append(("off-due step <= 1.005", *(f"{m['off-due']:.3f}" for m in both)))
    rows.append(("due step, everything on, <= 1.5", *(f"{m['due']:.2f}" for m in both)))
    rows.append(("extra of the gradients below half of the template's", *extra))
    rows.append(
        (f"average at every={EVERY}, whole blocks of {EVERY} steps, run file included, <= 1.02", *whole["not live"])
    )
    rows.append(("the same with live diagnosis, which may take 1 % by itself", *whole["watched"]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(found: dict[int, dict[str, list[Took]]], averages: dict[str, list[Took]], threads: int) -> str:
    tables = "\n\n".join(
        f"""| one step, K = 3, batch {batch} | time, ratio | processor time, ratio | median ms |
|---|---|---|---|
{table(one)}"""
        for batch, one in found.items()
    )
    first = next(iter(found.values()))
    return f"""# What watching costs

Written by `{shlex.join(["python", "benchmarks/overhead.py", *sys.argv[1:]])}`:
{len(first["plain"])} rounds, {threads} threads, {platform.machine()} CPU, torch {torch.__version__}.
Steps of the reference system; ratios to the plain step of the same round: median (quartiles).
Processor time counts all threads, and is the steadier of the two where the machine has other work.

{tables}

| bar, at batch {next(iter(found))} | time | processor time |
|---|---|---|
{bars(first, averages)}

"due" measures all metrics, the probing forwards included; "gradients" is a due step to which no tensors were handed
in: per-loss gradients, updates, EMA and teacher. Every {CALIBRATE_EVERY}th due step measures all K losses everywhere
instead of K - 1 where they meet. What a due step consists of is told in [the log](log.md), section 34.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {batch: measure(given.rounds, batch) for batch in given.batch}
    text = page(found, blocks(given.blocks), given.threads)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
