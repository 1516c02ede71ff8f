"""What a due step costs against the number of parameters and against the number of losses.

    python benchmarks/curves.py [--rounds 20] [--threads 1] [--device cuda] [--write docs/overhead-curves.md]

The transformer of `methods.py`, wider and wider with three losses, and then with one to eight losses. Each round takes
a plain step, a due step with exact gradients and one with sketches, on the same batch; ratios are taken within a round.
With `--write` two charts go into `images/` beside the page.
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from chart import Line, Panel, chart
from meter import Took, interleaved, peaks, ratios, spread
from transformer import ATTENTION_HEADS
from trunk import OURS, PLAIN, Size, batches, built, made

MODES = ("exact", "sketch")
KINDS = {**PLAIN, **{mode: OURS[mode] for mode in MODES}}
BLOCKS = 4
PER_BLOCK = 12  # times the width squared
WARM_UP = 3  # the first is not due, the second measures all losses
DUE_STEPS = 3
LARGE = 5e7
TOKENS = {"cpu": 256, "cuda": 8192}


@dataclass
class Point:
    parameters: int
    losses: int
    rounds: int
    found: dict[str, list[Took]]
    peaks: dict[str, int]

    def extra(self, way: str) -> int:
        return self.peaks[way] - self.peaks["plain"]

    def copies(self, way: str) -> float:
        return self.extra(way) / (4 * self.parameters)


def measure(width: int, losses: int, rounds: int, tokens: int, device: torch.device) -> Point:
    size = Size(width, BLOCKS, tokens)
    draw = batches(size, device)
    x = draw()
    highest = {
        name: max(peaks(lambda kind=kind: kind(made(size, losses, device)), x, steps=DUE_STEPS))  # type: ignore[misc]
        for name, kind in KINDS.items()
    }
    model = made(size, losses, device)
    parameters = sum(p.numel() for p in model.parameters())
    ways = built(KINDS, model)
    del model
    interleaved(ways, draw, WARM_UP)
    found = interleaved(ways, draw, rounds)
    for way in ways.values():
        way.close()
    print(f"{parameters / 1e6:.2f} M parameters, K = {losses}: {rounds} rounds", file=sys.stderr, flush=True)
    return Point(parameters, losses, rounds, found, highest)


def width_of(parameters: float) -> int:
    """The width, a multiple of the attention heads, with about this many parameters."""
    return max(round(math.sqrt(parameters / (PER_BLOCK * BLOCKS)) / ATTENTION_HEADS), 1) * ATTENTION_HEADS


def table(points: list[Point]) -> str:
    rows = []
    for one in points:
        time = " | ".join(spread(ratios(one.found, mode, clock)) for clock in ("wall", "processor") for mode in MODES)
        memory = " | ".join(
            f"{one.extra(mode) / 1e6:+.1f} MB, {one.extra(mode) / one.peaks['plain']:+.0%}, {one.copies(mode):.1f}"
            for mode in MODES
        )
        plain = 1e3 * float(np.median([took.wall for took in one.found["plain"]]))
        rows.append(
            f"| {one.parameters / 1e6:.2f} M | {one.losses} | {one.rounds} | {plain:.0f} | {time} "
            f"| {one.peaks['plain'] / 1e6:.0f} MB | {memory} |"
        )
    head = (
        "| parameters | K | rounds | plain, ms | exact, time | sketch, time | exact, processor time "
        "| sketch, processor time | plain, peak | exact, extra | sketch, extra |"
    )
    return "\n".join([head, "|" + "---|" * 11, *rows])


def drawn(points: list[Point], across: str, clock: str, *, of_parameters: bool) -> str:
    x = [one.parameters if of_parameters else one.losses for one in points]
    time, memory = [], []
    for mode in MODES:
        quartiles = [np.percentile(ratios(one.found, mode, clock), [25, 50, 75]) for one in points]
        time.append(Line(mode, x, [(float(low), float(mid), float(high)) for low, mid, high in quartiles]))
        memory.append(Line(mode, x, [(one.copies(mode),) * 3 for one in points]))
    return chart(
        [
            Panel("due step, in plain steps", across, time, floor=1.0, log_x=of_parameters),
            Panel("extra peak memory, in gradient copies", across, memory, floor=0.0, log_x=of_parameters),
        ]
    )


def page(by_parameters: list[Point], by_losses: list[Point], given: argparse.Namespace, stem: str) -> str:
    cuda = given.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {given.threads} threads"
    how = (
        "`torch.cuda.max_memory_allocated` from before the model was made"
        if cuda
        else "the peak of the running sum of all allocations and releases that the profiler records, from before\n"
        "the model was made: parameters, optimizer state, activations, and what is kept between steps"
    )
    limits = "" if cuda else "\n`--device cuda` measures the same on a GPU. It has not been run.\n"
    return f"""# Cost by size and by number of losses

Written by `{shlex.join(["python", "benchmarks/curves.py", *sys.argv[1:]])}`:
{where}, torch {torch.__version__}.
A transformer of {BLOCKS} blocks, {given.tokens} tokens, K losses that all run through everything. A due step with
gradients alone to measure, against the plain step (forward, backward, AdamW) of the same round: median (quartiles).

Memory is {how}.
The peak is over {DUE_STEPS} due steps in a row, the first of which measures all K losses. The extra is to the peak of a
plain step: in MB, in percent of it, and in copies of the gradient (four bytes per parameter).

## Parameters

![cost against the number of parameters](images/{stem}-parameters.svg)

{table(by_parameters)}

## Losses

![cost against the number of losses](images/{stem}-losses.svg)

{table(by_losses)}

Charts show {"time" if cuda else "processor time"}; bars are quartiles. K - 1 extra backward passes, of two thirds of
a plain step each, would be 1 + 2 (K - 1) / 3 plain steps.
{limits}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--large-rounds", type=int, default=5, help="rounds from 50 M parameters on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=sorted(TOKENS), default="cpu")
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--losses", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--width", type=int, default=192, help="of the model with K losses")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.tokens = given.tokens or TOKENS[given.device]
    device = torch.device(given.device)
    by_parameters = [
        measure(width_of(size), 3, given.large_rounds if size >= LARGE else given.rounds, given.tokens, device)
        for size in given.parameters
    ]
    by_losses = [measure(given.width, losses, given.rounds, given.tokens, device) for losses in given.losses]
    stem = given.write.stem if given.write else "overhead-curves"
    text = page(by_parameters, by_losses, given, stem)
    print(text)
    if given.write:
        images = given.write.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        clock = "wall" if device.type == "cuda" else "processor"
        for name, points, across, of_parameters in (
            ("parameters", by_parameters, "parameters, K = 3", True),
            ("losses", by_losses, "K", False),
        ):
            drawing = drawn(points, across, clock, of_parameters=of_parameters)
            (images / f"{stem}-{name}.svg").write_text(drawing, encoding="utf-8")
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
