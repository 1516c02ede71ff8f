"""DST209: a distillation loss that is not the cross-entropy of the logits handed in with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.record import Series
from lossdoctor.rules.distillation import log_prototypes, the_loss
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

_SAME = 0.02  # relative difference of a factor from 1/K that makes it one


@dataclass(frozen=True)
class NotTheCrossEntropy(Rule):
    """The distillation loss is not the cross-entropy between the teacher and the student that were handed in.

    Symptom: the loss has the wrong sign, or falls below the entropy of the teacher, which no cross-entropy can.
    Cause: a sign, other temperatures than those configured, a missing centre, the logits of another view.
    Evidence: `distill/loss_ratio`, the loss over that cross-entropy, is negative; or its middle nine tenths differ by
    more than `erratic` of their median. A constant factor is fine, and so is the KL divergence, which lacks the entropy
    of the teacher and has the same gradient. A loss that holds more than was handed in is larger, so this is a warning
    only when the ratio is under `smaller` at a share of `often` of the steps or more, else a remark.
    Fix: hand the same logits, centre and temperatures to `lossdoctor.distill` that the loss uses; then correct the one
    that is wrong.
    Ignore when: only some of the pairs of views are handed in, or the loss holds another term. Then the ratio is
    usually above 1, and says only that the metrics of distillation describe a part.
    Confirm: distill/loss_ratio is constant once both use the same
    """

    code, name = "DST209", "not-the-cross-entropy"
    needs = ("distill/loss_ratio",)
    kind = "distill"
    depth = "root"
    explains = ("DST201", "DST202", "DST203", "DST204", "GRD102", "BAL801")
    erratic: float = 0.05  # docs/log.md, the clinic: 3e-7 healthy, 0.11 with a student temperature twice the one told
    smaller: float = 0.9  # docs/log.md, the clinic: 0.42 to 0.87 with wrong temperatures, 1.02 with a part of the pairs
    often: float = 0.25  # a wrong temperature makes the loss too small where the student is sure, too large elsewhere
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Formulas hold from the first step on, so nothing is left out as a warm-up."""
        ratio = run["distill/loss_ratio"].finite
        if len(ratio) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(ratio)), say("enable.longer"))
        if np.mean(ratio.values < 0) >= self.persistent:
            return outcome([self._finding(run, "rule.DST209.sign", ratio, 0.0, "error")])
        if width(ratio) <= self.erratic:
            return self._constant(run, ratio, "rule.DST209.mean")
        divergence = _over_divergence(run, ratio)
        if len(divergence) >= LEAST and width(divergence) <= self.erratic:
            return self._constant(run, divergence, "rule.DST209.mean")
        below = float(np.mean(ratio.values < self.smaller)) >= self.often
        sentence = "rule.DST209" if below else "rule.DST209.more"
        return outcome([self._finding(run, sentence, ratio, None, "warning" if below else "info")])

    def _constant(self, run: RunView, ratio: Series, sentence: str) -> Outcome:
        """A factor does not change what is learned. That of torch's reduction="mean" is often not meant."""
        classes = math.exp(min(log_prototypes(run), 50.0))
        if not abs(middle(ratio) * classes - 1) <= _SAME:
            return Clear()
        return outcome([self._finding(run, sentence, ratio, 1.0, "info", classes=round(classes))])

    def _finding(
        self, run: RunView, sentence: str, ratio: Series, threshold: float | None, severity: Severity, **params: float
    ) -> Finding:
        low, high = np.quantile(ratio.values, [0.05, 0.95]).tolist()
        return self.finding(
            say(sentence, loss=the_loss(run) or "", value=middle(ratio), low=low, high=high, **params, **span(ratio)),
            evidence=(Evidence("distill/loss_ratio", middle(ratio), threshold, **span(ratio)),),
            causes=(Cause("distillation-formula"),),
            fixes=(edit("same_logits"),),
            loss=the_loss(run),
            severity=severity,
            certainty="likely" if severity == "error" else "suspected",
            confirm="distill/loss_ratio",
        )


def width(ratio: Series) -> float:
    """The range of the middle nine tenths over |median|; infinite for a median of 0."""
    low, high = np.quantile(ratio.values, [0.05, 0.95]).tolist()
    level = abs(middle(ratio))
    return (high - low) / level if level else math.inf


def _over_divergence(run: RunView, ratio: Series) -> Series:
    """The same loss over the KL divergence of the student from the teacher."""
    left, floor = run["distill/kl"].finite, run["ent/teacher"].finite
    steps = np.intersect1d(np.intersect1d(ratio.steps, left.steps), floor.steps)
    over, under, least = (s.values[np.searchsorted(s.steps, steps)] for s in (ratio, left, floor))
    there = under > 1e-3  # nearer to 0, rounding decides
    with np.errstate(over="ignore", invalid="ignore"):
        return Series(steps[there], over[there] * ((under + least)[there] / under[there])).finite
