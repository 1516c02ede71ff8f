"""From curves to findings: the only loop over the rules.

A rule that lacks its metrics is skipped and says so. Of the findings that rest on a statistical test, those stay that
survive the control of false discoveries over all tests of the run. Findings that follow from one another are put
together, the one nearest to the root first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lossdoctor.diagnose.asking import judge
from lossdoctor.diagnose.chance import FALSE_DISCOVERIES, without_chance
from lossdoctor.diagnose.choosing import configured
from lossdoctor.diagnose.diagnosis import SCHEMA, Diagnosis
from lossdoctor.diagnose.experiments import settled
from lossdoctor.diagnose.grouping import grouped
from lossdoctor.rules import Clear, Fired, Outcome, Rule, RunView, Skipped
from lossdoctor.rules.preflight_events import with_preflight
from lossdoctor.rules.receipts import Treated
from lossdoctor.rules.view import Readable

__all__ = ["FALSE_DISCOVERIES", "SCHEMA", "Diagnosis", "assembled", "configured", "diagnose"]


def diagnose(run: Readable | RunView, *, rules: Iterable[Rule] | None = None, name: str | None = None) -> Diagnosis:
    """Judge a run by every rule, or by those given. Never raises for what is in the run; needs no torch.

    rules: ours and those of plugins by default. name: what to call the run, by default its folder. A rule
    that fails is skipped, with its error as the reason.
    """
    view = run if isinstance(run, RunView) else RunView(run)
    asked = configured() if rules is None else tuple(rules)
    outcomes = {rule.code: (rule, judge(rule, view)) for rule in asked}
    path = getattr(run, "path", None)
    return assembled(
        settled(with_preflight(without_chance(outcomes), view.events), view),
        run=name if name is not None else str(path) if path is not None else "",
        steps=view.last_step + 1,
        measured=len(view.steps),
        treated=view.treated,
    )


def assembled(
    outcomes: Mapping[str, tuple[Rule, Outcome]],
    *,
    run: str = "",
    steps: int = 0,
    measured: int = 0,
    treated: Treated | None = None,
) -> Diagnosis:
    """The diagnosis that outcomes by code make, whoever found them: findings that follow from another behind it."""
    found = [f for _, outcome in outcomes.values() if isinstance(outcome, Fired) for f in outcome.findings]
    return Diagnosis(
        run=run,
        steps=steps,
        measured=measured,
        findings=tuple(grouped(found, {code: rule for code, (rule, _) in outcomes.items()})),
        clear=tuple(code for code, (_, outcome) in outcomes.items() if isinstance(outcome, Clear)),
        skipped=tuple((code, outcome) for code, (_, outcome) in outcomes.items() if isinstance(outcome, Skipped)),
        treated=treated,
    )
