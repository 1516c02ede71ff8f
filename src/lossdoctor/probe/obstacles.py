"""What in the graph of some losses an extra pass would stumble over, found before the first pass runs.

An ordinary graph may be run through as often as one likes. These may not, or only with care: a compiled graph that has
donated the memory of its activations, a checkpoint that runs a backward of its own inside the backward (reentrant), and
functions somebody wrote, whose backward may use up what it needs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lossdoctor.probe.compiled import has_donated, is_compiled

Node = Any
"""A node of the autograd graph (`tensor.grad_fn`)."""

DONATED = (
    "a graph was compiled with donated buffers, which allows one backward only; build the Doctor before the first "
    "compiled step, or set torch._functorch.config.donated_buffer = False there"
)
REENTRANT_HOOKED = (
    "a reentrant checkpoint writes .grad in every pass, and hooks on .grad (an optimizer in the backward) would take "
    "each for the real one; use checkpoint(..., use_reentrant=False)"
)
SHARDED_HOOKED = (
    "sharded parameters are reached by ordinary backwards only, and hooks on .grad (an optimizer in the backward) "
    "would take each extra one for the real one; step after the backward"
)
REENTRANT_RANKS = (
    "a reentrant checkpoint writes .grad in every pass, which DistributedDataParallel would take for the real one; "
    "use checkpoint(..., use_reentrant=False)"
)


@dataclass(frozen=True, slots=True)
class Obstacles:
    """donated: a compiled graph allows one backward only. reentrant: a checkpoint reaches its parameters only by an
    ordinary backward. custom: nodes of other functions whose backward is Python, compiled graphs among them."""

    donated: bool = False
    reentrant: bool = False
    custom: Sequence[Node] = field(default=())

    def refusal(
        self, parameters: Iterable[nn.Parameter], *, several: bool, sharded: bool = False, spoiled: Container[type] = ()
    ) -> str | None:
        """Why there can be no extra passes, and what to do; None when there can.

        several: under DDP. sharded: by FSDP. spoiled: kinds of nodes that were seen to change what they keep.
        """
        if self.donated or any(is_compiled(node) and type(node) in spoiled for node in self.custom):
            return DONATED
        if self.reentrant and several:
            return REENTRANT_RANKS
        if not (self.reentrant or sharded) or not hooked(parameters):
            return None
        return SHARDED_HOOKED if sharded else REENTRANT_HOOKED


def obstacles(losses: Iterable[Tensor]) -> Obstacles:
    """Look through the graph of the losses, once. Costs about a microsecond a node, and reads no tensor."""
    donated, reentrant, custom = False, False, []
    for node in python_nodes(losses):
        if is_compiled(node):
            donated |= has_donated(node)
            custom.append(node)
        elif node._forward_cls.__name__ == "CheckpointFunction":  # that of PyTorch, and those made after it
            reentrant = True
        else:
            custom.append(node)
    return Obstacles(donated, reentrant, custom)


def python_nodes(losses: Iterable[Tensor]) -> list[Node]:
    """The nodes whose backward is Python, each once."""
    waiting: list[Node] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen: set[Node] = set(waiting)
    found: list[Node] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, BackwardCFunction):
            found.append(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def hooked(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether something happens to a gradient as soon as it is in `.grad`: an optimizer in the backward, a clip."""
    return any(p._post_accumulate_grad_hooks for p in parameters)
