"""GRD104: two losses that pull the shared parameters apart."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import Share, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, balance
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import strengths
from lossdoctor.rules.view import LEAST, RunView, middle, span

PAIR = "grad_cos/<a>|<b>"


@dataclass(frozen=True)
class OpposedGradients(Rule):
    """Two losses of comparable strength pull the parameters they share in opposite directions.

    Symptom: one falls only while the other rises; the total stalls above what each reaches alone.
    Cause: they want different things of the same representation, or one of them has the wrong sign or target.
    Evidence: `grad_cos/<a>|<b>` under `cosine` in most steps after the warm-up, and the weaker of the two has at least
    `comparable` of the weighted norm of the stronger. A warning when the update makes one of the two worse in most
    steps, or when the cosine is under `cancelling`, where they undo each other; else a remark.
    Fix: PCGrad or cosine re-weighting; leave one out in an experiment to see what it costs the other.
    Ignore when: one of them is a prior. A KL opposes whatever shapes the latent, and at their balance the two are
    opposed by definition; pairs with a KL are not asked.
    Confirm: without:<b>
    """

    code, name = "GRD104", "opposed-gradients"
    needs = (PAIR, "grad_weighted/<loss>")
    explains = ("GRD106",)
    cosine: float = given(-0.3)  # the method's
    cancelling: float = -0.7  # docs/log.md, the clinic: no healthy pair without a KL under 0; an opposed pair at -0.99
    comparable: float = 0.05  # below it the weaker one bends the direction of the sum by under 3 degrees
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def beside_the_point(self, run: RunView) -> Message | None:
        """One loss, or none with a gradient."""
        return say("skip.rivals") if run.has("grad/<loss>") and len(strengths(run)) < 2 else None

    def check(self, run: RunView) -> Outcome:
        """Every pair without a KL, both of which have a gradient."""
        strong = strengths(run)
        found: list[Finding] = []
        tests, longest, asked = [], 0, 0
        for name, pair in run.matching(PAIR).items():
            a, b = pair["a"], pair["b"]
            if not {a, b} <= strong.keys() or "kl" in (run.losses[a], run.losses[b]):
                continue
            weaker, stronger = sorted((a, b), key=lambda one: middle(strong[one]))
            asked += 1
            curve = _both(run, name, a, b)
            longest = max(longest, len(curve))
            if len(curve) < LEAST or middle(strong[weaker]) < self.comparable * middle(strong[stronger]):
                continue
            test = share_below(curve, self.cosine)
            if test.share >= self.persistent:
                found.append(self._finding(run, name, curve, (weaker, stronger), test))
            else:
                tests.append(test.p)
        if not asked:
            return Skipped(say("skip.pairs"))
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return outcome(found, tests)

    def _finding(self, run: RunView, name: str, curve: Series, pair: tuple[str, str], test: Share) -> Finding:
        weaker, stronger = pair
        # What the update does to a loss is the judge of who loses; without it the weaker one is assumed to.
        losing = [one for one in pair if share_below(run.settled(f"descent/{one}"), 0.0).share >= self.persistent]
        loser = losing[0] if losing else weaker
        winner = stronger if loser == weaker else weaker
        seen = [run.settled(f"descent/{one}") for one in losing]
        harmful = bool(losing) or middle(curve) < self.cancelling
        return self.finding(
            say(
                "rule.GRD104.losing" if losing else "rule.GRD104",
                a=winner,
                b=loser,
                cosine=middle(curve),
                **span(curve),
            ),
            evidence=(
                Evidence(name, middle(curve), self.cosine, **span(curve)),
                *(Evidence(f"descent/{o}", middle(c), 0.0, **span(c)) for o, c in zip(losing, seen, strict=True)),
            ),
            causes=(Cause("conflicting-losses", {"loss": loser, "rival": winner}),),
            fixes=(balance("pcgrad"), balance("cosine"), ablate(f"without:{loser}")),
            subject=name.removeprefix("grad_cos/"),
            severity="warning" if harmful else "info",
            confirm=f"without:{loser}",
            p=test.p,
        )


def _both(run: RunView, name: str, a: str, b: str) -> Series:
    """The cosine since both weights have had their full size."""
    curve = run.settled(name, loss=a)
    later = curve.steps >= run.full_weight_from(b)
    return Series(curve.steps[later], curve.values[later])
