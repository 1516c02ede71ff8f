"""Trainings by Lightning and by the Hugging Face Trainer, for `test_ranks.py`: torchrun ... ranks_program.py FOLDER

Each trains twice, without and with the callback, and leaves in FOLDER what each rank had at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers import Trainer, TrainingArguments

import lossdoctor as ld

STEPS = 4
BATCH = 16
"""Of all ranks together."""
WEIGHTS = {"a": 0.5, "flow": 2.0}
DOCTOR: dict[str, Any] = {"heads": ["a_head"], "every": 1, "strict": True, "live": False}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU())
        self.a_head, self.flow_head = nn.Linear(16, 3), nn.Linear(17, 4)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.a_head(h), self.flow_head(torch.cat([h, t], -1))


def total(model: Any, x: Tensor, t: Tensor) -> Tensor:
    a, v = model(x, t)
    ld.flow(v, -x, t, z1=x)
    return ld.total({"a": a.square().mean(), "flow": (v + x).square().mean()}, WEIGHTS)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS * BATCH, 4, generator=generator), torch.rand(STEPS * BATCH, 1, generator=generator)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return total(self.net, *batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def by_lightning(run: Path | None, folder: Path, size: int) -> dict[str, Tensor]:
    """The weights at the end."""
    torch.manual_seed(0)
    module = Module()
    options = {**DOCTOR, "heads": ["net.a_head"]}
    callbacks = [] if run is None else [ld.integrations.lightning.LossDoctorCallback(run=run, **options)]
    data = TensorDataset(*rows())
    # Lightning's own sampler would shuffle.
    sampler = DistributedSampler(data, num_replicas=size, rank=int(os.environ.get("RANK", "0")), shuffle=False)
    pl.Trainer(
        accelerator="cpu", devices=size, strategy=DDPStrategy(process_group_backend="gloo") if size > 1 else "auto",
        max_epochs=1, callbacks=callbacks, gradient_clip_val=0.5, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        use_distributed_sampler=False,
    ).fit(module, DataLoader(data, batch_size=BATCH // size, sampler=sampler))  # fmt: skip
    return dict(module.net.state_dict())


class Mine(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return total(model, inputs["x"], inputs["t"])

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> None:
        return None  # in order


def by_trainer(run: Path | None, folder: Path, size: int) -> dict[str, Tensor]:
    """The weights at the end."""
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, ddp_backend="gloo" if size > 1 else None, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no", max_steps=STEPS, per_device_train_batch_size=BATCH // size,
        max_grad_norm=0.5, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", remove_unused_columns=False,
    )  # fmt: skip
    data = [{"x": x, "t": t} for x, t in zip(*rows(), strict=True)]
    trainer = Mine(model=Net(), args=args, train_dataset=data)
    if run is not None:
        trainer.add_callback(ld.integrations.transformers.LossDoctorCallback(trainer, run=run, **DOCTOR))
    trainer.train()
    return dict(trainer.model.state_dict())


FRAMEWORKS = {"lightning": by_lightning, "transformers": by_trainer}


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for name, train in FRAMEWORKS.items():
        off, on = (train(run, folder, 2) for run in (None, folder / name))
        torch.save({"off": off, "on": on}, folder / f"{name}.{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
