"""NUM903: logits that are too large for the exp of a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit, scale_knob
from lossdoctor.rules.precision import stored_in_float16, uses_float16
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.view import RunView, span

LOGITS = "distill/max_logit_over_temp"


@dataclass(frozen=True)
class HalfPrecisionOverflow(Rule):
    """Logits over temperature are so large that their exp overflows.

    Symptom: NaN late in a run, when the logits have grown; or none yet.
    Cause: an exp of logits over temperature in float16, which ends at 65504, the exp of 11; a temperature that is far
    too low; logits that nothing bounds.
    Evidence: `distill/max_logit_over_temp` of at least `float16` in at least `least` steps of a run whose audit finds
    float16, or of at least `float32` in any precision. An error with parameters in float16, or when a distillation loss
    was the first of the losses to become NaN or infinite, where `float16` counts whatever the audit says; else a
    remark: autocast takes a softmax in float32.
    Fix: the softmax in float32, with the maximum subtracted; normalised logits; a higher temperature.
    Ignore when: torch.softmax or log_softmax is used: it subtracts the maximum, and in float32 nothing overflows.
    Confirm: knob:teacher_temp*2
    """

    code, name = "NUM903", "half-precision-overflow"
    needs = (LOGITS,)
    depth = "root"
    explains = ("NUM901",)
    float16: float = given(11.0)  # exp(11.09) is the largest float16
    float32: float = given(88.0)  # exp(88.7) is the largest float32
    least: int = 3  # no single outlier
    sharp: float = 0.02  # teacher temperature under which it is to blame; DINO's is 0.04 to 0.07

    def check(self, run: RunView) -> Outcome:
        """All measured steps: one is enough to overflow."""
        curve = run[LOGITS].finite
        if not len(curve):
            return Skipped(say("skip.short", least=self.least, found=0), say("enable.longer"))
        half, broken = uses_float16(run), _broke_first(run)
        limit = self.float16 if half or broken else self.float32
        there = curve.values >= limit
        above = Series(curve.steps[there], curve.values[there])
        if len(above) < (1 if broken else self.least):
            return Clear()
        highest = float(above.values.max())
        told = {"highest": highest, "limit": limit, "count": len(above), **span(above)}
        if broken:
            message = say("rule.NUM903.broken", **told, loss=broken)
        else:
            message = say("rule.NUM903.float16", **told) if half else say("rule.NUM903", **told)
        sharp = run.now("distill/teacher_temp") < self.sharp
        finding = self.finding(
            message,
            evidence=(Evidence(LOGITS, highest, limit, **span(above)),),
            causes=tuple(map(Cause, ("teacher-temperature-low", "overflow") if sharp else ("overflow",))),
            fixes=(
                edit("softmax_in_float32"),
                *((scale_knob("teacher_temp", 2.0),) if run.knob("teacher_temp") else ()),
                edit("normalise_logits"),
            ),
            severity="error" if broken or stored_in_float16(run) else "info",
            certainty="likely",
            confirm="knob:teacher_temp*2",
        )
        return Fired((finding,))


def _broke_first(run: RunView) -> str | None:
    """The distillation loss that was non-finite before every other loss. Diverging weights break all at once."""
    steps = {loss: step for loss in run.losses if (step := run.broken(f"loss/{loss}")[1]) is not None}
    first = min(steps, key=lambda loss: steps[loss], default=None)
    if first is None or run.losses[first] != "distill":
        return None
    return first if all(steps[first] < step for loss, step in steps.items() if loss != first) else None
