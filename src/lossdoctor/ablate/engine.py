"""What every engine does with trials: so many at once, a device each, what is finished kept, what crashes tried again.

Where a training runs is the engine's own part.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lossdoctor.ablate.trial import Plan, Trial
from lossdoctor.errors import RunError
from lossdoctor.store.alone import alone

LOCKS = ".locks"
LAST_LINES = 12
"""Lines of a crashed trial's output that are told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended. failure: None when it is whole; else why, with the end of what it printed. kept: it was."""

    trial: Trial
    failure: str | None = None
    kept: bool = False


Told = Callable[[Outcome], None]


class Runner(Protocol):
    """Whatever runs trials: an engine, or the clinic in its own process."""

    def run(self, plan: Plan, trials: Sequence[Trial], tell: Told) -> list[Outcome]:
        """As `Engine.run`."""


@dataclass(slots=True)
class Engine(ABC):
    """Runs trials somewhere. jobs: at most so many at once; None, as many as there are devices, one without.

    devices: each running trial has one to itself. retries: more attempts for a trial that fails.
    began: called, from any thread, when a trial has its place and is about to be trained.
    To be used in a with block, whose end lets go of what the engine holds.
    """

    jobs: int | None = None
    devices: Sequence[str] = ()
    retries: int = 1
    began: Callable[[Trial], None] = lambda trial: None
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def run(self, plan: Plan, trials: Sequence[Trial], tell: Told) -> list[Outcome]:
        """All trials, in their order as far as there is room; one that is finished is not run again.

        tell: called, one at a time, with each outcome, until stopped. Interrupted, every training is ended first.
        """
        at_once = self.room(len(trials))
        slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for device in self.devices[:at_once] if self.devices else [None] * at_once:
            slots.put(device)
        telling = threading.Lock()

        def one(trial: Trial) -> Outcome:
            device = slots.get()
            try:
                outcome = self._trial(plan, trial, device)
            finally:
                slots.put(device)
            with telling:
                if not self.stopped.is_set():
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

    def room(self, trials: int) -> int:
        """How many of so many trials run at once, at least 1."""
        wanted = self.jobs or len(self.devices) or 1
        return max(1, min(wanted, trials, len(self.devices) or wanted))

    def stop(self) -> None:
        """End every training, first gently."""
        self.stopped.set()

    @abstractmethod
    def train(self, plan: Plan, trial: Trial, run: Path, output: Path, device: str | None) -> int:
        """One training to its end: its exit code.

        run: where its Doctor's record is to be. output: the file of what it prints. Raises OSError when it cannot be
        begun or was stopped.
        """

    def _trial(self, plan: Plan, trial: Trial, device: str | None) -> Outcome:
        with alone(plan.home / LOCKS / trial.name):
            if plan.finished(trial) is not None:
                return Outcome(trial, kept=True)
            if not self.stopped.is_set():
                self.began(trial)
            failure: str | None = "stopped"
            for _ in range(1 + self.retries):
                if self.stopped.is_set() or failure is None:
                    break
                failure = self._attempt(plan, trial, device)
            return Outcome(trial, failure)

    def _attempt(self, plan: Plan, trial: Trial, device: str | None) -> str | None:
        try:
            run, output = plan.attempt(trial)
            started = time.perf_counter()
            if code := self.train(plan, trial, run, output, device):
                return f"exit code {code}\n{tail(output)}".rstrip()
            plan.finish(trial, run, time.perf_counter() - started)
        except OSError as error:  # no such program, no room on the disk
            return f"{plan.command[0]}: {error}"
        except RunError as error:
            return f"the script ended, but its Doctor left no run here\n{error}\n{tail(output)}".rstrip()
        return None


def tail(output: Path) -> str:
    """The last lines of what a trial printed."""
    return "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])
