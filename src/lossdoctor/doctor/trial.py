"""A doctor's part in an experiment: its run, its schedule, what the arm does to weights and rates, and the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lossdoctor.probe.experiment import Experiment, Rates, current, rates
from lossdoctor.treat import WarmUp


@dataclass(slots=True)
class Trial:
    """One training under one arm. run: the folder of its record, None where the script says. done: steps so far."""

    experiment: Experiment
    run: Path | None
    rates: Rates
    done: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What meta.json says of it; what the script hands in is known at the end."""
        own = self.experiment
        told = {"arm": str(own.arm), "seed": own.seed, "seeded": own.seeded, "steps": own.steps}
        if own.checkpoint is not None:
            told["checkpoint"] = own.checkpoint
        return {"experiment": {**told, "conditions": own.conditions > 0, "knobs": sorted(own.knobs)}}

    @property
    def balance(self) -> str | None:
        """The balancer the arm asks for."""
        return next((change.target for change in self.experiment.arm.of("balance")), None)

    @property
    def schedules(self) -> dict[str, WarmUp]:
        """The warm-ups of the arm, by the weights they move."""
        warm_ups = self.experiment.arm.of("warmup")
        return {f"weight/{change.target}": WarmUp(math.ceil(change.value)) for change in warm_ups}

    def stepped(self) -> bool:
        """Count a step; whether it was the last. Raises UsageError after the first two for what the script lacks."""
        self.done += 1
        if self.done == 1:
            self.experiment.check_asked()
        if self.done == min(2, self.experiment.steps or 2):
            self.experiment.check_knobs()
        return self.experiment.steps is not None and self.done >= self.experiment.steps


def trial_of(heads: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> Trial | None:
    """The trial of a doctor that begins now; None outside of an experiment. Raises UsageError for an unknown head."""
    if (experiment := current()) is None:
        return None
    return Trial(experiment, experiment.folder(), rates(experiment.arm, heads, optimizers))
