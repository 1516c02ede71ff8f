"""The programs of `test_ranks.py` on SIZE ranks: python ranks_program.py SIZE FOLDER PROGRAM...

Every program trains twice, without and with a Doctor, and leaves in FOLDER what each rank had after every step.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import math
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the wrappers import late is imported once, before the ranks are forked
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import lossdoctor as ld
import lossdoctor.doctor.rollout
import lossdoctor.probe.ranks
from lossdoctor.probe.sharded import groups_of, local, state_of

try:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
except ImportError:  # torch 2.5 has it elsewhere, and for GPUs only
    fully_shard = None

SECONDS = 420
"""After which everything is killed: a deadlock is a failure, not a hanging suite."""
STEPS = 4
BATCH = 12
"""Of all ranks together."""
ROLLOUT = (2, 4)
WEIGHTS = {"a": 1.0, "b": 0.5, "flow": 2.0}


class Net(nn.Module):
    """Three losses on a trunk, each with a head; all of it in `forward`, as DistributedDataParallel wants it."""

    def __init__(self, norm: bool = False, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.SiLU())
        self.a_head = nn.Linear(width, 3)
        self.b_head = nn.Linear(width, 2)
        self.flow_head = nn.Linear(width + 1, 4)
        self.unused = nn.Linear(2, 2)
        self.unused.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, which: str = "ab") -> dict[str, Tensor]:
        h = self.body(x)
        found = {"v": self.flow_head(torch.cat([h, t], -1))}
        if "a" in which:
            found["a"] = self.a_head(h)
        if "b" in which:
            found["b"] = self.b_head(h).detach() if "detached" in which else self.b_head(h)
        return found


def batch(step: int, part: slice) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, t = torch.randn(BATCH, 4, generator=generator), torch.rand(BATCH, 1, generator=generator)
    return x[part], t[part]


def drawn(step: int, rank: int, shared: str) -> tuple[Tensor, Tensor, Tensor]:
    """Data, times and noise of a rank's own, but for what is shared by mistake; "grid": times that are no mistake."""
    own = torch.Generator().manual_seed(1_000 * step + rank)
    all_of_us = torch.Generator().manual_seed(1_000 * step + 999)
    x = torch.randn(6, 4, generator=all_of_us if "data" in shared else own)
    t = torch.rand(6, 1, generator=all_of_us if "noise" in shared else own)
    noise = torch.randn(6, 4, generator=all_of_us if "noise" in shared else own)
    return x, torch.linspace(0, 1, 6)[:, None] if "grid" in shared else t, noise


def losses(model: nn.Module, x: Tensor, t: Tensor, which: str, noise: Tensor | None = None) -> dict[str, Tensor | None]:
    out = model(x, t, which)

    def velocity(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        if "broken" in which:
            raise RuntimeError("before it asks the model")
        return model(x_t, t)["v"]

    ld.flow(out["v"], -x, t, x_t=x, z0=torch.zeros_like(x), z1=x, cond=x[:, :1], velocity=velocity)
    if noise is not None:
        mu, logvar = 0.3 * x, torch.full_like(x, -2.0)
        ld.posterior(mu, logvar, z=mu + torch.exp(logvar / 2) * noise)
    each: dict[str, Tensor | None] = {
        "a": out["a"].square().mean() if "a" in out else None,
        "b": (out["b"] - 1).square().mean() if "b" in out else None,
        "flow": (out["v"] + x).square().mean(),
    }
    return each


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor | None]:
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    kept = [*tensors, *moments, torch.get_rng_state(), traces(model)]
    return [None if t is None else local(t.detach()).clone() for t in kept]


def traces(model: nn.Module) -> Tensor:
    """Of every part given to `fully_shard`: what it holds between steps, and the forwards that it remembers."""
    states = [state for part in model.modules() if (state := state_of(part)) is not None]
    found = [
        (group.is_sharded, len(group._post_forward_indices), len(state._comm_ctx.post_forward_order))
        for state in states
        for group in groups_of(state)
    ]
    return torch.tensor(found, dtype=torch.int64)


def sharded(core: Net, size: int, shard: str, half: bool) -> None:
    """`fully_shard` in one of the ways a program names."""
    options: dict[str, Any] = {"reshard_after_forward": shard == "again"}
    if shard == "hybrid":
        options["mesh"] = init_device_mesh("cpu", (1, size), mesh_dim_names=("copy", "part"))
    if half:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in (core.body, core.a_head, core.flow_head, core):
        fully_shard(part, **options)


def watched(doctor: ld.Doctor, sent: list[tuple[int, int]]) -> None:
    """Note the step and the length of every vector that is added up over the ranks."""
    ranks = doctor._meeting.ranks
    add_up = ranks._add_up

    def noted(vector: Tensor) -> None:
        sent.append((doctor.step, vector.numel()))
        add_up(vector)

    ranks._add_up = noted  # type: ignore[method-assign]


def field_of(model: nn.Module) -> Any:
    """The velocity, with times of any shape."""
    return lambda x, t, cond: model(x, t.reshape(-1, 1))["v"]


def more_often(rank: int) -> Any:
    """A sampler that asks the field once more on every further rank."""

    def sampler(velocity: Any, z: Tensor, cond: Any, steps: int) -> Tensor:
        for k in range(steps + rank):
            z = z + velocity(z, torch.full((len(z),), k / (steps + rank)), cond) / steps
        return z

    return sampler


def step_at_once(optimizer: torch.optim.Optimizer, p: Tensor) -> None:
    optimizer.step()
    optimizer.zero_grad()


def train(
    run: Path | None,
    rank: int,
    size: int,
    *,
    wrap: bool = True,
    inner: bool = False,
    norm: bool = False,
    micro: int = 1,
    no_sync: bool = True,
    by_hand: bool = False,
    which: tuple[str, ...] = ("ab",),
    every: Any = 1,
    on: tuple[int, ...] | None = None,
    fails: int | None = None,
    leaves: int | None = None,
    shard: str | None = None,
    rollout: bool = False,
    steps: int = STEPS,
    shared: str | None = None,
    outside: bool = False,
    own_teacher: bool = False,
    gradients: str = "exact",
    width: int = 16,
    balance: str | None = None,
    ema: bool = False,
    half: bool = False,
    turns: bool = False,
    in_backward: bool = False,
    out_of_step: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(0)
    core = Net(norm, width)
    model: nn.Module = core
    if size > 1 and shard is not None:
        sharded(core, size, shard, half)
    elif size > 1 and wrap:
        model = DistributedDataParallel(core, **options)
    slow = None
    if ema:
        torch.manual_seed(0)
        slow = Net(norm, width).requires_grad_(False)
        if size > 1 and shard is not None:
            sharded(slow, size, shard, half)
    teacher = None
    if own_teacher:
        torch.manual_seed(rank)
        teacher = Net(norm).requires_grad_(False)
    scale = nn.Parameter(torch.ones(4))
    trained = [*core.parameters(), *([scale] if outside else [])]
    parts = [[p] for p in trained] if in_backward else [trained]
    if turns:
        heads = list(core.a_head.parameters())
        ids = set(map(id, heads))
        parts = [[p for p in trained if id(p) not in ids], heads]
    optimizers = [torch.optim.AdamW(part, lr=1e-2) for part in parts]
    if in_backward:
        for p, optimizer in zip(trained, optimizers, strict=True):
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(functools.partial(step_at_once, optimizer))
    doctor = None
    if run is not None and (on is None or rank in on):
        doctor = ld.Doctor(
            core if inner else model,
            optimizers,
            run=run,
            heads={"a_head": core.a_head},
            teacher=teacher,
            ema=slow,
            every=every,
            gradients=gradients,
            balance=balance,
            live=False,
        )
    states, rets, share = [], [], BATCH // size // micro
    sent: list[tuple[int, int]] = []
    if doctor is not None and doctor._meeting is not None:
        watched(doctor, sent)
    for step in range(steps):
        if doctor is not None and fails == rank and step == 2:
            doctor._patient.linearity = None  # type: ignore[assignment]
        if doctor is not None and leaves == rank and step == 2:
            doctor.close()
        if doctor is not None and out_of_step is not None:
            if step == 1:
                ends = batch(step, slice(0, 4))[0]
                doctor.endpoint(ends, ends, field_of(model), solver=more_often(rank), steps=(2,))
            if out_of_step == rank and step == 2:
                doctor._patient.updates = None  # type: ignore[assignment]
        for m in range(micro):
            first = (m * size + rank) * share
            kind = which[step % len(which)] + (" broken" if out_of_step == rank and step == 2 else "")
            if shared is None:
                found = losses(model, *batch(step, slice(first, first + share)), kind)
            else:
                x, t, noise = drawn(step, rank, shared)
                found = losses(model, x * scale if outside else x, t, kind, noise)
            wait = no_sync and m + 1 < micro and isinstance(model, DistributedDataParallel)
            if shard is not None and size > 1 and not no_sync:
                core.set_requires_gradient_sync(m + 1 == micro)  # type: ignore[operator]
            with model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
                weights = {n: w / micro for n, w in WEIGHTS.items()}
                if doctor is not None:
                    doctor.backward(found, weights)
                else:
                    sum(w * found[n] for n, w in weights.items() if found[n] is not None).backward()  # type: ignore[union-attr, operator]
        if by_hand and size > 1:
            for p in core.parameters():
                if p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= size
        if not in_backward:
            nn.utils.clip_grad_norm_(core.parameters(), 0.5)
            for optimizer in optimizers[step % 2 :] if turns else optimizers:
                optimizer.step()
        if slow is not None:
            with torch.no_grad():
                for s, p in zip(slow.parameters(), core.parameters(), strict=True):
                    s.lerp_(p, 0.1)
        states.append([one for optimizer in optimizers for one in state(core, optimizer)])
        rets.append({} if doctor is None else dict(doctor.ret))
        for optimizer in optimizers:
            optimizer.zero_grad()
    if doctor is not None:
        doctor.close(rollout=rollout)
    return {
        "states": states,
        "rets": rets,
        "sent": sent,
        "balance": {} if doctor is None else doctor.state_dict().get("balance"),
    }


UNUSED = {"which": ("ab", "a", "b"), "find_unused_parameters": True}
SKETCHED = {"gradients": "sketch", "width": 160}
BALANCED = {"balance": "gradnorm", "steps": 7, "every": lambda step: step % 2 == 0}
PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inner": {"inner": True},
    "static": {"static_graph": True},
    "static_inner": {"static_graph": True, "inner": True},
    "unused": UNUSED,
    "uneven": {"uneven": (("ab",), ("ab", "a")), "find_unused_parameters": True},
    "norm": {"norm": True, "rollout": True},
    "no_sync": {"micro": 3},
    "views": {"micro": 3, "gradient_as_bucket_view": True},
    "synced": {"micro": 3, "no_sync": False},
    "by_hand": {"wrap": False, "by_hand": True},
    "apart": {"wrap": False},
    "seldom": {"every": 2},
    "schedules": {"every": "rank"},
    "only_rank_0": {"on": (0,)},
    "fails": {"fails": 1},
    "leaves": {"leaves": 1},
    "sharded": {"shard": "once", "ema": True, "rollout": True},
    "resharded": {"shard": "again", "ema": True},
    "sharded_norm": {"shard": "once", "norm": True},
    "sharded_half": {"shard": "again", "half": True},
    "sharded_turns": {"shard": "again", "turns": True},
    "sharded_in_backward": {"shard": "once", "in_backward": True},
    "sharded_micro": {"shard": "again", "micro": 3},
    "sharded_unsynced": {"shard": "once", "micro": 3, "no_sync": False},
    "sharded_out_of_step": {"shard": "again", "out_of_step": 1},
    "in_backward": {"in_backward": True},
    "hybrid": {"shard": "hybrid"},
    "sketched": SKETCHED,
    "sketched_no_sync": {**SKETCHED, "micro": 3},
    "sketched_unused": {**UNUSED, **SKETCHED},
    "sketched_by_hand": {**SKETCHED, "wrap": False, "by_hand": True},
    "own_draws": {"shared": "", "steps": 8},
    "grid": {"shared": "grid", "steps": 8},
    "same_data": {"shared": "data", "steps": 8},
    "same_noise": {"shared": "noise", "steps": 8},
    "same_draws": {"shared": "data noise", "steps": 8},
    "outside": {"shared": "", "steps": 8, "outside": True},
    "own_teacher": {"shared": "", "steps": 8, "own_teacher": True},
    "balanced": BALANCED,
    "balanced_micro": {**BALANCED, "micro": 3},
    "balanced_pcgrad": {**BALANCED, "balance": "pcgrad"},
    "balanced_sharded": {**BALANCED, "shard": "once"},
}

SICK = ("apart", "same_data", "same_noise", "same_draws", "outside", "own_teacher")
"""In which the ranks are not as they should be to each other."""


def possible(name: str) -> bool:
    """Whether this torch can run the program on CPUs."""
    return fully_shard is not None or "shard" not in PROGRAMS[name]


def settings(name: str, rank: int) -> dict[str, Any]:
    found = copy.copy(PROGRAMS[name])
    if "uneven" in found:
        found["which"] = found.pop("uneven")[rank]
    if found.get("every") == "rank":
        found["every"] = lambda step: step % (rank + 2) == 0
    return found


def main(rank: int, size: int, folder: Path, names: list[str]) -> None:
    lossdoctor.probe.ranks.PATIENCE = 12.0
    # A rollout that is short, and made however slow the machine is.
    lossdoctor.doctor.rollout.STEPS = ROLLOUT
    lossdoctor.doctor.rollout.ROLLOUT_SECONDS = math.inf
    # A hanging program must end the test, not outlive it.
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=40))
    for name in names:
        off = train(None, rank, size, **settings(name, rank))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            on = train(folder / name, rank, size, **settings(name, rank))
        told = [str(w.message) for w in caught if "lossdoctor" in str(w.message)]
        torch.save({"off": off, "on": on, "warnings": told}, folder / f"{name}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


def ranks(size: int, folder: Path, names: list[str]) -> bool:
    """All ranks at once, forked from a process that has imported everything once and begun nothing."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            sound = False
            with (folder / f"told.{rank}").open("w") as told, contextlib.redirect_stderr(told):
                try:
                    main(rank, size, folder, names)
                    sound = True
                except BaseException:
                    traceback.print_exc()
            os._exit(0 if sound else 1)
        children.append(child)
    signal.signal(signal.SIGALRM, lambda *_: [os.kill(child, signal.SIGKILL) for child in children])
    signal.alarm(SECONDS)
    ends = [os.waitpid(child, 0)[1] for child in children]
    return not any(ends)


if __name__ == "__main__":
    sys.exit(0 if ranks(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]) else 1)
