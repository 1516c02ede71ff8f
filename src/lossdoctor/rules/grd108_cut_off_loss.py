"""GRD108: a loss that trains a head of its own and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

_REACH = "grad_module/<loss>/<module>"
Reach = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class CutOffLoss(Rule):
    """A loss trains a head of its own, and nothing of what all other losses share.

    Symptom: its curve falls as far as the head alone can bring it; what the losses share learns nothing from it.
    Cause: the features it is computed from are detached, or made under no_grad, before they reach the head.
    Evidence: in a run of at least `least` measured steps with its gradient, `grad_module/<loss>/<module>` of a loss of
    kind "other" is above 0 for heads that no other loss reaches, and absent or 0 for every other module, at all steps;
    while at least `others` other losses have a gradient, and one module is reached by all of them. A remark, since no
    curve says whether it is meant.
    Fix: hand the features to the head as they are.
    Ignore when: the head is a probe, which is to say what the features hold and not to change them. Leave the code out
    then: `--ignore GRD108`.
    Confirm: without:<loss>, which changes none of the other losses if this is so
    """

    code, name = "GRD108", "cut-off-loss"
    needs = (_REACH, "grad/total")
    severity, depth = "info", "root"
    least: int = LEAST  # a single batch with a gradient elsewhere would show that nothing is cut
    others: int = 2  # what one loss reaches is shared with nobody

    def check(self, run: RunView) -> Outcome:
        """Every loss whose meaning does not say what it is to train."""
        if not run.heads:
            return Skipped(say("skip.heads"), say("absent.heads.todo"))
        reach = _reached(run)
        cut = {loss for loss in reach if run.losses[loss] == "other" and _alone(loss, reach, run.heads)}
        joined = [modules for loss, modules in reach.items() if loss not in cut]
        shared = frozenset.intersection(*joined) if len(joined) >= self.others else frozenset()
        if not shared:
            return Clear()
        short = [len(run[f"grad/{loss}"]) for loss in cut if len(run[f"grad/{loss}"]) < self.least]
        found = [
            self._finding(run, loss, reach[loss], shared) for loss in cut if len(run[f"grad/{loss}"]) >= self.least
        ]
        if short and not found:
            return Skipped(say("skip.short", least=self.least, found=max(short)), say("enable.longer"))
        return outcome(found)

    def _finding(self, run: RunView, loss: str, own: frozenset[str], shared: frozenset[str]) -> Finding:
        told = {"heads": ", ".join(sorted(own)), "shared": ", ".join(sorted(shared))}
        curves = {head: run[f"grad_module/{loss}/{head}"].finite for head in sorted(own)}
        return self.finding(
            say("rule.GRD108", loss=loss, count=len(run[f"grad/{loss}"]), **told),
            evidence=(
                *(Evidence(f"grad_module/{loss}/{head}", middle(it), None, **span(it)) for head, it in curves.items()),
                *(
                    Evidence(f"grad_module/{loss}/{one}", 0.0, None, **span(run[f"grad/{loss}"]))
                    for one in sorted(shared)
                ),
            ),
            causes=(Cause("detached-branch"),),
            fixes=(edit("attach_features", loss), ablate(f"without:{loss}")),
            loss=loss,
            confirm=f"without:{loss}",
        )


def _reached(run: RunView) -> Reach:
    """Loss to the modules it gave a gradient at any step; of losses that take part and have one."""
    found: dict[str, set[str]] = {}
    for name, holes in run.matching(_REACH).items():
        if holes["loss"] in run.losses and run.weighted(holes["loss"]) and run[name].values.any():
            found.setdefault(holes["loss"], set()).add(holes["module"])
    return {loss: frozenset(modules) for loss, modules in found.items()}


def _alone(loss: str, reach: Reach, heads: tuple[str, ...]) -> bool:
    """Whether all that a loss reaches are heads that no other reaches."""
    others = frozenset().union(*(modules for other, modules in reach.items() if other != loss))
    return reach[loss] <= frozenset(heads) - others
