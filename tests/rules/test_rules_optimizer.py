"""OPT: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from asking import Asking, Curves, codes, record, told

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.rules import RULES, Rule, RunView
from lossdoctor.rules.num901_non_finite import NonFinite
from lossdoctor.rules.opt701_head_not_moving import HeadNotMoving
from lossdoctor.rules.opt702_not_in_optimizer import NotInOptimizer
from lossdoctor.rules.opt703_head_weight_decay import HeadWeightDecay
from lossdoctor.rules.opt704_update_too_large import UpdateTooLarge
from lossdoctor.rules.opt705_ema_stuck import EmaStuck
from lossdoctor.rules.opt706_ema_too_slow import EmaTooSlow
from lossdoctor.rules.opt707_lost_accumulation import LostAccumulation

OWN = [rule for rule in RULES if rule.code.startswith("OPT")]
HEADS = ("z_head", "flow_head")
EVERY, STEPS = 50, 60

N = np.arange(STEPS)
COSINE = np.minimum(1.0, (N + 1) / 3) * (0.05 + 0.475 * (1 + np.cos(math.pi * N / STEPS)))
"""A warm-up, and a cosine down to 5 % of the peak."""


def healthy(seed: int = 0) -> Curves:
    """A run with a schedule, an EMA whose decay warms up, and a flow head that began at zero."""
    rng = np.random.default_rng(seed)
    decay = np.minimum(0.999, (1 + EVERY * N) / (10 + EVERY * N))
    curves: Curves = {
        "loss/flow": list(0.6 + 0.6 * np.exp(-N / 5) + 0.02 * rng.normal(size=STEPS)),
        "loss/kl": list(3 + np.log1p(N) + 0.02 * rng.normal(size=STEPS)),
        "ema/momentum": list(decay),
        "ema/distance": list(0.005 + 0.01 * COSINE * (1 + 0.1 * rng.normal(size=STEPS))),
        "grad/accumulation": list(1 + 1e-7 * rng.normal(size=STEPS)),
    }
    for head, size in (("z_head", 0.002), ("flow_head", 0.004)):
        moved = size * COSINE * np.exp(0.2 * rng.normal(size=STEPS))
        curves[f"step/{head}_update_ratio"] = list(moved)
        curves[f"step/{head}_rms_update"] = list(moved + (0.25 / (1 + 10 * N) if head == "flow_head" else 0))
        curves[f"step/{head}_grad_norm"] = list(0.1 * np.exp(0.2 * rng.normal(size=STEPS)))
        curves[f"lr/{head}"] = list(3e-3 * COSINE)
        curves[f"wd/{head}"] = [0.0] * STEPS
    return curves


def audited(**changed: Any) -> dict[str, Any]:
    head = {"trainable": 2, "frozen": 0, "in_optimizer": True, "weight_decay": 0.0, "lr": [3e-3], "dtype": ["float32"]}
    facts = {
        "optimizers": {
            "missing": [],
            "missing_count": 0,
            "missing_with_grad": 0,
            "missing_modules": [],
            "twice_count": 0,
        },
        "heads": {name: dict(head) for name in HEADS},
        "weight_decay": {"default": 0.05},
        "ema": {"parameters": 4, "requires_grad": 0, "aliased": 0, "dtypes": {"float32": 4}},
        "accumulation": {"backwards": 4},
    }
    return {**facts, **changed}


recorded = functools.partial(record, every=EVERY, losses={"flow": "velocity", "kl": "kl"}, heads=list(HEADS))
ASKING = Asking(recorded)
ask, fired, one, clear = ASKING.ask, ASKING.fired, ASKING.one, ASKING.clear


# All rules at once


def test_a_healthy_run_is_clear() -> None:
    for seed in range(5):
        diagnosis = diagnose(recorded(healthy(seed), facts=audited()), rules=[rule() for rule in OWN])
        assert not diagnosis.findings, [str(finding.message) for finding in diagnosis.findings]
        assert not diagnosis.skipped


HOSTILE: dict[str, Callable[[Curves], Curves]] = {
    "empty": lambda curves: {},
    "one step": lambda curves: {name: curve[:1] for name, curve in curves.items()},
    "all NaN": lambda curves: {name: [math.nan] * STEPS for name in curves},
    "every other infinite": lambda curves: {
        n: [x if i % 2 else math.inf for i, x in enumerate(c)] for n, c in curves.items()
    },
    "zero": lambda curves: {name: [0.0] * STEPS for name in curves},
    "constant": lambda curves: {name: [1.0] * STEPS for name in curves},
    "negative": lambda curves: {name: [-1.0] * STEPS for name in curves},
    "huge": lambda curves: {name: [1e300] * STEPS for name in curves},
    "tiny": lambda curves: {name: [1e-300] * STEPS for name in curves},
    "only losses": lambda curves: {name: curve for name, curve in curves.items() if name.startswith("loss/")},
    "only rms": lambda curves: {name: curve for name, curve in curves.items() if name.endswith("rms_update")},
}


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("hurt", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_runs_do_not_hurt(rule: type[Rule], hurt: Callable[[Curves], Curves]) -> None:
    run = recorded(hurt(healthy()), facts=audited(), knobs={"ema": 0.999})
    rule().check(RunView(run))
    told(diagnose(run, rules=[rule()]))


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize(
    "facts",
    [
        {"optimizers": {}, "heads": {"z_head": {}}, "ema": {}},
        {"optimizers": {"missing_count": 3, "missing_with_grad": 1}, "heads": {}, "ema": {"dtypes": {}}},
        {"optimizers": None, "heads": None, "ema": None},
        {"heads": {"z_head": {"trainable": 1, "weight_decay": 0.1}}, "optimizers": {}, "ema": {"aliased": 1}},
    ],
)
def test_half_an_audit_does_not_hurt(rule: type[Rule], facts: dict[str, Any]) -> None:
    told(diagnose(recorded(healthy(), facts=facts), rules=[rule()]))
    rule().check(RunView(recorded({"loss/flow": [1.0] * STEPS}, facts=facts)))


# OPT701


def test_a_head_with_a_tiny_rate_hardly_moves() -> None:
    curves = healthy()
    for name in ("step/z_head_update_ratio", "lr/z_head"):
        curves[name] = [x * 1e-5 for x in curves[name] if x is not None]
    finding = one(HeadNotMoving(), curves)
    assert (finding.subject, finding.severity, codes(finding)[0]) == ("z_head", "warning", "rate-too-small")
    assert finding.confirm == "lr:z_head*100000"
    assert "that of other heads 0.0" in str(finding.message)
    assert clear(HeadNotMoving(ratio=1e-9), curves)


@pytest.mark.parametrize(("ratio", "factors"), [(8e-6, [2.0, 5.0]), (1e-7, [1000.0]), (3e-9, [3e4]), (0.0, [2.0, 5.0])])
def test_without_known_rates_the_ratio_says_how_far_to_raise_it(ratio: float, factors: list[float]) -> None:
    curves = {name: curve for name, curve in healthy().items() if not name.startswith("lr/")}
    curves["step/z_head_update_ratio"] = [ratio] * STEPS
    finding = one(HeadNotMoving(), curves)
    assert [fix.params["factor"] for fix in finding.fixes] == factors


def test_a_frozen_head_is_told_without_any_step() -> None:
    curves = {name: curve for name, curve in healthy().items() if "z_head" not in name}
    facts = audited()
    facts["heads"]["z_head"] |= {"trainable": 0, "frozen": 2}
    finding = one(HeadNotMoving(), curves, facts=facts)
    assert (finding.subject, codes(finding)) == ("z_head", ["frozen-head"])


def test_healthy_a_schedule_that_ends_at_zero() -> None:
    curves = healthy()
    off = np.where(N < STEPS // 4, 1.0, 1e-6)
    for name in ("step/z_head_update_ratio", "lr/z_head"):
        curves[name] = list(np.array(curves[name], float) * off)
    curves["lr/z_head"][STEPS // 4 :] = [0.0] * (STEPS - STEPS // 4)
    # Only nine steps are left to judge: no statement.
    assert ask(HeadNotMoving(), {n: c for n, c in curves.items() if "flow_head" not in n}).skipped
    assert clear(HeadNotMoving(), curves)


def test_healthy_a_head_without_gradient_is_not_slow_but_unreached() -> None:
    still = {"step/z_head_update_ratio": [0.0] * STEPS, "step/z_head_grad_norm": [0.0] * STEPS}
    assert clear(HeadNotMoving(), healthy() | still)


# OPT702


def missing(**changed: Any) -> dict[str, Any]:
    told_of = {
        "missing": ["flow_head.weight", "flow_head.bias"],
        "missing_count": 2,
        "missing_with_grad": 2,
        "missing_modules": ["flow_head", "velocity"],
        "missing_whole": ["flow_head"],
    }
    return audited(optimizers={**told_of, **changed})


def test_a_head_in_no_optimizer_is_an_error() -> None:
    finding = one(NotInOptimizer(), healthy(), facts=missing())
    assert (finding.subject, finding.severity, codes(finding)) == ("flow_head", "error", ["not-in-optimizer"])
    assert "flow_head.weight" in str(finding.message)


def test_another_part_may_be_left_out_on_purpose() -> None:
    assert one(NotInOptimizer(), healthy(), facts=missing(missing_modules=["backbone"])).severity == "warning"


def test_healthy_what_gets_no_gradient_needs_no_optimizer() -> None:
    assert clear(NotInOptimizer(), healthy(), facts=missing(missing_with_grad=0))
    assert ask(NotInOptimizer(), healthy()).skipped


# OPT703


def decayed(decay: float) -> tuple[Curves, dict[str, Any]]:
    facts = audited()
    for fact in facts["heads"].values():
        fact["weight_decay"] = decay
    return healthy() | {f"wd/{head}": [decay] * STEPS for head in HEADS}, facts


def test_the_decay_of_the_backbone_on_the_heads_is_a_warning() -> None:
    curves, facts = decayed(0.05)
    finding = one(HeadWeightDecay(), curves, facts=facts)
    assert (finding.severity, codes(finding)) == ("warning", ["weight-decay-on-head"])
    assert finding.confirm == "wd:z_head=0+wd:flow_head=0"
    assert {fix.target for fix in finding.fixes} == set(HEADS)
    pull = 0.05 * float(np.mean(curves["lr/z_head"])) * (EVERY * (STEPS - 1) + 1)
    assert f"takes {100 * pull:.2g} %" in str(finding.message)


def test_the_default_of_adamw_in_a_short_run_is_a_remark() -> None:
    curves, facts = decayed(0.01)
    assert one(HeadWeightDecay(), curves, facts=facts, every=10).severity == "info"
    assert one(HeadWeightDecay(), curves, facts=facts, every=500).severity == "warning"
    without_curves = {"loss/flow": [1.0] * STEPS}
    assert one(HeadWeightDecay(), without_curves, facts=facts, every=500).severity == "warning"


def test_healthy_a_frozen_head_does_not_decay() -> None:
    _, facts = decayed(0.05)
    for fact in facts["heads"].values():
        fact |= {"trainable": 0, "frozen": 2}
    assert clear(HeadWeightDecay(), healthy(), facts=facts)


def both(curves: Curves, facts: dict[str, Any], every: int = EVERY) -> Diagnosis:
    diagnosis = diagnose(recorded(curves, facts=facts, every=every), rules=[HeadWeightDecay(), UpdateTooLarge()])
    told(diagnosis)
    return diagnosis


def test_a_pull_that_comes_from_the_rate_stands_behind_the_rate() -> None:
    """A rate 150 times too high: rate times decay is large because of it."""
    curves, facts = decayed(0.01)
    rates = {f"lr/{head}": list(0.45 * COSINE) for head in HEADS}
    curves |= {"loss/flow": exploded()["loss/flow"], "step/z_head_rms_update": [0.17] * STEPS} | rates
    leader, *followers = both(curves, facts).findings
    [decay] = [finding for finding in followers if finding.code == "OPT703"]
    assert leader.code == "OPT704"
    assert (decay.severity, decay.explained_by) == ("warning", "OPT704")


@pytest.mark.parametrize(("decay", "harm"), [(0.05, True), (0.01, False)])
def test_healthy_a_chosen_decay_and_a_rate_that_does_no_harm_stand_for_themselves(decay: float, harm: bool) -> None:
    curves, facts = decayed(decay)
    curves |= {"step/z_head_rms_update": [0.17] * STEPS} | ({"loss/flow": exploded()["loss/flow"]} if harm else {})
    findings = {finding.code: finding for finding in both(curves, facts, every=500).findings}
    assert findings["OPT703"].explained_by is None
    assert findings["OPT704"].severity == ("warning" if harm else "info")


# OPT704


def exploded() -> Curves:
    curves = healthy()
    curves["loss/flow"] = [1.2, 30.0, 60.0, 40.0, *curves["loss/flow"][4:]]
    curves["step/z_head_rms_update"] = [0.17, 0.15, *curves["step/z_head_rms_update"][2:]]
    return curves


@pytest.mark.parametrize(("update", "factors"), [(0.02, [0.1, 0.3]), (0.17, [0.02, 0.002]), (3.0, [0.001, 0.0001])])
def test_the_rate_is_lowered_as_far_as_the_updates_are_too_large(update: float, factors: list[float]) -> None:
    curves = exploded() | {f"step/{head}_rms_update": [update] * STEPS for head in HEADS}
    for finding in fired(UpdateTooLarge(), curves):
        assert [fix.params["factor"] for fix in finding.fixes[:2]] == pytest.approx(factors)


def test_large_steps_and_a_loss_that_explodes_are_a_warning() -> None:
    for finding in fired(UpdateTooLarge(), exploded()):
        assert (finding.severity, codes(finding)[0]) == ("warning", "rate-too-large")
        assert finding.confirm == f"lr:all*{finding.fixes[0].params['factor']:g}"
        assert "it began at 1.2 and rose to 60" in str(finding.message)
    assert {finding.subject for finding in fired(UpdateTooLarge(), exploded())} == set(HEADS)


def test_a_loss_that_never_comes_back_has_exploded_too() -> None:
    curves = exploded() | {"loss/flow": list(1.2 * np.exp(N.clip(0, 40)))}
    assert {finding.severity for finding in fired(UpdateTooLarge(), curves)} == {"warning"}


def test_large_steps_in_a_run_that_learns_are_a_remark() -> None:
    fast = healthy() | {"step/z_head_rms_update": [0.03] * STEPS}
    assert one(UpdateTooLarge(), fast).severity == "info"
    assert clear(UpdateTooLarge(rms=0.05), fast)
    stuck = one(UpdateTooLarge(), fast | {"loss/flow": [1.2] * STEPS})
    assert stuck.severity == "warning"
    assert "flow does not fall" in str(stuck.message)


def test_parameters_that_are_stepped_twice_are_named() -> None:
    facts = audited(optimizers={"twice_count": 2})
    assert codes(fired(UpdateTooLarge(), exploded(), facts=facts)[0])[0] == "twice-in-optimizer"


def test_a_rate_that_ends_in_nan_leads_the_finding_of_the_nan() -> None:
    curves = {name: [x if i < 4 else math.nan for i, x in enumerate(curve)] for name, curve in healthy().items()} | {
        "step/z_head_rms_update": [0.2, 0.3, 0.4, 0.5] + [math.nan] * (STEPS - 4)
    }
    diagnosis = diagnose(recorded(curves), rules=[UpdateTooLarge(), NonFinite()])
    told(diagnosis)
    assert [(f.code, f.explained_by) for f in diagnosis.findings] == [("OPT704", None), ("NUM901", "OPT704")]


def test_healthy_a_head_that_begins_at_zero() -> None:
    curves = healthy()
    curves["step/flow_head_rms_update"] = list(1.0 / (1 + 5 * N))
    assert clear(UpdateTooLarge(), curves)


def test_healthy_a_nan_long_after_a_head_began_at_zero_has_another_root() -> None:
    curves = healthy()
    curves["loss/flow"] = [*curves["loss/flow"][:50], *[math.nan] * 10]
    assert clear(UpdateTooLarge(), curves)


def test_healthy_a_single_bad_batch_and_a_kl_that_grows() -> None:
    curves = healthy() | {"loss/kl": list(0.01 * np.exp(0.2 * N))}
    dense: Curves = {name: list(np.repeat(np.array(curve, float), 10)) for name, curve in curves.items()}
    dense["loss/flow"][300] = 50.0
    assert clear(UpdateTooLarge(), dense, every=5)


# OPT705


def test_an_ema_that_is_never_updated_is_an_error() -> None:
    still = {"ema/momentum": [1.0] * STEPS, "ema/distance": list(0.3 * np.sqrt(N / STEPS))}
    finding = one(EmaStuck(), healthy() | still, facts=audited())
    assert (finding.severity, codes(finding)) == ("error", ["ema-not-updated"])
    assert one(EmaStuck(), {name: curve[:6] for name, curve in (healthy() | still).items()}).severity == "error"


@pytest.mark.parametrize(
    ("ema", "cause", "severity"),
    [
        ({"aliased": 4, "dtypes": {"float32": 4}}, "ema-is-model", "error"),
        ({"aliased": 0, "dtypes": {"bfloat16": 3, "float32": 1}}, "ema-half-precision", "warning"),
        ({"aliased": 0, "dtypes": {"float16": 4}}, "ema-half-precision", "warning"),
    ],
)
def test_what_the_audit_finds(ema: dict[str, Any], cause: str, severity: str) -> None:
    finding = one(EmaStuck(), healthy(), facts=audited(ema=ema))
    assert (codes(finding), finding.severity) == ([cause], severity)
    assert finding.depth == "root"


def test_an_update_for_every_micro_batch_is_a_power_of_the_declared_decay() -> None:
    often = healthy() | {"ema/momentum": [0.99**4] * STEPS}
    finding = one(EmaStuck(), often, facts=audited(), knobs={"ema_decay": 0.99})
    assert codes(finding) == ["ema-per-micro-batch"]
    assert "updated 4 times" in str(finding.message)
    ema = {"parameters": 4, "requires_grad": 0, "aliased": 0, "dtypes": {"float32": 4}, "updates_between": 3}
    for knobs in ({}, {"ema_decay": 0.99}):
        finding = one(EmaStuck(), often, facts=audited(ema=ema), knobs=knobs)
        assert (finding.certainty, codes(finding)) == ("likely", ["ema-per-micro-batch"]), "seen, not concluded"
    assert clear(EmaStuck(), often, facts=audited()), "without a declared decay nothing is known"


def test_healthy_a_decay_that_warms_up_passes_by_every_power() -> None:
    assert clear(EmaStuck(), healthy(), facts=audited(), knobs={"ema": 0.999})
    assert clear(EmaStuck(), healthy() | {"ema/momentum": [0.99] * STEPS}, facts=audited(), knobs={"ema": 0.99})


def test_healthy_an_ema_that_is_updated_every_tenth_step() -> None:
    """At the measured steps it stands still, and yet it follows: its distance does not grow."""
    rng = np.random.default_rng(7)
    seldom = {"ema/momentum": [1.0] * STEPS, "ema/distance": list(0.01 + 0.002 * rng.normal(size=STEPS))}
    assert clear(EmaStuck(), healthy() | seldom, facts=audited())


# OPT706


def test_a_decay_of_four_nines_after_a_thousand_steps() -> None:
    slow = healthy() | {"ema/momentum": [0.9999] * STEPS, "ema/distance": [0.2] * STEPS}
    finding = one(EmaTooSlow(), slow, every=17)
    assert codes(finding) == ["ema-too-slow"]
    assert "90 % of the initial weights" in str(finding.message)
    assert clear(EmaTooSlow(residue=0.95), slow, every=17)
    assert clear(EmaTooSlow(), slow | {"ema/distance": [0.01] * STEPS}, every=17), "it is where the weights are"


@pytest.mark.parametrize("momentum", [0.99, 0.5, 0.0, -0.1])
def test_healthy_an_ema_that_forgets(momentum: float) -> None:
    assert clear(EmaTooSlow(), healthy() | {"ema/momentum": [momentum] * STEPS})


def test_healthy_a_warm_up_of_the_decay_forgets_the_beginning() -> None:
    late = np.minimum(0.99999, (1 + EVERY * N) / (10 + EVERY * N))
    assert clear(EmaTooSlow(), healthy() | {"ema/momentum": list(late)})


def test_an_ema_that_stands_still_is_another_finding() -> None:
    assert clear(EmaTooSlow(), healthy() | {"ema/momentum": [1.0] * STEPS})


# OPT707


@pytest.mark.parametrize("left", [0.25, 0.5, 0.7])
def test_lost_micro_batches_are_an_error(left: float) -> None:
    rng = np.random.default_rng(8)
    curves = healthy() | {"grad/accumulation": list(left + 0.05 * rng.normal(size=STEPS))}
    finding = one(LostAccumulation(), curves, facts=audited())
    assert (finding.severity, codes(finding)) == ("error", ["gradient-dropped"])
    assert clear(LostAccumulation(ratio=0.1), curves)


def test_healthy_a_clip_between_micro_batches_now_and_then() -> None:
    curves = healthy() | {"grad/accumulation": [0.5 if i % 4 == 0 else 1.0 for i in range(STEPS)]}
    assert clear(LostAccumulation(), curves)
    assert ask(LostAccumulation(), {"grad/accumulation": [0.5] * 5}).skipped
    ((_, skipped),) = ask(LostAccumulation(), {}, facts={"accumulation": {"backwards": 1}}).skipped
    assert skipped.reason.key == "skip.one_backward"
