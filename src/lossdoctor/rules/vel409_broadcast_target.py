"""VEL409: a loss that compares every prediction with every target."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import over_trivial, seen, settled, the_loss, too_short, typical, width
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class BroadcastTarget(Rule):
    """The velocity loss does not know which prediction belongs to which target.

    Symptom: the loss falls a little and stops at the variance of the target; samples are noise.
    Cause: shapes such as (B, 1, D) and (B, D) are broadcast, so that all pairs of the batch are compared; or one of
    the two was permuted.
    Evidence: the loss over the mean over the pairs that belong together (`flow/loss_ratio`) is not constant to `exact`,
    and the loss over the mean over all pairs of the batch (`flow/loss_ratio_pairs`) is, at least `steadier` times more
    so. Without the second: the network knows hardly more than the mean of the batch (`flow/nmse` over the trivial
    predictor above `trivial`), while `flow/loss_ratio` is nearly constant and never exactly so, within `nearly`.
    Fix: print the shapes of v_pred, v_target and their difference.
    Ignore when: the loss compares samples with one another on purpose. A weighted or robust loss has no constant ratio
    either, but it learns, and it is no constant multiple of all pairs.
    Confirm: flow/loss_ratio is constant once the shapes agree
    """

    code, name = "VEL409", "broadcast-target"
    needs = ("flow/loss_ratio",)
    depth = "root"
    explains = (
        "VEL401",
        "VEL402",
        "VEL403",
        "VEL405",
        "CND601",
        "SMP501",
        "SMP503",
        "SMP504",
        "GRD102",
        "GRD103",
        "BAL801",
    )
    exact: float = 1e-4  # relative width; docs/log.md, the clinic: rounding 1e-6, all pairs against own 4e-4 and more
    steadier: float = 10.0  # docs/log.md, the clinic: all pairs 38 and more, two micro-batches; other losses 1e-6
    nearly: float = 0.1  # relative width: all pairs 9e-4 to 0.05; weights from 0 to 1 by time, 256 samples, 0.1
    trivial: float = 0.85  # docs/log.md, the clinic: all pairs 0.91 to 1.02, healthy at most 0.46

    def check(self, run: RunView) -> Outcome:
        """By the mean over all pairs where it was measured, else by what such a loss leaves behind."""
        own, pairs = settled(run, "loss_ratio"), settled(run, "loss_ratio_pairs")
        if (short := too_short(own)) is not None:
            return short
        uneven = width(own)
        if uneven <= self.exact:
            return Clear()
        if len(pairs) >= LEAST:
            sure = width(pairs) * self.steadier <= uneven
            return self._found(run, own, "rule.VEL409", sure=True) if sure else Clear()
        error = over_trivial(run)
        if uneven > self.nearly or len(error) < LEAST or middle(error) < self.trivial:
            return Clear()
        return self._found(run, own, "rule.VEL409.mean", sure=False)

    def _found(self, run: RunView, own: Series, sentence: str, *, sure: bool) -> Outcome:
        loss = the_loss(run)
        finding = self.finding(
            say(sentence, percent=100 * width(own), nmse=typical(run, "nmse"), **span(own)),
            evidence=(
                Evidence("flow/loss_ratio", middle(own), None, **span(own)),
                *seen(run, "loss_ratio_pairs", 1.0),
                *seen(run, "nmse"),
                *seen(run, "nmse_mean"),
            ),
            causes=(Cause("broadcast-shapes"), *(() if sure else (Cause("velocity-not-learned"),))),
            fixes=(edit("match_shapes", loss or "flow"),),
            loss=loss,
            severity="error" if sure else "warning",
            certainty="likely" if sure else "suspected",
            confirm="flow/loss_ratio",
        )
        return outcome([finding])
