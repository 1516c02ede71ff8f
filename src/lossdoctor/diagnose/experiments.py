"""What experiments have said of the findings of a run."""

from __future__ import annotations

from dataclasses import replace

from lossdoctor.rules import Fired, Outcome, Rule, RunView, Skipped
from lossdoctor.rules.finding import CERTAINTIES, say


def settled(outcomes: dict[str, tuple[Rule, Outcome]], run: RunView) -> dict[str, tuple[Rule, Outcome]]:
    """What experiments have said of this run's findings since: some are confirmed, some withdrawn."""
    # As texts: in an event may stand anything.
    told = {
        tuple(str(event.get(part)) for part in ("code", "loss", "subject")): event
        for event in run.events
        if event.get("kind") == "experiment"
    }
    settled = dict(outcomes)
    for code, (rule, outcome) in outcomes.items() if told else ():
        if isinstance(outcome, Fired):
            kept = []
            for finding in outcome.findings:
                event = told.get((finding.code, str(finding.loss), str(finding.subject)), {})
                certainty = event.get("certainty", finding.certainty)
                if certainty in CERTAINTIES:
                    kept.append(replace(finding, certainty=certainty))
            # Nothing is lost: a rule whose findings are all withdrawn says so.
            gone = Skipped(say("skip.withdrawn"))
            settled[code] = (rule, replace(outcome, findings=tuple(kept)) if kept else gone)
    return settled
