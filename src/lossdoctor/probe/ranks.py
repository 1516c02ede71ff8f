"""The processes of one training, as one of them sees them: how they tell each other something, and average vectors.

Everything goes over connections of the doctor's own (gloo), so it never gets between the collectives of the training;
only vectors on another device than the CPU take the training's group, at a moment when all ranks are known to be at the
same place. The connections are made at the first meeting, which is in an optimizer step: there the ranks have just
waited for each other, so a rank that does not come has no Doctor. A rank that fails or leaves closes its connections;
whoever waits for it gets an error at once, and not after `PATIENCE`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lossdoctor import linalg
from lossdoctor.errors import LossDoctorError, mismatch

PATIENCE = 120.0
"""Seconds a rank waits for the others before it goes on alone."""
BUCKET = 2**24
"""Elements averaged in one collective: what the averaging needs in memory beyond the vectors themselves."""
_SLOT = 4096
"""Bytes of a message that travel in the first collective; a longer one takes a second."""
_HEAD = struct.Struct("<q")


class RanksError(LossDoctorError):
    """The ranks of a training cannot reach each other."""


class Ranks:
    """The processes that train one model together. rank: this one among them, from 0. size: how many there are, >= 2.

    group: the process group they train in, None for that of the whole job.
    """

    def __init__(self, group: Any = None) -> None:
        self.members = _members(group)
        self.rank, self.size = self.members.index(dist.get_rank()), len(self.members)
        self._training = group
        self._group: Any = None

    def gather(self, message: bytes, patience: float = PATIENCE) -> list[bytes]:
        """The messages of all ranks, in order. Every rank must call this; RanksError when one does not come."""
        parts = self._gathered((_HEAD.pack(len(message)) + message)[:_SLOT], _SLOT, patience)
        lengths = [int(_HEAD.unpack_from(part)[0]) for part in parts]
        room = _SLOT - _HEAD.size
        heads = [part[_HEAD.size : _HEAD.size + length] for part, length in zip(parts, lengths, strict=True)]
        longest = max(lengths) - room
        if longest <= 0:
            return heads
        rest = self._gathered(message[room:], longest, patience)
        return [h + r[: max(0, n - room)] for h, r, n in zip(heads, rest, lengths, strict=True)]

    def average(
        self, rows: Sequence[list[Tensor | None]], there: Sequence[Sequence[bool]], like: Sequence[Tensor]
    ) -> None:
        """Replace each of R vectors by its mean over the ranks, piece by piece, as flat tensors of float32 or wider.

        rows: R vectors in the same pieces as `like`. there: per row, which pieces any rank has; a piece that is None
        here counts as zero. Every rank must call this with the same `there`.
        """
        bucket: list[tuple[int, int]] = []
        waiting, kind = 0, None
        for r, row in enumerate(there):
            for i, known in enumerate(row):
                if not known:
                    continue
                now = (_wide(like[i].dtype), like[i].device)
                if bucket and (now != kind or waiting + like[i].numel() > BUCKET):
                    self._average(rows, bucket, like)
                    bucket, waiting = [], 0
                kind, waiting = now, waiting + like[i].numel()
                bucket.append((r, i))
        if bucket:
            self._average(rows, bucket, like)

    def summed(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums of small tensors over the ranks, in one collective; on every rank with the same shapes."""
        if not tensors:
            return []
        # What is zero everywhere was made on the host.
        device = next((one.device for one in tensors if one.device.type != "cpu"), tensors[0].device)
        joined = torch.cat([one.reshape(-1).to(device) for one in tensors])
        self._add_up(joined)
        parts = torch.split(joined, [one.numel() for one in tensors])
        return [part.reshape(one.shape) for part, one in zip(parts, tensors, strict=True)]

    def leave(self) -> None:
        """Close the connections to the other ranks, which get an error at their next meeting."""
        self._group = None

    def _average(
        self, rows: Sequence[list[Tensor | None]], bucket: Sequence[tuple[int, int]], like: Sequence[Tensor]
    ) -> None:
        # Not in place: autograd may hand out one tensor for two parameters, or an expanded one.
        with torch.no_grad():
            parts: list[Tensor] = []
            for r, i in bucket:
                piece, dtype = rows[r][i], _wide(like[i].dtype)
                size = like[i].numel() * (2 if like[i].is_complex() else 1)
                parts.append(like[i].new_zeros(size, dtype=dtype) if piece is None else linalg.flattened(piece, dtype))
            joined = torch.cat(parts)
            self._add_up(joined)
            joined /= self.size
            for (r, i), view in zip(bucket, torch.split(joined, [part.numel() for part in parts]), strict=True):
                rows[r][i] = view

    def _add_up(self, vector: Tensor) -> None:
        with _told():
            if vector.device.type == "cpu":
                self._joined().allreduce([vector]).wait()
            else:
                # The messages before this were a barrier, so here the training's own group has nothing under way.
                dist.all_reduce(vector, group=self._training)

    def _gathered(self, message: bytes, size: int, patience: float) -> list[bytes]:
        mine = torch.frombuffer(bytearray(message.ljust(size, b"\0")), dtype=torch.uint8)
        found = [torch.empty(size, dtype=torch.uint8) for _ in self.members]
        options = _c10d().AllgatherOptions()
        options.timeout = datetime.timedelta(seconds=min(patience, PATIENCE))
        group = self._joined()
        with _told():
            group.allgather([found], [mine], options).wait()
        return [part.numpy().tobytes() for part in found]

    def _joined(self) -> Any:
        if self._group is None:
            # Not `new_group`: it numbers the groups of the job, and the training's own must not depend on the doctor.
            name = f"lossdoctor/{'-'.join(map(str, self.members))}"
            store = _c10d().PrefixStore(name, _c10d()._get_default_store())
            # Every `size` of those who come make one group. Whoever came in vain is counted as gone, so that a Doctor
            # that one rank built alone does not put the ranks out of step; and nobody reads old addresses.
            number = (store.add("came", 1) - 1) // self.size
            place = _c10d().PrefixStore(f"{store.add('gone', 0)}/{number}", store)
            try:
                with _told():
                    patience = datetime.timedelta(seconds=PATIENCE)
                    self._group = dist.ProcessGroupGloo(place, self.rank, self.size, patience)
            except RanksError:
                store.add("gone", 1)
                store.add("came", -1)
                raise
        return self._group


def _c10d() -> Any:
    # Not at the top: a torch built without it is a good torch for one process.
    return importlib.import_module("torch.distributed.distributed_c10d")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What a transport says when it is alone, in our words."""
    try:
        yield
    except RuntimeError as error:
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RanksError(
            mismatch(
                "A rank of the training waited for the others in vain.",
                "a Doctor on every rank, measuring the same steps, closed at the same place",
                got[:200],
                "build and close the Doctor on every rank (only rank 0 writes to sinks and to the console), "
                "and look at the events of the other ranks",
            )
        ) from error


def ranks_of(model: nn.Module) -> Ranks | None:
    """The ranks that train `model` together; None for one process. Asks nobody.

    Those are the ranks of its DistributedDataParallel, and the whole job where there is none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = model.process_group if isinstance(model, DistributedDataParallel) else None
    members = _members(group)
    return Ranks(group) if len(members) > 1 and dist.get_rank() in members and dist.is_gloo_available() else None


def _members(group: Any) -> tuple[int, ...]:
    # torch 2.5 does not take None for the group of all.
    return tuple(range(dist.get_world_size()) if group is None else dist.get_process_group_ranks(group))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
