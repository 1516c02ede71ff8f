"""Parameter groups: heads learn faster and do not decay, biases and norms do not decay, early layers learn slower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lossdoctor.errors import UsageError, mismatch

Group = dict[str, Any]
BACKBONE = "backbone"


@dataclass(frozen=True, slots=True)
class Row:
    """One group, for people. tensors, elements: how many of each."""

    name: str
    lr: float
    weight_decay: float
    tensors: int
    elements: int


def param_groups(
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    *,
    lr: float,
    lr_scale: float = 3.0,
    weight_decay: float = 0.01,
    head_weight_decay: float = 0.0,
    layers: Sequence[nn.Module] = (),
    layer_decay: float = 1.0,
) -> list[Group]:
    """Groups for an optimizer, each with `name`, `params`, `lr`, `weight_decay`.

    heads: name to module; they get lr * lr_scale and head_weight_decay. Tensors with fewer than two axes (biases,
    gains of norms) and embeddings never decay. layers: of the backbone, first to last; the last one has lr *
    layer_decay, the one before it layer_decay^2, and so on; what else is in the backbone is as the first.
    Every trainable parameter of model and heads is in exactly one group; a parameter of two heads is refused.
    Raises UsageError for settings that cannot be.
    """
    if not (lr > 0 and lr_scale > 0 and weight_decay >= 0 and head_weight_decay >= 0 and 0 < layer_decay <= 1):
        got = f"lr={lr}, lr_scale={lr_scale}, weight_decay={weight_decay}, layer_decay={layer_decay}"
        expected = "lr > 0, lr_scale > 0, decays >= 0, layer_decay in (0, 1]"
        raise UsageError(mismatch("Parameter groups.", expected, got, "correct these"))
    head_of = _owners(heads)
    depth = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    plain = {id(p) for m in (model, *heads.values()) for p in _undecayed(m)}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in {id(p): p for m in (model, *heads.values()) for p in m.parameters()}.values():
        if not parameter.requires_grad:
            continue
        name = head_of.get(id(parameter), BACKBONE)
        if name == BACKBONE:
            rate = lr * layer_decay ** depth.get(id(parameter), len(layers))
            decay = weight_decay
        else:
            rate, decay = lr * lr_scale, head_weight_decay
        groups.setdefault((name, rate, 0.0 if id(parameter) in plain else decay), []).append(parameter)
    return [{"name": name, "params": own, "lr": rate, "weight_decay": wd} for (name, rate, wd), own in groups.items()]


def table(groups: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The groups as rows to print, in their order."""
    return [
        Row(
            str(group.get("name", BACKBONE)),
            float(group["lr"]),
            float(group.get("weight_decay", 0.0)),
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
        )
        for group in groups
    ]


def _owners(heads: Mapping[str, nn.Module]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, head in heads.items():
        for parameter in head.parameters():
            other = found.setdefault(id(parameter), name)
            if other != name:
                got = f"a parameter of {tuple(parameter.shape)} in {other!r} and {name!r}"
                raise UsageError(
                    mismatch("A parameter has one head.", "heads that share none", got, "name one of them")
                )
    return found


def _undecayed(module: nn.Module) -> Iterable[nn.Parameter]:
    for one in module.modules():
        yield from (p for p in one.parameters(recurse=False) if p.ndim < 2 or isinstance(one, nn.Embedding))
