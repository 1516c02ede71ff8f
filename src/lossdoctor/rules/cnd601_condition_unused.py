"""CND601: a condition that makes no difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_above, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Clear, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import over_trivial, seen, settled, the_loss, too_short, typical
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class ConditionUnused(Rule):
    """The velocity is no better with the true condition than with that of another sample.

    Symptom: samples look right and do not follow their labels or captions; guidance has no effect.
    Cause: the condition is not connected, or does not belong to its sample: labels permuted, replaced, or nearly always
    dropped.
    Evidence: `flow/cond_ratio`, the loss with permuted conditions over the loss, is 1 to `exact` in most steps: then no
    condition reaches the network. Or its median is within `near` of 1, and it is above 1 no more often than by chance:
    then the network hears the condition, and it helps nothing. If it always helps, but by less than `near`, that is
    mentioned.
    Fix: follow the condition from the data to the layer that uses it; look at a few samples with their labels.
    Ignore when: the model is meant to be unconditional, or the condition says little about the target by nature. A
    batch with one condition, and a velocity that has learned nothing yet, are not judged.
    Confirm: shuffle:cond, which changes nothing if this is so
    """

    code, name = "CND601", "condition-unused"
    needs = ("flow/cond_ratio",)
    depth = "root"
    explains = ("VEL401", "VEL402", "SMP504")
    exact: float = 1e-6  # docs/log.md, the clinic: 0 where the condition is not connected, 4e-4 and more where it is
    near: float = 0.02  # the same: permuted labels 0.003, the weakest healthy condition 0.8
    learned: float = 0.98  # of a trivial predictor; permuted labels leave 0.55 to 0.97
    dropped: float = 0.9  # share of the samples with the most common condition from which dropping is named first
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Exactly nothing first, then nothing that helps."""
        ratio = settled(run, "cond_ratio")
        if typical(run, "cond_distinct") <= 1:
            return Skipped(say("skip.one_condition"))
        if (short := too_short(ratio)) is not None:
            return short
        error = over_trivial(run)
        unlearned = len(error) > 0 and middle(error) >= self.learned
        if unlearned and not self._alive(run):
            return Skipped(say("skip.not_learned"), say("enable.longer"))
        same = share_below(Series(ratio.steps, np.abs(ratio.values - 1)), self.exact)
        if same.share >= self.persistent:
            codes = ["condition-not-connected", "condition-shuffled"]
            sentence = "rule.CND601"
            return outcome([self._finding(run, ratio, sentence=sentence, severity="error", codes=codes, p=same.p)])
        helps, little = share_above(ratio, 1.0), share_below(ratio, 1 + self.near)
        gains = typical(run, "cond_gain_cos") >= self.near
        if unlearned or gains or abs(middle(ratio) - 1) >= self.near:
            return Clear((little.p,))
        if helps.share >= self.persistent:
            codes, sentence = ["condition-not-connected"], "rule.CND601.little"
            return outcome([self._finding(run, ratio, sentence=sentence, severity="info", codes=codes, p=little.p)])
        codes, sentence = ["condition-shuffled", "condition-not-connected"], "rule.CND601.useless"
        if typical(run, "cond_mode_share") > self.dropped:
            codes.insert(0, "null-rate")
        return outcome([self._finding(run, ratio, sentence=sentence, severity="warning", codes=codes, p=None)])

    def _alive(self, run: RunView) -> bool:
        """Whether the answers depend on the time: a network that says one thing ignores every condition, too."""
        time = settled(run, "time_ratio")
        return len(time) > 0 and abs(middle(time) - 1) > self.exact

    def _finding(
        self, run: RunView, ratio: Series, *, sentence: str, severity: Severity, codes: list[str], p: float | None
    ) -> Finding:
        return self.finding(
            say(sentence, ratio=middle(ratio), gain=typical(run, "cond_gain_cos"), **span(ratio)),
            evidence=(
                Evidence("flow/cond_ratio", middle(ratio), 1 + self.near, **span(ratio)),
                *seen(run, "cond_gain_cos", self.near),
                *seen(run, "cond_distinct"),
            ),
            causes=causes_of(codes),
            fixes=(edit("connect_condition"), edit("check_labels"), ablate("shuffle:cond")),
            loss=the_loss(run),
            severity=severity,
            certainty="likely" if severity != "info" else "suspected",
            confirm="shuffle:cond",
            p=p,
        )
