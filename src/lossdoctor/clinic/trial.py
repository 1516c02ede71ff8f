"""An engine of experiments for programs of the clinic: what `ablate` does with a script, but in this process.

What an arm is reaches the program through the environment, as in any script.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossdoctor.ablate.engine import LOCKS, Outcome, Told
from lossdoctor.ablate.fixes import EDIT
from lossdoctor.ablate.trial import Plan, Trial
from lossdoctor.arms import BASELINE
from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.processes import one_line
from lossdoctor.clinic.program import Program
from lossdoctor.store.alone import alone


@dataclass(frozen=True, slots=True)
class Bedside:
    """Trains one program with one fault under every arm. healthy: the plan of the same program without a fault.

    A program whose fault an edit undoes is the healthy one: where that was trained with the same seed already, its run
    is taken.
    """

    program: Program
    fault: str | None
    healthy: Plan | None = None

    def run(self, plan: Plan, trials: Sequence[Trial], tell: Told) -> list[Outcome]:
        """One after the other; a training that raises is a trial that failed."""
        outcomes = []
        for trial in trials:
            with alone(plan.home / LOCKS / trial.name):
                outcomes.append(self._one(plan, trial))
            tell(outcomes[-1])
        return outcomes

    def _one(self, plan: Plan, trial: Trial) -> Outcome:
        if plan.finished(trial) is not None:
            return Outcome(trial, kept=True)
        run, output = plan.attempt(trial)
        started = time.perf_counter()
        try:
            with open(output, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
                self._train(plan, trial, run)
        except Exception as error:  # told of, as that of any script
            return Outcome(trial, one_line(error))
        plan.finish(trial, run, time.perf_counter() - started)
        return Outcome(trial)

    def _train(self, plan: Plan, trial: Trial, run: Path) -> None:
        if (twin := self._twin(trial)) is not None:
            shutil.copytree(twin, run)
            return
        with _environment(plan.environment(trial, run)):
            self.program.train(self.fault, trial.seed, run)

    def _twin(self, trial: Trial) -> Path | None:
        if self.healthy is None or self.fault is None:
            return None
        undone = {f"knob:{EDIT}{edit}=1" for edit in BY_NAME[self.fault].edits}
        found = self.healthy.finished(Trial(BASELINE, trial.seed)) if trial.arm in undone else None
        return None if found is None else found.path


@contextlib.contextmanager
def _environment(told: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
