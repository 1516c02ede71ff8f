"""Which loss reaches which module, who steps it, and whether the teacher is one.

Gradients come from `torch.autograd.grad`, loss by loss: `.grad` is never written. Parameters that begin at zero hold
small random numbers meanwhile, since no gradient gets past a layer of zeros, however well it is connected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lossdoctor.kinds import guess_kind
from lossdoctor.preflight.answers import Answers, all_skipped, fired
from lossdoctor.preflight.given import Failed, Given, raised, unlike
from lossdoctor.probe.audit import audit
from lossdoctor.probe.awake import awakened
from lossdoctor.probe.parameters import unwrapped
from lossdoctor.rules.dst206_teacher_is_student import TeacherIsStudent
from lossdoctor.rules.dst207_teacher_learns import TeacherLearns
from lossdoctor.rules.finding import Cause, Evidence, Finding, Severity, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.grd101_loss_without_gradient import LossWithoutGradient
from lossdoctor.rules.grd105_unreached_head import UnreachedHead
from lossdoctor.rules.grd108_cut_off_loss import CutOffLoss
from lossdoctor.rules.heads import kind_of_head
from lossdoctor.rules.opt702_not_in_optimizer import NotInOptimizer
from lossdoctor.rules.opt703_head_weight_decay import HeadWeightDecay, decaying
from lossdoctor.rules.opt704_update_too_large import UpdateTooLarge

RULES = (
    LossWithoutGradient,
    UnreachedHead,
    CutOffLoss,
    NotInOptimizer,
    HeadWeightDecay,
    UpdateTooLarge,
    TeacherIsStudent,
    TeacherLearns,
)
NEEDS = ("model",)


@dataclass(frozen=True)
class _Reach:
    """Loss to the ids of the parameters it gives a gradient that is not 0; None for a loss without any graph."""

    reached: Mapping[str, frozenset[int] | None]

    @property
    def anywhere(self) -> frozenset[int]:
        """Parameters that some loss reaches."""
        return frozenset().union(*(ids for ids in self.reached.values() if ids is not None))


def ask(given: Given) -> Answers:
    """Answers for `RULES`. Raises Failed when `losses` fails; what needs no losses is told all the same by `wiring`."""
    assert given.model is not None
    answers = wiring(given)
    if given.losses is None:
        needs = say("preflight.skip.needs", check="reach", missing="losses")
        return answers | all_skipped((LossWithoutGradient, UnreachedHead, CutOffLoss), needs)
    reach = _reach(given)
    answers |= fired((LossWithoutGradient,), list(_silent(reach)))
    if given.heads:
        answers |= fired((UnreachedHead,), list(_heads(given, reach)))
        answers |= fired((CutOffLoss,), list(_cut_off(given, reach)))
    else:
        answers |= all_skipped((UnreachedHead, CutOffLoss), say("preflight.skip.needs", check="reach", missing="heads"))
    if given.optimizers:
        answers |= fired((NotInOptimizer,), list(_missing(given, reach)))
    return answers


def wiring(given: Given) -> Answers:
    """What the modules and optimizers show by themselves."""
    assert given.model is not None
    facts = audit(given.model, given.heads, given.optimizers, given.teacher)
    answers: Answers = {}
    if given.optimizers:
        answers |= fired((NotInOptimizer,), list(_missing(given, None)))
        answers |= fired((UpdateTooLarge,), list(_twice(facts)))
        answers |= fired((HeadWeightDecay,), list(_decay(facts)))
    else:
        needs = say("preflight.skip.needs", check="reach", missing="optimizer")
        answers |= all_skipped((NotInOptimizer, UpdateTooLarge, HeadWeightDecay), needs)
    if given.optimizers and not given.heads:
        answers |= all_skipped((HeadWeightDecay,), say("preflight.skip.needs", check="reach", missing="heads"))
    if given.teacher is None:
        needs = say("preflight.skip.needs", check="reach", missing="teacher")
        return answers | all_skipped((TeacherIsStudent, TeacherLearns), needs)
    return answers | fired((TeacherIsStudent, TeacherLearns), list(_teacher(facts["teacher"])))


# Gradients


def _trained(given: Given) -> dict[int, tuple[str, nn.Parameter]]:
    """Trainable parameters of model and heads, without those of a teacher inside the model, each by its first name."""
    assert given.model is not None
    teacher = set() if given.teacher is None else {id(p) for p in given.teacher.parameters()}
    shared = {id(p) for head in given.heads.values() for p in head.parameters()}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    tops = {"": given.model, **{f"{name}.": head for name, head in given.heads.items()}}
    for prefix, top in tops.items():
        for name, p in top.named_parameters():
            if p.requires_grad and (id(p) not in teacher or id(p) in shared):
                found.setdefault(id(p), (f"{prefix}{name}", p))
    return found


def _reach(given: Given) -> _Reach:
    assert given.losses is not None
    with awakened(given.modules), torch.enable_grad():
        try:
            losses = given.losses()
        except Exception as error:
            raise Failed("losses", raised("losses", error)) from error
        if not isinstance(losses, Mapping) or not losses:
            got = type(losses).__name__ if not isinstance(losses, Mapping) else "an empty mapping"
            raise Failed("losses", unlike("losses", "its result", "a mapping of names to losses", got))
        # Only now: the losses may be what freezes a part.
        parameters = [p for _, p in _trained(given).values()]
        there = {str(name): loss for name, loss in losses.items() if loss is not None}
        return _Reach({name: _of(name, loss, parameters) for name, loss in there.items()})


def _of(name: str, loss: Any, parameters: list[nn.Parameter]) -> frozenset[int] | None:
    if not isinstance(loss, Tensor):
        expected, got = "a tensor with its graph, not .item()", type(loss).__name__
        raise Failed("losses", unlike("losses", f"the loss {name!r}", expected, got))
    total = loss.float().mean()
    if not bool(torch.isfinite(total)):
        raise Failed("losses", say("preflight.PRE001.loss", loss=name, value=float(total.detach())))
    if not loss.requires_grad or not parameters:
        return None
    try:
        grads = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise Failed("losses", raised("losses", error)) from error
    return frozenset(id(p) for p, g in zip(parameters, grads, strict=True) if g is not None and bool(g.any()))


# What is said


def _silent(reach: _Reach) -> Iterator[Finding]:
    for loss, ids in reach.reached.items():
        if not ids:
            yield LossWithoutGradient().finding(
                say("preflight.reach.silent" if ids is None else "preflight.reach.zero", loss=loss),
                evidence=(Evidence(f"preflight/reached_by/{loss}", 0.0, None),),
                causes=(Cause("detached-branch"), Cause("wrong-wiring")),
                fixes=(edit("let_gradient_through", loss),),
                loss=loss,
                certainty="confirmed",
                confirm="lossdoctor preflight",
            )


def _heads(given: Given, reach: _Reach) -> Iterator[Finding]:
    for head, module in given.heads.items():
        own = {id(p) for p in module.parameters()}
        trainable = {id(p) for p in module.parameters() if p.requires_grad}
        by = [loss for loss, ids in reach.reached.items() if ids and ids & own]
        if own and not trainable:
            yield _head("preflight.reach.frozen", head, "frozen-head", "unfreeze", "warning", count=len(own))
        elif own and not by:
            yield _head("preflight.reach.unreached", head, "wrong-wiring", "attach_head", "error")
        elif (kind := kind_of_head(head)) is not None:
            named = [loss for loss, ids in reach.reached.items() if ids and guess_kind(loss) == kind]
            if named and not set(named) & set(by):
                told = {"own": ", ".join(named), "others": ", ".join(by)}
                yield _head("preflight.reach.other", head, "wrong-wiring", "attach_head", "warning", **told)


def _head(sentence: str, head: str, cause: str, fix: str, severity: Severity, **params: Any) -> Finding:
    return UnreachedHead().finding(
        say(sentence, head=head, **params),
        evidence=(Evidence(f"preflight/reached/{head}", 0.0, None),),
        causes=(Cause(cause),),
        fixes=(edit(fix, head),),
        subject=head,
        severity=severity,
        certainty="confirmed",
        confirm="lossdoctor preflight",
    )


def _cut_off(given: Given, reach: _Reach) -> Iterator[Finding]:
    """As in a run, but parameter by parameter: a part of the model is reached by what it has besides the heads."""
    assert given.model is not None
    heads = {head: {id(p) for p in module.parameters()} for head, module in given.heads.items()}
    in_heads = set[int]().union(*heads.values())
    trained = _trained(given).keys() - in_heads
    parts = {
        name: {id(p) for p in child.parameters()} & trained for name, child in unwrapped(given.model).named_children()
    }
    reached = {
        loss: frozenset(name for name, own in {**parts, **heads}.items() if own & ids)
        for loss, ids in reach.reached.items()
        if ids
    }
    kinds = {loss: _kind(loss, reached[loss]) for loss in reached}
    facts = audit(given.model, given.heads, given.optimizers, given.teacher)
    rule = CutOffLoss()
    for cut in rule.cut(reached, kinds, tuple(heads)):
        kind = kinds[cut.loss]
        sentence = "preflight.reach.cut.distill" if kind == "distill" else "preflight.reach.cut"
        message = say(sentence, loss=cut.loss, heads=", ".join(cut.heads), shared=", ".join(cut.others))
        seen = [Evidence(f"preflight/reached_by/{cut.loss}/{part}", 0.0, None) for part in cut.others]
        # That nothing arrives is certain; that it should is not.
        yield rule.said(message, cut, seen, kind=kind, facts=facts, certainty="likely")


def _kind(loss: str, reached: frozenset[str]) -> str:
    """Nobody has told: by the loss's name, else a distillation by those of all the heads it trains."""
    guessed = guess_kind(loss)
    return "distill" if guessed == "other" and {kind_of_head(head) for head in reached} == {"distill"} else guessed


def _missing(given: Given, reach: _Reach | None) -> Iterator[Finding]:
    held = {id(p) for optimizer in given.optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = {key: name for key, (name, _) in _trained(given).items() if key not in held}
    if reach is not None:  # what no loss reaches is not for an optimizer
        missing = {key: name for key, name in missing.items() if key in reach.anywhere}
    if not missing:
        return
    heads = [head for head, module in given.heads.items() if any(id(p) in missing for p in module.parameters())]
    names = list(missing.values())
    where = ", ".join(heads or dict.fromkeys(name.split(".", 1)[0] for name in names))
    yield NotInOptimizer().left_out(
        say("preflight.reach.missing", count=len(missing), names=where, example=names[0]),
        Evidence("preflight/optimizers/missing", float(len(missing)), 0.0),
        where,
        heads,
        certainty="confirmed",
        confirm="lossdoctor preflight",
    )


def _twice(facts: Mapping[str, Any]) -> Iterator[Finding]:
    told = facts["optimizers"]
    if told["twice_count"]:
        yield UpdateTooLarge().finding(
            say("preflight.reach.twice", count=told["twice_count"], example=told["twice"][0]),
            evidence=(Evidence("preflight/optimizers/twice", float(told["twice_count"]), 0.0),),
            causes=(Cause("twice-in-optimizer"),),
            fixes=(edit("step_once", told["twice"][0]),),
            severity="error",
            certainty="confirmed",
            confirm="lossdoctor preflight",
        )


def _decay(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if decays := decaying(facts):
        yield HeadWeightDecay().acting(
            say("preflight.reach.decay", heads=", ".join(decays), decay=max(decays.values())),
            [Evidence(f"preflight/weight_decay/{head}", decay, 0.0) for head, decay in decays.items()],
            decays,
            0.0,  # nothing is known yet of how long the run will be
            certainty="likely",
        )


def _teacher(teacher: Mapping[str, Any]) -> Iterator[Finding]:
    """As in a run; before it, the audit is all there is to go by, and enough."""
    if (shared := TeacherIsStudent().shared(teacher)) is not None:
        yield replace(shared, subject="teacher", certainty="confirmed", confirm=None)
    for finding in TeacherLearns().set_up(teacher):
        yield replace(finding, certainty="confirmed")
