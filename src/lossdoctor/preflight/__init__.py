"""Checks before the first step: are training and sampling the same formula, is everything connected?

The user's own functions are called on one batch; no step is taken. One file per check, one line per check here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor.diagnose import Diagnosis, assembled
from lossdoctor.preflight import condition, reach, scale, time
from lossdoctor.preflight import kl as kl_check
from lossdoctor.preflight import sampler as sampler_check
from lossdoctor.preflight import target as target_check
from lossdoctor.preflight.answers import Answers, all_skipped
from lossdoctor.preflight.given import Failed, Given, Sampler, Target, Velocity, gathered
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.num901_non_finite import NonFinite
from lossdoctor.rules.pre001_function_failed import FunctionFailed
from lossdoctor.rules.smp501_endpoint_not_improving import EndpointNotImproving
from lossdoctor.rules.vel411_target_off_path import TargetOffPath

__all__ = ["CHECKS", "check"]

CHECKS: Mapping[str, ModuleType] = {
    "condition": condition,
    "kl": kl_check,
    "reach": reach,
    "sampler": sampler_check,
    "scale": scale,
    "target": target_check,
    "time": time,
}
"""Every check by its name. A check has RULES, the rules it answers for; NEEDS, the arguments it cannot do without; and
`ask(given)`, an answer for each of the rules."""


def check(
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    losses: Callable[[], Mapping[str, Tensor]] | None = None,
    heads: Mapping[str, nn.Module] | None = None,
    teacher: nn.Module | None = None,
    target: Target | None = None,
    sampler: Sampler | None = None,
    velocity: Velocity | None = None,
    kl: Callable[[Tensor, Tensor], Tensor] | None = None,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    z0: Tensor | None = None,
    z1: Tensor | None = None,
    cond: Any = None,
    null_cond: Any = None,
    t_source: float = 0.0,
    latent_scale: float | None = None,
) -> Diagnosis:
    """Look at a training program before its first step. Each check runs when its arguments are there, else is skipped.

    z0, z1: (B, ...), one batch of both ends of the flow, paired by row. target(z0, z1, t) to (x_t, v_target), t of
    shape (B, 1, ...). sampler(velocity, z0, cond, steps) to z1_hat; it is handed a stand-in for the network as
    velocity(x, t, cond). velocity: the network, called in the same way. kl(mu, logvar) to a scalar. losses() to a
    mapping of the unweighted losses of one batch. cond: conditions of the batch; null_cond: what stands for "none", in
    the form the network takes. t_source: the t at which z0 sits, 0.0 or 1.0. latent_scale: what latents are multiplied
    with after encoding.
    Random streams, modes, buffers, parameters, gradients and the tensors handed in are afterwards what they were, bit
    for bit; other things that your functions change, such as files or counters of their own, are not put back.
    A function that fails is a finding (PRE001), never an exception. Raises UsageError for arguments that cannot be
    right: another t_source, tensors of different shapes, something that is no function where one belongs.
    """
    given = gathered(
        model=model, optimizer=optimizer, losses=losses, heads=heads, teacher=teacher, target=target, sampler=sampler,
        velocity=velocity, kl=kl, mu=mu, logvar=logvar, z0=z0, z1=z1, cond=cond, null_cond=null_cond,
        t_source=t_source, latent_scale=latent_scale,
    )  # fmt: skip
    bad = _not_finite(given)
    answers: Answers = {}
    failures: dict[tuple[str, str], Finding] = {}
    ran = False
    with given.undisturbed():
        for name, part in CHECKS.items():
            if missing := given.missing(*part.NEEDS):
                told = say("preflight.skip.needs", check=name, missing=", ".join(missing))
                answers |= all_skipped(part.RULES, told, say("preflight.skip.needs.todo", missing=", ".join(missing)))
            elif spoiled := [tensor for tensor in part.NEEDS if tensor in bad]:
                answers |= all_skipped(part.RULES, say("preflight.skip.spoiled", check=name, tensor=spoiled[0]))
            else:
                ran = True
                answers |= _asked(name, part, given, failures)
    outcomes: Answers = {FunctionFailed: _failed(ran, list(failures.values())), NonFinite: _finite(given, bad, ran=ran)}
    outcomes |= _agreed(answers)
    ordered = sorted(outcomes.items(), key=lambda item: item[0].code)
    return assembled({rule.code: (rule(), outcome) for rule, outcome in ordered}, run="preflight")


def _asked(name: str, part: ModuleType, given: Given, failures: dict[tuple[str, str], Finding]) -> Answers:
    """The answers of one check; a failure of a function becomes a finding, told once."""
    try:
        found: Answers = part.ask(given)
        return found
    except Failed as failed:
        finding = FunctionFailed().failure(failed.message, failed.function)
        failures.setdefault((failed.function, failed.message.key), finding)
        answers = all_skipped(part.RULES, say("preflight.skip.failed", check=name, function=failed.function))
        return answers | (reach.wiring(given) if part is reach else {})


def _failed(ran: bool, failures: list[Finding]) -> Outcome:
    if failures:
        return Fired(tuple(failures))
    return Clear() if ran else Skipped(say("preflight.skip.nothing"), say("preflight.skip.nothing.todo"))


_TENSORS = ("z0", "z1", "mu", "logvar")


def _not_finite(given: Given) -> dict[str, int]:
    """Tensors handed in that hold NaN or infinity, and how many."""
    counts = {}
    for name in _TENSORS:
        tensor = getattr(given, name)
        if tensor is not None and (count := int((~torch.isfinite(tensor)).sum())):
            counts[name] = count
    return counts


def _finite(given: Given, bad: Mapping[str, int], *, ran: bool) -> Outcome:
    findings = [
        NonFinite().finding(
            say("preflight.input.nonfinite", tensor=name, count=count, total=getattr(given, name).numel()),
            evidence=(Evidence(f"preflight/non_finite/{name}", float(count), 0.0),),
            causes=(Cause("overflow"),),
            fixes=(edit("look_at_input", name),),
            subject=name,
            severity="error",
            certainty="confirmed",
        )
        for name, count in bad.items()
    ]
    if findings:
        return Fired(tuple(findings))
    tensors = any(getattr(given, name) is not None for name in _TENSORS)
    return Clear() if ran and tensors else Skipped(say("preflight.skip.tensors"))


def _agreed(answers: Answers) -> Answers:
    """A target that is no velocity is right where the sampler makes one of it. Whether it does can also be told where
    the sampler has another mistake."""
    off, ends = answers.get(TargetOffPath), answers.get(EndpointNotImproving)
    if not isinstance(off, Fired):
        return answers
    wrong = [one for rule in sampler_check.RULES for one in _findings(answers.get(rule))]
    kept = tuple(one for one in off.findings if not target_check.converted(one, wrong, clear=isinstance(ends, Clear)))
    return {**answers, TargetOffPath: Fired(kept) if kept else Clear()}


def _findings(outcome: Outcome | None) -> tuple[Finding, ...]:
    return outcome.findings if isinstance(outcome, Fired) else ()
