"""What no curve can show: which parameter is in which optimizer, what shares memory, modes and dtypes.

All of it is bookkeeping on the host: identities, flags and pointers. No number is read from a device, nothing is asked
of the model, and no random number is drawn.

"Trained" is a parameter of the model or of a head that requires grad or is in an optimizer. A teacher or an average
that is registered inside the model is not part of what is trained, unless the same object is also something else there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor.probe.neutrality import Autocast
from lossdoctor.probe.parameters import OUTSIDE, unwrapped
from lossdoctor.probe.sharded import local

Facts = dict[str, Any]
Groups = dict[int, list[dict[str, Any]]]
"""id of a parameter to the optimizer groups it is in."""
Place = tuple[torch.device, int]

LISTED = 20
"""Names told of each kind of trouble; the counts are complete."""
REPEAT = 20
"""Due steps after which everything is looked at again, whatever the cheap signature says."""

_SCHEDULED = ("lr", "weight_decay")
"""What a schedule may change at every step: told, but no news by itself."""


@dataclass(frozen=True, slots=True)
class _Own:
    """A parameter of the model or of a head, by its first name, and the heads and the top-level child it is in."""

    name: str
    parameter: nn.Parameter
    modules: tuple[str, ...]


def audit(
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    optimizers: Sequence[Optimizer],
    teacher: nn.Module | None = None,
    ema: nn.Module | None = None,
    *,
    autocast: Autocast | None = None,
    backwards: int = 0,
    ema_between: int = 0,
) -> Facts:
    """The facts as plain JSON; counts are of parameter tensors. To be taken after backward, when gradients are there.

    autocast: the state in which tensors were handed in. backwards: calls of `doctor.backward` in this optimizer step.
    ema_between: how many of them found the EMA changed since the one before.

    `optimizers`: `missing` (names, at most 20), `missing_count`, `missing_with_grad`: trainable and in no optimizer;
    `missing_modules`: heads and top-level children with such a parameter, `missing_whole`: those with no other.
    `twice`, `twice_count`: in two groups. `foreign`: in an optimizer, but in no module that the doctor knows.
    `heads`: head to `trainable`, `frozen`, `in_optimizer` (any of its parameters), `weight_decay` (largest, or None),
    `lr` (every different one), `dtype` (names).
    `weight_decay`: `default`, the one that most elements have, or None.
    `teacher`, where given: `parameters`, `requires_grad`, `with_grad` (has a gradient now), `in_optimizer`, `aliased`
    (shares memory with a trained parameter), `training` (submodules in training mode that behave differently in it),
    `training_modules` (all in training mode), `dtypes`. `ema`, where given: `parameters`, `requires_grad`, `aliased`,
    `dtypes`, `updates_between` (ema_between).
    `frozen_parts`: top-level children of the model that have parameters and train none, without teacher and average.
    `modes`: `model_training`, `frozen_batchnorm` (in evaluation mode inside a model in training mode).
    `dtypes`: dtype to count, without teacher and average. `autocast`: dtype or None. `accumulation`: `backwards`.
    """
    groups = _groups(optimizers)
    apart = _apart(model, teacher, ema)
    own = _own(model, heads, apart)
    known = [model, *heads.values(), *(copy for copy in (teacher, ema) if copy is not None)]
    trained = {_memory(one.parameter) for one in own if one.parameter.requires_grad or id(one.parameter) in groups}
    facts: Facts = {
        "optimizers": _optimizers(own, groups, known),
        "heads": {name: _head(head, groups) for name, head in heads.items()},
        "weight_decay": {"default": _default_decay(optimizers)},
    }
    if teacher is not None:
        parameters = list(teacher.parameters())
        training = [m for m in teacher.modules() if m.training]
        facts["teacher"] = {
            **_copy(parameters, trained),
            "with_grad": sum(p.grad is not None for p in parameters),
            "in_optimizer": sum(id(p) in groups for p in parameters),
            "training": sum(map(_mode_matters, training)),
            "training_modules": len(training),
        }
    if ema is not None:
        facts["ema"] = {**_copy(list(ema.parameters()), trained), "updates_between": ema_between}
    return {
        **facts,
        "frozen_parts": _frozen_parts(model, apart),
        "modes": {
            "model_training": model.training,
            "frozen_batchnorm": _frozen_batchnorm(model, apart) if model.training else 0,
        },
        "dtypes": _dtypes(one.parameter for one in own),
        "autocast": _autocast(autocast),
        "accumulation": {"backwards": backwards},
    }


@dataclass(slots=True)
class Auditor:
    """Audits one patient: at the first call, when a cheap signature has changed, and every `REPEAT` calls.

    What it is made of: the arguments of `audit`.
    """

    model: nn.Module
    heads: Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    teacher: nn.Module | None = None
    ema: nn.Module | None = None
    _told: Facts | None = None
    _sign: tuple[Any, ...] = ()
    _watched: tuple[nn.Parameter, ...] = field(default=())
    _age: int = 0

    def news(self, autocast: Autocast | None, backwards: int, ema_between: int = 0) -> Facts | None:
        """The facts, when they are not those told last; a learning rate or a decay that changed is no news."""
        self._age += 1
        sign = self._signature(autocast, backwards, ema_between)
        if self._told is not None and self._age < REPEAT and sign == self._sign:
            return None
        tops = self._tops()
        self._watched = tuple({id(p): p for top in tops for p in top.parameters()}.values())
        self._sign, self._age = self._signature(autocast, backwards, ema_between), 0
        facts = audit(
            self.model,
            self.heads,
            self.optimizers,
            self.teacher,
            self.ema,
            autocast=autocast,
            backwards=backwards,
            ema_between=ema_between,
        )
        if self._told is not None and _lasting(facts) == _lasting(self._told):
            return None
        self._told = facts
        return facts

    def ema_version(self) -> int:
        """Grows whenever a parameter of the EMA is written in place; writes through `.data` do not show."""
        parameters = () if self.ema is None else self.ema.parameters()
        return sum(p._version for p in parameters if not p.is_inference())

    def _tops(self) -> list[nn.Module]:
        return [top for top in (self.model, *self.heads.values(), self.teacher, self.ema) if top is not None]

    def _signature(self, autocast: Autocast | None, backwards: int, ema_between: int) -> tuple[Any, ...]:
        held = tuple(len(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups)
        modes = tuple(top.training for top in self._tops())
        return (backwards, ema_between, _autocast(autocast), held, modes, tuple(p.requires_grad for p in self._watched))


def _lasting(facts: Facts) -> Facts:
    heads = {
        name: {fact: value for fact, value in head.items() if fact not in _SCHEDULED}
        for name, head in facts["heads"].items()
    }
    return {**facts, "heads": heads, "weight_decay": None}


# Whose parameters they are


def _apart(model: nn.Module, *copies: nn.Module | None) -> list[str]:
    """Where inside the model a copy lives that is nothing else there, as prefixes of names."""
    core, places = unwrapped(model), dict[int, list[str]]()
    for path, module in core.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    found = []
    for copy in copies:
        if copy is not None:
            # Not looked through other wrappers: one that holds the student itself is what is to be found.
            paths = places.get(id(getattr(copy, "_orig_mod", copy)), [])
            # Registered twice, or the model itself: then it is the student too.
            found += [f"{path}." for path in paths if len(paths) == 1 and path]
    return found


def _within(name: str, apart: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(prefix) for prefix in apart)


def _own(model: nn.Module, heads: Mapping[str, nn.Module], apart: Sequence[str]) -> list[_Own]:
    """The parameters of the model, without those of the copies, and of the heads, each once."""
    names: dict[int, tuple[str, nn.Parameter]] = {}
    children: dict[int, list[str]] = {}
    heads_of: dict[int, list[str]] = {}
    for name, parameter in unwrapped(model).named_parameters(remove_duplicate=False):
        if not _within(name, apart):
            names.setdefault(id(parameter), (name, parameter))
            children.setdefault(id(parameter), [name.split(".", 1)[0]])
    for head, module in heads.items():
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), (f"{head}.{name}", parameter))
            heads_of.setdefault(id(parameter), []).append(head)
    return [
        _Own(name, parameter, tuple(dict.fromkeys([*heads_of.get(key, []), *children.get(key, [])])))
        for key, (name, parameter) in names.items()
    ]


# Facts


def _groups(optimizers: Sequence[Optimizer]) -> Groups:
    found: Groups = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found.setdefault(id(parameter), []).append(group)
    return found


def _optimizers(own: Sequence[_Own], groups: Groups, known: Iterable[nn.Module]) -> Facts:
    trainable = [one for one in own if one.parameter.requires_grad]
    missing = [one for one in trainable if id(one.parameter) not in groups]
    affected = list(dict.fromkeys(module for one in missing for module in one.modules))
    served = {module for one in trainable if id(one.parameter) in groups for module in one.modules}
    names = {id(one.parameter): one.name for one in own}
    twice = [names.get(key, OUTSIDE) for key, found in groups.items() if len(found) > 1]
    ids = {id(p) for module in known for p in module.parameters()}
    return {
        "missing": [one.name for one in missing[:LISTED]],
        "missing_count": len(missing),
        "missing_with_grad": sum(one.parameter.grad is not None for one in missing),
        "missing_modules": affected,
        "missing_whole": [module for module in affected if module not in served],
        "twice": twice[:LISTED],
        "twice_count": len(twice),
        "foreign": sum(key not in ids for key in groups),
    }


def _head(head: nn.Module, groups: Groups) -> Facts:
    parameters = list(head.parameters())
    mine = [group for p in parameters for group in groups.get(id(p), [])]
    decays = [float(group["weight_decay"]) for group in mine if "weight_decay" in group]
    return {
        "trainable": sum(p.requires_grad for p in parameters),
        "frozen": sum(not p.requires_grad for p in parameters),
        "in_optimizer": bool(mine),
        "weight_decay": max(decays, default=None),
        "lr": sorted({float(group["lr"]) for group in mine if "lr" in group}),
        "dtype": list(_dtypes(parameters)),
    }


def _default_decay(optimizers: Sequence[Optimizer]) -> float | None:
    elements: Counter[float] = Counter()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                elements[float(group["weight_decay"])] += sum(p.numel() for p in group["params"])
    return max(elements, key=lambda decay: elements[decay], default=None)


def _copy(parameters: Sequence[nn.Parameter], trained: set[Place | None]) -> Facts:
    return {
        "parameters": len(parameters),
        "requires_grad": sum(p.requires_grad for p in parameters),
        "aliased": sum(place in trained for p in parameters if (place := _memory(p)) is not None),
        "dtypes": _dtypes(parameters),
    }


def _memory(tensor: Tensor) -> Place | None:
    """Where a tensor begins; None for one without memory of its own, which would look like every other such one."""
    pointer = local(tensor).data_ptr()
    return (tensor.device, pointer) if pointer else None


def _frozen_parts(model: nn.Module, apart: Sequence[str]) -> list[str]:
    trains: dict[str, bool] = {}
    for name, parameter in unwrapped(model).named_parameters():
        child = name.split(".", 1)[0]
        if not _within(name, apart):
            trains[child] = trains.get(child, False) or parameter.requires_grad
    return [child for child, any_of_it in trains.items() if not any_of_it]


def _frozen_batchnorm(model: nn.Module, apart: Sequence[str]) -> int:
    modules = {id(m): m for name, m in unwrapped(model).named_modules() if not _within(name, apart)}
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training for m in modules.values())


def _mode_matters(module: nn.Module) -> bool:
    """Whether this module itself, apart from those inside it, answers differently in training mode."""
    match module:
        case nn.modules.dropout._DropoutNd():
            return module.p > 0
        case nn.modules.batchnorm._NormBase():
            return module.track_running_stats
        case nn.RNNBase() | nn.MultiheadAttention():
            return module.dropout > 0
        case nn.RReLU():
            return True
    return not type(module).__module__.startswith("torch.") and _asks_its_mode(type(module))


def _asks_its_mode(kind: type[nn.Module]) -> bool:
    """Whether the forward of a class that is not PyTorch's mentions `training`, as stochastic depth does."""
    code = getattr(kind.forward, "__code__", None)
    return code is not None and "training" in code.co_names


def _dtypes(parameters: Iterable[nn.Parameter]) -> dict[str, int]:
    return dict(Counter(_name(p.dtype) for p in parameters))


def _autocast(state: Autocast | None) -> str | None:
    on = [] if state is None else [_name(dtype) for _, enabled, dtype in state.states if enabled]
    return on[-1] if on else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
