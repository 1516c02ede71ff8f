"""GRD108: a loss that trains a head of its own and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossdoctor.rules.finding import (
    Cause,
    Certainty,
    Clear,
    Evidence,
    Finding,
    Message,
    Outcome,
    Severity,
    Skipped,
    outcome,
    say,
)
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.heads import is_last_part
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

_REACH = "grad_module/<loss>/<module>"
Reach = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A loss, the heads that are all it trains, and the parts of the model that other losses train."""

    loss: str
    heads: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class CutOffLoss(Rule):
    """A loss trains a head of its own, and nothing of what other losses train.

    Symptom: its curve falls as far as the head alone can bring it; what the losses share learns nothing from it.
    Cause: the features it is computed from are detached, or made under no_grad, before they reach the head.
    Evidence: in a run of at least `least` measured steps with its gradient, `grad_module/<loss>/<module>` is above 0
    for heads that no other loss reaches, and absent, 0 or all of the head's own for every other module, at all steps.
    For a loss of kind "other" at least `others` other losses have a gradient, and one module is reached by all of them;
    that is a remark, since no curve says whether it is meant. A distillation is there to teach features: for it any
    part of the model that another loss trains is enough, and it is a warning where the audit leaves little else: its
    heads are heads by their names ("head", "projector", "prototypes"), the teacher is more than a copy of them, and no
    part of the model is frozen. A velocity and a KL are not asked.
    Fix: hand the features to the head as they are.
    Ignore when: the head is a probe, which is to say what the features hold and not to change them; or, for a
    distillation, a network of its own that begins at the data, or a head on frozen features that the model does not
    hold. Leave the code out then: `--ignore GRD108`. A velocity on detached latents is a common second stage.
    Confirm: without:<loss>, which changes none of the other losses if this is so
    """

    code, name = "GRD108", "cut-off-loss"
    needs = (_REACH, "grad/total")
    severity, depth = "info", "root"
    least: int = LEAST  # a single batch with a gradient elsewhere would show that nothing is cut
    others: int = 2  # what one loss reaches is shared with nobody

    def check(self, run: RunView) -> Outcome:
        """Every loss that is to train more than a head."""
        if not run.heads:
            return Skipped(say("skip.heads"), say("absent.heads.todo"))
        cut = list(self.cut(_reached(run), run.losses, run.heads))
        counts = {one.loss: len(run[f"grad/{one.loss}"]) for one in cut}
        long_enough = [one for one in cut if counts[one.loss] >= self.least]
        if cut and not long_enough:
            return Skipped(say("skip.short", least=self.least, found=max(counts.values())), say("enable.longer"))
        return outcome([self._finding(run, one, counts[one.loss]) for one in long_enough]) if cut else Clear()

    def cut(self, reach: Reach, kinds: Mapping[str, str], heads: Sequence[str]) -> Iterator[Cut]:
        """The losses that are cut off, by what each reaches; one that reaches nothing has no place in `reach`."""
        asked = {loss for loss in reach if kinds.get(loss) in ("other", "distill") and _alone(loss, reach, heads)}
        joined = [modules for loss, modules in reach.items() if loss not in asked]
        shared = frozenset.intersection(*joined) if len(joined) >= self.others else frozenset()
        trunk = frozenset().union(*joined) - frozenset(heads)
        if trunk:  # a head of several losses, such as that of a posterior, is a part of what they share
            trunk |= {head for head in heads if sum(head in modules for modules in joined) > 1}
        for loss in sorted(asked):
            if parts := trunk if kinds[loss] == "distill" else shared:
                yield Cut(loss, tuple(sorted(reach[loss])), tuple(sorted(parts)))

    def said(
        self,
        message: Message,
        cut: Cut,
        evidence: Sequence[Evidence],
        *,
        kind: str,
        facts: Mapping[str, Any],
        certainty: Certainty = "suspected",
    ) -> Finding:
        """That a loss of this kind is cut off. facts: the audit's, {} without one."""
        severity: Severity = "warning" if kind == "distill" and _is_meant_to_teach(cut.heads, facts) else "info"
        return self.finding(
            message,
            evidence=evidence,
            causes=(Cause("detached-branch"),),
            fixes=(edit("attach_features", cut.loss), ablate(f"without:{cut.loss}")),
            loss=cut.loss,
            severity=severity,
            certainty=certainty,
            confirm=f"without:{cut.loss}",
        )

    def _finding(self, run: RunView, cut: Cut, count: int) -> Finding:
        kind = run.losses[cut.loss]
        own = {head: run[f"grad_module/{cut.loss}/{head}"].finite for head in cut.heads}
        evidence = [
            Evidence(f"grad_module/{cut.loss}/{head}", middle(it), None, **span(it)) for head, it in own.items()
        ]
        for part in cut.others:
            # Of a part that holds the head this is the head's own gradient; else there is none.
            within = run[f"grad_module/{cut.loss}/{part}"].finite
            value, where = (middle(within), within) if len(within) else (0.0, run[f"grad/{cut.loss}"])
            evidence.append(Evidence(f"grad_module/{cut.loss}/{part}", value, None, **span(where)))
        told = {"heads": ", ".join(cut.heads), "shared": ", ".join(cut.others)}
        sentence = "rule.GRD108.distill" if kind == "distill" else "rule.GRD108"
        message = say(sentence, loss=cut.loss, count=count, **told)
        return self.said(message, cut, evidence, kind=kind, facts=run.facts)


def _reached(run: RunView) -> Reach:
    """Loss to the modules it gave a gradient at any step; of losses that take part and have one.

    A top-level child of the model that holds a head, or is it, is left out where its gradient is the head's.
    """
    found: dict[str, set[str]] = {}
    for name, holes in run.matching(_REACH).items():
        if holes["loss"] in run.losses and run.weighted(holes["loss"]) and run[name].values.any():
            found.setdefault(holes["loss"], set()).add(holes["module"])
    return {
        loss: frozenset(modules - {part for part in modules - {*run.heads} if _only_heads(run, loss, part, modules)})
        for loss, modules in found.items()
    }


def _only_heads(run: RunView, loss: str, part: str, modules: set[str]) -> bool:
    """Whether the gradient of a part of the model is that of one head, or of all the heads the loss reaches."""
    whole = run[f"grad_module/{loss}/{part}"]
    heads = [run[f"grad_module/{loss}/{head}"] for head in sorted(modules & {*run.heads})]
    heads = [head for head in heads if np.array_equal(head.steps, whole.steps)]
    sums = [head.values for head in heads]
    if len(heads) > 1:
        with np.errstate(over="ignore"):
            sums.append(np.hypot.reduce(sums))
    return any(np.allclose(one, whole.values, rtol=1e-9, atol=0.0, equal_nan=True) for one in sums)


def _alone(loss: str, reach: Reach, heads: Sequence[str]) -> bool:
    """Whether all that a loss reaches are heads that no other reaches."""
    others = frozenset().union(*(modules for other, modules in reach.items() if other != loss))
    return reach[loss] <= frozenset(heads) - others


def _is_meant_to_teach(heads: Sequence[str], facts: Mapping[str, Any]) -> bool:
    """Whether heads that only a distillation trains can hardly be all that it is to train, as far as an audit tells.

    Not those that may be a network of their own, whose teacher has as many parameter tensors as they, nor those of a
    model with a frozen part, whose features they may get.
    """
    told = facts.get("heads") or {}
    if not all(is_last_part(head) for head in heads) or not all(head in told for head in heads):
        return False
    tensors = sum(int(told[head].get(state) or 0) for head in heads for state in ("trainable", "frozen"))
    copied = (facts.get("teacher") or {}).get("parameters") == tensors
    return not copied and facts.get("frozen_parts") == []
