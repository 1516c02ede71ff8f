"""Lightning: a callback, and `ld.total` in the training step.

def training_step(self, batch, _):
    ...
    return ld.total({"flow": loss_flow, "kl": loss_kl}, weights={"kl": 0.01})

Trainer(callbacks=[LossDoctorCallback(run="runs/exp1", heads=["flow_head"])])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lossdoctor.doctor import Doctor
from lossdoctor.errors import MissingExtraError
from lossdoctor.integrations.trackers import sink_of
from lossdoctor.sinks import Sink

if TYPE_CHECKING:
    Callback: Any = object
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise MissingExtraError("lightning", "lightning", "LossDoctorCallback") from error

_Module = str | nn.Module


class LossDoctorCallback(Callback):  # type: ignore[misc]
    """A Doctor for every `Trainer.fit`, from its first training step to its last.

    heads: names of sub-modules of the LightningModule ("decoder.head"), or name to sub-module or its name. teacher,
    ema: a module or its name. loggers: also write into the runs of the Trainer's loggers (TensorBoard, W&B, MLflow,
    SwanLab). options: of `Doctor`.

    Lightning runs the one backward, also with accumulate_grad_batches, mixed precision, clipping and manual
    optimization (`self.manual_backward(ld.total(...))`). Checkpoints hold the step; a fit from a checkpoint goes on
    with the same run. `doctor` is the Doctor of the last fit, None before the first.
    """

    def __init__(
        self,
        *,
        heads: Sequence[str] | Mapping[str, _Module] = (),
        teacher: _Module | None = None,
        ema: _Module | None = None,
        loggers: bool = False,
        sinks: Sequence[Sink] = (),
        **options: Any,
    ) -> None:
        self.doctor: Doctor | None = None
        self._heads = heads if isinstance(heads, Mapping) else {name: name for name in heads}
        self._followers = {"teacher": teacher, "ema": ema}
        self._loggers, self._sinks, self._options = loggers, tuple(sinks), options
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the Doctor: now the model is wrapped and a checkpoint is restored."""
        sinks = [*self._sinks, *(_sinks(trainer) if self._loggers and trainer.is_global_zero else ())]
        options: dict[str, Any] = {"resume": self._state is not None, **self._options}
        for name, module in self._followers.items():
            options[name] = None if module is None else _found(pl_module, module)
        heads = {name: _found(pl_module, head) for name, head in self._heads.items()}
        self.doctor = Doctor(trainer.strategy.model, trainer.optimizers, heads=heads, sinks=sinks, **options)
        if self._state is not None:
            self.doctor.load_state_dict(self._state)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Measure each loss, if the step is due."""
        if self.doctor is not None:
            divided = trainer.accumulate_grad_batches > 1 or not pl_module.automatic_optimization
            self.doctor.before_backward(foreign=divided, scaler=getattr(trainer.precision_plugin, "scaler", None))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """The gradients as they are before clipping."""
        if self.doctor is not None:
            self.doctor.after_backward()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        if self.doctor is not None:
            self._state = self.doctor.state_dict()
            self.doctor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run and say why it ended."""
        if self.doctor is not None:
            self._state = self.doctor.state_dict()
            self.doctor.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """What the Doctor needs to go on; part of every checkpoint."""
        return dict(self._state or {}) if self.doctor is None else self.doctor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there at the start of the training."""
        self._state = state_dict or None


def _found(model: nn.Module, module: _Module) -> nn.Module:
    return model.get_submodule(module) if isinstance(module, str) else module


def _sinks(trainer: Any) -> list[Sink]:
    found = []
    for logger in trainer.loggers:
        run_id = getattr(logger, "run_id", None)
        client = logger.experiment if type(logger).__name__ == "MLFlowLogger" else None
        found.append(sink_of(logger.experiment if client is None else run_id, client=client))
    return [sink for sink in found if sink is not None]
