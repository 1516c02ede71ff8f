"""The base of every rule. A rule is one file: its docstring is the page a user reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lossdoctor.rules.finding import Cause, Certainty, Depth, Evidence, Finding, Fix, Message, Outcome, Severity
from lossdoctor.rules.view import RunView

Status = Literal["preview", "stable", "deprecated", "removed"]

HEADINGS = ("Symptom", "Cause", "Evidence", "Fix", "Ignore when", "Confirm")
"""The parts of a page, in this order, each at the beginning of a line of the docstring."""


def given(default: float) -> Any:
    """A threshold that the method, or a number format, gives: nobody looked at a run to set it.

    A user may set it like any other; the clinic, which asks what looking at runs is worth, does not choose it anew.
    """
    return dataclasses.field(default=default, metadata={"given": True})


@dataclass(frozen=True)
class Rule:
    """A question to one run. Thresholds are dataclass fields, so that a user can set them.

    code, name: for ever; the name states the problem. since: the version it came with. needs: patterns of metrics (of
    `keys.KEYS`) the rule cannot do without; "a or b" is one of the two; "audit" is the recorded audit. kind: the kind
    of loss it is about; without a loss of that kind the rule does not apply. severity, depth: of its findings, unless
    it says otherwise. explains: codes of rules whose findings on the same loss or head follow from this one.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    status: ClassVar[Status] = "stable"
    since: ClassVar[str] = "0.1"
    needs: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str | None] = None
    severity: ClassVar[Severity] = "warning"
    depth: ClassVar[Depth] = "mechanism"
    explains: ClassVar[tuple[str, ...]] = ()

    def check(self, run: RunView) -> Outcome:
        """Judge one run. Called only when everything in `needs` is there and a loss of `kind` exists."""
        raise NotImplementedError

    def follows(self, finding: Finding, root: Finding) -> bool:
        """Whether a finding of this rule follows from that of a rule which names it in `explains`; usually it does."""
        return True

    def beside_the_point(self, run: RunView) -> Message | None:
        """Why nothing is wrong with a run that lacks what is needed; None where something should be measured."""
        return None

    def finding(
        self,
        message: Message,
        *,
        evidence: Sequence[Evidence] = (),
        causes: Sequence[Cause] = (),
        fixes: Sequence[Fix] = (),
        loss: str | None = None,
        subject: str | None = None,
        severity: Severity | None = None,
        certainty: Certainty = "suspected",
        confirm: str | None = None,
        p: float | None = None,
    ) -> Finding:
        """A finding of this rule."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            certainty=certainty,
            depth=self.depth,
            message=message,
            evidence=tuple(evidence),
            causes=tuple(causes),
            fixes=tuple(fixes),
            loss=loss,
            subject=subject,
            confirm=confirm,
            p=p,
        )

    @classmethod
    def thresholds(cls) -> dict[str, Any]:
        """The fields a user can set, with their defaults."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @classmethod
    def set_by_runs(cls) -> dict[str, Any]:
        """Those of them that were set by looking at runs."""
        return {field.name: field.default for field in dataclasses.fields(cls) if not field.metadata.get("given")}

    @classmethod
    def page(cls) -> str:
        """The English page."""
        return cls.__doc__ or ""
