"""An arm: what one experiment changes in a training run, as a short text such as `without:kl` or `lr:z_head*3`.

    baseline                 nothing
    only:LOSS                every other loss has weight 0
    without:LOSS             this one has weight 0
    shuffle:cond             every sample gets the condition of another one of its batch
    weight:LOSS*F, =V        the weight of a loss
    lr:HEAD*F, =V            the learning rate of a head; the head `all` is everything
    wd:HEAD=V, *F            the weight decay of a head
    knob:NAME=V, *F          a number the script passes through `lossdoctor.knob`
    warmup:LOSS=STEPS        the weight of a loss rises from 0 over these steps
    balance:METHOD           the losses are balanced while training

Joined with `+`, they are applied from left to right.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lossdoctor.errors import UsageError, mismatch

BASELINE = "baseline"
ALL = "all"
"""The head that stands for all parameters."""
SCALED = ("weight", "lr", "wd", "knob")
"""Verbs that multiply (`*`) or set (`=`) a number."""
BALANCERS = ("config", "cosine", "gradnorm", "pcgrad", "ratio")
"""What `balance:` can name: the balancers of `lossdoctor.treat`, which a check of an arm need not load."""
NAMED = ("only", "without", "shuffle", "balance")
VERBS = (BASELINE, *NAMED, *SCALED, "warmup")

_EXAMPLES = "baseline, only:flow, without:kl, shuffle:cond, weight:dino*2, lr:z_head*3, wd:z_head=0, warmup:kl=1000"
_NUMBER = re.compile(r"(?P<target>.*?)(?P<sign>[*=])(?P<value>[^*=]+)")


@dataclass(frozen=True, slots=True)
class Change:
    """One change. verb: of VERBS. target: the loss, head, knob or method. sign: "*" or "=", "" without a number."""

    verb: str
    target: str
    sign: str = ""
    value: float = math.nan

    def __str__(self) -> str:
        return f"{self.verb}:{self.target}{self.sign}{'' if not self.sign else f'{self.value:g}'}"

    def applied(self, number: float) -> float:
        """`number` scaled or replaced."""
        return number * self.value if self.sign == "*" else self.value


@dataclass(frozen=True, slots=True)
class Arm:
    """Changes in the order they are applied; none is the baseline."""

    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.changes)) or BASELINE

    def of(self, *verbs: str) -> tuple[Change, ...]:
        """The changes with one of these verbs."""
        return tuple(change for change in self.changes if change.verb in verbs)

    def weight(self, loss: str, weight: float, step: int) -> float:
        """What becomes of the weight of a loss at an optimizer step, counted from 0."""
        for change in self.changes:
            mine = change.target == loss
            if (change.verb == "only" and not mine) or (change.verb == "without" and mine):
                weight = 0.0
            elif change.verb == "weight" and mine:
                weight = change.applied(weight)
            elif change.verb == "warmup" and mine:
                weight *= min(1.0, (step + 1) / change.value)
        return weight


def parse(text: str) -> Arm:
    """The arm a text names. Raises UsageError, which lists the forms, for any other text."""
    return Arm(tuple(change for part in text.split("+") if (change := _change(part.strip(), text)) is not None))


def _change(part: str, whole: str) -> Change | None:
    if part == BASELINE:
        return None
    verb, colon, rest = part.partition(":")
    if verb not in VERBS or not colon or not rest:
        raise UsageError(_unknown(part, whole))
    if verb in NAMED:
        if verb == "shuffle" and rest != "cond":
            raise UsageError(_unknown(part, whole))
        if verb == "balance" and rest not in BALANCERS:
            raise UsageError(
                mismatch(f"{part!r} names no balancer", ", ".join(BALANCERS), repr(rest), "use one of these")
            )
        return Change(verb, rest)
    matched = _NUMBER.fullmatch(rest)
    value = _number(matched["value"]) if matched else math.nan
    if matched is None or not matched["target"] or not math.isfinite(value):
        raise UsageError(_unknown(part, whole))
    if verb == "warmup" and (matched["sign"] != "=" or value < 1):
        raise UsageError(_unknown(part, whole))
    return Change(verb, matched["target"], matched["sign"], value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _unknown(part: str, whole: str) -> str:
    return mismatch(
        f"{part!r} is no arm" + ("" if part == whole else f" (in {whole!r})"),
        "VERB:NAME, or VERB:NAME*FACTOR and VERB:NAME=VALUE for numbers; several joined with +",
        repr(part),
        f"for example {_EXAMPLES}",
    )
