"""What watching costs, as ratios in one interleaved run.

    python benchmarks/overhead.py [--rounds 40] [--threads 2] [--write docs/overhead.md]

Each round takes one training step of the reference system in each of these ways, one after the other, so that a machine
that slows down slows them all; a ratio is taken within a round, and its median and quartiles over the rounds are shown.

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
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lossdoctor.doctor import Doctor
from lossdoctor.probe import observe
from lossdoctor.probe.ledger import CALIBRATE_EVERY
from lossdoctor.reference import ReferenceConfig, Trainer

EVERY = 50
WARM_UP = 5


class Bench:
    """One reference system, trained in several ways by turns; every way does the same useful work."""

    def __init__(self, folder: Path) -> None:
        self.trainer = Trainer(ReferenceConfig())
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


def hooked(bench: Bench, doctor: Doctor, step: Callable[[], None]) -> float:
    """Seconds of one step with only this doctor's hooks on the optimizer."""
    optimizer = bench.trainer.optimizer
    hooks = [
        optimizer.register_step_pre_hook(doctor._before_step),
        optimizer.register_step_post_hook(doctor._after_step),
    ]
    seconds = timed(step)
    for hook in hooks:
        hook.remove()
    return seconds


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for doctor in (bench.full, bench.gradients):
            doctor._stepping.remove()
        found: dict[str, list[float]] = {}
        for number in range(WARM_UP + rounds):
            ways: dict[str, Callable[[], float]] = {
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
                seconds = run()
                if number >= WARM_UP:
                    found.setdefault(way, []).append(seconds)
        for doctor in (bench.full, bench.gradients):
            doctor.close(rollout=False)
    return found


def blocks(rounds: int, length: int = EVERY) -> list[float]:
    """The same over whole blocks of `length` steps, plain against watched at `every=50`, as ratios of neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = Trainer(ReferenceConfig()), Trainer(ReferenceConfig())
        ratios = []
        with Doctor(**watched.patient(), run=Path(folder) / "run", every=EVERY) as doctor:
            for trainer in (plain, watched):
                trainer.autoencoder_ready = True
                trainer.system.train()

            def block(trainer: Trainer, given: Doctor | None) -> float:
                def steps() -> None:
                    for _ in range(length):
                        trainer._train_step(given)

                return timed(steps)

            block(plain, None), block(watched, doctor)
            for _ in range(rounds):
                observe.deactivate(doctor)
                without = block(plain, None)
                observe.activate(doctor)
                ratios.append(block(watched, doctor) / without)
            doctor.close(rollout=False)
    return ratios


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f} - {high:.3f})"


def page(found: dict[str, list[float]], averages: list[float], threads: int) -> str:
    ratio = {way: [t / p for t, p in zip(times, found["plain"], strict=True)] for way, times in found.items()}
    median = {way: statistics.median(values) for way, values in ratio.items()}
    extra = {way: median[way] - 1 for way in median}
    average = ((EVERY - 2) * median["off-due"] + median["before due"] + median["due"]) / EVERY
    rows = "\n".join(
        f"| {way} | {spread(ratio[way])} | {1e3 * statistics.median(found[way]):.1f} |"
        for way in ("plain", "off-due", "before due", "due", "gradients", "template")
    )
    return f"""# What watching costs

Written by `make bench`: {len(found["plain"])} rounds, {threads} threads, {platform.machine()} CPU, torch
{torch.__version__}. Ratios to the plain step of the same round: median (quartiles).

| one step of the reference system, K = 3 | ratio | median ms |
|---|---|---|
{rows}

| bar | reached |
|---|---|
| off-due step <= 1.005 | {median["off-due"]:.3f} |
| due step, everything on, <= 1.5 | {median["due"]:.3f} |
| extra of the gradients below half of the template's | {extra["gradients"]:.3f} against {extra["template"]:.3f} |
| average at every={EVERY}, from the rows above, <= 1.02 | {average:.3f} |
| average at every={EVERY}, whole blocks of {EVERY} steps, run file included, <= 1.02 | {spread(averages)} |

"due" measures all metrics, the probing forwards included; "gradients" is a due step to which no tensors were handed in:
per-loss gradients, updates, EMA and teacher. The bars that are missed are for the work on cost that is still to come.
Every {CALIBRATE_EVERY}th due step measures all K losses instead of K - 1.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    text = page(measure(given.rounds), blocks(given.blocks), given.threads)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
