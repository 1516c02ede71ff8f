"""VEL403: the velocity is worse at an end of time than that end explains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of, too_small
from lossdoctor.rules.velocity import outweighed, settled, target_codes, the_loss, typical, visits
from lossdoctor.rules.view import LEAST, RunView, middle, span

_ENDS = {0: 1, 9: 8}
"""The tenth at each end, and its neighbour."""
_INNER = range(2, 8)


@dataclass(frozen=True)
class EdgeDegradation(Rule):
    """Near one end of time the velocity is worse than predicting nothing, while in the middle it is learned.

    Symptom: samples get the broad shape and not the details, or start in a wrong direction.
    Cause: times there are hardly sampled, the target is singular there (a factor 1/t or 1/(1-t)), or both ends of the
    path have very different scales.
    Evidence: `flow/nmse_t0` or `flow/nmse_t9` is above `worse`, which is worse than predicting 0, in most steps, while
    the middle is under `learned`. A tenth that is hardly ever sampled is also mentioned when its error is `steep`
    times that of its neighbour.
    Fix: mix uniform times into the sampling, give the end more weight, check alpha' and beta' there.
    Ignore when: the error at that end is near 1 and not above. An end is harder by nature: towards the data the
    best possible error tends to what the source alone contributes, and no training removes that.
    Confirm: train with uniform times and compare this tenth
    """

    code, name = "VEL403", "edge-degradation"
    needs = ("flow/nmse_t{0..9}",)
    worse: float = 1.1  # docs/log.md, the clinic: healthy ends 0.11 to 0.78; predicting 0 scores 1
    learned: float = 0.8  # error of the middle under which the network works at all; its median healthy 0.12 to 0.45
    steep: float = 4.0  # docs/log.md, the clinic: a healthy end is up to 2.6 times its neighbour
    rare: float = 0.025  # share of the samples; an even share is 0.1, a standard logit-normal gives an end 0.014
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Both ends, each against 0 and against its neighbour."""
        ends = {end: curve for end in _ENDS if len(curve := settled(run, f"nmse_t{end}")) >= LEAST}
        inner = [level for i in _INNER if math.isfinite(level := typical(run, f"nmse_t{i}"))]
        if not ends or not inner:
            longest = max(len(settled(run, f"nmse_t{end}")) for end in _ENDS)
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        middle_error = float(np.median(inner))
        shares, _ = visits(run)
        found: list[Finding] = []
        tests = []
        for end, curve in ends.items():
            test = share_above(curve, self.worse)
            beside = typical(run, f"nmse_t{_ENDS[end]}")
            told = {"middle": middle_error, "beside": beside, "percent": 100 * shares[end], **span(curve)}
            where = {"first": end / 10, "last": (end + 1) / 10, "error": middle(curve)}
            if (
                test.share >= self.persistent
                and run.now(f"flow/nmse_t{end}") > self.worse
                and middle_error < self.learned
            ):
                message = say("rule.VEL403", **where, **told)
                found.append(self._finding(run, end, message, limit=self.worse, p=test.p))
                continue
            tests.append(test.p)
            if 0 < shares[end] < self.rare and middle(curve) > self.steep * beside:
                message = say("rule.VEL403.rare", **where, **told)
                found.append(self._finding(run, end, message, limit=self.steep * beside, p=None))
        return outcome(found, tests)

    def _finding(self, run: RunView, end: int, message: Message, *, limit: float, p: float | None) -> Finding:
        curve = settled(run, f"nmse_t{end}")
        shares, n = visits(run)
        ratio = typical(run, "z1_std") / max(typical(run, "z0_std"), 1e-12)
        codes: list[Cause | str] = ["time-sampling"] if n and shares[end] < self.rare else []
        codes += [too_small(the_loss(run))] if outweighed(run) else []
        codes += target_codes(run)
        codes += ["latent-scale"] if ratio > 3 or ratio < 1 / 3 else []
        codes += ["path-derivative-missing", "time-sampling"]
        return self.finding(
            message,
            evidence=(
                Evidence(f"flow/nmse_t{end}", middle(curve), limit, **span(curve)),
                *((Evidence(f"flow/count_t{end}", shares[end], self.rare),) if n else ()),
            ),
            causes=causes_of(codes),
            fixes=(edit("mix_uniform_times"), edit("check_target", the_loss(run) or "flow")),
            loss=the_loss(run),
            subject=f"t{end}",
            severity="info" if p is None else "warning",
            p=p,
        )
