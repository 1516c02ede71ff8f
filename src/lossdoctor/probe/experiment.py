"""The experiment a process is part of, as the environment says: which arm, for how long, from which seed.

`LOSSDOCTOR_ARM`, `LOSSDOCTOR_STEPS`, `LOSSDOCTOR_SEED`, `LOSSDOCTOR_RUN`, `LOSSDOCTOR_EVERY` and
`LOSSDOCTOR_CHECKPOINT` are set by whoever runs the experiment; the script itself knows nothing of arms. This is the one
part that changes a run, and only when an arm asks for it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor import arms
from lossdoctor.errors import UsageError, mismatch

T = TypeVar("T")
Group = dict[str, Any]

ARM, STEPS, SEED = "LOSSDOCTOR_ARM", "LOSSDOCTOR_STEPS", "LOSSDOCTOR_SEED"
RUN, EVERY, CHECKPOINT = "LOSSDOCTOR_RUN", "LOSSDOCTOR_EVERY", "LOSSDOCTOR_CHECKPOINT"
_ALL = (ARM, STEPS, SEED, RUN, EVERY, CHECKPOINT)


@dataclass(slots=True)
class Experiment:
    """One arm in this process. steps: after which the process ends. every: measured steps, in place of the script's.

    checkpoint: the script's own, from which it is to begin. knobs, losses, conditions, seeded, resumed: what the script
    has handed in so far, whether it let itself be seeded, and told where to begin. doctors: how many have begun.
    """

    arm: arms.Arm
    steps: int | None = None
    seed: int | None = None
    run: Path | None = None
    every: int | None = None
    checkpoint: str | None = None
    knobs: dict[str, object] = field(default_factory=dict)
    losses: set[str] = field(default_factory=set)
    conditions: int = 0
    seeded: bool = False
    resumed: bool = False
    doctors: int = 0

    def folder(self) -> Path | None:
        """Where the next doctor of the process records its run; None where the script says."""
        self.doctors += 1
        if self.run is None or self.doctors == 1:
            return self.run
        return self.run.with_name(f"{self.run.name}-{self.doctors}")

    def knob(self, name: str, value: T) -> T:
        """A setting, or what the arm makes of it. Raises UsageError when it is to scale what is no number."""
        self.knobs[name] = value
        changed: Any = value
        for change in self.arm.of("knob"):
            if change.target == name:
                if isinstance(changed, bool) or not isinstance(changed, (int, float)):
                    raise UsageError(_no_number(str(change), name, changed))
                changed = change.applied(changed)
        return changed if changed is value else _like(value, changed)

    def start(self, path: T) -> T | str:
        """The checkpoint to begin from: that of the experiment, else the script's own."""
        self.resumed = True
        return path if self.checkpoint is None else self.checkpoint

    def condition(self, cond: T, step: int) -> T:
        """A condition, its rows shuffled if the arm says so: the same way for all that are handed in at one step."""
        self.conditions += 1
        return shuffled(cond, seed=1_000_003 * (self.seed or 0) + step) if self.arm.of("shuffle") else cond

    def weights(
        self, losses: Iterable[str], weights: Mapping[str, float | Tensor], step: int
    ) -> dict[str, float | Tensor]:
        """The weights at a step of the experiment. losses: names known to one backward; weights: of those there."""
        self.losses.update(losses)
        return {name: self.arm.weight(name, float(weight), step) for name, weight in weights.items()}

    def check_knobs(self) -> None:
        """After the second step, as some are set after a step: raises UsageError for one never handed in."""
        for change in self.arm.of("knob"):
            if change.target not in self.knobs:
                raise UsageError(_not_there(str(change), "knobs", self.knobs))

    def check_asked(self) -> None:
        """After the first step: raises UsageError for a loss or a condition that the script never handed in."""
        for change in self.arm.changes:
            if change.verb in ("only", "without", "weight", "warmup") and change.target not in self.losses:
                raise UsageError(_not_there(str(change), "losses", self.losses))
        if self.checkpoint is not None and not self.resumed:
            raise UsageError(
                mismatch(
                    "The experiment cannot begin from a checkpoint",
                    "a script that asks lossdoctor.checkpoint() where to begin",
                    "no call before the first step",
                    "write path = lossdoctor.checkpoint(path) before the script loads from path",
                )
            )
        if self.arm.of("shuffle") and not self.conditions:
            raise UsageError(
                mismatch(
                    "shuffle:cond cannot be applied",
                    "a script that passes its condition through lossdoctor.condition",
                    "no call in the first step",
                    "write cond = lossdoctor.condition(cond) where the batch is taken apart",
                )
            )


def current() -> Experiment | None:
    """The experiment of this process; None outside of one. Raises UsageError for a text that is no arm."""
    told = tuple(os.environ.get(name, "") for name in _ALL)
    return _experiment(told) if any(told) else None


@functools.lru_cache(maxsize=1)
def _experiment(told: tuple[str, ...]) -> Experiment:
    arm, steps, seed, run, every, checkpoint = told
    return Experiment(
        arms.parse(arm or arms.BASELINE),
        _whole(STEPS, steps, least=1),
        _whole(SEED, seed),
        Path(run) if run else None,
        _whole(EVERY, every, least=1),
        checkpoint or None,
    )


def _whole(name: str, text: str, least: int | None = None) -> int | None:
    if not text:
        return None
    if not text.lstrip("-").isdecimal() or (least is not None and int(text) < least):
        bound = "a whole number" if least is None else f"a whole number >= {least}"
        raise UsageError(mismatch(f"{name} cannot be read", bound, repr(text), "unset it, or set a number"))
    return int(text)


# Conditions


def shuffled(cond: T, *, seed: int) -> T:
    """Every row in another place: one cycle through all rows, the same for every tensor of a nest and for one seed.

    cond: a tensor, or a nest of tensors, lists and tuples, the first axis of each leaf being the batch; a list or tuple
    of other things (texts) is a leaf. Raises UsageError for a batch of one, which has no other row, and for what has no
    rows.
    """
    if isinstance(cond, Tensor):
        if cond.ndim == 0:
            raise UsageError(_no_rows("a tensor without a batch axis"))
        order = _cycle(len(cond), seed)
        return cond[order.to(cond.device)]  # type: ignore[return-value]
    if isinstance(cond, Mapping):
        return {name: shuffled(part, seed=seed) for name, part in cond.items()}  # type: ignore[return-value]
    if isinstance(cond, (list, tuple)):
        nested = any(isinstance(part, (Tensor, Mapping, list, tuple)) for part in cond)
        if nested:
            rows = [shuffled(part, seed=seed) for part in cond]
        else:
            rows = [cond[row] for row in _cycle(len(cond), seed).tolist()]
        return type(cond)(*rows) if hasattr(cond, "_fields") else type(cond)(rows)
    if cond is None:
        return cond
    raise UsageError(_no_rows(type(cond).__name__))


def _cycle(rows: int, seed: int) -> Tensor:
    if rows < 2:
        raise UsageError(_no_rows(f"a batch of {rows}"))
    # Private randomness: the script's own stream goes on as in the baseline.
    walk = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(walk)
    order[walk] = walk.roll(1)
    return order


# Optimizers


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates and weight decays that the arm changes, for the length of each optimizer step.

    The groups a script sees, and its schedulers hold on to, stay as they are: a head that shares a group with others is
    given one of its own only while the optimizer steps.
    """

    changes: Sequence[tuple[arms.Change, frozenset[int]]]
    _groups: dict[int, tuple[list[Group], list[tuple[Group, Group]]]] = field(default_factory=dict)

    def before(self, optimizer: Optimizer) -> None:
        """Put the groups of the arm in place of the optimizer's."""
        if not self.changes:
            return
        self.after(optimizer)  # of a step that raised
        parts = [(group, part) for group in optimizer.param_groups for part in self._parts(group)]
        self._groups[id(optimizer)] = (optimizer.param_groups, parts)
        optimizer.param_groups = [part for _, part in parts]

    def after(self, optimizer: Optimizer) -> None:
        """Give the optimizer its own groups back, with what the step itself has noted in them."""
        if (kept := self._groups.pop(id(optimizer), None)) is None:
            return
        optimizer.param_groups, parts = kept
        for group, part in parts:
            group.update({key: part[key] for key in part if key not in ("params", "lr", "weight_decay")})

    def _parts(self, group: Group) -> Iterable[Group]:
        kinds: dict[frozenset[int], list[Tensor]] = {}
        for parameter in group["params"]:
            wanted = frozenset(i for i, (_, ids) in enumerate(self.changes) if id(parameter) in ids)
            kinds.setdefault(wanted, []).append(parameter)
        for wanted, parameters in kinds.items():
            part = {**group, "params": parameters}
            for i in sorted(wanted):
                change = self.changes[i][0]
                key = "lr" if change.verb == "lr" else "weight_decay"
                if key in part:
                    part[key] = change.applied(float(part[key]))
            yield part


def rates(arm: arms.Arm, heads: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> Rates:
    """What the arm does to these optimizers. Raises UsageError for a head that is not there."""
    everything = frozenset(id(p) for one in optimizers for group in one.param_groups for p in group["params"])
    members = {name: frozenset(map(id, head.parameters())) for name, head in heads.items()}
    members.setdefault(arms.ALL, everything)
    changes = []
    for change in arm.of("lr", "wd"):
        if change.target not in members:
            raise UsageError(_not_there(str(change), "heads", members))
        changes.append((change, members[change.target]))
    return Rates(changes)


# Errors


def _like(value: T, changed: float) -> Any:
    return int(changed) if isinstance(value, int) and changed == int(changed) else changed


def _not_there(change: str, what: str, there: Iterable[str]) -> str:
    return mismatch(
        f"{change} cannot be applied: this script has no {what} of that name",
        f"one of its {what}: {', '.join(sorted(there)) or 'none were handed in'}",
        change,
        {
            "losses": "name the loss as in doctor.backward({...})",
            "heads": "pass heads={name: module} to the Doctor, or name `all`",
            "knobs": "write value = lossdoctor.knob(name, value) where the script sets it",
        }[what],
    )


def _no_number(change: str, name: str, value: object) -> str:
    return mismatch(f"{change} cannot be applied", f"a number behind knob {name!r}", repr(value), "use another knob")


def _no_rows(got: str) -> str:
    return mismatch(
        "shuffle:cond cannot be applied",
        "a condition of two rows or more: tensors, or nests of tensors and lists, the batch being their first axis",
        got,
        "pass lossdoctor.condition the batch's condition, with a batch size of 2 or more",
    )
