"""VEL403: times near an end that are not learned."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class EdgeDegradation(Rule):
    """Near an end of the path the velocity is much worse than beside it.

    Symptom: samples are noisy or blurred although the mean loss is fine.
    Cause: times near the ends are hardly ever sampled, or the target is wrong there.
    Evidence: the error of the first or the last tenth of the way is above `worst`, worse than predicting nothing,
    and above `steep` times that of its neighbour, in most steps. An error near 1 at the data end is healthy: there
    the noise cannot be known.
    Fix: mix uniform times in, or weight the ends; check the derivatives of the path there.
    Ignore when: the weighting leaves an end out on purpose and the sampler never goes there.
    Confirm: without:<other losses>
    """

    code, name = "VEL403", "edge-degradation"
    needs = ("flow/nmse_t{0..9}",)
    kind = "velocity"
    worst: float = 1.15  # healthy data ends reach 0.78; docs/log.md, the clinic
    steep: float = 2.0  # healthy ends at most 2.5 times their neighbour, but below 0.8
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        tests = []
        for edge, beside in ((0, 1), (9, 8)):
            name = f"flow/nmse_t{edge}"
            error, step = run.settled(name), run.ratio(name, f"flow/nmse_t{beside}")
            if len(error) < LEAST or len(step) < LEAST:
                continue
            bad, steep = share_above(error, self.worst), share_above(step, self.steep)
            tests.append(max(bad.p, steep.p))
            if min(bad.share, steep.share) >= self.persistent:
                finding = self.finding(
                    say("rule.VEL403", edge=edge / 10, error=middle(error), beside=middle(run.settled(f"flow/nmse_t{beside}"))),
                    evidence=[Evidence(name, middle(error), self.worst, **span(error))],
                    causes=[Cause("time-sampling"), Cause("path-derivative-missing")],
                    fixes=[edit("mix_uniform_times"), edit("check_target")],
                    loss=run.of_kind("velocity")[0],
                    subject=name,
                    p=max(bad.p, steep.p),
                )
                return Fired((finding,))
        return Clear(tuple(tests))
