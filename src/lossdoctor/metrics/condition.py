"""What a condition may be, and how a probe takes rows of it, joins it, and finds equal ones.

A condition is None, a tensor with leading dimension B, a list of B strings, or a dict, list or tuple of those. Inside a
nest None, numbers and strings are settings that all samples share. Anything else is opaque: it can be handed to the
model as it is and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def splittable(cond: Any, batch: int) -> bool:
    """Whether rows of the condition can be taken: None, or a nest whose leaves all have `batch` rows."""
    return cond is None or _known(cond, batch, inside=False)


def _known(cond: Any, batch: int, *, inside: bool) -> bool:
    if isinstance(cond, Tensor):
        return cond.ndim > 0 and len(cond) == batch
    if _is_texts(cond):
        return len(cond) == batch
    if type(cond) in (dict, list, tuple):
        return all(_known(item, batch, inside=True) for item in _items(cond))
    return inside and (cond is None or isinstance(cond, (bool, int, float, str)))


def _is_texts(cond: Any) -> bool:
    return type(cond) in (list, tuple) and len(cond) > 0 and all(isinstance(item, str) for item in cond)


def _items(cond: Any) -> list[Any]:
    return list(cond.values()) if isinstance(cond, dict) else list(cond)


def take(cond: Any, index: Tensor) -> Any:
    """Rows `index` (n,), int64, of a splittable condition, nested as before.

    Synchronises only for strings, whose rows are taken on the host, when the index is on another device.
    """
    if isinstance(cond, Tensor):
        return cond[index.to(cond.device)]
    if _is_texts(cond):
        return type(cond)(cond[i] for i in index.tolist())
    if isinstance(cond, dict):
        return {key: take(item, index) for key, item in cond.items()}
    if isinstance(cond, (list, tuple)):
        return type(cond)(take(item, index) for item in cond)
    return cond


def join(conds: Sequence[Any]) -> Any:
    """Splittable conditions of one structure as one batch after the other; shared settings as in the first."""
    first = conds[0]
    if isinstance(first, Tensor):
        return torch.cat(list(conds))
    if _is_texts(first):
        return type(first)(text for cond in conds for text in cond)
    if isinstance(first, dict):
        return {key: join([cond[key] for cond in conds]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(join([cond[i] for cond in conds]) for i in range(len(first)))
    return first


def keys(cond: Any, generator: torch.Generator) -> Tensor | None:
    """(B,) int64: equal for samples with equal conditions, different otherwise, in random order.

    Rows are compared bit by bit through a random linear hash of 64 bits, on the device of the tensors, without
    synchronising; two different rows share a key with a probability below 1e-9. None when nothing differs per sample.
    """
    total: Tensor | None = None
    for rows in _leaves(cond):
        bits = rows.to(torch.int64)
        factors = torch.randint(
            -(2**63), 2**63 - 1, bits.shape[1:], generator=generator, device=generator.device, dtype=torch.int64
        )
        key = (bits * (factors | 1).to(bits.device)).sum(1)
        total = key if total is None else total + key.to(total.device)
    return total


def _leaves(cond: Any) -> Iterator[Tensor]:
    """Everything that has rows, as integers (B, n) with the same bits."""
    if isinstance(cond, Tensor):
        if cond.is_complex():
            cond = torch.view_as_real(cond)
        rows = cond.detach().reshape(len(cond), -1).contiguous()
        yield rows.view(_BITS[rows.element_size()])
    elif _is_texts(cond):
        seen: dict[str, int] = {}
        yield torch.tensor([[seen.setdefault(text, len(seen))] for text in cond])
    elif isinstance(cond, (dict, list, tuple)):
        for item in _items(cond):
            yield from _leaves(item)


def derangement(keys: Tensor) -> tuple[Tensor, Tensor]:
    """A permutation (n,) under which as few samples as possible meet an equal key, and whether any meets another.

    Sorted by key and rotated by the size m of the largest group, no group overlaps itself when m <= n / 2, and only the
    unavoidable 2 m - n samples do otherwise. Never synchronises.
    """
    order, start = _groups(keys)
    place = torch.arange(len(keys), device=keys.device)
    largest = (place - start).max() + 1
    partner = torch.empty_like(order)
    partner[order] = order[(place + largest) % len(keys)]
    return partner, largest < len(keys)


def exchange(keys: Tensor) -> tuple[Tensor, Tensor]:
    """A permutation (n,) among samples of equal key, and (n,) whether a sample got another than itself.

    Each group is rotated by one; a sample alone in its group keeps its place. Never synchronises.
    """
    order, start = _groups(keys)
    place = torch.arange(len(keys), device=keys.device)
    follows = torch.cat([start[1:] == start[:-1], start.new_zeros(1, dtype=torch.bool)])
    partner = torch.empty_like(order)
    partner[order] = order[torch.where(follows, place + 1, start)]
    return partner, partner != place


def _groups(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The samples sorted by key, and for each place in that order the place where its group begins."""
    ordered, order = keys.sort(stable=True)
    place = torch.arange(len(keys), device=keys.device)
    begins = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return order, torch.where(begins, place, 0).cummax(0).values
