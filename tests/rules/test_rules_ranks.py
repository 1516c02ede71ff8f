"""RNK: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import Finding, Rule
from lossdoctor.rules.rnk001_ranks_share_data import RanksShareData
from lossdoctor.rules.rnk002_ranks_share_noise import RanksShareNoise
from lossdoctor.rules.rnk003_ranks_apart import RanksApart
from lossdoctor.store import MemoryWriter

STEPS = 12
RANKS = {"size": 4, "sharded": False}
INPUTS = ("flow.z0", "flow.z1", "flow.v_target", "flow.t", "posterior.mu", "posterior.noise", "distill.teacher_logits")
NEVER = math.nan

Curve = list[float]
Event = dict[str, Any]


def healthy() -> dict[str, Curve]:
    curves = {f"ranks/same/{name}": [NEVER, *[0.0] * (STEPS - 1)] for name in INPUTS}
    return {**curves, "ranks/weights_apart": [0.0] * STEPS, "ranks/teacher_apart": [0.0] * STEPS}


def ask(
    rule: Rule, curves: Mapping[str, Curve], ranks: Mapping[str, Any] | None = RANKS, events: tuple[Event, ...] = ()
) -> Diagnosis:
    writer = MemoryWriter({} if ranks is None else {"ranks": dict(ranks)})
    for event in events:
        writer.event("ranks_differ", step=0, **event)
    for step in range(STEPS):
        values = {name: c[step] for name, c in curves.items() if step < len(c) and not math.isnan(c[step])}
        writer.append([Record(10 * step, {"loss/flow": 1.0, **values}, full=True)])
    diagnosis = diagnose(writer.run(), rules=[rule])
    assert not [skipped for _, skipped in diagnosis.skipped if skipped.reason.key == "skip.failed"]
    for lang in ("en", "zh-CN"):
        diagnosis.to_json(lang)
    return diagnosis


def shared(*names: str, share: float = 1.0, steps: int = STEPS) -> dict[str, Curve]:
    """A run in which ranks have these inputs in common, at the first `steps` steps that tell."""
    curve = [NEVER, *([share] * (steps - 1)), *([0.0] * (STEPS - steps))]
    return {**healthy(), **{f"ranks/same/{name}": curve for name in names}}


def without(curves: dict[str, Curve], *names: str) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name.removeprefix("ranks/same/") not in names}


def one(rule: Rule, curves: dict[str, Curve], **more: Any) -> Finding:
    (finding,) = ask(rule, curves, **more).findings
    return finding


def clear(rule: Rule, curves: dict[str, Curve], **more: Any) -> bool:
    return ask(rule, curves, **more).clear == (rule.code,)


ALL = [RanksShareData(), RanksShareNoise(), RanksApart()]
each = pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.code)


@each
def test_a_healthy_run_is_clear(rule: Rule) -> None:
    assert clear(rule, healthy())


@each
def test_one_process_is_beside_the_point(rule: Rule) -> None:
    (skipped,) = ask(rule, {}, None).skipped
    assert skipped[1].reason.key == "skip.one_rank"


@pytest.mark.parametrize("rule", ALL[:2], ids=lambda rule: rule.code)
def test_what_is_missing_is_asked_for(rule: Rule) -> None:
    bare = {"ranks/weights_apart": [0.0] * STEPS}
    (_, skipped) = ask(rule, bare).skipped[0]
    assert (skipped.reason.key, skipped.enable and skipped.enable.key) == ("skip.missing", "enable.inputs")
    few = {name: curve[:5] for name, curve in healthy().items()}
    assert ask(rule, few).skipped[0][1].reason.key == "skip.short"


# RNK001


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_ranks_with_the_same_targets_share_data(share: float) -> None:
    finding = one(RanksShareData(), shared("flow.z1", share=share))
    assert finding.severity == "error"
    assert [cause.code for cause in finding.causes] == ["data-not-sharded", "one-seed-for-all"]
    assert finding.message.params["percent"] == 100 * share
    assert finding.message.params["size"] == 4


def test_data_are_told_by_the_target_of_the_velocity_where_there_is_no_end() -> None:
    assert one(RanksShareData(), without(shared("flow.v_target"), "flow.z1"))
    # The difference of both ends is another as soon as the noise is.
    assert clear(RanksShareData(), shared("flow.v_target"))
    assert one(RanksShareData(), shared("flow.z1"))


def test_the_same_few_conditions_on_every_rank_are_not_the_same_data() -> None:
    assert clear(RanksShareData(), shared("posterior.mu"))
    no_flow = without(shared("posterior.mu"), "flow.z0", "flow.z1", "flow.v_target", "flow.t")
    assert clear(RanksShareData(), no_flow), "the teacher was given other pictures"
    assert one(RanksShareData(), {**no_flow, "ranks/same/distill.teacher_logits": [1.0] * STEPS})


def test_the_same_data_now_and_then_are_chance() -> None:
    now_and_then = {**healthy(), "ranks/same/flow.z1": [1.0, 0.0] * (STEPS // 2)}
    assert clear(RanksShareData(), now_and_then)
    assert one(RanksShareData(persistent=0.5), now_and_then)


# RNK002


@pytest.mark.parametrize("name", ["flow.t", "posterior.noise", "flow.z0"])
def test_ranks_with_the_same_draws_share_noise(name: str) -> None:
    finding = one(RanksShareNoise(), shared(name))
    assert [evidence.metric for evidence in finding.evidence] == [f"ranks/same/{name}"]
    assert [cause.code for cause in finding.causes] == ["one-seed-for-all"]


def test_the_same_source_of_the_same_data_is_not_noise() -> None:
    assert clear(RanksShareNoise(), shared("flow.z0", "flow.z1"))
    assert one(RanksShareNoise(), shared("flow.z0", "flow.z1", "flow.t"))


def test_a_fixed_grid_of_times_is_not_drawn() -> None:
    """Its curve is not there; the rest of the noise is judged."""
    assert clear(RanksShareNoise(), without(healthy(), "flow.t"))
    grid_alone = without(healthy(), "flow.t", "posterior.noise", "flow.z0")
    assert ask(RanksShareNoise(), grid_alone).skipped[0][1].reason.key == "skip.missing"


# RNK003


def apart(role: str, *values: float) -> dict[str, Curve]:
    return {**healthy(), f"ranks/{role}_apart": [0.0] * (STEPS - len(values)) + list(values)}


def test_weights_that_part_are_named() -> None:
    told: Event = {"what": "weights apart", "each": {"tensors": ["a.weight", "b", "c", "d"], "count": 4, "of": 9}}
    finding = one(RanksApart(), apart("weights", 1e-3, 2e-3), events=(told,))
    assert (finding.severity, finding.causes[0].code) == ("error", "outside-the-wrapper")
    assert finding.evidence[0].first_step == 10 * (STEPS - 2)
    assert "4 of 9" in str(finding.message)
    assert "a.weight, b, c" in str(finding.message)


def test_weights_that_began_apart_were_not_sent() -> None:
    finding = one(RanksApart(), apart("weights", *[1.4] * STEPS))
    assert finding.causes[0].code == "not-broadcast"
    assert finding.fixes[0].params["what"] == "broadcast_weights"


def test_a_model_on_every_rank_is_told_as_such() -> None:
    finding = one(RanksApart(), apart("weights", 0.5), events=({"what": "model", "each": {"weights": 2}},))
    assert finding.message.key == "rule.RNK003.model"


def test_a_teacher_of_its_own_is_told_apart_from_the_weights() -> None:
    both = {**apart("weights", 0.5), "ranks/teacher_apart": [0.5] * STEPS}
    assert {finding.subject for finding in ask(RanksApart(), both).findings} == {"weights", "teacher"}
    assert one(RanksApart(), apart("teacher", 0.5)).message.key == "rule.RNK003.teacher"


def test_rounding_is_only_mentioned() -> None:
    finding = one(RanksApart(), apart("weights", 1e-8))
    assert (finding.severity, finding.message.key) == ("info", "rule.RNK003.rounding")


def test_weights_that_come_together_again_are_clear() -> None:
    """Local SGD, measured at the step after its averaging; or a teacher that has forgotten where it began."""
    assert clear(RanksApart(), apart("weights", 1e-3, 0.0))


def test_shards_are_not_compared() -> None:
    inputs_only = {name: curve for name, curve in healthy().items() if name.startswith("ranks/same")}
    (_, skipped) = ask(RanksApart(), inputs_only, {**RANKS, "sharded": True}).skipped[0]
    assert skipped.reason.key == "skip.sharded"
