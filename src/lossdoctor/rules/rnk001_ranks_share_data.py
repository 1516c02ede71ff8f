"""RNK001: ranks that train on the same data."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Fired, Message, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.ranks import data, evidence, facts, often, one_rank
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class RanksShareData(Rule):
    """Ranks train on the same data.

    Symptom: none. The losses are those of one process, and no step is better for it: N ranks do the work of one.
    Cause: a DataLoader without a DistributedSampler, or a sampler that is not told of the ranks; a stream that is not
    split by rank; a shuffle with one seed on every rank.
    Evidence: the target end `ranks/same/flow.z1` (without it `ranks/same/flow.v_target`; without a flow all that was
    handed in of `posterior.mu` and `distill.teacher_logits`) is above 0 in at least `least` measured steps and at least
    `persistent` of them. Steps at which a rank still has what it had at the measured step before do not count.
    Fix: a DistributedSampler with set_epoch, or accelerator.prepare(loader).
    Ignore when: several ranks work on one batch on purpose: tensor parallelism, or other noise on the same data.
    Confirm: ranks/same/flow.z1 is 0 once this is right
    """

    code, name = "RNK001", "ranks-share-data"
    needs = ("ranks/same/<input>",)
    severity, depth = "error", "root"
    explains = ("RNK002",)
    least: int = given(6)  # one sample each out of ten: six times the same by chance once in a million
    persistent: float = given(0.75)  # one seed is one seed at every step; room for a run mended after a resume

    def beside_the_point(self, run: RunView) -> Message | None:
        """One process."""
        return one_rank(run)

    def check(self, run: RunView) -> Outcome:
        """What shows the data best."""
        curves = data(run, self.least)
        if not curves:
            longest = max((len(run[name]) for name in run.matching("ranks/same/<input>")), default=0)
            return Skipped(say("skip.short", least=self.least, found=longest), say("enable.longer"))
        if any(often(curve) < self.persistent for curve in curves.values()):
            return Clear()
        curve = min(curves.values(), key=often)
        finding = self.finding(
            say("rule.RNK001", **facts(run, curve, curves)),
            evidence=evidence(curves),
            causes=(Cause("data-not-sharded"), Cause("one-seed-for-all")),
            fixes=(edit("shard_data"), edit("seed_ranks")),
            certainty="likely",
            confirm="ranks/same/flow.z1",
        )
        return Fired((finding,))
