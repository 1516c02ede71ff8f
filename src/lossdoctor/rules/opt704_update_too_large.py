"""OPT704: updates so large that the losses suffer."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import block_medians, share_above
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit, scale_rate
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import factor_to
from lossdoctor.rules.view import LEAST, RunView, middle, span

RMS = "step/<head>_rms_update"
EXPLODED = ("rule.OPT704.explodes", "rule.OPT704.breaks")
"""What is said where a loss left every bound: then gradients weigh what the explosion has made of them, whatever the
weights are. A loss that only does not fall may be stuck for want of weight."""
_BLOCKS = 100
"""Blocks of a loss of which one must lie high, so that a single bad batch is no explosion."""


@dataclass(frozen=True, slots=True)
class _Harm:
    """A loss that suffers. how: "explodes", "breaks" (NaN or infinite) or "stuck". first, worst: what it begins with,
    and the worst it comes to."""

    loss: str
    how: str
    first: float
    worst: float


@dataclass(frozen=True)
class UpdateTooLarge(Rule):
    """Single steps change the weights of a head so much that the losses suffer.

    Symptom: a loss jumps far above where it began, or stays there; later the weights are so large that the same rate
    hardly moves them any more.
    Cause: the learning rate is too high, or has no warm-up; or parameters are stepped by two optimizers.
    Evidence: `step/<head>_rms_update` above `rms` in most steps after the warm-up, or above `violent` at any step of a
    run in which a loss explodes, or at the last step before one breaks. A distillation or velocity loss explodes when
    a hundredth of its curve lies above `explosion` times what it begins and ends with, or above `diverged` times its
    first value; it breaks when it is NaN or infinite. A warning when one does, or ends no lower than it began; else a
    remark.
    Fix: a rate 3 to 10 times lower, or as far as the numbers say; a warm-up, a gradient clip.
    Ignore when: the head begins at zero: then its first updates are large against nothing, and get small. Without a
    loss that suffers that is no finding.
    Confirm: lr:all*0.1
    """

    code, name = "OPT704", "update-too-large"
    needs = (RMS,)
    explains = (
        "NUM901", "OPT703", "GRD102", "GRD103", "GRD106", "GRD107", "BAL801",
        "VEL401", "VEL405", "PST309", "DST203", "CND601", "SMP",
    )  # fmt: skip
    rms: float = given(1e-2)  # the method's
    violent: float = 0.1  # docs/log.md, the clinic: 0.12 to 0.35 at 100 times the rate; healthy heads 0.05
    explosion: float = 2.0  # docs/log.md, the clinic: at most 1.2 healthy, 2.2 and more at 100 times the rate
    diverged: float = 10.0  # docs/log.md, the clinic: 1e10 and more where a rate of 0.3 did not come back
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Every head, and whether the losses suffer."""
        harm = self._harm(run)
        found, tests, longest = [], [], 0
        for name, holes in run.matching(RMS).items():
            whole, settled = run[name].finite, run.settled(name)
            longest = max(longest, len(settled))
            test = share_above(settled, self.rms)
            violent = self._violent(whole, harm)
            if len(settled) >= LEAST and test.share >= self.persistent:
                found.append(self._finding(run, holes["head"], settled, harm, test.p))
            elif len(violent):
                found.append(self._finding(run, holes["head"], violent, harm, None))
            else:
                tests.append(test.p)
        if longest < LEAST and not found:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return outcome(found, tests)

    def _violent(self, curve: Series, harm: _Harm | None) -> Series:
        """The steps that a loss which explodes or breaks can be blamed on."""
        there = curve.values > self.violent
        # What broke at the end is not to be blamed on how a head began that was zero.
        blamed = there.any() and harm is not None and (harm.how == "explodes" or (harm.how == "breaks" and there[-1]))
        there &= bool(blamed)
        return Series(curve.steps[there], curve.values[there])

    def _finding(self, run: RunView, head: str, curve: Series, harm: _Harm | None, p: float | None) -> Finding:
        limit = self.violent if p is None else self.rms
        told = {"head": head, "much": _much(middle(curve)), **span(curve)}
        seen = [Evidence(f"step/{head}_rms_update", middle(curve), limit, **span(curve))]
        message = say("rule.OPT704", **told)
        if harm is not None:
            suffers = {"loss": harm.loss, "first": harm.first, "worst": harm.worst}
            message = say(f"rule.OPT704.{harm.how}", **told, **suffers)
            bar = harm.first * (self.explosion if harm.how == "explodes" else 1.0)
            seen.append(Evidence(f"loss/{harm.loss}", harm.worst, bar, **span(run[f"loss/{harm.loss}"].finite)))
        twice = bool((run.facts.get("optimizers") or {}).get("twice_count"))
        factors = [0.1, 0.3]
        if middle(curve) > 10 * self.rms / 3:
            # An update is as large as its rate: this brings it to a third of what is too large. Weights that have grown
            # under such steps make them look smaller than they were, so a tenth of that may be needed.
            far = factor_to(self.rms / 3, middle(curve))
            factors = [far, far / 10]
        codes = ("twice-in-optimizer", "rate-too-large") if twice else ("rate-too-large", "unstable-training")
        return self.finding(
            message,
            evidence=seen,
            causes=tuple(map(Cause, codes)),
            fixes=(*(scale_rate("all", factor) for factor in factors), edit("warm_up_rate"), edit("clip_gradients")),
            subject=head,
            severity="info" if harm is None else "warning",
            confirm=f"lr:all*{factors[0]:g}",
            p=p,
        )

    def _harm(self, run: RunView) -> _Harm | None:
        """The loss that suffers most plainly. A KL and other losses may rise: many begin near 0."""
        meant_to_fall = [o for o, kind in run.losses.items() if kind in ("velocity", "distill") and run.weighted(o)]
        found = [harm for loss in meant_to_fall if (harm := self._suffers(run, loss)) is not None]
        return min(found, key=lambda harm: ("explodes", "breaks", "stuck").index(harm.how), default=None)

    def _suffers(self, run: RunView, loss: str) -> _Harm | None:
        curve = run[f"loss/{loss}"].finite
        if not len(curve):
            return None
        first, now = float(curve.values[0]), run.now(f"loss/{loss}")
        worst = float(block_medians(curve, _BLOCKS).values.max())
        if first > 0 and (worst > self.explosion * max(first, now) or worst > self.diverged * first):
            return _Harm(loss, "explodes", first, worst)
        if run.broken(f"loss/{loss}")[0]:
            return _Harm(loss, "breaks", first, worst)
        return _Harm(loss, "stuck", first, now) if now >= first else None


def _much(update: float) -> Message:
    """A change relative to the weights, as a sentence has it: in percent, from ten times on in times."""
    if update < 10:
        return say("rule.OPT704.told.percent", percent=100 * update)
    return say("rule.OPT704.told.times", times=update)
