"""RNK003: ranks whose weights are not the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.ranks import one_rank
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import RunView

_TOLD = 3
"""Names of tensors in the sentence; the event has more."""


@dataclass(frozen=True)
class RanksApart(Rule):
    """The weights are not the same on all ranks.

    Symptom: the losses look fine; what is saved is rank 0's model, trained by gradients of other weights than its own.
    Cause: a parameter outside DistributedDataParallel (of a loss, of a head that is not in the wrapped module), or a
    training step that calls the module inside the wrapper; no wrapper, and other initial weights on every rank; a
    teacher that was copied before the weights were made the same; a step that one rank left out.
    Evidence: `ranks/weights_apart` or `ranks/teacher_apart` is above 0 at the last measured step; up to `rounding` that
    is only mentioned. The event `ranks_differ` lists the tensors.
    Fix: every trained parameter into the wrapped module; rank 0's weights sent to all before the first step.
    Ignore when: weights part for a while on purpose, as in local SGD; or processes train a model each on purpose.
    Confirm: ranks/weights_apart is exactly 0 once this is right
    """

    code, name = "RNK003", "ranks-apart"
    needs = ("ranks/weights_apart",)
    severity, depth = "error", "root"
    rounding: float = given(1e-6)  # some ten times the spacing of float32; kernels of different devices round apart

    def beside_the_point(self, run: RunView) -> Message | None:
        """One process, or shards."""
        sharded = (run.meta.get("ranks") or {}).get("sharded")
        return one_rank(run) or (say("skip.sharded") if sharded else None)

    def check(self, run: RunView) -> Outcome:
        """The weights, then the teacher."""
        return outcome([*self._apart(run, "weights"), *self._apart(run, "teacher")])

    def _apart(self, run: RunView, role: str) -> Iterator[Finding]:
        curve = run[f"ranks/{role}_apart"].finite
        if not len(curve) or curve.values[-1] == 0:
            return
        last = float(curve.values[-1])
        # Since when without a step at which all were the same.
        since = int(np.flatnonzero(curve.values == 0)[-1]) + 1 if (curve.values == 0).any() else 0
        first, small = int(curve.steps[since]), last <= self.rounding
        told = {"since": first, "distance": last, "last_step": int(curve.steps[-1])}
        if small:
            message = say("rule.RNK003.rounding", **told)
        elif role == "weights" and _said(run, "model") is not None:
            message = say("rule.RNK003.model", **told)
        else:
            named = _said(run, f"{role} apart") or {}
            told |= {"count": int(named.get("count") or 0), "of": int(named.get("of") or 0)}
            names = [str(name) for name in (named.get("tensors") or [])[:_TOLD]]
            key = "rule.RNK003.teacher" if role == "teacher" else "rule.RNK003"
            message = say(key, **told, **({"tensors": ", ".join(names)} if role == "weights" else {}))
        causes = ("outside-the-wrapper", "not-broadcast") if since else ("not-broadcast", "outside-the-wrapper")
        fixes = ("wrap_all", "broadcast_weights") if since else ("broadcast_weights", "wrap_all")
        yield self.finding(
            message,
            evidence=(Evidence(f"ranks/{role}_apart", last, 0.0, first, int(curve.steps[-1])),),
            causes=tuple(map(Cause, causes)),
            fixes=tuple(map(edit, fixes)),
            subject=role,
            severity="info" if small else None,
            certainty="likely",
            confirm="ranks/weights_apart",
        )


def _said(run: RunView, what: str) -> Mapping[str, Any] | None:
    """What the ranks told of each other in the first event of this kind."""
    told = (event for event in run.events if event.get("kind") == "ranks_differ" and event.get("what") == what)
    event = next(told, None)
    return None if event is None else event.get("each") or {}
