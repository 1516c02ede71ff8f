"""The processes that torchrun starts for one training of the reference system, as one of them sees them.

Everything random is drawn for the global batch, on every rank alike, and each rank takes its rows of it: on several
ranks the run is that of one process up to rounding, with the same checkpoint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lossdoctor.errors import UsageError, mismatch

_LONGEST = 4096
"""Bytes of a text that rank 0 tells the others."""


@dataclass(frozen=True, slots=True)
class Team:
    """device: where this process trains. rank: which of the `size` processes it is, from 0."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, writes and reports."""
        return self.rank == 0

    def rows(self, batch: int) -> Tensor | None:
        """This rank's rows of a global batch of that size; None for all of them."""
        if self.size == 1:
            return None
        rows = batch // self.size
        return torch.arange(self.rank * rows, (self.rank + 1) * rows)

    def check(self, batch: int) -> None:
        """Raises UsageError when a global batch of this size cannot be split evenly."""
        if batch % self.size:
            raise UsageError(
                mismatch(
                    "Every rank takes the same number of samples.",
                    f"train.batch a multiple of {self.size}, the number of processes",
                    str(batch),
                    f"set train.batch={max(1, batch // self.size) * self.size}",
                )
            )

    def wrapped(self, module: nn.Module, *, unused: bool = False) -> nn.Module:
        """The module with gradients averaged over the ranks, beginning with rank 0's weights; itself for one process.

        unused: whether a step may leave parameters without a gradient. Every rank must call this.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=unused)

    def any(self, answer: bool) -> bool:
        """Whether any rank says yes. Every rank must call this."""
        if self.size == 1:
            return answer
        told = torch.tensor(int(answer), device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)

    def told(self, text: str) -> str:
        """Rank 0's text, a few thousand letters at most. Every rank must call this."""
        if self.size == 1:
            return text
        message = torch.frombuffer(bytearray(text.encode().ljust(_LONGEST, b"\0")), dtype=torch.uint8).to(self.device)
        dist.broadcast(message, src=0)
        return _text(message)

    def leave(self) -> None:
        """After the last thing that needs the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def team(device: str) -> Team:
    """The team this process is in: that of torch.distributed, or the one torchrun tells of in the environment.

    device: as in the settings; of several GPUs each process takes the one of its local rank.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not dist.is_available() or not (launched or dist.is_initialized()):
        return Team(torch.device(device))
    local, cuda = _local(device), torch.device(device).type == "cuda"
    if not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if cuda else "gloo")
    return Team(local, dist.get_rank(), dist.get_world_size())


def _local(device: str) -> torch.device:
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(local)) if device == "cuda" and local is not None else torch.device(device)


def _text(message: Tensor) -> str:
    return bytes(message.cpu().tolist()).rstrip(b"\0").decode()
