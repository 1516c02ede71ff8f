"""What every program of the clinic is: a training script of its own, healthy or with one fault switched on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from lossdoctor.store import Run


class Program(ABC):
    """A readable training of a few seconds. The faults are switches in it, and nothing in it knows a rule.

    name: of the program. faults: names of the faults of `faults.FAULTS` it has a switch for. steps: optimizer steps.

    An instance is pickled once for every process it trains in, and stays there: it may keep what is made once per seed.
    Nothing else may go from one training to the next; each seeds whatever it draws from.
    """

    name: ClassVar[str]
    faults: ClassVar[tuple[str, ...]]
    steps: ClassVar[int]

    @abstractmethod
    def train(self, fault: str | None, seed: int, run: Path | None = None) -> Run:
        """Train once under a Doctor that records into the folder `run`, and return the run; fault None is healthy."""

    @abstractmethod
    def harm(self, run: Run) -> float:
        """How bad the result of a run is, lower is better: what a person would look at in the end.

        A metric that a sick run does not have (UnknownMetricError), NaN and infinity count as the worst.
        """
