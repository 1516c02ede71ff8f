"""What torch.compile makes different: graphs that run once, forwards that compile anew, code that is traced.

torch.compile itself is imported by nothing here: that takes seconds, and most runs never compile.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

_TAG = "+activations kept"


def is_compiled(node: Any) -> bool:
    """Whether a node of the autograd graph, whose backward is Python, stands for a compiled graph."""
    return hasattr(node._forward_cls, "_aot_id")


def has_donated(node: Any) -> bool:
    """Whether a compiled graph gives the memory of its activations away in its backward: it has but one then.

    This is settled when the graph is compiled. Whether a second backward raises is not: with the setting changed
    afterwards its gradients are wrong, silently. So the graph is asked, not the setting.
    """
    return bool(getattr(node._forward_cls.metadata, "bw_donated_idxs", None))


def keep_activations() -> Callable[[], None]:
    """Let graphs that are compiled from now on be run through several times; what is returned ends it.

    No number depends on it: a backward then needs memory of its own for what it would have written over activations.
    The cache of compiled code on disk does not ask whether buffers were donated, and would hand out code that writes
    over activations even so; a tag of its own keeps it apart.
    """
    wanted: list[tuple[Any, str, Any]] = []
    if hasattr(functorch := _settings("torch._functorch.config"), "donated_buffer"):
        wanted.append((functorch, "donated_buffer", False))
    if hasattr(compiler := _settings("torch.compiler.config"), "cache_key_tag"):
        wanted.append((compiler, "cache_key_tag", f"{compiler.cache_key_tag}{_TAG}"))
    before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
    for where, name, value in wanted:
        setattr(where, name, value)

    def undo() -> None:
        for where, name, value in before:
            setattr(where, name, value)

    return undo


def _settings(module: str) -> Any:
    """Ahead of the first compilation it is not there, and importing it alone costs milliseconds.

    None where torch has none: `torch.compiler.config` is not in all versions since 2.5.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Forwards inside run as Python, not compiled.

    Other batch sizes and modes would be compiled for minutes, and use up the number of recompilations after which the
    training itself would no longer be compiled.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def in_one_piece() -> bool:
    """Asked while a function is traced: whether its graph may not be broken (`fullgraph=True`, `torch.export`)."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        translator: Any = InstructionTranslator.current_tx()
        return bool(translator.one_graph or getattr(translator, "error_on_graph_break", False))
    except (ImportError, AttributeError):
        return True
