"""Trials as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossdoctor.ablate.engine import Engine
from lossdoctor.ablate.trial import Plan, Trial

DEVICES = "CUDA_VISIBLE_DEVICES"
_GRACE = 5.0
_LOOK = 0.2


@dataclass(slots=True)
class Local(Engine):
    """At most `jobs` processes at once. devices: told by CUDA_VISIBLE_DEVICES."""

    def train(self, plan: Plan, trial: Trial, run: Path, output: Path, device: str | None) -> int:
        """A process of the script, with the environment of this one."""
        environment = {**os.environ, **plan.environment(trial, run)}
        if device is not None:
            environment[DEVICES] = device
        return process(plan.command, environment, output, stopped=self.stopped.is_set)


def process(
    command: Sequence[str],
    environment: dict[str, str],
    output: Path,
    *,
    folder: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """A process to its end: its exit code. output: what it prints. folder: where it runs, None for here.

    Whatever interrupts the waiting ends the process and what it has started, first gently. Raises OSError when it
    cannot be begun, and when `stopped`, asked a few times a second, says so.
    """
    with open(output, "wb") as file:
        # A session of its own, so that what it starts ends with it.
        child = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                if stopped():
                    raise OSError("stopped")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(_LOOK)
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    _signal(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE)
    _signal(child, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            child.send_signal(number)
        else:
            os.killpg(child.pid, number)
