"""VEL404: times that are never trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, span

@dataclass(frozen=True)
class StarvedTimeBins(Rule):
    """Some times are hardly ever drawn, so the velocity there is never trained.

    Symptom: the loss looks good; sampling passes through times the network has never seen.
    Cause: a narrow time distribution, such as a logit-normal with a small deviation.
    Evidence: a tenth of [0, 1] holds less than `least` of all samples drawn, beyond chance.
    Fix: mix uniform times in, or widen the distribution.
    Ignore when: the sampler stays out of these times too.
    Confirm: knob of the time distribution
    """

    code, name = "VEL404", "starved-time-bins"
    needs = ("flow/count_t{0..9}",)
    kind = "velocity"
    depth = "root"
    explains = ("VEL403", "VEL405", "SMP503", "SMP504")
    least: float = 0.005  # a standard logit-normal, common and healthy, has 0.014 in each outer tenth

    def check(self, run: RunView) -> Outcome:
        counts = [run.settled(f"flow/count_t{place}") for place in range(10)]
        drawn = [float(count.values.sum()) for count in counts]
        total = sum(drawn)
        expected = self.least * total
        if max(map(len, counts)) < LEAST or expected < 10:
            return Skipped(say("skip.short", least=LEAST, found=max(map(len, counts))), say("enable.longer"))
        starved = [place for place, n in enumerate(drawn) if n < expected]
        if not starved:
            return Clear()
        worst = min(starved, key=lambda place: drawn[place])
        # Chernoff: the chance that one of ten bins holds so few although its share is at least `least`.
        few = drawn[worst]
        p = min(1.0, 10 * math.exp(few - expected - (few * math.log(few / expected) if few else 0.0)))
        finding = self.finding(
            say("rule.VEL404", bins=", ".join(f"{place / 10:.1f}" for place in starved), percent=100 * drawn[worst] / total),
            evidence=[Evidence(f"flow/count_t{worst}", drawn[worst] / total, self.least, **span(counts[worst]))],
            causes=[Cause("time-sampling")],
            fixes=[edit("mix_uniform_times")],
            loss=run.of_kind("velocity")[0],
            p=p,
        )
        return Fired((finding,))
