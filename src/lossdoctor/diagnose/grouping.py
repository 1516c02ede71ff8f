"""Putting findings together: which one follows from which, and which one comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lossdoctor.rules import Cause, Finding, Rule
from lossdoctor.rules.finding import CERTAINTIES, DEPTHS, SEVERITIES


def grouped(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> Iterator[Finding]:
    """Leaders, each followed by what it explains; the group with the worst finding in it comes first."""
    ordered = sorted(findings, key=importance)
    leader_of = {id(finding): _leader(finding, ordered, rules) for finding in ordered}
    groups = [
        (finding, tuple(_followers(finding, ordered, leader_of)))
        for finding in ordered
        if leader_of[id(finding)] is None
    ]
    for leader, followers in sorted(groups, key=lambda group: _worst((group[0], *group[1]))):
        yield leader
        yield from followers


def _followers(
    leader: Finding, ordered: Sequence[Finding], leader_of: Mapping[int, Finding | None]
) -> Iterator[Finding]:
    for finding in ordered:
        if leader_of[id(finding)] is leader:
            yield replace(finding, explained_by=leader.code)


def _leader(finding: Finding, ordered: Sequence[Finding], rules: Mapping[str, Rule]) -> Finding | None:
    """The most important finding that this one follows from, directly or over others; None for a leader."""
    seen = {id(finding)}
    reached = [finding]
    best: Finding | None = None
    while reached:
        one = reached.pop()
        for other in ordered:
            if id(other) not in seen and _explains(other, one, rules):
                seen.add(id(other))
                reached.append(other)
    roots = [one for one in ordered if id(one) in seen and not any(_explains(o, one, rules) for o in ordered)]
    best = roots[0] if roots else None
    return None if best is finding else best


def _explains(root: Finding, other: Finding, rules: Mapping[str, Rule]) -> bool:
    if root is other or (root.code == other.code and root.subject == other.subject and root.loss == other.loss):
        return False
    if root.loss is not None and other.loss is not None and root.loss != other.loss:
        return False
    back = rules[other.code].explains
    if root.code in back or root.code[:3] in back:
        return False
    named = rules[root.code].explains
    if other.code in named or other.code[:3] in named:
        return rules[other.code].follows(other, root)
    # The same root named first by both: the one that is nearer to it leads.
    return _one_root(root.causes[:1], other.causes[:1]) and importance(root) < importance(other)


def _one_root(mine: Sequence[Cause], yours: Sequence[Cause]) -> bool:
    """Whether both are one and the same cause, and not that of two losses."""
    losses = {cause.params["loss"] for cause in (*mine, *yours) if "loss" in cause.params}
    return len({cause.code for cause in mine} & {cause.code for cause in yours}) == 1 and len(losses) < 2


def _worst(group: Sequence[Finding]) -> tuple[int, tuple[int, int, int, str, str]]:
    return min(SEVERITIES.index(finding.severity) for finding in group), importance(group[0])


def importance(finding: Finding) -> tuple[int, int, int, str, str]:
    """The key that sorts the most important finding first. Raises ValueError for a word that has no place in it."""
    return (
        SEVERITIES.index(finding.severity),
        DEPTHS.index(finding.depth),
        CERTAINTIES.index(finding.certainty),
        finding.code,
        f"{finding.loss} {finding.subject}",
    )
