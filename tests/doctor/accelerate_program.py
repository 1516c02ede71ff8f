"""A training through accelerate, for `test_accelerate.py`: torchrun ... accelerate_program.py FOLDER

Every program trains twice, without and with a Doctor, and leaves in FOLDER what each rank had after every step.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lossdoctor as ld

STEPS = 8
BATCH = 12
"""Of all ranks together, per micro-batch."""
WEIGHTS = {"a": 0.5, "flow": 2.0}
PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro": 2},
    "drop": {"micro": 2, "drop": 0.3},
    "not_prepared": {"prepare_data": False},
}


class Net(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(drop))
        self.a_head, self.flow_head = nn.Linear(16, 3), nn.Linear(17, 4)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.a_head(h), self.flow_head(torch.cat([h, t], -1))


def train(
    run: Path | None, accelerator: Any = None, *, micro: int = 1, drop: float = 0.0, prepare_data: bool = True
) -> dict[str, Any]:
    """Without an accelerator: one process, as anybody would write it."""
    torch.manual_seed(0)
    core = Net(drop)
    model: Any = core
    optimizer: Any = torch.optim.AdamW(core.parameters(), lr=1e-2)
    size = 1 if accelerator is None else accelerator.num_processes
    rows = STEPS * micro * BATCH
    loader: Any = DataLoader(TensorDataset(torch.randn(rows, 4), torch.rand(rows, 1)), batch_size=BATCH // size)
    if accelerator is not None:
        accelerator.gradient_accumulation_steps = micro
        model, optimizer = accelerator.prepare(core, optimizer)
        loader = accelerator.prepare(loader) if prepare_data else loader
        torch.manual_seed(accelerator.process_index)
    doctor = (
        None if run is None else ld.Doctor(model, optimizer, run=run, heads={"a": core.a_head}, every=1, live=False)
    )
    backward = None if accelerator is None else accelerator.backward
    states: list[list[Tensor]] = []
    rets: list[dict[str, float]] = []
    for place, (x, t) in enumerate(loader):
        if place == STEPS * micro:
            break
        with contextlib.nullcontext() if accelerator is None else accelerator.accumulate(model):
            a, v = model(x, t)
            ld.flow(v, -x, t, z1=x)
            # accelerator.backward divides by the number of micro-batches.
            share = micro if accelerator is None else 1
            losses = {"a": a.square().mean() / share, "flow": (v + x).square().mean() / share}
            if doctor is not None:
                doctor.backward(losses, WEIGHTS, backward=backward)
            else:
                total = sum((WEIGHTS[name] * loss for name, loss in losses.items()), torch.zeros(()))
                (torch.autograd.backward if backward is None else backward)(total)
            full = (place + 1) % micro == 0 if accelerator is None else accelerator.sync_gradients
            if accelerator is None and full:
                nn.utils.clip_grad_norm_(core.parameters(), 0.5)
            elif full:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            gradients = [p.grad.clone() for p in core.parameters()] if full else []
            if accelerator is not None or full:
                optimizer.step()
                optimizer.zero_grad()
        if full:
            moments = [v.clone() for p in core.parameters() for v in optimizer.state[p].values()]
            weights_now = [p.detach().clone() for p in core.parameters()]
            states.append([*weights_now, *gradients, *moments, torch.get_rng_state()])
            rets.append({} if doctor is None else dict(doctor.ret))
    if doctor is not None:
        doctor.close(rollout=False)
    return {"states": states, "rets": rets}


def main(folder: Path) -> None:
    from accelerate import Accelerator, InitProcessGroupKwargs

    # A hanging program must end the test, not outlive it.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=60))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
    for name, settings in PROGRAMS.items():
        off = train(None, accelerator, **settings)
        on = train(folder / name, accelerator, **settings)
        torch.save({"off": off, "on": on}, folder / f"{name}.{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
