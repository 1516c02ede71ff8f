"""When an optimizer steps: hooks around the outermost step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

Hook = Callable[[Optimizer, Any, Any], Any]


class Stepping:
    """Calls `before` and `after` once around each step of each optimizer, with its positional and keyword arguments.

    What `before` returns, if anything, are the arguments the optimizer gets instead.

    An optimizer whose `step` calls that of its parent class runs its hooks for both, if any optimizer of the parent
    class was ever made in this process. Steps inside a step are not heard.
    """

    def __init__(self, optimizers: Sequence[Optimizer], before: Hook, after: Hook) -> None:
        self._call_before, self._call_after = before, after
        self._depth: dict[int, int] = {}
        self._hooks = [
            hook
            for one in optimizers
            for hook in (one.register_step_pre_hook(self._before), one.register_step_post_hook(self._after))
        ]

    def forget(self) -> None:
        """No step is going on: one that raised never came to its end. A closure may say so inside its step."""
        self._depth.clear()

    def remove(self) -> None:
        """Hear nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        depth = self._depth[id(optimizer)] = self._depth.get(id(optimizer), 0) + 1
        return self._call_before(optimizer, args, kwargs) if depth == 1 else None

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        depth = self._depth[id(optimizer)] = max(0, self._depth.get(id(optimizer), 0) - 1)
        if depth == 0:
            self._call_after(optimizer, args, kwargs)


def with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]) -> tuple[Any, Any]:
    """The arguments of a step with another closure; `args` begins with the optimizer."""
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}


def inside_backward() -> bool:
    """Whether a backward is going on in this thread: an optimizer that steps now does so in a hook on `.grad`."""
    return torch._C._current_graph_task_id() != -1
