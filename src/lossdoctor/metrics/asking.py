"""How the user's velocity is asked: as few forwards as possible, every answer under the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, mismatch
from lossdoctor.metrics import condition
from lossdoctor.probe.snapshot import Velocity


@dataclass(frozen=True, slots=True)
class Question:
    """One way of asking about the points: with these times and conditions; `differs`: whether from the true ones."""

    t: Tensor
    cond: Any
    differs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """The user's velocity at the points x (n, ...). One of the questions is called "true"."""

    velocity: Velocity
    x: Tensor

    def ask_together(self, questions: Mapping[str, Question]) -> tuple[dict[str, Tensor], Tensor | None]:
        """All answers from one forward; if that drew random numbers, it counts as `again` and each is asked in turn."""
        start = _Randomness.now(self.x.device)
        asked = list(questions.values())
        x = self.x.repeat(len(asked), *(1,) * (self.x.ndim - 1))
        blocks = self._answer(x, torch.cat([q.t for q in asked]), condition.join([q.cond for q in asked]))
        found = dict(zip(questions, blocks.chunk(len(asked)), strict=True))
        if start.still():
            return found, None
        # Not from `start`: the same random numbers would give the same answer, and no second draw.
        return self.ask_in_turn(questions, again=found["true"])

    def ask_in_turn(
        self, questions: Mapping[str, Question], again: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """One forward per question, all from the same random state, and one more from another if that mattered."""
        start = _Randomness.now(self.x.device)
        found = {"true": self._answer(self.x, questions["true"].t, questions["true"].cond)}
        if not start.still() and again is None:
            again = self._answer(self.x, questions["true"].t, questions["true"].cond)
        for name, question in questions.items():
            if name != "true":
                start.restore()
                found[name] = self._answer(self.x, question.t, question.cond)
        return found, again

    def _answer(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        answer = self.velocity(x, t, cond)
        if not isinstance(answer, Tensor) or answer.shape != x.shape:
            got = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            todo = "Return the velocity tensor itself, for any number of samples."
            raise ShapeError(
                mismatch("velocity(x, t, cond) must return one velocity per sample.", f"{tuple(x.shape)}", got, todo)
            )
        return answer


@dataclass(frozen=True, slots=True)
class _Randomness:
    """The state of every stream a model may draw from: python, numpy, torch on the CPU and on its device."""

    python: tuple[Any, ...]
    legacy: dict[str, Any]
    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> _Randomness:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        legacy = np.random.get_state(legacy=False)  # noqa: NPY002
        return cls(random.getstate(), legacy, torch.get_rng_state(), cuda, device)

    def still(self) -> bool:
        """Whether nothing was drawn since."""
        now = _Randomness.now(self.device)
        return (
            self.python == now.python
            and self.legacy["has_gauss"] == now.legacy["has_gauss"]
            and all(np.array_equal(value, now.legacy["state"][k]) for k, value in self.legacy["state"].items())
            and torch.equal(self.cpu, now.cpu)
            and (self.cuda is None or now.cuda is None or torch.equal(self.cuda, now.cuda))
        )

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.legacy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
