"""Networks of other people: frozen, read from a local folder, and not our own to put into a checkpoint.

A folder has a `config.json` and, as a rule, weights in safetensors. Without weights the network is built from the
configuration with random ones, which `Borrowed.trained` tells: that shows that everything fits, and teaches nothing.
Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from lossdoctor.errors import RunError, UsageError, mismatch

CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")


class Borrowed(nn.Module):
    """A frozen network in evaluation mode, whatever the system around it does.

    trained: whether its weights were read from the folder; otherwise they are random.
    """

    def __init__(self, network: nn.Module, *, trained: bool) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.trained = trained

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def digest(self) -> str:
        """The same for the same weights, wherever they are."""
        told = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            told.update(name.encode())
            told.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return told.hexdigest()


def settings_of(folder: str | Path, kind: str, needs: Mapping[str, type]) -> dict[str, Any]:
    """The config.json of a folder, in which `needs` must be, of these types.

    kind: what the folder is to hold, for the error. Raises UsageError when it does not.
    """
    path = Path(folder) / CONFIG
    todo = f"give the folder that save_pretrained of {kind} wrote, or one with its {CONFIG} alone for random weights"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(mismatch(f"{path} cannot be read.", f"the settings of {kind}", reason, todo)) from error
    missing = [
        name for name, wanted in needs.items() if not isinstance(told, dict) or type(told.get(name)) is not wanted
    ]
    if missing:
        got = f"no {missing[0]} of type {needs[missing[0]].__name__}"
        raise UsageError(mismatch(f"{path} is not of {kind}.", ", ".join(needs), got, todo))
    return dict(told)


def has_weights(folder: str | Path) -> bool:
    """Whether there are weights beside the configuration."""
    return any(any(Path(folder).glob(pattern)) for pattern in _WEIGHTS)


def borrow(
    folder: str | Path, *, fresh: Callable[[], nn.Module], read: Callable[[], nn.Module], weights: bool = True
) -> Borrowed:
    """The network of a folder: `read` where there are weights, else `fresh`, whose weights are random.

    weights: False to leave them alone. Raises UsageError when either of them fails.
    """
    trained = weights and has_weights(folder)
    try:
        return Borrowed((read if trained else fresh)(), trained=trained)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        got, todo = f"{type(error).__name__}: {error}", "load it once by hand with from_pretrained to see what is wrong"
        rule = f"The network in {folder} cannot be built."
        raise UsageError(mismatch(rule, f"{CONFIG} and weights that belong together", got, todo)) from error


def own_state(module: nn.Module) -> dict[str, Any]:
    """The state of a module without the weights of what is borrowed in it."""
    theirs = _theirs(module)
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(theirs)}


def load_own_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """What `own_state` gave. Raises RunError when the module is another."""
    try:
        told = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # how torch tells of other shapes
        got = str(error).splitlines()[-1].strip()
        raise RunError(mismatch("The checkpoint is of another network.", "the same shapes", got, _TRAIN)) from error
    theirs = _theirs(module)
    wrong = [name for name in told.missing_keys if not name.startswith(theirs)] + list(told.unexpected_keys)
    if wrong:
        raise RunError(mismatch("The checkpoint is of another network.", "the same parts", wrong[0], _TRAIN))


def digests(module: nn.Module) -> dict[str, str]:
    """Of each borrowed network by its place in the module."""
    return {name: part.digest() for name, part in module.named_modules() if isinstance(part, Borrowed)}


def require_same(module: nn.Module, kept: Mapping[str, str]) -> None:
    """Raises RunError when a borrowed network is not the one a checkpoint was trained with."""
    for name, digest in digests(module).items():
        if digest != kept.get(name):
            got, todo = "other ones", "give back the folder it was trained with, or train again"
            raise RunError(mismatch(f"The weights of {name} have changed.", "those of the checkpoint", got, todo))


_TRAIN = "resume with the settings and pictures it was trained with, or train again"


def _theirs(module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, Borrowed))
