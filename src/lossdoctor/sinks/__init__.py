"""Other people's trackers, written to beside the run: `Doctor(..., sinks=[ld.sinks.TensorBoard("runs/exp1/tb")])`.

A sink only receives; nothing is ever read back from it. Each is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
