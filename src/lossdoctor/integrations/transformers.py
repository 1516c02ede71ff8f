"""Hugging Face Trainer: a callback, and `ld.total` in `compute_loss`.

class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        ...
        loss = ld.total({"flow": loss_flow, "kl": loss_kl}, weights={"kl": 0.01})
        return (loss, outputs) if return_outputs else loss

trainer.add_callback(LossDoctorCallback(trainer, run="runs/exp1"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lossdoctor.doctor import Doctor
from lossdoctor.errors import MissingExtraError

if TYPE_CHECKING:
    TrainerCallback: Any = object
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers", "LossDoctorCallback") from error


_KEY = "lossdoctor"
"""Where `trainer_state.json` keeps what the Doctor needs to go on. Not under the name of the class, as
`ExportableState` does it: a new callback would be made without a Trainer, and a run whose first steps had none fail."""


class LossDoctorCallback(TrainerCallback):  # type: ignore[misc]
    """A Doctor for every `trainer.train()`.

    trainer: the Trainer it is added to. heads: names of sub-modules of the model, or name to sub-module. options: of
    `Doctor`. The Trainer runs the one backward, through its accelerator, whose `backward` is watched while it trains;
    accumulation, mixed precision and clipping stay as they are. Every checkpoint holds the state of the Doctor, that of
    a balancer included, in its `trainer_state.json`; training from a checkpoint goes on there, with the same run.
    `doctor` is the Doctor of the last training, None before the first.
    """

    def __init__(self, trainer: Any, *, heads: Sequence[str] | Mapping[str, nn.Module] = (), **options: Any) -> None:
        self.doctor: Doctor | None = None
        self._open = False
        self._trainer, self._heads, self._options = trainer, heads, options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Build the Doctor: now the model is wrapped and the optimizer made."""
        trainer, heads = self._trainer, self._heads
        if not isinstance(heads, Mapping):
            heads = {name: trainer.model.get_submodule(name) for name in heads}
        options = {"resume": state.global_step > 0, **self._options}
        if self.doctor is not None:
            # Of a training that an error ended, for one when auto_find_batch_size begins again with a smaller batch.
            options["resume"] = options["resume"] or self._open
            self.doctor.close(rollout=False)
        self.doctor = Doctor(trainer.model_wrapped, trainer.optimizer, heads=heads, **options)
        self._open = True
        if state.global_step > 0:
            # A checkpoint without a state is of a training that was not measured.
            self.doctor.load_state_dict((state.stateful_callbacks or {}).get(_KEY, {"step": state.global_step}))
        _watch(trainer.accelerator, self.doctor)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the checkpoint holds, if the Trainer or another callback decides to write one now."""
        if self.doctor is not None and state.stateful_callbacks is not None:
            state.stateful_callbacks[_KEY] = self.doctor.state_dict()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the run."""
        if self.doctor is not None:
            vars(self._trainer.accelerator).pop("backward", None)
            self.doctor.close()
            self._open = False


def _watch(accelerator: Any, doctor: Doctor) -> None:
    """Let the doctor see every backward of this accelerator; taken away by removing the attribute."""
    original = type(accelerator).backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        doctor.before_backward(scaler=getattr(accelerator, "scaler", None))
        original(accelerator, loss, **kwargs)
        doctor.after_backward()

    accelerator.backward = backward
