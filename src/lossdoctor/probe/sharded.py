"""Per-loss gradients of a model whose parameters are sharded over the ranks (FSDP2, `fully_shard`).

Here `autograd.grad` on the parameters silently gives None, or a rank's own values: the graph holds other tensors than
the ones the user sees, and what turns one into the other are hooks of an ordinary backward. So each loss gets one, with
`.grad` taken away before and put back after, the same objects as they were; FSDP averages over the ranks as ever, and
what it leaves in `.grad` is this rank's shard of the gradient of the global batch. Inner products of shards are then
summed over the ranks, and no rank ever holds a whole gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Piece = Tensor | None


def is_sharded(tensor: object) -> bool:
    """Whether this is a DTensor, of which a rank holds a part; told without importing what most runs do not need."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; the tensor itself where it is whole."""
    part: Any = tensor
    return part.to_local() if is_sharded(tensor) else tensor


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts, without graphs."""
    with torch.no_grad():
        return [local(tensor) for tensor in tensors]


def gradients(parameters: Iterable[nn.Parameter]) -> list[Piece]:
    """`.grad` of every parameter, as this rank holds it."""
    return [None if p.grad is None else local(p.grad) for p in parameters]


def any_sharded(modules: Iterable[nn.Module]) -> bool:
    """Whether parameters are sharded, by FSDP2 or by its predecessor, which wraps modules."""
    parts = [part for module in modules for part in module.modules()]
    flat = any(type(part).__name__ == "FullyShardedDataParallel" for part in parts)
    return flat or any(is_sharded(p) for part in parts for p in part._parameters.values())


def unsupported(parameters: Sequence[nn.Parameter]) -> str | None:
    """Why gradients of these sharded parameters are not measured; None when they are.

    Every parameter must be sharded over all ranks of the job along its first axis, as `fully_shard(model)` does.
    """
    whole = [p for p in parameters if not is_sharded(p)]
    if whole:
        return f"{len(whole)} of {len(parameters)} trained parameters are not sharded by fully_shard"
    sharded: Sequence[Any] = parameters
    for p in sharded:
        mesh, placements = p.device_mesh, p.placements
        if mesh.ndim != 1 or mesh.size() != dist.get_world_size() or not placements[0].is_shard():
            return f"parameters are laid out as {placements} on {mesh}, not in shards over all ranks of the job"
    return None


def reduces(modules: Iterable[nn.Module]) -> bool:
    """Whether the next backward brings gradients to `.grad`; not after `set_requires_gradient_sync(False)`."""
    states = [state for module in modules if (state := state_of(module)) is not None]
    return all(getattr(group, "reduce_grads", True) for state in states for group in groups_of(state))


def state_of(module: nn.Module) -> Any:
    """What FSDP knows of a module given to `fully_shard`; None of any other."""
    # Of the type: a module asked for what it has not looks through everything it has.
    return module._get_fsdp_state() if hasattr(type(module), "_get_fsdp_state") else None  # type: ignore[operator]


def groups_of(state: Any) -> list[Any]:
    """The groups of parameters that are gathered together, one or none in most states."""
    several = getattr(state, "_fsdp_param_groups", None)
    one = None if several else getattr(state, "_fsdp_param_group", None)
    return list(several or ([] if one is None else [one]))


def by_backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Piece]:
    """The gradient of `loss`, as this rank's parts of it, by a backward that leaves no trace. The graph is kept.

    Hooks of the user on tensors and parameters run once more, as in every extra pass.
    """
    leaves = {id(p): p for p in (*parameters, *_leaves(loss))}
    before = [(leaf, leaf.grad) for leaf in leaves.values()]
    for leaf, _ in before:
        leaf.grad = None
    try:
        torch.autograd.backward(loss, retain_graph=True)
        return gradients(parameters)
    finally:
        for leaf, grad in before:
            leaf.grad = grad


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Every tensor whose `.grad` a backward of `loss` would add to."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        waiting += [following for following, _ in node.next_functions]
