"""The sink for a tracker's run that a framework has begun."""

from __future__ import annotations

from typing import Any

from lossdoctor.sinks import MLflow, Sink, SwanLab, TensorBoard, Trackio, WandB

_BY_PACKAGE = {
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
    "swanlab": SwanLab,
    "tensorboardX": TensorBoard,
    "torch": TensorBoard,
}


def sink_of(run: Any, *, client: Any = None) -> Sink | None:
    """The sink that writes into this run or SummaryWriter; None where there is none. client: of an MLflow run's id."""
    if client is not None:
        return MLflow(run, client=client)
    sink = _BY_PACKAGE.get(type(run).__module__.split(".")[0])
    return None if sink is None or (sink is TensorBoard and not hasattr(run, "add_scalar")) else sink(run)
