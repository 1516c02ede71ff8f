"""PST308: a KL that is computed and not trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.arms import BASELINE, parse
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, outcome, say
from lossdoctor.rules.fixes import edit, scale_weight
from lossdoctor.rules.posterior import approaching, distance
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView, middle, span

_WHOLE = {"elbo", "nelbo", "vae", "vlb", "loss", "total", "objective", "nll"}
"""Words in the name of a loss that may hold a KL already."""
_KNOBS = ("w_{}", "{}_weight", "weight_{}", "lambda_{}", "beta_{}", "{}_beta")
_ALWAYS = ("beta", "w_kl", "kl_weight", "beta_kl", "lambda_kl")


@dataclass(frozen=True)
class KlUnused(Rule):
    """A KL is handed in and does not take part in the training, or not with its weight.

    Symptom: changing the weight of the KL changes nothing.
    Cause: the KL is not among the losses given to `backward`; its weight is accepted and never multiplied; or is 0.
    Evidence: `lossdoctor.posterior` got a `kl`, and no loss of kind kl was ever trained; or a knob such as `kl_weight`
    was declared, and the weight used is 1 and the loss the bare KL; or `weight/<kl>` is 0 at every step.
    Fix: give it to `backward` as a loss of its own, with its weight.
    Ignore when: the KL is inside another loss, such as an ELBO. With such a name, or a single loss, it is only
    mentioned; so is a weight of 0, which an ablation may want.
    Confirm: weight:<kl>*<declared>; without:<kl> where none was declared
    """

    code, name = "PST308", "kl-unused"
    needs = ("kl/given_per_dim or kl/ratio", "loss/<loss>")
    depth = "root"
    explains = ("PST301", "PST302", "PST305", "PST306", "GRD102", "GRD103", "BAL801")
    same: float = 0.01  # relative difference below which a declared weight is the one used

    def check(self, run: RunView) -> Outcome:
        """Facts, so no test."""
        losses = run.of_kind("kl")
        if not losses:
            return outcome([self._absent(run)])
        found = [finding for loss in losses if (finding := self._weight(run, loss)) is not None]
        return outcome(found) if found else Clear()

    def _absent(self, run: RunView) -> Finding:
        words = {word for loss in run.losses for word in loss.lower().replace("-", "_").split("_")}
        apart = distance(run)
        inside = len(run.losses) < 2 or bool(words & _WHOLE) or (len(apart) > 0 and approaching(apart))
        return self._finding(
            "rule.PST308",
            Evidence("kl/per_dim", middle(apart), None, **span(apart)) if len(apart) else None,
            "info" if inside else "warning",
            losses=", ".join(run.losses),
        )

    def _weight(self, run: RunView, loss: str) -> Finding | None:
        if _weighted_by_arm(run, loss):
            return None
        weight = run[f"weight/{loss}"].finite
        declared = _declared(run, loss)
        if len(weight) and not weight.values.any():
            told = Evidence(f"weight/{loss}", 0.0, None, **span(weight))
            return self._finding("rule.PST308.zero", told, "warning" if declared else "info", loss=loss)
        if declared is None or not len(weight) or np.any(weight.values != 1) or abs(declared - 1) <= self.same:
            return None
        if not _bare(run, loss, declared):
            return None
        told = Evidence(f"weight/{loss}", 1.0, declared, **span(weight))
        return self._finding("rule.PST308.weight", told, "warning", loss=loss, declared=declared)

    def _finding(self, sentence: str, told: Evidence | None, severity: Severity, **params: str | float) -> Finding:
        loss = str(params["loss"]) if "loss" in params else None
        declared = float(params["declared"]) if "declared" in params else None
        return self.finding(
            say(sentence, **params),
            evidence=() if told is None else (told,),
            causes=(Cause("weight-not-applied"),),
            fixes=(edit("train_kl"), *((scale_weight(loss, declared),) if loss and declared else ())),
            loss=loss,
            severity=severity,
            certainty="likely",
            confirm=f"weight:{loss}*{declared:g}" if declared else f"without:{loss or 'kl'}",
        )


def _bare(run: RunView, loss: str, declared: float) -> bool:
    """Whether the loss is the KL as it was handed in, and not already times the weight.

    By orders of magnitude: a loss of a micro-batch may be divided by how many there are.
    """
    dimensions = (run.meta.get("shapes") or {}).get("posterior_dimensions")
    inside = middle(run.ratio(f"loss/{loss}", "kl/given_per_dim")) / dimensions if dimensions else math.nan
    return inside > 0 and declared > 0 and abs(math.log(inside)) < 0.5 * abs(math.log(declared))


def _weighted_by_arm(run: RunView, loss: str) -> bool:
    """Whether the experiment this run is part of sets the weight of the loss, whatever the script declares."""
    text = (run.meta.get("experiment") or {}).get("arm", BASELINE)
    return any(
        (change.target == loss) is not (change.verb == "only")
        for change in parse(text).of("only", "without", "weight", "warmup")
    )


def _declared(run: RunView, loss: str) -> float | None:
    """The weight that the script told as a knob, other than 0."""
    names = [*(knob.format(loss) for knob in _KNOBS), *_ALWAYS]
    return next((value for name in names if (value := run.knob(name))), None)
