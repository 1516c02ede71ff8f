"""LAB001: a loss that hardly moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.rules import Cause, Clear, Evidence, Fired, Outcome, Rule, RunView, Skipped, say
from lossdoctor.rules.fixes import edit, scale_weight
from lossdoctor.rules.view import LEAST, span


@dataclass(frozen=True)
class FlatLoss(Rule):
    """A loss ends where it began.

    Symptom: a curve that is level but for its noise.
    Cause: nothing is learned from it, or it was learned before this run.
    Evidence: the median of the last third of `loss/<loss>` is within `change` of that of the first third.
    Fix: look whether its gradient reaches a module; give it a larger weight.
    Ignore when: the run goes on from a checkpoint.
    Confirm: weight:<loss>*2
    """

    code, name, since = "LAB001", "flat-loss", "0.1"
    needs = ("loss/<loss>",)
    severity = "info"
    change: float = 0.01  # a choice of this example: no experiment stands behind it

    def check(self, run: RunView) -> Outcome:
        """Every loss of the run."""
        found, longest = [], 0
        for loss in run.losses:
            curve = run.settled(f"loss/{loss}", loss=loss)
            longest = max(longest, len(curve))
            if len(curve) < LEAST:
                continue
            first, _, last = (float(np.median(part)) for part in np.array_split(curve.values, 3))
            moved = abs(last - first) / max(abs(first), 1e-12)
            if moved < self.change:
                found.append(
                    self.finding(
                        say("rule.LAB001", loss=loss, moved=moved),
                        evidence=[Evidence(f"loss/{loss}", moved, self.change, **span(curve))],
                        causes=[Cause("lab-nothing-learned"), Cause("detached-branch")],
                        fixes=[edit("lab_look_at_reach", loss), scale_weight(loss, 2.0)],
                        loss=loss,
                        confirm=f"weight:{loss}*2",
                    )
                )
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return Fired(tuple(found)) if found else Clear()
