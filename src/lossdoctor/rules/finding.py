"""What a rule answers with: fired, clear or skipped; and what a finding is made of.

Texts are kept as message keys with parameters, so that one diagnosis can be told in every language.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lossdoctor.messages import has, text

Severity = Literal["error", "warning", "info"]
Certainty = Literal["suspected", "likely", "confirmed"]
Reach = Literal["observe", "retune", "change"]
Depth = Literal["root", "mechanism", "consequence"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Worst first."""
CERTAINTIES: tuple[Certainty, ...] = ("confirmed", "likely", "suspected")
DEPTHS: tuple[Depth, ...] = ("root", "mechanism", "consequence")


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence: a key of the message catalogues and what fills its holes. `str()` gives it in English."""

    key: str
    params: dict[str, Any] = field(default_factory=dict)

    def text(self, lang: str = "en") -> str:
        """The sentence in a language. A parameter that is a message itself is told in the same one."""
        told = {name: one.text(lang) if isinstance(one, Message) else one for name, one in self.params.items()}
        return text(self.key, lang, **told)

    def __str__(self) -> str:
        return self.text()


def say(key: str, **params: Any) -> Message:
    """A message from a key and its parameters."""
    return Message(key, params)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number a finding rests on.

    metric: its name in the run, or the name of an audited fact. value: what was seen, usually a median over the steps
    judged. threshold: what it was held against, None for a fact. first_step, last_step: of those steps, both included.
    """

    metric: str
    value: float
    threshold: float | None = None
    first_step: int | None = None
    last_step: int | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """A possible root of a finding: a code of `causes.CAUSES`; the sentence is the message `cause.<code>`.

    params: what fills its holes. With a `loss` among them the sentence is `cause_of.<code>`, if there is one: it names
    that loss, and in `rival` the one it is measured against.
    """

    code: str
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        """The cause as a sentence."""
        named = f"cause_of.{self.code}"
        return Message(named if "loss" in self.params and has(named, "en") else f"cause.{self.code}", self.params)


@dataclass(frozen=True, slots=True)
class Fix:
    """Something to try, as data that an experiment arm can apply, and as a sentence.

    action: what to do; target: the loss, head or knob it is done to. reach: "observe" changes nothing, "retune" changes
    a number, "change" needs an edit of the program. Made by the functions of `fixes`.
    """

    action: str
    target: str
    params: dict[str, Any]
    reach: Reach
    message: Message


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem in one run.

    code, name: of the rule. loss: the loss it concerns, if any. subject: the head, module or metric, where there are
    several. causes: most likely first. confirm: the experiment arm that settles it. p: of the statistical test it rests
    on, None where it rests on a fact. depth: how near the finding is to the root of the trouble. explained_by: code of
    the finding it follows from, set by the diagnosis.
    """

    code: str
    name: str
    severity: Severity
    certainty: Certainty
    depth: Depth
    message: Message
    evidence: tuple[Evidence, ...] = ()
    causes: tuple[Cause, ...] = ()
    fixes: tuple[Fix, ...] = ()
    loss: str | None = None
    subject: str | None = None
    confirm: str | None = None
    p: float | None = None
    explained_by: str | None = None


@dataclass(frozen=True, slots=True)
class Fired:
    """The problem is there, once or for several losses or heads. p: of the tests that came out clear beside them."""

    findings: tuple[Finding, ...]
    p: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Clear:
    """The rule applies and the problem is not there. p: of the tests made, for the control of false discoveries."""

    p: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """The rule could not judge. reason: why; enable: what to add to the training script, if that is known."""

    reason: Message
    enable: Message | None = None


Outcome = Fired | Clear | Skipped


def outcome(findings: list[Finding], p: list[float] | None = None) -> Fired | Clear:
    """Fired when there is a finding, else clear."""
    tests = tuple(p or ())
    return Fired(tuple(findings), tests) if findings else Clear(tests)
