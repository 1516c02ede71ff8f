"""Other people's trackers, written to beside the run: `Doctor(..., sinks=[ld.sinks.TensorBoard("runs/exp1/tb")])`.

A sink only receives; nothing is ever read back from it. Each is loaded when first used, also those of other packages,
which have the name of their entry point in the group `lossdoctor.sinks`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lossdoctor.plugins import Plugged, plugged

if TYPE_CHECKING:
    from lossdoctor.sinks.background import Background as Background
    from lossdoctor.sinks.csv import CSV as CSV
    from lossdoctor.sinks.jsonl import JSONL as JSONL
    from lossdoctor.sinks.mlflow import MLflow as MLflow
    from lossdoctor.sinks.sink import Sink as Sink
    from lossdoctor.sinks.swanlab import SwanLab as SwanLab
    from lossdoctor.sinks.tensorboard import TensorBoard as TensorBoard
    from lossdoctor.sinks.trackio import Trackio as Trackio
    from lossdoctor.sinks.wandb import WandB as WandB

CATALOGUE = {
    "CSV": "csv",
    "JSONL": "jsonl",
    "MLflow": "mlflow",
    "SwanLab": "swanlab",
    "TensorBoard": "tensorboard",
    "Trackio": "trackio",
    "WandB": "wandb",
}
"""Every sink and the file it lives in."""
_HOME = {**CATALOGUE, "Background": "background", "Sink": "sink"}
__all__ = ["CSV", "JSONL", "Background", "MLflow", "Sink", "SwanLab", "TensorBoard", "Trackio", "WandB"]


def others() -> dict[str, Plugged]:
    """Sinks of other packages by name, not yet imported. A name of ours stays ours; of two the first package has it."""
    return {one.name: one for one in reversed(plugged("lossdoctor.sinks")) if one.name not in _HOME}


def loaded(one: Plugged) -> type[Sink]:
    """The sink of another package. Raises PluginError when it is none."""
    from lossdoctor.sinks.sink import Sink

    sink = one.load()
    if not (isinstance(sink, type) and issubclass(sink, Sink)):
        raise one.unusable("a class derived from lossdoctor.sinks.Sink", repr(sink))
    return sink


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    found = {} if name.startswith("_") else others()
    if name in found:
        return loaded(found[name])
    known = ", ".join(sorted({*_HOME, *found}))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {known}")
