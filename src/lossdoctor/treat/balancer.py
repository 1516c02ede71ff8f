"""A balancer turns measured gradients into factors on the weights; the next steps use them in one ordinary backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lossdoctor.treat.measured import Measured

Factors = dict[str, float]
"""Loss to the factor on its weight, > 0 or 0."""


@dataclass(frozen=True, slots=True)
class Advice:
    """factors: of every loss. reasons: loss to why its factor moves, for people; empty when nothing does.

    stopped: why the balancer has given up, with the factors to stay at; None while it works. waits: loss to why it is
    left as it is although it should move, for as long as that is so; told once. A sentence made by `treat.reason` is
    told in every language, any other as it is.
    """

    factors: Factors
    reasons: Mapping[str, str]
    stopped: str | None = None
    waits: Mapping[str, str] = field(default_factory=dict)


class Balancer(ABC):
    """Learns at measured steps. The same measurements give the same advice on every rank."""

    name: str

    @abstractmethod
    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """What to use from now on. seen: the last measurement, finite. factors: in use at that step."""

    def begin(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """What the first measured step itself is to be taken with; `advise` is asked about it again once it is done.

        seen: the gradients of its first micro-batch, before their backward. Asked where one process trains alone.
        """
        return Advice({name: float(factors.get(name, 1.0)) for name in seen.names}, {})

    def state_dict(self) -> dict[str, Any]:
        """Its memory as plain JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - many have no memory
        """Go on with the memory of a checkpoint."""
