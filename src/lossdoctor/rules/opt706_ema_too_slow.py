"""OPT706: an EMA that is still made of the initial weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class EmaTooSlow(Rule):
    """The EMA is so slow that the run ends before the initial weights are forgotten.

    Symptom: samples from the EMA are blurred or noise while those from the last weights are good.
    Cause: a decay chosen for a much longer run: 0.9999 still holds 90 % of the initial weights after 1,000 steps.
    Evidence: the product of `ema/momentum` over all steps of the run, from the measured ones, is above `residue`.
    Fix: let the decay grow from 0, as min(decay, (1 + n) / (10 + n)), or lower it.
    Ignore when: the run has only begun, or the EMA was started from weights that are already good.
    Confirm: sample from the last weights too
    """

    code, name = "OPT706", "ema-too-slow"
    needs = ("ema/momentum",)
    depth = "root"
    residue: float = given(0.1)  # the method's
    apart: float = 0.02  # of the weights; nearer it does not matter. docs/log.md, the clinic: slow ones 0.16 to 0.30

    def check(self, run: RunView) -> Outcome:
        """The whole run, warm-up included: that is where the initial weights are."""
        momentum = run["ema/momentum"].finite
        if len(momentum) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(momentum)), say("enable.longer"))
        if run.now("ema/distance") < self.apart:
            return Clear()
        if bool((momentum.values == 1.0).all()):
            return Clear()  # it stands still: OPT705
        left = np.log(np.clip(momentum.values, 1e-300, 1.0))
        between = np.diff(momentum.steps) * (left[1:] + left[:-1]) / 2
        # Values that broke off stand for the rest of the run: it was not the EMA that ended there.
        rest = (run.last_step - int(momentum.steps[-1])) * float(left[-1])
        residue = math.exp(float(between.sum()) + rest)
        if residue <= self.residue:
            return Clear()
        steps = run.last_step - int(momentum.steps[0])
        wanted = self.residue ** (1 / steps)
        told = {"momentum": middle(momentum), "percent": 100 * residue, "steps": steps}
        finding = self.finding(
            say("rule.OPT706", **told),
            evidence=(Evidence("ema/momentum", middle(momentum), wanted, **span(momentum)),),
            causes=(Cause("ema-too-slow"),),
            fixes=(edit("warm_up_ema"), edit("lower_ema_decay", value=self.residue ** (10 / steps))),
            certainty="likely",
        )
        return Fired((finding,))
