"""Trials as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lossdoctor.ablate.trial import Plan, Trial
from lossdoctor.errors import RunError
from lossdoctor.store.alone import alone

LOCKS = ".locks"
LAST_LINES = 12
"""Lines of a crashed trial's output that are told."""
_GRACE = 5.0
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended. failure: None when it is whole; else why, with the end of what it printed. kept: it was."""

    trial: Trial
    failure: str | None = None
    kept: bool = False


Told = Callable[[Outcome], None]


@dataclass(slots=True)
class Local:
    """At most `jobs` processes at once. devices: each running trial has one to itself, told by CUDA_VISIBLE_DEVICES.

    retries: more attempts for a trial that fails.
    """

    jobs: int
    devices: Sequence[str] = ()
    retries: int = 1
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, plan: Plan, trials: Sequence[Trial], tell: Told) -> list[Outcome]:
        """All trials, in their order as far as there is room; one that is finished is not run again.

        tell: called, one at a time, with each outcome. Interrupted, every process is ended first.
        """
        slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        at_once = min(self.jobs, len(self.devices)) if self.devices else self.jobs
        for device in self.devices[:at_once] if self.devices else [None] * at_once:
            slots.put(device)

        def one(trial: Trial) -> Outcome:
            device = slots.get()
            try:
                outcome = self._trial(plan, trial, device)
            finally:
                slots.put(device)
            with self._lock:
                tell(outcome)
            return outcome

        pool = ThreadPoolExecutor(at_once)
        try:
            return list(pool.map(one, trials))
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """End every process, first gently."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        until = time.monotonic() + _GRACE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            _signal(process, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)

    def _trial(self, plan: Plan, trial: Trial, device: str | None) -> Outcome:
        with alone(plan.home / LOCKS / trial.name):
            if plan.finished(trial) is not None:
                return Outcome(trial, kept=True)
            failure: str | None = "stopped"
            for _ in range(1 + self.retries):
                if self._stopped or failure is None:
                    break
                failure = self._attempt(plan, trial, device)
            return Outcome(trial, failure)

    def _attempt(self, plan: Plan, trial: Trial, device: str | None) -> str | None:
        try:
            run, output = plan.attempt(trial)
            environment = {**os.environ, **plan.environment(trial, run)}
            if device is not None:
                environment[_DEVICES] = device
            started = time.perf_counter()
            with open(output, "wb") as file, self._process(plan.command, environment, file.fileno()) as process:
                code = process.wait()
            if code:
                return f"exit code {code}\n{tail(output)}".rstrip()
            plan.finish(trial, run, time.perf_counter() - started)
        except OSError as error:  # no such program, no room on the disk
            return f"{plan.command[0]}: {error}"
        except RunError as error:
            return f"the script ended, but its Doctor left no run here\n{error}\n{tail(output)}".rstrip()
        return None

    @contextlib.contextmanager
    def _process(
        self, command: Sequence[str], environment: dict[str, str], output: int
    ) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._stopped:
                raise OSError("stopped")
            # A session of its own, so that what it starts ends with it.
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            self._running.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._running.discard(process)


def tail(output: Path) -> str:
    """The last lines of what a trial printed."""
    return "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
