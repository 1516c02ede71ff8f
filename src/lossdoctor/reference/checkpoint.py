"""Checkpoints: plain tensors and containers, written whole or not at all, read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lossdoctor.errors import RunError, mismatch

_FORMAT = "lossdoctor/reference@1"


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path`: to a neighbour first, which then takes its place, so no crash leaves half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with neighbour.open("wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """The state in `path`, its tensors on the CPU. Raises RunError when it is not such a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler meets anything in a broken file
        reason = next(iter(str(error).splitlines()), "")
        got, todo = f"{type(error).__name__} {reason}".rstrip(), "Give a file that Trainer.save wrote."
        raise RunError(mismatch(f"{path} cannot be read.", "a checkpoint", got, todo)) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        got = str(state.get("format")) if isinstance(state, dict) else type(state).__name__
        raise RunError(mismatch(f"{path} is not a checkpoint of this kind.", _FORMAT, got, "Train again."))
    return state
