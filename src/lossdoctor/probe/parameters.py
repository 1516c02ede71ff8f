"""Which parameters a run trains, and which head and which top-level child of the model each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor.errors import UsageError, mismatch

OUTSIDE = "(outside the model)"


@dataclass(frozen=True, slots=True)
class ParameterMap:
    """The trainable parameters, each with the modules it is reported under.

    parameters[i] belongs to every module named in labels[i]: its head, if any, and the model's top-level child.
    """

    parameters: tuple[nn.Parameter, ...]
    labels: tuple[tuple[str, ...], ...]

    def modules(self) -> tuple[str, ...]:
        """Every label, in order of appearance."""
        return tuple(dict.fromkeys(label for labels in self.labels for label in labels))


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module under DistributedDataParallel, DataParallel, torch.compile and AveragedModel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and len(list(model.children())) == 1:
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_optimizers(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """One optimizer or several as a tuple, without wrappers that have no hooks; UsageError for anything else."""
    found = tuple(given) if isinstance(given, Sequence) else (given,)
    if not found or not all(isinstance(one, Optimizer) for one in found):
        raise UsageError(
            mismatch(
                "Doctor watches optimizers",
                "a torch.optim.Optimizer or a sequence of them",
                ", ".join(type(one).__name__ for one in found) or "an empty sequence",
                "Doctor(model, optimizer)",
            )
        )
    return tuple(map(_stepping, found))


def _stepping(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, inside the one that `accelerator.prepare` makes of it, which has no hooks."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def check_heads(model: nn.Module, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The heads themselves; UsageError for one that is no module, has no parameters, or has another child's name."""
    children = dict(unwrapped(model).named_children())
    for name, head in heads.items():
        if not isinstance(head, nn.Module):
            raise UsageError(
                mismatch(
                    f"heads[{name!r}] is not a module",
                    "a torch.nn.Module with parameters",
                    type(head).__name__,
                    f'pass the module itself, for example heads={{"{name}": model.{name}}}; '
                    f"the model's top-level modules are {', '.join(children) or '(none)'}",
                )
            )
        if next(head.parameters(), None) is None:
            raise UsageError(
                mismatch(
                    f"heads[{name!r}] has no parameters", "at least one", "none", "name the module that is trained"
                )
            )
        if name in children and children[name] is not unwrapped(head):
            raise UsageError(
                mismatch(
                    f"heads[{name!r}] is not the model's child of that name",
                    "a name of its own, or the child itself",
                    f"another module than model.{name}",
                    "rename the head",
                )
            )
    return dict(heads)


def parameter_map(model: nn.Module, heads: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> ParameterMap:
    """All parameters of the model, the heads and the optimizers that require grad now, in a fixed order."""
    core = unwrapped(model)
    child_of: dict[int, str] = {}
    for name, parameter in core.named_parameters():
        child_of.setdefault(id(parameter), name.split(".", 1)[0])
    heads_of: dict[int, list[str]] = {}
    for name, head in heads.items():
        for parameter in head.parameters():
            heads_of.setdefault(id(parameter), []).append(name)
    seen: dict[int, nn.Parameter] = {}
    for parameter in _everything(core, heads.values(), optimizers):
        if parameter.requires_grad:
            seen.setdefault(id(parameter), parameter)
    labels = []
    for key in seen:
        own = heads_of.get(key, [])
        child = child_of.get(key, OUTSIDE)
        labels.append(tuple(dict.fromkeys([*own, child])))
    return ParameterMap(tuple(seen.values()), tuple(labels))


def names_of(parameters: Iterable[Tensor], modules: Iterable[nn.Module]) -> list[str]:
    """What each of the parameters is called in the first of the modules that has it."""
    names: dict[int, str] = {}
    for module in modules:
        for name, parameter in unwrapped(module).named_parameters():
            names.setdefault(id(parameter), name)
    return [names.get(id(one), OUTSIDE) for one in parameters]


def _everything(
    model: nn.Module, heads: Iterable[nn.Module], optimizers: Sequence[Optimizer]
) -> Iterable[nn.Parameter]:
    yield from model.parameters()
    for head in heads:
        yield from head.parameters()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]
