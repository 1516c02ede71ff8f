"""Is each loss of your training run really working? Measure, diagnose, confirm, treat.

    import lossdoctor as ld

Public names are loaded when first used: reading a run needs no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossdoctor import integrations as integrations
    from lossdoctor import losses as losses
    from lossdoctor import metrics as metrics
    from lossdoctor import preflight as preflight
    from lossdoctor import sinks as sinks
    from lossdoctor import treat as treat
    from lossdoctor.diagnose import Diagnosis as Diagnosis
    from lossdoctor.diagnose import diagnose as diagnose
    from lossdoctor.doctor import Doctor as Doctor
    from lossdoctor.probe.observe import checkpoint as checkpoint
    from lossdoctor.probe.observe import condition as condition
    from lossdoctor.probe.observe import distill as distill
    from lossdoctor.probe.observe import flow as flow
    from lossdoctor.probe.observe import knob as knob
    from lossdoctor.probe.observe import log as log
    from lossdoctor.probe.observe import posterior as posterior
    from lossdoctor.probe.observe import seed_everything as seed_everything
    from lossdoctor.probe.observe import total as total
    from lossdoctor.record import Record as Record
    from lossdoctor.record import Series as Series
    from lossdoctor.store import Run as Run

__version__ = "0.1.0.dev0"

_HOME = {
    "Diagnosis": "lossdoctor.diagnose",
    "Doctor": "lossdoctor.doctor",
    "Record": "lossdoctor.record",
    "Run": "lossdoctor.store",
    "Series": "lossdoctor.record",
    "checkpoint": "lossdoctor.probe.observe",
    "condition": "lossdoctor.probe.observe",
    "diagnose": "lossdoctor.diagnose",
    "distill": "lossdoctor.probe.observe",
    "knob": "lossdoctor.probe.observe",
    "log": "lossdoctor.probe.observe",
    "posterior": "lossdoctor.probe.observe",
    "seed_everything": "lossdoctor.probe.observe",
    "total": "lossdoctor.probe.observe",
}
_PARTS = ("flow", "integrations", "losses", "metrics", "preflight", "sinks", "treat")
__all__ = [*_HOME, *_PARTS]  # noqa: PLE0604 - derived, so that it cannot go stale


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
        # Asked once: `ld.knob` may stand in a training loop. What importing has bound, such as `diagnose`, stays.
        return globals().setdefault(name, found)
    if name in _PARTS:
        part = importlib.import_module(f"{__name__}.{name}")
        return globals().get(name, part)
    raise AttributeError(f"module 'lossdoctor' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Callable:
    """A part that shares its name with a function of the public interface: called, it is that function.

    No module itself, since torch.compile refuses to trace the call of one.
    """

    def __init__(self, part: types.ModuleType, function: Callable[..., Any]) -> None:
        self.__dict__.update(_part=part, _function=function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_part"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    def __dir__(self) -> list[str]:
        return dir(self._part)

    def __repr__(self) -> str:
        return repr(self._part)


_CALLABLE = {"diagnose": "lossdoctor.diagnose", "flow": "lossdoctor.probe.observe"}
"""`lossdoctor.flow` is the mathematics of flows, and called, it hands one batch to the doctor."""


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds the part here, over the function of the same name.
        if name in _CALLABLE and isinstance(value, types.ModuleType):
            value = _Callable(value, getattr(importlib.import_module(_CALLABLE[name]), name))
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
