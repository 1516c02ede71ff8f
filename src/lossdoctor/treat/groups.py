"""Parameter groups: heads learn faster and do not decay, biases and norms do not decay, early layers learn slower."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages import default_language, text

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


@dataclass(frozen=True, slots=True)
class Audit:
    """Groups held against a model: names of parameters, empty where all is well.

    missing: trainable and in no group. twice: in more than one place. frozen: in a group, and not trainable. foreign:
    tensors in groups that are no parameters of the model.
    """

    missing: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    foreign: int = 0

    @property
    def ok(self) -> bool:
        """Whether every trainable parameter is there exactly once, and nothing else."""
        return not (self.missing or self.twice or self.frozen or self.foreign)


class Groups(list[Group]):
    """What an optimizer takes, with a table to print and an audit: `print(groups.table())`."""

    def table(self, lang: str | None = None) -> str:
        """The groups as text, with totals. lang: that of the locale by default."""
        return written(table(self), default_language() if lang is None else lang)

    def audit(self, *modules: nn.Module) -> Audit:
        """As `audit`."""
        return audit(self, *modules)


def param_groups(
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    *,
    lr: float,
    lr_scale: float = 3.0,
    weight_decay: float = 0.01,
    head_weight_decay: float = 0.0,
    parts: Mapping[str, tuple[nn.Module, float]] | None = None,
    layers: Sequence[nn.Module] = (),
    layer_decay: float = 1.0,
) -> Groups:
    """Groups for an optimizer, each with `name`, `params`, `lr`, `weight_decay`.

    heads: name to module; they get lr * lr_scale and head_weight_decay. parts: of the rest, name to module and the
    factor on its rate; what is in a head too belongs to the head. Tensors with fewer than two axes (biases, gains of
    norms) and embeddings, tied ones too, never decay. layers: of the backbone, first to last; the last one has lr *
    layer_decay, the one before it layer_decay^2, and so on; what else is in the backbone is as the first.
    Every trainable parameter of model and heads is in exactly one group, in the order of the model; one of two heads or
    of two parts is refused. Raises UsageError for settings that cannot be.
    """
    scales = {name: scale for name, (_, scale) in (parts or {}).items()}
    fits = lr > 0 and lr_scale > 0 and weight_decay >= 0 and head_weight_decay >= 0 and 0 < layer_decay <= 1
    if not (fits and all(scale > 0 for scale in scales.values()) and not {*heads, BACKBONE} & {*scales}):
        got = f"lr={lr}, lr_scale={lr_scale}, weight_decay={weight_decay}, layer_decay={layer_decay}, parts={scales}"
        expected = "lr > 0, scales > 0, decays >= 0, layer_decay in (0, 1], names of parts that no head has"
        raise UsageError(mismatch("Parameter groups.", expected, got, "correct these"))
    owners = {**_owners({name: module for name, (module, _) in (parts or {}).items()}), **_owners(heads)}
    depth = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    plain = {id(p) for m in (model, *heads.values()) for p in _undecayed(m)}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in _each((model, *heads.values())).values():
        if not parameter.requires_grad:
            continue
        name = owners.get(id(parameter), BACKBONE)
        if name in heads:
            rate, decay = lr * lr_scale, head_weight_decay
        elif name in scales:
            rate, decay = lr * scales[name], weight_decay
        else:
            rate, decay = lr * layer_decay ** depth.get(id(parameter), len(layers)), weight_decay
        groups.setdefault((name, rate, 0.0 if id(parameter) in plain else decay), []).append(parameter)
    return Groups(
        {"name": name, "params": own, "lr": rate, "weight_decay": wd} for (name, rate, wd), own in groups.items()
    )


def audit(groups: Iterable[Mapping[str, Any]], *modules: nn.Module) -> Audit:
    """Hold groups, such as `optimizer.param_groups`, against what they should train: nothing missing, nothing twice.

    A tied parameter has one name, the first.
    """
    counted = Counter(id(p) for group in groups for p in group["params"])
    names: dict[int, str] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), name)
    trainable = {id(p): p.requires_grad for p in _each(modules).values()}
    return Audit(
        missing=tuple(name for one, name in names.items() if trainable[one] and not counted[one]),
        twice=tuple(name for one, name in names.items() if counted[one] > 1),
        frozen=tuple(name for one, name in names.items() if not trainable[one] and counted[one]),
        foreign=sum(one not in names for one in counted),
    )


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


def written(rows: Sequence[Row], lang: str = "en") -> str:
    """Rows as text for a terminal, with their totals."""
    from rich.console import Console  # only where it is used: it takes a while to import
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("name", "lr", "weight_decay", "tensors", "elements"):
        shown.add_column(text(f"groups.{column}", lang), justify="left" if column == "name" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(row.name, f"{row.lr:.4g}", f"{row.weight_decay:.4g}", f"{row.tensors:,}", f"{row.elements:,}")
    tensors, elements = sum(row.tensors for row in rows), sum(row.elements for row in rows)
    shown.add_row(text("groups.total", lang), "", "", f"{tensors:,}", f"{elements:,}")
    page = io.StringIO()
    Console(file=page, width=200, no_color=True, highlight=False, markup=False).print(shown)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _each(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    return {id(p): p for module in modules for p in module.parameters()}


def _owners(heads: Mapping[str, nn.Module]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, head in heads.items():
        for parameter in head.parameters():
            other = found.setdefault(id(parameter), name)
            if other != name:
                got = f"a parameter of {tuple(parameter.shape)} in {other!r} and {name!r}"
                rule, expected = "A parameter has one head, or one part.", "modules that share none"
                raise UsageError(mismatch(rule, expected, got, "name one of them"))
    return found


def _undecayed(module: nn.Module) -> Iterable[nn.Parameter]:
    for one in module.modules():
        yield from (p for p in one.parameters(recurse=False) if p.ndim < 2 or isinstance(one, nn.Embedding))
