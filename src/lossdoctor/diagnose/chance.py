"""The control of false discoveries over all statistical tests of one diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lossdoctor.curves import adjusted
from lossdoctor.rules import Clear, Fired, Outcome, Rule, Skipped

FALSE_DISCOVERIES = 0.05
"""Share of the findings that may be chance. See docs/log.md, the clinic."""


def without_chance(outcomes: dict[str, tuple[Rule, Outcome]]) -> dict[str, tuple[Rule, Outcome]]:
    """Findings whose test could be chance among all tests made are withdrawn (Benjamini and Hochberg 1995)."""
    tests = list(tests_of(outcome for _, outcome in outcomes.values()))
    bar = max((p for p, q in zip(tests, adjusted(tests).tolist(), strict=True) if q <= FALSE_DISCOVERIES), default=0.0)
    kept: dict[str, tuple[Rule, Outcome]] = {}
    for code, (rule, outcome) in outcomes.items():
        kept[code] = (rule, _sure(outcome, bar) if isinstance(outcome, Fired) else outcome)
    return kept


def _sure(fired: Fired, bar: float) -> Fired | Clear:
    findings = tuple(finding for finding in fired.findings if finding.p is None or finding.p <= bar)
    return replace(fired, findings=findings) if findings else Clear(fired.p)


def tests_of(outcomes: Iterable[Outcome]) -> Iterator[float]:
    """The p-values of all tests that were made, of findings and of what was found in order."""
    for outcome in outcomes:
        if not isinstance(outcome, Skipped):
            yield from outcome.p
        if isinstance(outcome, Fired):
            yield from (finding.p for finding in outcome.findings if finding.p is not None)
