"""How often the fix that is ranked first helps: the counts, and a page and JSON of them. Failures are listed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lossdoctor import __version__
from lossdoctor.clinic.case import HEALTHY
from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.proof import TRIED, Attempt, Pair, Proven
from lossdoctor.messages import text

SCHEMA = "lossdoctor/clinic-fixes@1"
LOOK = ("attach_head", "connect_condition", "connect_time", "check_labels", "look_at_mask", "same_logits")
"""Edits that say where the mistake sits, and not what to write in its place."""

Say = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Proofs:
    """All of them. failed: pairs without an answer, with the reason. every: faulty pairs there are. command,
    machine: what made it and where.
    """

    proven: Sequence[Proven]
    failed: Mapping[Pair, str]
    steps: int
    every: int
    command: str
    machine: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Of some cases, each of them a faulty program with a finding.

    own: the finding is of a rule that stands for the fault; else a fix may remove it and leave the fault. removed: the
    fix ranked first removes it in every seed. clean: and nothing else is found instead. printed: and it is the fix that
    is printed first, too. confirmed, withdrawn: what became of the finding.
    """

    cases: int
    own: int
    removed: int
    clean: int
    printed: int
    confirmed: int
    withdrawn: int

    @property
    def share(self) -> float | None:
        """Removed of all; None of nothing."""
        return self.removed / self.cases if self.cases else None


def rate(proven: Iterable[Proven]) -> Rate:
    """Over the faulty programs among these that have a finding. One that has no fix to try counts as not removed."""
    cases = [one for one in proven if one.fault != HEALTHY and one.code is not None]
    removed = [one for one in cases if one.gone]
    return Rate(
        len(cases),
        sum(one.code in BY_NAME[one.fault].rules for one in cases),
        len(removed),
        sum(not one.attempts[0].alarms for one in removed),
        sum(one.attempts[0].place == 0 for one in removed),
        sum(one.certainty == "confirmed" for one in cases),
        sum(one.certainty == "withdrawn" for one in cases),
    )


def as_they_are(proven: Iterable[Proven]) -> list[Proven]:
    """Those with a fix that an arm can try in any script, with these fixes alone."""
    few = [dataclasses.replace(one, attempts=tuple(a for a in one.attempts if not a.edit)) for one in proven]
    return [one for one in few if one.attempts]


def by_edit(proven: Iterable[Proven]) -> list[Proven]:
    """Those whose fixes are edits of the program, all of them, or of which nothing could be tried."""
    return [one for one in proven if all(attempt.edit for attempt in one.attempts)]


# For programs


def as_json(proofs: Proofs) -> dict[str, Any]:
    """Everything."""
    healthy = [one for one in proofs.proven if one.fault == HEALTHY]
    groups = {"all": proofs.proven, "as_they_are": as_they_are(proofs.proven), "by_edit": by_edit(proofs.proven)}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "command": proofs.command,
        "machine": proofs.machine,
        "steps": proofs.steps,
        "every": proofs.every,
        "rates": {name: {**dataclasses.asdict(r := rate(some)), "share": r.share} for name, some in groups.items()},
        "healthy": {
            "runs": len(healthy),
            "flagged": sum(one.code is not None for one in healthy),
            "confirmed": sum(one.certainty == "confirmed" for one in healthy),
        },
        "cases": [{**dataclasses.asdict(one), "removed": one.gone} for one in proofs.proven],
        "failed": [{"program": p, "fault": f, "reason": reason} for (p, f), reason in sorted(proofs.failed.items())],
    }


# For people


def as_markdown(proofs: Proofs, lang: str = "en") -> str:
    """The page."""
    return "\n".join(_page(proofs, partial(text, lang=lang))).rstrip() + "\n"


def _page(proofs: Proofs, say: Say) -> Iterator[str]:
    proven = proofs.proven
    yield from (f"# {say('proof.page.title')}", "", say("proof.page.intro", steps=proofs.steps, tried=TRIED), "")
    yield from (say("proof.page.edits", look=", ".join(f"`{edit}`" for edit in LOOK)), "")
    yield say("clinic.page.made", command=proofs.command, machine=proofs.machine)
    seeds = Counter(one.seeds for one in proven if one.fault != HEALTHY)
    told = ", ".join(say("proof.page.seeds", pairs=pairs, seeds=n) for n, pairs in sorted(seeds.items()))
    yield from (say("proof.page.size", pairs=seeds.total(), every=proofs.every, seeds=told), "")
    yield from (f"## {say('proof.page.rates')}", "")
    groups = {
        **{program: _of(proven, program) for program in dict.fromkeys(one.program for one in proven)},
        f"**{say('clinic.page.all')}**": proven,
        say("proof.page.as_they_are"): as_they_are(proven),
        say("proof.page.by_edit"): by_edit(proven),
    }
    yield from _table(say("proof.page.rates.columns"), (_rate_cells(name, some) for name, some in groups.items()))
    yield from ("", f"## {say('proof.page.healthy')}", "", say("proof.page.healthy.how"), "")
    yield from _table(say("proof.page.healthy.columns"), _healthy(proven, say))
    yield from ("", f"## {say('proof.page.cases')}", "", say("proof.page.cases.how"), "")
    yield from _table(say("proof.page.cases.columns"), _cases(proven, say))
    yield from ("", f"## {say('clinic.page.wrong')}", "")
    yield from (f"- {line}" for line in [*_wrong(proofs, say)] or [say("clinic.page.wrong.nothing")])


def _of(proven: Iterable[Proven], program: str) -> list[Proven]:
    return [one for one in proven if one.program == program]


def _rate_cells(name: str, proven: Iterable[Proven]) -> tuple[object, ...]:
    r = rate(proven)
    percent = "" if r.share is None else f"{100 * r.share:.1f} %"
    return (name, r.cases, r.own, r.removed, percent, r.clean, r.printed, r.confirmed, r.withdrawn)


def _healthy(proven: Iterable[Proven], say: Say) -> Iterator[tuple[object, ...]]:
    for one in proven:
        if one.fault == HEALTHY:
            found = one.code or say("clinic.page.wrong.none")
            yield one.program, one.seeds, found, _certainty(one, say) if one.code else ""


def _cases(proven: Iterable[Proven], say: Say) -> Iterator[tuple[object, ...]]:
    for one in proven:
        if one.fault != HEALTHY and one.code is not None:
            first, *others = one.attempts or (None,)
            told = (_tried(first), ", ".join(first.alarms)) if first is not None else ("", "")
            yield (
                one.program,
                one.fault,
                f"{one.code} ({one.seen}/{one.seeds})",
                *told,
                _certainty(one, say),
                ", ".join(_tried(other) for other in others if other is not None),
            )


def _tried(one: Attempt) -> str:
    return f"`{one.arm}` {one.removed}/{one.pairs}"


def _certainty(one: Proven, say: Say) -> str:
    return say(f"certainty.{one.certainty}")


def _wrong(proofs: Proofs, say: Say) -> Iterator[str]:
    for (program, fault), reason in sorted(proofs.failed.items()):
        yield say("clinic.page.wrong.failed", case=f"{program}-{fault}", reason=reason.replace("`", "'"))
    for one in proofs.proven:
        case = f"{one.program}-{one.fault}"
        if one.fault == HEALTHY:
            if one.code is not None:
                yield say("clinic.page.wrong.flagged", case=case, alarms=one.code)
        elif one.code is None:
            yield say("proof.page.wrong.silent", case=case)
        elif not one.attempts:
            proposed = ", ".join(one.untried) or say("clinic.page.wrong.none")
            yield say("proof.page.wrong.nothing_tried", case=case, code=one.code, proposed=proposed)
        elif not one.gone:
            tried = ", ".join(map(_tried, one.attempts))
            yield say("proof.page.wrong.stays", case=case, code=one.code, tried=tried)


def _table(columns: str, rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """columns: the names, with | between them."""
    yield f"| {columns} |"
    yield "|" + "---|" * len(columns.split("|"))
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
