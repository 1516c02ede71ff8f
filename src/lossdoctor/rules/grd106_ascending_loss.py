"""GRD106: a loss that the training makes worse, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import Share, share_below, trend
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Fix, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, balance, scale_rate, scale_weight
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import strengths
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class AscendingLoss(Rule):
    """Most updates make this loss worse, although it is part of the total.

    Symptom: the loss stays where it is or rises while the total falls.
    Cause: another loss pulls the same parameters harder the other way, or the rate is so high that every step jumps
    past what it aims at.
    Evidence: `descent/<loss>`, the first-order decrease by the update really taken, is negative in most steps after the
    warm-up, and the loss has no falling trend.
    Fix: find the opponent by leaving losses out one at a time; then PCGrad, or more weight for the loser.
    Ignore when: the loss is a prior. A KL that rises while another loss shapes the latent is healthy, so a KL is not
    asked; PST301 judges it. Nor is a loss with a negative weight, which is meant to rise.
    Confirm: without:<opponent>
    """

    code, name = "GRD106", "ascending-loss"
    needs = ("descent/<loss>",)
    explains = ("VEL401",)
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end
    opposed: float = -0.1  # cosine under which another loss is called an opponent

    def check(self, run: RunView) -> Outcome:
        """Every loss that is meant to fall."""
        found, tests, longest, asked = [], [], 0, 0
        for loss, kind in run.losses.items():
            curve = run.settled(f"descent/{loss}", loss=loss)
            if kind == "kl" or not run.weighted(loss) or run.now(f"weight/{loss}") < 0 or not len(curve):
                continue
            asked += 1
            longest = max(longest, len(curve))
            if len(curve) < LEAST:
                continue
            test = share_below(curve, 0.0)
            falls = trend(run.settled(f"loss/{loss}", loss=loss), skip=0.0).direction == "down"
            if test.share >= self.persistent and not falls:
                found.append(self._finding(run, loss, curve, test))
            else:
                tests.append(test.p)
        if not asked:
            return Skipped(say("skip.descent"))
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return outcome(found, tests)

    def _finding(self, run: RunView, loss: str, curve: Series, test: Share) -> Finding:
        opponent, cosine = _opponent(run, loss)
        seen = [Evidence(f"descent/{loss}", middle(curve), 0.0, **span(curve))]
        fixes: tuple[Fix, ...] = (scale_weight(loss, 2.0), scale_rate("all", 0.3))
        if opponent is None or cosine >= self.opposed:
            message = say("rule.GRD106", loss=loss, percent=100 * test.share, **span(curve))
            causes, confirm = (Cause("rate-too-large"), Cause("conflicting-losses")), "lr:all*0.3"
        else:
            told = {"loss": loss, "percent": 100 * test.share, "opponent": opponent, "cosine": cosine}
            message = say("rule.GRD106.opponent", **told, **span(curve))
            causes = Cause("conflicting-losses", {"loss": loss, "rival": opponent}), Cause("rate-too-large")
            confirm = f"without:{opponent}"
            seen.append(Evidence(_pair(loss, opponent), cosine, self.opposed, **span(curve)))
            fixes = (ablate(confirm), balance("pcgrad"), *fixes)
        return self.finding(
            message,
            evidence=seen,
            causes=causes,
            fixes=fixes,
            loss=loss,
            confirm=confirm,
            p=test.p,
        )


def _opponent(run: RunView, loss: str) -> tuple[str | None, float]:
    """The loss that pulls hardest against this one, weighted norm times cosine, and the cosine; None without others."""
    pulls = {
        other: (middle(curve) * cosine, cosine)
        for other, curve in strengths(run).items()
        if other != loss and len(cosines := run.settled(_pair(loss, other)))
        for cosine in [middle(cosines)]
    }
    hardest = min(pulls, key=lambda other: pulls[other][0], default=None)
    return hardest, 0.0 if hardest is None else pulls[hardest][1]


def _pair(one: str, other: str) -> str:
    return "grad_cos/" + "|".join(sorted((one, other)))
