"""VEL409: a loss between every prediction and every target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class BroadcastTarget(Rule):
    """The velocity loss compares every prediction with every target of the batch.

    Symptom: the loss stops at the variance of the target, and the output is the mean.
    Cause: shapes such as (B, 1, D) against (B, D) broadcast silently.
    Evidence: the network predicts no more than the batch mean (`flow/nmse` at `mean` times `flow/nmse_mean`), and
    the loss as trained is near the mean squared error but not equal to it: `flow/loss_ratio` within `near` of 1
    and varying by more than `exact`.
    Fix: give both the same shape before they are subtracted.
    Ignore when: the loss is another one on purpose and the network is still at its start.
    Confirm: preflight: target
    """

    code, name = "VEL409", "broadcast-target"
    needs = ("flow/loss_ratio", "flow/nmse", "flow/nmse_mean")
    kind = "velocity"
    severity = "error"
    depth = "root"
    explains = ("VEL401", "VEL402", "VEL403", "VEL405", "CND601", "SMP503", "SMP504", "GRD102", "GRD103", "BAL801")
    mean: float = 0.97  # docs/log.md, the clinic: broadcast 1.00; healthy 0.21 to 0.5
    near: float = 0.1  # of 1; broadcast 1.004
    exact: float = 1e-5  # rounding of a sound loss in float32 is 1e-7
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        ratio, explained = run.settled("flow/loss_ratio"), run.ratio("flow/nmse", "flow/nmse_mean")
        if min(len(ratio), len(explained)) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=min(len(ratio), len(explained))), say("enable.longer"))
        test = share_above(explained, self.mean)
        off = np.abs(ratio.values / ratio.values.mean() - 1) if ratio.values.mean() else ratio.values
        broadcast = abs(middle(ratio) - 1) < self.near and float(np.median(off)) > self.exact
        if test.share < self.persistent or not broadcast:
            return Clear((test.p,))
        finding = self.finding(
            say("rule.VEL409", ratio=middle(ratio), nmse=middle(run.settled("flow/nmse"))),
            evidence=[
                Evidence("flow/loss_ratio", middle(ratio), None, **span(ratio)),
                Evidence("flow/nmse", run.now("flow/nmse"), self.mean * run.now("flow/nmse_mean")),
            ],
            causes=[Cause("broadcast-shapes")],
            fixes=[edit("same_shapes")],
            loss=run.of_kind("velocity")[0],
            p=test.p,
        )
        return Fired((finding,))
