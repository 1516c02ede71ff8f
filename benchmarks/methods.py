"""Ways to get the gradient of each loss, against each other, in interleaved rounds.

    python benchmarks/methods.py [--rounds 20] [--threads 1] [--device cuda] [--write docs/overhead-methods.md]

A transformer with K losses on one trunk, each with a small head of its own. Each round takes one step in each of these
ways, on the same batch; a ratio is to the plain step of the same round.

plain              the weighted sum, its backward and the optimizer
exact              a due step of this library, `gradients="exact"`
sketch             the same with `gradients="sketch"`
finite-difference  the same with `gradients="finite-difference"`
template           what people paste: K + 1 backward passes, and `.item()` per parameter for every norm
torchjd            `mtl_backward` and `jac_to_grad`, as its documentation has them for several tasks
torchjd, lean      the same with its options that save memory: one row at a time, the Gram matrix layer by layer
torchjd, autogram  its other engine: the Gram matrix, then one backward
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from meter import Took, interleaved, peaks, ratios, spread
from trunk import OTHERS, OURS, PLAIN, SIZES, Size, batches, built, made

KINDS = {**PLAIN, **OURS, **OTHERS}
GRADIENTS = ("exact", "sketch")
PER_LOSS = ("template", "torchjd", "torchjd, lean", "torchjd, autogram")
WARM_UP = 2
DUE_STEPS = 3


@dataclass
class Result:
    losses: int
    parameters: int
    found: dict[str, list[Took]]
    peaks: dict[str, int]

    def ratio(self, way: str, clock: str) -> float:
        return statistics.median(ratios(self.found, way, clock))

    def extra(self, way: str) -> float:
        return (self.peaks[way] - self.peaks["plain"]) / 1e6


def measure(size: Size, losses: int, rounds: int, device: torch.device) -> Result:
    draw = batches(size, device)
    x = draw()
    highest = {}
    for name, kind in KINDS.items():
        highest[name] = max(peaks(lambda kind=kind: kind(made(size, losses, device)), x, steps=DUE_STEPS))  # type: ignore[misc]
        tell(f"K = {losses}, {name}: {highest[name] / 1e6:.0f} MB")
    model = made(size, losses, device)
    ways = built(KINDS, model)
    for way in ways.values():
        way.step(x)
    # All have made the same step but torchjd's, and the norms of this one must be the same.
    for way in ways.values():
        way.step(x)
    for name, norm in ways["exact"].norms.items():
        if not math.isclose(norm, ways["template"].norms[name], rel_tol=1e-3):
            raise SystemExit(f"the norm of {name} is {norm}, and {ways['template'].norms[name]} by a plain backward")
    interleaved(ways, draw, WARM_UP)
    found = interleaved(ways, draw, rounds)
    for way in ways.values():
        way.close()
    tell(f"K = {losses}, {rounds} rounds")
    return Result(losses, sum(p.numel() for p in model.parameters()), found, highest)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(one: Result) -> str:
    copy = 4e-6 * one.parameters
    rows = "\n".join(
        f"| {way} | {spread(ratios(one.found, way, 'wall'))} | {spread(ratios(one.found, way, 'processor'))} "
        f"| {one.peaks[way] / 1e6:.0f} | {one.extra(way):+.0f} | {one.extra(way) / copy:+.1f} |"
        for way in one.found
    )
    return f"""## K = {one.losses}

| | time, ratio | processor time, ratio | peak MB | extra MB | in gradient copies |
|---|---|---|---|---|---|
{rows}
"""


def verdict(losses: int, values: dict[str, float], form: str) -> str:
    """A row: ours beside the best of the others, and which is the lowest, said as it is."""
    best, lowest = min(PER_LOSS, key=values.__getitem__), min(values, key=values.__getitem__)
    shown = [form.format(values[way]) for way in (*GRADIENTS, "template")]
    winner = lowest if lowest in GRADIENTS else f"not ours: {lowest}"
    return f"| {losses} | {' | '.join(shown)} | {form.format(values[best])}, {best} | {winner} |"


def bars(results: list[Result], clock: str) -> str:
    head = "exact | sketch | template | best of the others | lowest |"
    time, memory = [f"| time, K | {head} extra of exact / of template |"], [f"| extra peak memory, K | {head}"]
    time.append("|" + "---|" * 7)
    memory.append("|" + "---|" * 6)
    for one in results:
        ratio = {way: one.ratio(way, clock) for way in (*GRADIENTS, *PER_LOSS)}
        half = (ratio["exact"] - 1) / (ratio["template"] - 1)
        time.append(f"{verdict(one.losses, ratio, '{:.2f}')} {half:.2f} |")
        memory.append(verdict(one.losses, {way: one.extra(way) for way in ratio}, "{:+.0f} MB"))
    return "\n".join([*time, "", *memory])


def page(results: list[Result], size: Size, rounds: int, threads: int, device: torch.device) -> str:
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {threads} threads"
    clock = "wall" if cuda else "processor"
    if cuda:
        how = "Memory is `torch.cuda.max_memory_allocated`, from before the model was made."
        limits = ""
    else:
        how = (
            "Memory is the peak of the running sum of all allocations and releases that the profiler records, from\n"
            "before the model was made: parameters, optimizer state, activations, and what a way keeps between steps."
        )
        limits = "\n`--device cuda` measures a transformer of 113 M parameters on a GPU. It has not been run.\n"
    tables = "\n".join(table(one) for one in results)
    return f"""# Against other ways

Written by `{shlex.join(["python", "benchmarks/methods.py", *sys.argv[1:]])}`:
{rounds} rounds, {where}, torch {torch.__version__}.
A transformer of {size.blocks} blocks, {size.width} wide, {results[0].parameters / 1e6:.1f} M parameters, \
{size.tokens} tokens, K losses with a small head each.
Every loss runs through all of the trunk, which is the worst case for K losses.

Each round takes one step in each way, on the same batch; a ratio is to the plain step (forward, backward, AdamW) of
the same round: median (quartiles). Processor time is that of the whole process.

{how}
The peak is over {DUE_STEPS} due steps in a row; the first of them measures all K losses, as one in 20 does. A gradient
copy is four bytes per parameter.

| way | what it gives |
|---|---|
| exact, sketch | norms, cosines, shares, reach by module, clip ratio, what the optimizer's step does to each loss |
| finite-difference | shares, clip ratio |
| template | norms; K + 1 backward passes, `.item()` per parameter |
| torchjd | the Jacobian of the trunk (`mtl_backward`), and an update from it (`jac_to_grad`) |
| torchjd, lean | the same with `parallel_chunk_size=1` and `optimize_gramian_computation=True` |
| torchjd, autogram | the Gram matrix of the trunk, and an update from it |

TorchJD is made to change the update, so it has no backward of the total; its aggregator here is IMTL-G, whose weights
cost next to nothing. Norms of exact and template are compared, to a thousandth, before the clock starts.

## The bar: ours lowest

By {"time" if cuda else "processor time"}. Others are the template and TorchJD's three ways.

{bars(results, clock)}

{tables}{limits}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--losses", type=int, nargs="+", default=[2, 3, 5, 8])
    parser.add_argument("--width", type=int)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    # vmap has no rule for the backward of this attention on a CPU, loops, and says so.
    warnings.filterwarnings("ignore", message=".*_scaled_dot_product_flash_attention_for_cpu_backward.*")
    usual = SIZES[given.device]
    size = Size(given.width or usual.width, given.blocks or usual.blocks, given.tokens or usual.tokens)
    device = torch.device(given.device)
    results = []
    for losses in given.losses:
        results.append(measure(size, losses, given.rounds, device))
        text = page(results, size, given.rounds, given.threads, device)
        if given.write:  # as far as it is
            given.write.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
