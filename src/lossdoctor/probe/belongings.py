"""What functions written in Python keep for their backward, put back after every extra pass.

A `torch.autograd.Function` may change what it saved (fused losses scale the gradient they computed in forward, in
place) or drop it, since a backward runs once. An extra pass would then spoil the real backward, with an error or, in a
kernel that autograd does not see, silently. So the first time a kind of function is met, all it keeps is copied before
a pass, to the host, and compared after it. Kinds that leave everything as it was are trusted from then on and cost
nothing; the others are copied at every due step. A compiled graph is such a function too: code from a cache may write
over activations though it was asked not to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from lossdoctor.probe.obstacles import Node


@dataclass(slots=True)
class Belongings:
    """trusted, restored: kinds of functions that leave what they keep as it was, and that do not."""

    trusted: set[type] = field(default_factory=set)
    restored: set[type] = field(default_factory=set)

    @contextlib.contextmanager
    def kept(self, nodes: Iterable[Node]) -> Iterator[None]:
        """One pass inside; afterwards everything the nodes keep is what it was, bit for bit."""
        before = [(node, _saved(node), _copied(node.__dict__)) for node in nodes if type(node) not in self.trusted]
        if not before:
            yield
            return
        ran: set[Node] = set()
        marks = [node.register_prehook(partial(_mark, ran, node)) for node, _, _ in before]
        parts = {node: (*saved, *_tensors(held)) for node, saved, (held, _) in before}
        tensors = {id(t): (t, t.detach().to("cpu", copy=True)) for kept in parts.values() for t in kept}
        # Writing through `.data` counts no version, and what the function has counted up is set back at the end.
        versions = [(t, t._version, _unsafe_preserve_version_counter(t)) for t, _ in tensors.values()]
        changed: set[int] = set()
        try:
            yield
        finally:
            for mark in marks:
                mark.remove()
            for tensor, value in tensors.values():
                if not _same(tensor, value):
                    changed.add(id(tensor))
                    tensor.data.copy_(value)
            for tensor, version, counter in versions:
                changed |= {id(tensor)} if tensor._version != version else set()
                counter.__exit__(None, None, None)
            for node, _, (held, contents) in before:
                touched = _restored(node.__dict__, held, contents)
                if touched or any(id(t) in changed for t in parts[node]):
                    self.restored.add(type(node))
        self.trusted |= set(map(type, ran)) - self.restored


def _mark(ran: set[Node], node: Node, grads: object) -> None:
    ran.add(node)


def _saved(node: Node) -> tuple[Tensor, ...]:
    return tuple(part for t in node.saved_tensors if isinstance(t, Tensor) for part in _parts(t))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The memory of a tensor as plain tensors; nothing of the kinds whose memory cannot be compared."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor,) if tensor.layout == torch.strided and type(tensor) in (Tensor, nn.Parameter) else ()


Contents = dict[int, "dict[Any, Any] | list[Any]"]


def _copied(attributes: dict[str, Any]) -> tuple[dict[str, Any], Contents]:
    """The attributes as they are, and what is in every dict and list among them, by the id of the container."""
    contents = {id(one): one.copy() for one in _inside(attributes) if isinstance(one, (dict, list))}
    return dict(attributes), contents


def _restored(now: dict[str, Any], before: dict[str, Any], contents: Contents) -> bool:
    """Put attributes and containers back; whether any had changed."""
    changed = _differs(now, before)
    if changed:
        now.clear()
        now.update(before)
    for one in _inside(before):
        if isinstance(one, (dict, list)) and (was := contents.get(id(one))) is not None and _differs(one, was):
            changed = True
            one.clear()
            one.update(was) if isinstance(one, dict) else one.extend(was)
    return changed


def _inside(attributes: dict[str, Any]) -> Iterator[Any]:
    """Everything in a dict, and in the dicts, lists and tuples in it, each once."""
    waiting: list[Any] = list(attributes.values())
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            if isinstance(one, (dict, list, tuple)):
                waiting += one.values() if isinstance(one, dict) else one


def _differs(now: Any, before: Any) -> bool:
    """Whether a dict or a list holds other objects, or under other keys."""
    if len(now) != len(before):
        return True
    if isinstance(now, dict):
        return any(now.get(key, now) is not value for key, value in before.items())
    return any(one is not other for one, other in zip(now, before, strict=True))


def _tensors(attributes: dict[str, Any]) -> Iterator[Tensor]:
    for one in _inside(attributes):
        if isinstance(one, Tensor):
            yield from _parts(one)


def _same(now: Tensor, before: Tensor) -> bool:
    """Whether the values are the same; NaN is the same as NaN."""
    now, before = now.detach(), before.to(now.device)
    if torch.equal(now, before):
        return True
    return torch.equal(now.isnan(), before.isnan()) and torch.equal(now.nan_to_num(), before.nan_to_num())
