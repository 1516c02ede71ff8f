"""A share of the elements of long tensors: what is enough to say how far a slow copy of a model is from it.

A sixteenth of every long tensor, in stretches of neighbours, since memory is read by lines; short tensors are whole.
The stretches move on from one look to the next, so that sixteen looks see nearly everything. A squared length over long
tensors is that of the sample times sixteen: right on average, and exactly zero where nothing differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdoctor import linalg

ONE_IN = 16
"""Of the elements of a long tensor."""
LONG = 2**14
"""Elements from which a tensor is long: its sample has 1,024 at least."""
_STRETCH = 65
# 1040 in a row of stretches: no common width of a layer, so that a sample is not of the same columns in every row.
_PERIOD = ONE_IN * _STRETCH


@dataclass(frozen=True, slots=True)
class Sample:
    """Which elements are read of tensors with given sizes.

    groups: places of the tensors that are read as one vector, all on one device, all short or all long. factors: what
    squared lengths over each group are multiplied with. dtype: of the copies, float32 or wider. turn: which look it is.
    """

    groups: tuple[tuple[int, ...], ...]
    factors: tuple[float, ...]
    dtype: torch.dtype
    turn: int = 0

    @classmethod
    def of(cls, tensors: Sequence[Tensor], others: Sequence[Tensor] = ()) -> Sample:
        """A sample of tensors like these, and of others of the same sizes."""
        groups: dict[tuple[torch.device, bool], list[int]] = {}
        for place, tensor in enumerate(tensors):
            groups.setdefault((tensor.device, tensor.numel() >= LONG), []).append(place)
        sizes = [[tensors[place].numel() for place in places] for places in groups.values()]
        factors = [
            sum(each) / sum(size // _PERIOD * _STRETCH for size in each) if long else 1.0
            for each, (_, long) in zip(sizes, groups, strict=True)
        ]
        dtype = torch.float64 if any(map(linalg.is_wide, (*tensors, *others))) else torch.float32
        return cls(tuple(map(tuple, groups.values())), tuple(factors), dtype)

    def next(self) -> Sample:
        """Of the same tensors, other elements."""
        return replace(self, turn=self.turn + 1)

    def vectors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A copy of what is read, one vector for each group."""
        return [
            linalg.concatenated([tensors[p] for p in places], self.dtype)
            if factor == 1.0
            else torch.cat([self._stretches(tensors[p]) for p in places]).reshape(-1).to(self.dtype)
            for places, factor in zip(self.groups, self.factors, strict=True)
        ]

    def _stretches(self, tensor: Tensor) -> Tensor:
        flat = tensor.detach().reshape(-1)
        begin = flat.storage_offset() + self.turn % ONE_IN * _STRETCH
        return flat.as_strided((flat.numel() // _PERIOD, _STRETCH), (_PERIOD, 1), begin)
