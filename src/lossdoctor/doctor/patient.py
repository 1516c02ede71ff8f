"""What is examined: the model, its optimizers and what is known about them, the same for every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lossdoctor import linalg
from lossdoctor.kinds import guess_kind
from lossdoctor.probe import neutrality
from lossdoctor.probe.audit import Auditor
from lossdoctor.probe.belongings import Belongings
from lossdoctor.probe.linearity import Linearity
from lossdoctor.probe.parameters import ParameterMap, parameter_map, unwrapped
from lossdoctor.probe.updates import ShadowWatch
from lossdoctor.probe.wrapped import wrappers_of

T = TypeVar("T")

RECOUNT = 20
"""Due steps after which the model is walked through anew."""


@dataclass(slots=True)
class Patient:
    """What is examined, the same for every step.

    tops: every module that takes part. Walking through a model costs milliseconds, so what was found is kept until a
    parameter is frozen or freed, or the optimizers hold another number of them, and for RECOUNT due steps at most.
    auditor: looks at optimizers, memory, modes and dtypes, as rarely. mode: how gradients are measured, "exact",
    "sketch" or "off". exact: ids of parameters that are not sketched even so. gradients, updates: memory for copies
    that is used again at every due step. several: whether other ranks train the same model; wrappers: what they train
    it with. summed: when the parameters are sharded, adds inner products up over the ranks; forwards: and what extra
    forwards then need.
    """

    model: nn.Module
    optimizers: tuple[Optimizer, ...]
    heads: Mapping[str, nn.Module]
    tops: Sequence[nn.Module]
    ema: ShadowWatch | None
    teacher: ShadowWatch | None
    kinds: Mapping[str, str]
    auditor: Auditor
    mode: str = "exact"
    exact: frozenset[int] = frozenset()
    linearity: Linearity = field(default_factory=Linearity)
    belongings: Belongings = field(default_factory=Belongings)
    modules: tuple[nn.Module, ...] = ()
    gradients: linalg.Packer = field(default_factory=linalg.Packer)
    updates: dict[int, linalg.Packer] = field(default_factory=dict)
    several: bool = False
    wrappers: tuple[DistributedDataParallel, ...] = ()
    summed: Callable[[list[Tensor]], list[Tensor]] | None = None
    forwards: Callable[[], AbstractContextManager[object]] = nullcontext
    _map: ParameterMap | None = None
    _sign: tuple[Any, ...] = ()
    _everything: tuple[nn.Parameter, ...] = ()
    _age: int = 0

    def kind(self, loss: str) -> str:
        """What a loss means: "distill", "kl", "velocity" or "other"."""
        return self.kinds.get(loss) or guess_kind(loss)

    def of_kind(self, kind: str, values: Mapping[str, T]) -> T | None:
        """The value of the one loss of this kind; None when there is none, or several."""
        found = [value for name, value in values.items() if self.kind(name) == kind]
        return found[0] if len(found) == 1 else None

    def facts(self) -> dict[str, Any]:
        """What meta.json says of it from the start."""
        return {
            "model": type(unwrapped(self.model)).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "gradients": self.mode,
            "optimizers": [type(optimizer).__name__ for optimizer in self.optimizers],
            "heads": sorted(self.heads),
            "kinds": dict(self.kinds),
        }

    def look(self) -> ParameterMap:
        """The trainable parameters, and `modules`, as they are now."""
        if self.summed is not None and self._map is not None:
            return self._map  # between forward and backward the modules hold other parameters than the optimizers
        self._age += 1
        sign = self._signature()
        if self._map is None or sign != self._sign or self._age >= RECOUNT:
            self._everything = tuple(self.model.parameters())
            self._map = parameter_map(self.model, self.heads, self.optimizers)
            if self.several and (sign != self._sign or not self.wrappers):
                self.wrappers = wrappers_of(self._map.parameters)
            self.modules = neutrality.every_module([*self.tops, *self.wrappers])
            self._sign, self._age = self._signature(), 0
        return self._map

    def _signature(self) -> tuple[Any, ...]:
        stepped = tuple(len(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups)
        return (*stepped, *(p.requires_grad for p in self._everything))

    def arm(self) -> None:
        """Remember the slow copies before their next update."""
        for watch in (self.ema, self.teacher):
            if watch is not None:
                watch.arm()
