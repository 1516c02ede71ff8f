"""What sketched gradients cost and how near they come, against exact ones, in one interleaved run.

    python benchmarks/sketch.py [--rounds 5] [--threads 1] [--widths 128 256 512] [--tokens 1024] [--size 32]

A transformer with three losses on a shared trunk, the worst case for K losses: every pass runs through everything. Each
round takes one step in each of these ways, one after the other, and ratios are taken within a round:

plain   the weighted sum and its backward, no doctor
exact   a due step with gradients="exact" and nothing else to measure
sketch  the same with gradients="sketch"

Time is processor time, so that other work on the machine counts less. Memory is what the allocator holds at the peak of
one step, parameters and optimizer state included. Errors are of one draw against the exact metrics of the same step.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformer import LENGTH, Block

from lossdoctor.doctor import Doctor
from lossdoctor.probe import observe, sketch
from lossdoctor.probe.linearity import CALIBRATE_EVERY

WEIGHTS = {"flow": 1.0, "kl": 0.05, "dino": 0.5}
BLOCKS = 4


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.entry, self.flow_head = nn.Linear(32, width), nn.Linear(width, 32)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.dino_head = nn.Linear(width, 64)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        h = self.blocks(self.entry(x))
        dino = -self.dino_head(h.mean(1)).log_softmax(-1)[:, 0].mean()
        return {"flow": (self.flow_head(h) - x).square().mean(), "kl": h.mean(1).square().sum(-1).mean(), "dino": dino}


@dataclass
class Way:
    """One way to take a step, with a model and an optimizer of its own."""

    model: Model
    mode: str | None
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.due = False
        self.doctor = self.mode and Doctor(
            self.model, self.optimizer, every=lambda _: self.due, gradients=self.mode, strict=True, live=False
        )
        if isinstance(self.doctor, Doctor):
            observe.deactivate(self.doctor)

    def step(self, x: Tensor) -> None:
        losses = self.model.losses(x)
        if isinstance(self.doctor, Doctor):
            self.doctor.backward(losses, WEIGHTS)
        else:
            terms = [WEIGHTS[name] * loss for name, loss in losses.items()]
            (terms[0] + terms[1] + terms[2]).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, x: Tensor) -> None:
        started = time.process_time()
        self.step(x)
        self.seconds.append(time.process_time() - started)

    def peak(self, x: Tensor) -> float:
        """Bytes at the peak of one step, with what lies there before it."""
        with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
            self.step(x)
        events = profile.kineto_results.events()
        held = most = 0
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        states: Iterable[object] = (value for state in self.optimizer.state.values() for value in state.values())
        tensors = [*self.model.parameters(), *(value for value in states if isinstance(value, Tensor))]
        if isinstance(self.doctor, Doctor):
            # On a CPU memory for copies is kept from one due step to the next.
            patient = self.doctor._patient
            tensors += [t for p in (patient.gradients, *patient.updates.values()) for t in p._kept.values()]
        return most + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Result:
    parameters: int
    ways: dict[str, Way]
    peaks: dict[str, float]
    errors: dict[str, float]

    def ratio(self, name: str) -> float:
        plain = self.ways["plain"].seconds
        return statistics.median(s / p for s, p in zip(self.ways[name].seconds, plain, strict=True))


def measure(width: int, tokens: int, rounds: int) -> Result:
    torch.manual_seed(0)
    model = Model(width)
    ways = {name: Way(copy.deepcopy(model), mode) for name, mode in KINDS.items()}
    peaks: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    draw = batches(tokens)
    for way in ways.values():
        way.step(torch.zeros(1, LENGTH, 32))  # optimizer state is there from now on
        way.due = True
        way.step(torch.zeros(1, LENGTH, 32))
        way.due = False
    for way in ways.values():
        way.model.load_state_dict(ways["plain"].model.state_dict())
        way.due = True
    x = draw()
    for name, way in ways.items():
        way.step(x)  # the first one after a change of the balance measures all losses
        if isinstance(way.doctor, Doctor):
            found[name] = dict(way.doctor.ret)
    x = draw()
    for name, way in ways.items():
        peaks[name] = way.peak(x)
    for _ in range(rounds):
        x = draw()
        for way in ways.values():
            way.timed(x)
    return Result(sum(p.numel() for p in model.parameters()), ways, peaks, errors(found["exact"], found["sketch"]))


KINDS: dict[str, str | None] = {"plain": None, "exact": "exact", "sketch": "sketch"}


def batches(tokens: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randn(tokens // LENGTH, LENGTH, 32, generator=generator)


def errors(exact: dict[str, float], found: dict[str, float]) -> dict[str, float]:
    """The largest error of each family: relative for norms, absolute for cosines and shares."""

    def worst(family: str, *, relative: bool) -> float:
        keys = [key for key in exact if key.split("/")[0] == family]
        return max(abs(found[key] - exact[key]) / (abs(exact[key]) if relative else 1.0) for key in keys)

    return {
        "norm": worst("grad", relative=True),
        "module": worst("grad_module", relative=True),
        "cosine": worst("grad_cos", relative=False),
        "share": worst("grad_share", relative=False),
    }


def table(results: list[Result], given: argparse.Namespace) -> str:
    rows = []
    for one in results:
        extra = {name: one.peaks[name] / one.peaks["plain"] - 1 for name in ("exact", "sketch")}
        rows.append(
            f"| {one.parameters / 1e6:.1f} M | {1e3 * statistics.median(one.ways['plain'].seconds):.0f} "
            f"| {one.ratio('exact'):.2f} | {one.ratio('sketch'):.2f} "
            f"| {100 * extra['exact']:+.0f} % | {100 * extra['sketch']:+.0f} % "
            f"| {100 * one.errors['norm']:.1f} % | {100 * one.errors['module']:.1f} % "
            f"| {one.errors['cosine']:.3f} | {one.errors['share']:.3f} |"
        )
    return "\n".join(
        [
            f"m = {given.size}, {given.tokens} tokens, {given.rounds} rounds, {given.threads} threads, "
            f"{platform.machine()} CPU, torch {torch.__version__}. A due step, K = 3.",
            "",
            "| parameters | plain, ms | exact, ratio | sketch, ratio | exact, peak memory | sketch, peak memory "
            "| norms | norms by module | cosines | shares |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"One due step in {CALIBRATE_EVERY} measures all K losses and costs one pass more in either mode.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--size", type=int, default=sketch.SIZE)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sketch.SIZE = given.size
    print(table([measure(width, given.tokens, given.rounds) for width in given.widths], given))


if __name__ == "__main__":
    main()
