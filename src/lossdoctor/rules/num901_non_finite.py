"""NUM901: a metric that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lossdoctor.curves import ends
from lossdoctor.keys import describe
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Fix, Outcome, Severity, Skipped, say
from lossdoctor.rules.fixes import edit, scale_rate
from lossdoctor.rules.precision import uses_float16
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView

_ORDER = ("posterior", "distillation", "velocity", "loss", "gradient", "step", "endpoint")
"""Families in the order in which a step computes them: of one step the first is the nearest to the root."""
_OF_THE_LOSS = ("distill/loss_ratio", "kl/ratio", "flow/loss_ratio")
"""What is computed from the loss as handed in, and so is no nearer to the root than that."""
_TRAINING = ("loss", "gradient", "step")
_BEFORE = 5
"""Points looked at up to the first non-finite value."""


@dataclass(frozen=True, slots=True)
class _Clue:
    """Something out of range before the first non-finite value, the cause it points to, and what helps against it."""

    evidence: Evidence
    cause: str
    fix: Fix


@dataclass(frozen=True)
class NonFinite(Rule):
    """A number became NaN or infinite.

    Symptom: losses are nan, or the run goes on with weights that no longer learn.
    Cause: too high a rate or no clip; an exp, log, sqrt or division out of its range; half precision.
    Evidence: which metric was non-finite first, at which step, and what came before it: logits over temperature above
    `logits` (`logits_half` in float16, or when a distillation broke first), a standard deviation above `std`, a
    gradient or a total loss `spike` times its usual size. An error when a loss, a gradient or a step does not recover;
    a warning when a loss was touched or another metric does not recover; else a remark.
    Fix: what the first of these says; else a lower rate and a clip, and torch.autograd.set_detect_anomaly on a run that
    begins shortly before that step.
    Ignore when: GradScaler overflows now and then: it skips such a step and lowers its scale. A single infinite
    gradient is only mentioned, and so is a curve of your own that is nan where it has no value.
    Confirm: lr:all*0.3
    """

    code, name = "NUM901", "non-finite"
    logits: float = 88.0  # exp overflows there in float32 and bfloat16
    logits_half: float = 11.0  # and there in float16
    std: float = math.exp(15.0)  # a logvar of 30
    spike: float = 10.0  # over the usual size; of a healthy gradient the spread is under a factor of 2
    tolerated: float = 0.01  # share of a curve that may be non-finite if it recovers
    overflows: float = 0.05  # the same of a gradient, two steps always: GradScaler begins with some overflows

    def check(self, run: RunView) -> Outcome:
        """Every curve."""
        if not len(run):
            return Skipped(say("skip.short", least=LEAST, found=0), say("enable.longer"))
        broken = {name: step for name in run if (step := run.broken(name)[1]) is not None}
        if not broken:
            return Clear()
        known = [name for name in broken if describe(name) is not None]
        first = min(known or broken, key=lambda name: (broken[name], _place(name), name))
        step = broken[first]
        lost = [name for name in known if not self._recovers(run, name)]
        clues = list(self._clues(run, first, step)) if known else []
        told = {"metric": first, "step": step, "count": run.broken(first)[0], "metrics": len(broken)}
        if not lost:
            message = say("rule.NUM901.recovered", **told)
        elif clues:
            seen = clues[0].evidence
            message = say("rule.NUM901.after", **told, before=seen.metric, value=seen.value, at=seen.first_step)
        else:
            message = say("rule.NUM901", **told)
        usual = ("overflow", "unstable-training") if uses_float16(run) else ("unstable-training", "overflow")
        finding = self.finding(
            message,
            evidence=(
                Evidence(first, float(run.broken(first)[0]), 0.0, step, step),
                *(clue.evidence for clue in clues),
            ),
            causes=tuple(map(Cause, dict.fromkeys([*(clue.cause for clue in clues), *usual]))),
            fixes=(
                *(clue.fix for clue in clues),
                scale_rate("all", 0.1),
                edit("clip_gradients"),
                edit("detect_anomaly", first, step=step),
            ),
            loss=first.removeprefix("loss/") if first.removeprefix("loss/") in run.losses else None,
            subject=first,
            severity=_severity(known, lost),
            certainty="likely",
            confirm="lr:all*0.3",
        )
        return Fired((finding,))

    def _recovers(self, run: RunView, name: str) -> bool:
        curve = run[name]
        least, share = (2.0, self.overflows) if name.startswith("grad") else (1.0, self.tolerated)
        few = run.broken(name)[0] <= max(least, share * len(curve))
        return few and math.isfinite(curve.values[-1])

    def _clues(self, run: RunView, first: str, step: int) -> Iterator[_Clue]:
        limit = self.logits_half if uses_float16(run) or _is_distillation(run, first) else self.logits
        for name, bar, cause, fix in (
            ("distill/max_logit_over_temp", limit, "overflow", edit("softmax_in_float32")),
            ("std/max", self.std, "logvar-unclamped", edit("bound_logvar")),
        ):
            yield from _above(name, _until(run[name], step), bar, cause, fix)
        for name in ("grad/total", "loss/total"):
            usual = ends(_until(run[name], step).values[:-_BEFORE])[1]
            bar = self.spike * abs(usual)
            yield from _above(name, _until(run[name], step), bar, "unstable-training", edit("clip_gradients"))


def _is_distillation(run: RunView, name: str) -> bool:
    """Whether a metric is of the distillation: a part of it may be in float16 where the rest is not."""
    key = describe(name)
    return run.losses.get(name.removeprefix("loss/")) == "distill" or (key is not None and key.family == "distillation")


def _above(name: str, curve: Series, bar: float, cause: str, fix: Fix) -> Iterator[_Clue]:
    """A clue when one of the last points lies above the bar; none when the bar is NaN."""
    for step, value in reversed(list(curve)[-_BEFORE:]):
        if value > bar:
            yield _Clue(Evidence(name, value, bar, step, step), cause, fix)
            return


def _until(curve: Series, step: int) -> Series:
    """The finite points up to a step, included."""
    finite = curve.finite
    there = finite.steps <= step
    return Series(finite.steps[there], finite.values[there])


def _place(name: str) -> int:
    if name in _OF_THE_LOSS:
        return _ORDER.index("gradient")
    key = describe(name)
    return _ORDER.index(key.family) if key is not None and key.family in _ORDER else len(_ORDER)


def _severity(known: Sequence[str], lost: Sequence[str]) -> Severity:
    families = {key.family for name in lost if (key := describe(name)) is not None}
    if families & set(_TRAINING):
        return "error"
    touched = any(name.startswith("loss/") for name in known)
    return "warning" if lost or touched else "info"
