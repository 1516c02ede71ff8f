"""CND601: a condition without effect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class ConditionUnused(Rule):
    """The velocity does not use the condition it is given.

    Symptom: samples ignore the prompt; the loss is only a little worse.
    Cause: the embedding is not connected, or conditions do not belong to their samples, so that ignoring them is
    right.
    Evidence: with conditions permuted over the batch the loss stays the same: `flow/cond_ratio` below `used` in
    most steps. Exactly 1 in every step: not connected.
    Fix: follow the condition into the network; look at a batch of samples with their conditions.
    Ignore when: the model is unconditional, or the condition hardly matters by nature.
    Confirm: shuffle:cond
    """

    code, name = "CND601", "condition-unused"
    needs = ("flow/cond_ratio",)
    kind = "velocity"
    depth = "consequence"
    used: float = 1.01  # docs/log.md, the clinic: healthy 1.5 to 30; ignored or shuffled 1.000
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        ratio = run.settled("flow/cond_ratio")
        if len(ratio) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(ratio)), say("enable.longer"))
        if run.now("flow/cond_distinct") == 1:
            return Skipped(say("skip.one_condition"))
        test = share_below(ratio, self.used)
        if test.share < self.persistent:
            return Clear((test.p,))
        silent = bool(np.all(np.abs(ratio.values - 1) < 1e-7))
        codes = ("condition-not-connected", "condition-shuffled")
        finding = self.finding(
            say("rule.CND601.silent" if silent else "rule.CND601", ratio=middle(ratio)),
            evidence=[Evidence("flow/cond_ratio", middle(ratio), self.used, **span(ratio))],
            causes=[Cause(code) for code in (codes if silent else codes[::-1])],
            fixes=[edit("connect_condition"), ablate("shuffle:cond")],
            loss=run.of_kind("velocity")[0],
            confirm="shuffle:cond",
            p=test.p,
        )
        return Fired((finding,))
