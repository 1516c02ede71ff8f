"""GRD105: a head that no loss trains, or not the loss it is named for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.heads import kind_of_head
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import strengths
from lossdoctor.rules.view import LEAST, RunView

Steps = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnreachedHead(Rule):
    """A head gets no gradient, or none from the loss it is there for.

    Symptom: the head keeps its initial weights, or serves another purpose than its name says; the losses may fall all
    the same, because the rest of the model makes up for it.
    Cause: the output is taken before the head, from another head, or from a detached copy; or the head is frozen.
    Evidence: `grad_module/<loss>/<head>` is absent or 0 for every loss, in all measured steps after the warm-up and at
    least `least` of them, or in the last 12 of them; or it is so for every loss of the kind the head is named for,
    while those losses do have a gradient. The audit tells whether the head is trainable at all.
    Fix: follow the tensor from the head to the loss.
    Ignore when: the head is frozen on purpose, or its name misleads: which loss a head belongs to is guessed from words
    such as flow, dino, proj, mu, logvar and z.
    Confirm: lossdoctor preflight, whose reach matrix shows the same before the first step
    """

    code, name = "GRD105", "unreached-head"
    needs = ("grad_module/<loss>/<module> or audit:heads", "grad/total")
    severity, depth = "error", "root"
    explains = ("OPT701", "VEL401", "GRD102", "DST202")
    least: int = 3  # a fact and no statistics; one or two batches can have an empty mask

    def check(self, run: RunView) -> Outcome:
        """Every head, and every loss that could reach it."""
        grads = run["grad/total"]
        steps = grads.steps[grads.steps >= run.begins]
        if not run.heads:
            return Skipped(say("skip.heads"), say("absent.heads.todo"))
        if len(steps) < self.least:
            return Skipped(say("skip.short", least=self.least, found=len(steps)), say("enable.longer"))
        found = (self._judge(run, head, steps) for head in run.heads)
        return outcome([finding for finding in found if finding is not None])

    def _judge(self, run: RunView, head: str, steps: Steps) -> Finding | None:
        reach = {loss: _reached(run, loss, head, steps) for loss in run.losses}
        reached = steps[np.isin(steps, np.concatenate([*reach.values(), steps[:0]]))]
        facts = (run.facts.get("heads") or {}).get(head)
        if facts is not None and facts.get("frozen") and not facts.get("trainable"):
            return self._frozen(head, facts, steps)
        silent = steps[steps > reached[-1]] if len(reached) else steps
        if not len(reached):
            return self._unreached(head, facts, steps)
        if len(silent) >= LEAST:
            return self._lost(head, facts, silent)
        return self._other_kind(run, head, reach, steps)

    def _frozen(self, head: str, facts: Mapping[str, Any], steps: Steps) -> Finding:
        return self.finding(
            say("rule.GRD105.frozen", head=head, count=int(facts["frozen"])),
            evidence=(Evidence(f"audit/heads/{head}/frozen", float(facts["frozen"]), None, **_within(steps)),),
            causes=(Cause("frozen-head"),),
            fixes=(edit("unfreeze", head),),
            subject=head,
            severity="warning",  # it can be meant
            certainty="likely",
        )

    def _unreached(self, head: str, facts: Mapping[str, Any] | None, steps: Steps) -> Finding:
        trainable = facts is not None and bool(facts.get("trainable"))
        return self.finding(
            say("rule.GRD105", head=head, count=len(steps)),
            evidence=(Evidence(f"grad_module/*/{head}", 0.0, None, **_within(steps)),),
            causes=(Cause("wrong-wiring"), *(() if trainable else (Cause("frozen-head"),))),
            fixes=(edit("attach_head", head),),
            subject=head,
            severity="error" if trainable else "warning",
            certainty="likely" if trainable else "suspected",
        )

    def _lost(self, head: str, facts: Mapping[str, Any] | None, silent: Steps) -> Finding:
        partly = facts is not None and bool(facts.get("frozen"))
        codes = ("frozen-head", "wrong-wiring") if partly else ("wrong-wiring", "frozen-head")
        return self.finding(
            say("rule.GRD105.lost", head=head, step=int(silent[0]), count=len(silent)),
            evidence=(Evidence(f"grad_module/*/{head}", 0.0, None, **_within(silent)),),
            causes=tuple(map(Cause, codes)),
            fixes=(edit("attach_head", head), edit("unfreeze", head)),
            subject=head,
            severity="warning",
        )

    def _other_kind(self, run: RunView, head: str, reach: Mapping[str, Steps], steps: Steps) -> Finding | None:
        kind = kind_of_head(head)
        own = [loss for loss in strengths(run) if run.losses[loss] == kind]
        if not own or any(len(reach[loss]) for loss in own):
            return None
        others = [loss for loss, there in reach.items() if len(there)]
        return self.finding(
            say("rule.GRD105.other", head=head, own=", ".join(own), others=", ".join(others), count=len(steps)),
            evidence=tuple(Evidence(f"grad_module/{loss}/{head}", 0.0, None, **_within(steps)) for loss in own),
            causes=(Cause("wrong-wiring"),),
            fixes=(edit("attach_head", head),),
            loss=own[0] if len(own) == 1 else None,
            subject=head,
            severity="warning",  # the name is all that says what the head is for
        )


def _reached(run: RunView, loss: str, head: str, steps: Steps) -> Steps:
    """The steps of those given at which a loss that has a weight reaches a head."""
    if not run.weighted(loss):
        return steps[:0]
    curve = run[f"grad_module/{loss}/{head}"]
    return steps[np.isin(steps, curve.steps[curve.values != 0])]


def _within(steps: Steps) -> dict[str, int]:
    return {"first_step": int(steps[0]), "last_step": int(steps[-1])}
