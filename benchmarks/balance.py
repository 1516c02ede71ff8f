"""Whether a balancer does what it is for: wrong weights put right, no divergence, and at what cost.

    python benchmarks/balance.py [--seeds 5] [--starts 50] [--work runs/balance] [--write docs/balancing.md]

Every training is kept in the folder of `--work`; one that is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import Took, ratios, timed
from patients import Ledger, Plan, compared, one_thread

from lossdoctor.ablate.effects import t_975
from lossdoctor.doctor import Doctor
from lossdoctor.probe import observe
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.treat import RatioController

STEPS, LONG, EVERY = 310, 1000, 50
"""LONG: of the program whose wrong weight takes some of the steps that the right one has learned in."""
FROM = 100
"""The first step of what is called staying in the band."""
WITHOUT = 2
"""Seeds of the trainings that nothing helps."""


def beside_reconstruction() -> RatioController:
    """Where the velocity shares no parameter with the KL, and the reconstruction does."""
    return RatioController(anchor="other", bands={"kl": (0.15, 0.45)})


ALTERNATING, LARGE, TINY = (100.0, 0.01), (100.0, 100.0), (0.01, 0.01)
"""Factors on a weight, of even and of odd seeds."""
RANDOM = "all of them"


@dataclass(frozen=True, slots=True)
class Case:
    """A program, what its losses are, which weights are wrong by which factors, and the grades that are compared."""

    program: str
    controller: Callable[[], RatioController]
    kinds: Mapping[str, str]
    wrong: Mapping[str, tuple[str, tuple[float, float]]]
    grades: tuple[str, ...]
    title: str
    about: str
    long: bool = False
    """Whether it is trained over `LONG` steps too."""

    @property
    def anchor(self) -> str:
        return next(name for name, kind in self.kinds.items() if kind == self.controller().anchor)

    @property
    def banded(self) -> dict[str, tuple[float, float]]:
        bands = self.controller().bands
        return {name: bands[kind] for name, kind in self.kinds.items() if name != self.anchor and kind in bands}


CASES = {
    "reference": Case(
        "reference",
        RatioController,
        {"flow": "velocity", "dino": "distill", "kl": "kl"},
        {name: (name, ALTERNATING) for name in ("flow", "dino", "kl")},
        ("nmse", "cos", "kl", "agree"),
        "The reference system",
        "Distillation 0.2 to 0.5 of the velocity, KL 0.1 to 0.3, as by default.",
    ),
    "noise_to_data": Case(
        "noise_to_data",
        RatioController,
        {"cfm": "velocity", "align": "distill"},
        {name: (name, ALTERNATING) for name in ("cfm", "align")},
        ("nmse", "cos", "agree", "purity"),
        "Noise to data",
        "Distillation 0.2 to 0.5 of the velocity.",
    ),
    "joint": Case(
        "joint",
        beside_reconstruction,
        {"recon": "other", "kl": "kl"},
        {"kl, 100 times too small": ("kl", TINY), "kl, 100 times too large": ("kl", LARGE)},
        ("nmse", "cos", "kl", "recon"),
        "Autoencoder and flow, trained jointly",
        f"""The flow learns from a detached latent and shares no parameter with the KL; the default controller says so
and stops. This one holds the KL at 0.15 to 0.45 of the reconstruction. Its posterior begins at the prior; a KL that
is far too strong holds it there for a while, and is about as strong as the reconstruction afterwards, at 10 times its
weight as at 100. The way down takes until step 60 to 80, and a run of {STEPS} steps still lacks what it would have
learned in that time; so the same was done over {LONG:,} steps.""",
        long=True,
    ),
}
WELL = Plan("well")
Trained = Mapping[int, Any]
"""Seed to what is known of a training."""


def random_weights(losses: Iterable[str], seed: int) -> str:
    """An arm: every loss at 1/100 to 100 times its weight, evenly in logarithms."""
    drawn = np.random.default_rng(1000 + seed).uniform(-2, 2, len(list(losses)))
    return "+".join(f"weight:{name}*{10**x:.4g}" for name, x in zip(losses, drawn, strict=True))


def plans(case: Case, seed: int) -> dict[str, tuple[Plan, Plan]]:
    """Which weight is wrong, with the controller and without."""
    arms = {}
    for told, (loss, factors) in case.wrong.items():
        arms[told] = (f"{loss}*{factors[seed % 2]:g}", f"weight:{loss}*{factors[seed % 2]:g}")
    if case.program != "joint":
        arms[RANDOM] = (RANDOM, random_weights(case.kinds, seed))
    return {
        told: (Plan(f"{name} balanced", arm=arm, balance=case.controller), Plan(name, arm=arm))
        for told, (name, arm) in arms.items()
    }


def strengths(case: Case, found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Of every loss that has a band, at measured steps, over the anchor."""
    strength = found["strength"]
    return {n: [a / b for a, b in zip(strength[n], strength[case.anchor], strict=True)] for n in case.banded}


def inside(case: Case, name: str, ratio: float) -> bool:
    low, high = case.banded[name]
    return low <= ratio <= high


def reached(case: Case, found: Mapping[str, Any]) -> float:
    """The first measured step with all ratios in their bands."""
    each = strengths(case, found)
    for i, step in enumerate(found["steps"]):
        if all(inside(case, name, values[i]) for name, values in each.items()):
            return float(step)
    return math.inf


def stays(case: Case, found: Mapping[str, Any]) -> bool:
    """Whether the median of what is measured from `FROM` on is in the band, for every loss."""
    late = [i for i, step in enumerate(found["steps"]) if step >= FROM]
    return all(
        inside(case, name, statistics.median(values[i] for i in late))
        for name, values in strengths(case, found).items()
    )


# Wrong weights


def wrong_weights(ledger: Ledger, case: Case, seeds: int, steps: int = STEPS) -> str:
    balanced = Plan("well balanced", balance=case.controller)
    wells, watched = (ledger.seeds(case.program, plan, seeds, steps) for plan in (WELL, balanced))
    right = " | ".join("{:.3g} ± {:.2g}".format(*middle_and_spread(wells, grade)) for grade in case.grades)
    rows = [
        f"| nothing, without the controller | | | {right} |",
        row(case, "nothing", watched, {}, wells=wells, watched=watched),
    ]
    for wrong in plans(case, 0):
        with_, without = {}, {}
        for seed in range(seeds):
            treated, untreated = plans(case, seed)[wrong]
            with_[seed] = ledger.of(case.program, treated, seed, steps)
            if seed < WITHOUT:
                without[seed] = ledger.of(case.program, untreated, seed, steps)
        rows.append(row(case, wrong, with_, without, wells=wells, watched=watched))
    head = "| weight of | in the band by | stays | " + " | ".join(case.grades) + " |"
    return "\n".join([head, "|" + "---|" * (3 + len(case.grades)), *rows])


def row(case: Case, told: str, with_: Trained, without: Trained, *, wells: Trained, watched: Trained) -> str:
    """One line of the table. wells: the right weights. watched: the right weights under the controller."""
    slowest = max(reached(case, found) for found in with_.values())
    last = "not all" if math.isinf(slowest) else f"{slowest:.0f}"
    held = sum(stays(case, found) for found in with_.values())
    cells = []
    for grade in case.grades:
        on = compared(wells, with_, grade)
        off = f"{compared(wells, without, grade).arm:.3g} / " if without else ""
        marks = "*" * (outside(wells, with_, grade) + (outside(wells, with_, grade) and outside(watched, with_, grade)))
        cells.append(f"{off}{on.arm:.3g} ({on.low:+.2g} to {on.high:+.2g}){f' `{marks}`' if marks else ''}")
    return f"| {told} | {last} | {held} of {len(with_)} | {' | '.join(cells)} |"


def middle_and_spread(trained: Trained, grade: str) -> tuple[float, float]:
    values = [found["grades"][grade] for found in trained.values()]
    return statistics.mean(values), statistics.stdev(values)


def outside(base: Trained, others: Trained, grade: str) -> bool:
    """Whether the difference is more than noise: the interval leaves 0 out, and it is more than two deviations."""
    found = compared(base, others, grade)
    return found.clear and abs(found.difference) > 2 * middle_and_spread(base, grade)[1]


# Random starts


RATES = (0.3, 1.0, 3.0)
START_STEPS = 100


def starts(ledger: Ledger, number: int) -> str:
    """A table over learning rates: how many ended badly, with the controller."""
    case, bad, stopped, count = (
        CASES["noise_to_data"],
        dict.fromkeys(RATES, 0),
        dict.fromkeys(RATES, 0),
        dict.fromkeys(RATES, 0),
    )
    worst = dict.fromkeys(RATES, 0.0)
    for n in range(number):
        rate = RATES[n % len(RATES)]
        arm = f"{random_weights(case.kinds, 100 + n)}+lr:all*{rate}"
        found = ledger.of(case.program, Plan(f"start {n}", arm=arm, balance=case.controller), n, START_STEPS)
        error = found["grades"]["nmse"]
        count[rate] += 1
        bad[rate] += not (math.isfinite(error) and error < 2)
        worst[rate] = max(worst[rate], error if math.isfinite(error) else math.inf)
        stopped[rate] += "balance_stopped" in found["events"]
    rows = "\n".join(f"| {r:g} | {count[r]} | {bad[r]} | {worst[r]:.2f} | {stopped[r]} |" for r in RATES)
    return f"""| learning rate, times the program's | starts | diverged | largest velocity error | stopped itself |
|---|---|---|---|---|
{rows}"""


# Bands that cannot be reached


TOLD = {"balance_stopped": "stops", "balance_waits": "waits"}


def impossible(ledger: Ledger) -> str:
    cases = {
        "the KL is detached": Plan("detached KL", fault="detached-kl", balance=beside_reconstruction),
        "factors may be 1/2 to 2, the KL is 100 times too weak": Plan(
            "tight limit",
            arm="weight:kl*0.01",
            balance=lambda: RatioController(anchor="other", bands={"kl": (0.15, 0.45)}, limit=2.0),
        ),
        "a KL of nothing, 10 to 20 times as strong as the reconstruction": Plan(
            "strong KL", balance=lambda: RatioController(anchor="other", bands={"kl": (10.0, 20.0)})
        ),
        "the velocity of a detached latent beside the KL": Plan("nothing in common", balance=RatioController),
    }
    rows = []
    for told, plan in cases.items():
        found = ledger.of("joint", plan, 0, STEPS)
        verb, why = next(
            ((verb, found["events"][kind]) for kind, verb in TOLD.items() if kind in found["events"]), ("", ["nothing"])
        )
        rows.append(f"| {told} | {verb} | {why[0]} |")
    return "| | | what it says |\n|---|---|---|\n" + "\n".join(rows)


# Cost


FIRST = 5
"""Rounds that are not counted."""


def cost(rounds: int) -> str:
    """Single steps in turn, in an order that moves on by one each round: a block of 50 is too long to be quiet."""
    ways = {"plain": None, "off-due": (10**6, "ratio"), "due": (1, None), "balanced": (1, "ratio")}
    trainers = {way: Trainer(ReferenceConfig()) for way in ways}
    doctors: dict[str, Doctor | None] = {}
    for way, how in ways.items():
        trainers[way].autoencoder_ready = True
        trainers[way].system.train()
        patient = trainers[way].patient()
        doctors[way] = None if how is None else Doctor(**patient, every=how[0], balance=how[1], live=False)
        if (doctor := doctors[way]) is not None:
            observe.deactivate(doctor)
    took: dict[str, list[Took]] = {way: [] for way in ways}
    names = list(ways)
    for turn in range(FIRST + rounds):
        gc.collect()
        for way in names[turn % 4 :] + names[: turn % 4]:
            doctor = doctors[way]
            if doctor is not None:
                observe.activate(doctor)
            one = timed(partial(trainers[way]._train_step, doctor))
            if turn >= FIRST:
                took[way].append(one)
            if doctor is not None:
                observe.deactivate(doctor)
    for doctor in filter(None, doctors.values()):
        doctor.close(rollout=False)
    found = {way: ratios(took, way, "processor") for way in ways}
    shares = {way: [(one - 1) / EVERY for one in found[way]] for way in ("due", "balanced")}
    rows = {
        "a step that is not measured, under a balancer": middle(found["off-due"]),
        "a measured step, not balanced": middle(found["due"]),
        "a measured step, balanced": middle(found["balanced"]),
        f"what measuring adds to the average at `every={EVERY}`": middle(shares["due"], 4),
        "what measuring and balancing add": middle(shares["balanced"], 4),
        "what balancing alone adds": middle([b - a for a, b in zip(shares["due"], shares["balanced"], strict=True)], 4),
    }
    return "| over a plain step | processor |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def middle(values: list[float], digits: int = 3) -> str:
    """Mean, and half of its 95 % interval."""
    half = t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


HOW = f"""One weight is 100 times too large (even seeds) or too small (odd seeds), or all are at random between.
Trainings of {STEPS} steps under `balance="ratio"`, `every={EVERY}`, against the same training with its own weights.
"In the band by": the first measured step with every ratio in its band, of the slowest seed. "Stays": seeds in which the
median of every ratio measured from step {FROM} on is in its band. Then grades on data not trained on: without the
controller ({WITHOUT} seeds) / with it (95 % interval of its paired difference to the right weights without it).
`*`: the interval leaves 0 out, and the difference is more than two standard deviations over the seeds of the right
weights. `**`: so it is from the right weights under the controller too, which moves them as well where a ratio leaves
its band on its own."""


def section(ledger: Ledger, case: Case, seeds: int) -> str:
    told = f"### {case.title}\n\n{case.about}\n\n{wrong_weights(ledger, case, seeds)}"
    if not case.long:
        return told
    return f"{told}\n\nOver {LONG:,} steps, both sides:\n\n{wrong_weights(ledger, case, seeds, LONG)}"


def page(ledger: Ledger, cases: Iterable[Case], seeds: int, number: int, rounds: int) -> str:
    tables = "\n\n".join(section(ledger, case, seeds) for case in cases)
    return f"""# Does balancing work?

Written by `python benchmarks/balance.py --write docs/balancing.md`: {seeds} seeds, {platform.machine()} CPU, torch
{torch.__version__}.

## Weights that are wrong by a factor of 100

{HOW}

{tables}

## {number} random starts

Every weight of the noise-to-data program at 1/100 to 100 times its value (evenly in logarithms), another seed each,
{START_STEPS} steps. Diverged: no numbers, or a velocity error above 2, where predicting nothing has 1.

{starts(ledger, number)}

## Bands that cannot be reached

The controller stops, says why in an event `balance_stopped`, and training goes on. It only waits for a KL that it may
not raise, as its posterior is at its prior: an event `balance_waits` says so after ten measurements, and a run that
ends like this shows it. On the joint program:

{impossible(ledger)}

## What it costs

The reference system at its full size, one thread, {rounds} rounds of single steps in turn after {FIRST} others; ratios
within a round, mean and 95 % interval. In its first 100 steps a balanced run with `every={EVERY}` measures every fifth.

{cost(rounds)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--programs", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/balance"))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    one_thread()
    cases = [CASES[name] for name in given.programs]
    text = page(Ledger(given.work / "trainings.jsonl"), cases, given.seeds, given.starts, given.rounds)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
