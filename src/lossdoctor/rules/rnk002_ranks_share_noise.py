"""RNK002: ranks that draw the same noise or the same times."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Fired, Message, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.ranks import data, evidence, facts, often, one_rank, told
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class RanksShareNoise(Rule):
    """Ranks draw the same noise or the same times.

    Symptom: none. The gradient is noisier than a batch of that size should be, and fewer times are covered.
    Cause: the same torch.manual_seed(seed), or set_seed(seed) of accelerate, on every rank, or a generator with a fixed
    seed; the data are split over the ranks, and the noise is not.
    Evidence: `ranks/same/flow.t`, `ranks/same/posterior.noise` or, where the data differ, `ranks/same/flow.z0` is above
    0 in at least `least` measured steps and at least `persistent` of them. A grid of times that does not change from
    one measured step to the next does not count, nor does one time for a whole batch.
    Fix: once the model is built, seed each rank by itself: seed + rank.
    Ignore when: common random numbers on all ranks are meant, or a grid of times that moves with the step is shared on
    purpose.
    Confirm: ranks/same/flow.t is 0 once this is right
    """

    code, name = "RNK002", "ranks-share-noise"
    needs = ("ranks/same/<input>",)
    depth = "root"
    least: int = given(6)  # one of 1,000 times for one sample per rank: six times by chance once in 10^18
    persistent: float = given(0.75)  # one seed is one seed at every step; room for a run mended after a resume

    def beside_the_point(self, run: RunView) -> Message | None:
        """One process."""
        return one_rank(run)

    def check(self, run: RunView) -> Outcome:
        """Times, the noise of the posterior, and the source of the flow."""
        curves = self._curves(run)
        if not curves:
            return Skipped(say("skip.missing", metrics="ranks/same/flow.t"), say("absent.velocity.todo"))
        if all(len(curve) < self.least for curve in curves.values()):
            longest = max(map(len, curves.values()))
            return Skipped(say("skip.short", least=self.least, found=longest), say("enable.longer"))
        same = {n: one for n, one in curves.items() if len(one) >= self.least and often(one) >= self.persistent}
        if not same:
            return Clear()
        curve = max(same.values(), key=often)
        finding = self.finding(
            say("rule.RNK002", **facts(run, curve, same)),
            evidence=evidence(same),
            causes=(Cause("one-seed-for-all"),),
            fixes=(edit("seed_ranks"),),
            certainty="likely",
            confirm="ranks/same/flow.t",
        )
        return Fired((finding,))

    def _curves(self, run: RunView) -> dict[str, Series]:
        names = ["flow.t", "posterior.noise"]
        # Of the same data the source may be the same without any noise.
        if any(often(curve) < self.persistent for curve in data(run, self.least).values()):
            names.append("flow.z0")
        return {name: curve for name in names if len(curve := told(run, name))}
