"""Each remedy of the method, with and without, on trainings that are ill in the way it is for.

    python benchmarks/cures.py [--seeds 5] [--work runs/cures] [--write docs/cures.md]

Every training is kept in the folder of `--work`; one that is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from patients import Dose, Ledger, Plan, compared, one_thread

from lossdoctor.flow import EdgeWeighted, LogitNormal
from lossdoctor.treat import BetaTarget, Cyclical, RatioController, WarmUp

LOWER = ("nmse", "far", "recon", "first", "second", "both", "edge")
"""Grades that are better when they are lower; the others when they are higher."""
NEITHER = ("kl", "sigma", "active", "prototypes")
"""Grades that tell what happened, and are no aim."""


SMALL, LEAST = ("conflict", "imbalance"), 5
"""Programs that cost next to nothing, and the seeds they always have."""


def ramp(make: Callable[[], Callable[[int], float]]) -> Callable[[], Dose]:
    """The weight of the KL follows a schedule."""

    def dose() -> Dose:
        schedule = make()
        return lambda step, losses: {"kl": schedule(step)}

    return dose


def to_target(target: float) -> Callable[[], Dose]:
    """The weight of the KL follows its own value."""

    def dose() -> Dose:
        controller = BetaTarget(target, gain=0.02)
        return lambda step, losses: {"kl": controller(float(losses["kl"].detach()))}

    return dose


WELL = Plan("well")


@dataclass(frozen=True, slots=True)
class Ward:
    """One illness. well: the same training without it, None when there is none. aim: the grade that decides."""

    title: str
    program: str
    steps: int
    every: int
    grades: tuple[str, ...]
    sick: Plan
    cures: Mapping[str, Plan]
    well: Plan | None = WELL

    @property
    def aim(self) -> str:
        return self.grades[0]


def with_arm(name: str, arm: str, **more: Any) -> Plan:
    return Plan(name, arm=arm, **more)


def kl_cures(ill: str, steps: int, bits: float, target: float) -> dict[str, Plan]:
    """Everything there is against a KL that is too strong."""
    return {
        "linear warm-up over half of the run": with_arm("kl linear", ill, dose=ramp(lambda: WarmUp(steps // 2))),
        "cosine warm-up over half of the run": with_arm(
            "kl cosine", ill, dose=ramp(lambda: WarmUp(steps // 2, shape="cosine"))
        ),
        "four cycles": with_arm("kl cycles", ill, dose=ramp(lambda: Cyclical(steps, 4))),
        f"free bits, {bits:g} nats a dimension": with_arm("kl bits", ill, bits=bits),
        f"a target of {target:g} nats": with_arm("kl target", ill, dose=to_target(target)),
    }


def two(title: str, program: str, *, optimizer: str, steps: int, names: tuple[str, ...], every: int = 5) -> Ward:
    own = {"optimizer": optimizer}
    return Ward(
        title,
        program,
        steps,
        every,
        ("both", "first", "second"),
        Plan(optimizer, settings=own),
        {f"`{name}`": Plan(f"{optimizer} {name}", arm=f"balance:{name}", settings=own) for name in names},
        None,
    )


R, SHORT, R_EVERY = 200, 120, 25
"""Steps where a weak distillation has to show, and of the others, which show sooner: what matters is five seeds."""
FAINT_DINO, FAINT_ALIGN = "weight:dino*0.02", "weight:align*0.02"
STRONG = "weight:kl*30"
NO_LIFT = {"train.head_lr_scale": 1.0}

WARDS: tuple[Ward, ...] = (
    two(
        "Losses that oppose each other: the conflict program, SGD",
        "conflict",
        optimizer="sgd",
        steps=80,
        names=("pcgrad", "config", "cosine", "gradnorm"),
    ),
    two(
        "The conflict program, SGD at 2.5 times the rate",
        "conflict",
        optimizer="fast sgd",
        steps=80,
        names=("pcgrad", "config"),
    ),
    two("The conflict program, Adam", "conflict", optimizer="adam", steps=80, names=("pcgrad", "config")),
    two(
        "Losses of unequal size: the imbalance program, Adam",
        "imbalance",
        optimizer="adam",
        steps=300,
        names=("gradnorm", "ratio", "pcgrad", "config", "cosine"),
    ),
    two("The imbalance program, SGD", "imbalance", optimizer="sgd", steps=300, names=("gradnorm", "ratio", "pcgrad")),
    Ward(
        "A distillation at 1/50 of its weight: the reference system",
        "reference",
        R,
        R_EVERY,
        ("agree", "nmse", "far"),
        with_arm("dino/50", FAINT_DINO),
        {
            "weight x 2": with_arm("dino/50 x2", f"{FAINT_DINO}+weight:dino*2"),
            "weight x 4": with_arm("dino/50 x4", f"{FAINT_DINO}+weight:dino*4"),
            "`ratio`": with_arm("dino/50 ratio", f"{FAINT_DINO}+balance:ratio"),
            "`gradnorm`": with_arm("dino/50 gradnorm", f"{FAINT_DINO}+balance:gradnorm"),
        },
    ),
    Ward(
        "A distillation at 1/50 of its weight: noise to data",
        "noise_to_data",
        R,
        R_EVERY,
        ("purity", "agree", "nmse"),
        with_arm("align/50", FAINT_ALIGN),
        {
            "weight x 4": with_arm("align/50 x4", f"{FAINT_ALIGN}+weight:align*4"),
            "`ratio`": with_arm("align/50 ratio", f"{FAINT_ALIGN}+balance:ratio"),
            "`gradnorm`": with_arm("align/50 gradnorm", f"{FAINT_ALIGN}+balance:gradnorm"),
        },
    ),
    Ward(
        "Nothing wrong: the reference system",
        "reference",
        SHORT,
        R_EVERY,
        ("nmse", "agree", "kl"),
        Plan("well"),
        {
            f"`{name}`": with_arm(f"well {name}", f"balance:{name}")
            for name in ("ratio", "gradnorm", "pcgrad", "cosine")
        },
        None,
    ),
    Ward(
        "A posterior that collapses under a KL at 30 times its weight: autoencoder and flow, trained jointly",
        "joint",
        SHORT,
        R_EVERY,
        ("recon", "nmse", "kl"),
        with_arm("kl x30", STRONG),
        {
            **kl_cures(STRONG, SHORT, 0.5, 12.0),
            "weight / 4": with_arm("kl x30 /4", f"{STRONG}+weight:kl*0.25"),
            "`RatioController`, beside the reconstruction": with_arm(
                "kl x30 ratio", STRONG, balance=lambda: RatioController(anchor="other", bands={"kl": (0.15, 0.45)})
            ),
        },
    ),
    Ward(
        "A KL at 30 times its weight: the reference system",
        "reference",
        SHORT,
        R_EVERY,
        ("agree", "nmse", "kl", "sigma"),
        with_arm("kl x30", STRONG),
        {**kl_cures(STRONG, SHORT, 0.05, 2.0), "`ratio`": with_arm("kl x30 ratio", f"{STRONG}+balance:ratio")},
    ),
    Ward(
        "A teacher at a temperature of 7: noise to data",
        "noise_to_data",
        SHORT,
        R_EVERY,
        ("purity", "nmse"),
        Plan("uniform teacher", fault="uniform-teacher"),
        {"temperature 0.07": with_arm("uniform teacher, 0.07", "knob:teacher_temp=0.07", fault="uniform-teacher")},
    ),
    Ward(
        "A teacher at a temperature of 0.2: the reference system",
        "reference",
        SHORT,
        R_EVERY,
        ("agree", "prototypes", "nmse"),
        Plan("warm teacher", fault="warm-teacher"),
        {"temperature 0.07": with_arm("warm teacher, 0.07", "knob:teacher_temp=0.07", fault="warm-teacher")},
    ),
    Ward(
        "Heads that learn no faster than the rest and decay: the reference system",
        "reference",
        SHORT,
        R_EVERY,
        ("nmse", "agree", "far"),
        Plan("plain heads", fault="decayed-heads", settings=NO_LIFT),
        {
            "rate of the heads x 3": with_arm(
                "plain heads x3", "lr:z_head*3+lr:flow_head*3+lr:dino_head*3", fault="decayed-heads", settings=NO_LIFT
            ),
            "no decay on heads": with_arm(
                "plain heads wd", "wd:z_head=0+wd:flow_head=0+wd:dino_head=0", fault="decayed-heads", settings=NO_LIFT
            ),
        },
    ),
    Ward(
        "Heads that decay: noise to data",
        "noise_to_data",
        SHORT,
        R_EVERY,
        ("nmse", "purity"),
        Plan("decayed heads", fault="decayed-heads"),
        {
            "rate of the heads x 3": with_arm("decayed x3", "lr:flow_head*3+lr:projector*3", fault="decayed-heads"),
            "no decay on heads": with_arm("decayed wd", "wd:flow_head=0+wd:projector=0", fault="decayed-heads"),
        },
    ),
    *(
        Ward(
            f"Times drawn evenly: {told}",
            program,
            SHORT,
            R_EVERY,
            ("nmse", "edge", "far"),
            Plan("well"),
            {
                "logit-normal(0, 1)": Plan("logit-normal", times=LogitNormal(0.0, 1.0)),
                "`EdgeWeighted()`, more at both ends": Plan("edge-weighted", times=EdgeWeighted()),
            },
            None,
        )
        for program, told in (("reference", "the reference system"), ("noise_to_data", "noise to data"))
    ),
)


def verdict(before: Mapping[int, Any], after: Mapping[int, Any], grade: str) -> str:
    """Of the grade that decides; where the interval does not, in how many seeds it was better."""
    found = compared(before, after, grade)
    if found.clear:
        return "**better**" if (found.difference < 0) == (grade in LOWER) else "worse"
    pairs = [(before[seed]["grades"][grade], after[seed]["grades"][grade]) for seed in before]
    good = sum((new < old) == (grade in LOWER) and new != old for old, new in pairs)
    return f"undecided ({good} of {len(pairs)} better)"


def table(ledger: Ledger, ward: Ward, seeds: int) -> tuple[str, dict[str, str]]:
    """Rows of the ward, and cure to verdict."""

    def trained(plan: Plan) -> dict[int, Any]:
        return ledger.seeds(ward.program, plan, seeds, ward.steps, ward.every)

    def plain(found: Mapping[int, Any]) -> str:
        means = (statistics.mean(each["grades"][grade] for each in found.values()) for grade in ward.grades)
        return " | ".join(f"{mean:.3g}" for mean in means)

    sick = trained(ward.sick)
    lines = [f"| | {' | '.join(ward.grades)} | |", "|---|" + "---|" * (len(ward.grades) + 1)]
    if ward.well is not None:
        lines.append(f"| healthy | {plain(trained(ward.well))} | |")
    lines.append(f"| without | {plain(sick)} | |")
    verdicts = {}
    for name, plan in ward.cures.items():
        treated = trained(plan)
        each = [compared(sick, treated, grade) for grade in ward.grades]
        verdicts[name] = verdict(sick, treated, ward.aim)
        cells = " | ".join(f"{e.arm:.3g} ({e.low:+.2g} to {e.high:+.2g})" for e in each)
        lines.append(f"| {name} | {cells} | {verdicts[name]} |")
    return "\n".join(lines), verdicts


def page(ledger: Ledger, programs: Collection[str], seeds: int) -> str:
    parts, summary = [], []
    for ward in WARDS:
        if ward.program not in programs:
            continue
        own = max(seeds, LEAST) if ward.program in SMALL else seeds
        told, verdicts = table(ledger, ward, own)
        parts.append(f"## {ward.title}\n\n{ward.steps} steps, measured every {ward.every}, {own} seeds.\n\n{told}")
        summary += [f"| {name} | {ward.title} | {told} |" for name, told in verdicts.items()]
    tables, rows = "\n\n".join(parts), "\n".join(summary)
    return f"""# Remedies, with and without

Written by `python benchmarks/cures.py --write docs/cures.md` on {platform.machine()} CPU, torch {torch.__version__}.
Each remedy of the method on short trainings that are ill in the way it is for, against the same seeds without it. A
number is the mean over the seeds; in brackets the 95 % interval of the paired difference to "without". The verdict is
that of the first column: better or worse when the interval leaves 0 out, else undecided, which after so few steps and
seeds is no proof that nothing happens: one seed that went wrong is enough for it.

| grade, on data not trained on | better |
|---|---|
| `nmse`: error of the velocity over the size of the target | lower |
| `edge`: the same in the first and the last tenth of time | lower |
| `far`: energy distance of samples to data (over that of other data, outside of the reference system) | lower |
| `recon`: squared error of the reconstruction | lower |
| `agree`: share of samples where student and teacher name the same prototype | higher |
| `purity`: share of samples whose style the teacher's prototypes tell | higher |
| `first`, `second`, `both`: errors of two losses (over that of answering 0 where sizes differ), their mean | lower |
| `kl` (nats per dimension), `sigma`, `prototypes` (in use) | |

{tables}

## All of them

| remedy | illness | verdict |
|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    everything = sorted({ward.program for ward in WARDS})
    parser.add_argument("--programs", nargs="+", choices=everything, default=everything)
    parser.add_argument("--work", type=Path, default=Path("runs/cures"))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    one_thread()
    text = page(Ledger(given.work / "trainings.jsonl"), given.programs, given.seeds)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
