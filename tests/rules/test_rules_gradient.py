"""GRD and BAL: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from asking import Asking, Curve, Curves, codes, record, told

from lossdoctor.diagnose import diagnose
from lossdoctor.rules import RULES, Rule, RunView
from lossdoctor.rules.bal801_ratio_out_of_band import RatioOutOfBand
from lossdoctor.rules.grd101_loss_without_gradient import LossWithoutGradient
from lossdoctor.rules.grd102_weak_gradient import WeakGradient
from lossdoctor.rules.grd103_dominant_gradient import DominantGradient
from lossdoctor.rules.grd104_opposed_gradients import OpposedGradients
from lossdoctor.rules.grd105_unreached_head import UnreachedHead
from lossdoctor.rules.grd106_ascending_loss import AscendingLoss
from lossdoctor.rules.grd107_clip_always_active import ClipAlwaysActive
from lossdoctor.rules.grd108_cut_off_loss import CutOffLoss
from lossdoctor.rules.heads import kind_of_head
from lossdoctor.rules.opt704_update_too_large import UpdateTooLarge
from lossdoctor.rules.strengths import blamed, factor_to, strengths, together

OWN = [rule for rule in RULES if rule.code[:3] in ("GRD", "BAL")]
KINDS = {"flow": "velocity", "dino": "distill", "kl": "kl"}
HEADS = ("z_head", "flow_head", "dino_head")
REACH = {"flow": ("z_head", "flow_head"), "dino": ("z_head", "dino_head"), "kl": ("z_head",)}
EVERY, STEPS = 50, 50


def noisy(level: float, rng: np.random.Generator, spread: float = 0.15, start: float | None = None) -> Curve:
    """A curve as training makes them: from `start` to `level` in a tenth of the run, with noise that remembers."""
    noise = np.zeros(STEPS)
    for i, drawn in enumerate(rng.normal(size=STEPS)):
        noise[i] = 0.6 * (noise[i - 1] if i else 0.0) + 0.8 * drawn
    begin = level if start is None else start
    course = level + (begin - level) * np.exp(-np.arange(STEPS) / 5)
    return list((course * np.exp(spread * noise)).astype(float))


def healthy(seed: int = 0) -> Curves:
    """The measured steps of a run like the reference system: weighted gradients 0.28 : 1 : 0.26."""
    rng = np.random.default_rng(seed)
    weights = {"flow": 1.0, "dino": 0.22, "kl": 0.07}
    norms = {"flow": 0.4, "dino": 0.5, "kl": 1.5}
    values = {"flow": (1.2, 0.69), "dino": (3.8, 0.95), "kl": (10.5, 2.8)}
    curves: Curves = {"grad/total": noisy(0.41, rng, start=1.3)}
    for loss, weight in weights.items():
        norm = noisy(norms[loss], rng, start=2 * norms[loss])
        curves |= {
            f"weight/{loss}": [weight] * STEPS,
            f"loss/{loss}": noisy(values[loss][1], rng, 0.05, values[loss][0]),
            f"grad/{loss}": norm,
            f"grad_weighted/{loss}": [weight * one for one in norm if one is not None],
            f"descent/{loss}": list(rng.normal(0.01, 0.004, STEPS)),
        }
        curves |= {f"grad_module/{loss}/{head}": noisy(0.2, rng) for head in REACH[loss]}
    # Near its balance the KL is as often made worse as better, and it is opposed to what shapes the latent.
    curves["descent/kl"] = list(rng.normal(0.0002, 0.003, STEPS))
    curves["grad_cos/dino|kl"] = [-0.39 + 0.03 * x for x in rng.normal(size=STEPS)]
    curves["grad_cos/flow|kl"] = [-0.45 + 0.05 * x for x in rng.normal(size=STEPS)]
    curves["grad_cos/dino|flow"] = [0.05 + 0.02 * x for x in rng.normal(size=STEPS)]
    for head in HEADS:
        curves[f"step/{head}_grad_norm"] = noisy(0.1, rng)
    metrics = {
        "distill/kl": 0.9,
        "kl/per_dim": 0.09,
        "flow/nmse": 0.3,
        "ent/teacher_norm": 0.023,
        "ent/teacher_mi": 2.9,
    }
    return curves | {name: noisy(level, rng) for name, level in metrics.items()} | {"ent/student_norm": [0.24] * STEPS}


def scaled(curves: Curves, loss: str, factor: float) -> Curves:
    """The same run with another weight: what a loss weighs and how strong it is, the total following the strongest."""
    for name in (f"weight/{loss}", f"grad_weighted/{loss}"):
        curves[name] = [None if x is None else x * factor for x in curves[name]]
    parts = [np.array(curve, float) for name, curve in curves.items() if name.startswith("grad_weighted/")]
    curves["grad/total"] = list(np.sqrt(sum(part**2 for part in parts)))
    return curves


def heads_audit(**changed: Mapping[str, Any]) -> dict[str, Any]:
    fact = {"trainable": 2, "frozen": 0, "in_optimizer": True, "weight_decay": 0.0, "lr": [1e-3], "dtype": ["float32"]}
    return {"heads": {head: {**fact, **changed.get(head, {})} for head in HEADS}}


recorded = functools.partial(record, every=EVERY, losses=KINDS, heads=list(HEADS))
ASKING = Asking(recorded)
ask, fired, one, clear = ASKING.ask, ASKING.fired, ASKING.one, ASKING.clear


# All rules at once


def test_a_healthy_run_is_clear() -> None:
    for seed in range(5):
        diagnosis = diagnose(recorded(healthy(seed), facts=heads_audit()), rules=[rule() for rule in OWN])
        assert not diagnosis.findings, [str(finding.message) for finding in diagnosis.findings]
        assert [code for code, _ in diagnosis.skipped] == ["BAL802", "GRD107"], "no balancer, and no step was clipped"


def with_nan(curves: Curves) -> Curves:
    return {name: [math.nan] * STEPS for name in curves}


def huge(curves: Curves) -> Curves:
    return {name: [None if x is None else math.copysign(1e300, x) for x in curve] for name, curve in curves.items()}


def flickering(curves: Curves) -> Curves:
    return {name: [x if i % 2 else math.inf for i, x in enumerate(curve)] for name, curve in curves.items()}


HOSTILE: dict[str, Callable[[Curves], Curves]] = {
    "empty": lambda curves: {},
    "one step": lambda curves: {name: curve[:1] for name, curve in curves.items()},
    "two steps": lambda curves: {name: curve[:2] for name, curve in curves.items()},
    "all NaN": with_nan,
    "every other infinite": flickering,
    "zero": lambda curves: {name: [0.0] * STEPS for name in curves},
    "constant": lambda curves: {name: [1.0] * STEPS for name in curves},
    "huge": huge,
    "tiny": lambda curves: {name: [1e-300] * STEPS for name in curves},
    "only losses": lambda curves: {name: curve for name, curve in curves.items() if name.startswith("loss/")},
    "only gradients": lambda curves: {name: curve for name, curve in curves.items() if name.startswith("grad")},
    "names of nothing": lambda curves: {"grad_cos/a|b": [0.1] * STEPS, "grad_weighted/": [1.0] * STEPS},
}


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("hurt", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_runs_do_not_hurt(rule: type[Rule], hurt: Callable[[Curves], Curves]) -> None:
    run = recorded(hurt(healthy() | {"grad/clip_ratio": [0.3] * STEPS}), facts=heads_audit())
    rule().check(RunView(run))
    told(diagnose(run, rules=[rule()]))


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("facts", [{}, {"heads": {}}, {"heads": {"z_head": {}}}, {"heads": None}])
def test_half_an_audit_does_not_hurt(rule: type[Rule], facts: dict[str, Any]) -> None:
    rule().check(RunView(recorded(healthy(), facts=facts)))


# GRD101


def detached(curves: Curves, loss: str) -> Curves:
    return {name: curve for name, curve in curves.items() if f"/{loss}" not in name or name[:4] in ("weig", "loss")}


@pytest.mark.parametrize("loss", KINDS)
def test_a_detached_loss_is_an_error(loss: str) -> None:
    finding = one(LossWithoutGradient(), detached(healthy(), loss))
    assert (finding.loss, finding.severity, codes(finding)[0]) == (loss, "error", "detached-branch")
    assert f"no gradient: in none of {STEPS} measured steps" in str(finding.message)


def test_a_gradient_of_exactly_zero_is_none() -> None:
    zeros = {"grad/dino": [0.0] * STEPS, "grad_weighted/dino": [0.0] * STEPS}
    assert one(LossWithoutGradient(), healthy() | zeros).loss == "dino"


def test_a_gradient_that_goes_away_is_a_warning_with_its_step() -> None:
    curves = healthy()
    curves["grad/kl"] = curves["grad/kl"][:20] + [None] * (STEPS - 20)
    finding = one(LossWithoutGradient(), curves)
    assert finding.severity == "warning"
    assert "since step 1,000: 30 measured steps" in str(finding.message)


def test_a_few_batches_without_gradient_are_a_mask() -> None:
    curves = healthy()
    curves["grad/kl"] = [None if i % 3 else x for i, x in enumerate(curves["grad/kl"])]
    assert clear(LossWithoutGradient(), curves)


def test_a_frozen_head_is_named_as_the_cause() -> None:
    facts = heads_audit(dino_head={"trainable": 0, "frozen": 3})
    assert codes(one(LossWithoutGradient(), detached(healthy(), "dino"), facts=facts))[0] == "frozen-head"


def test_three_steps_are_enough_to_see_it_and_two_are_not() -> None:
    curves = detached(healthy(), "kl")
    few = [{name: curve[:n] for name, curve in curves.items()} for n in (2, 3)]
    assert ask(LossWithoutGradient(), few[0]).skipped
    assert one(LossWithoutGradient(), few[1]).loss == "kl"
    assert ask(LossWithoutGradient(least=4), few[1]).skipped


def test_healthy_a_loss_without_weight_needs_no_gradient() -> None:
    curves = detached(healthy(), "kl")
    curves["weight/kl"] = [0.0] * STEPS
    assert clear(LossWithoutGradient(), curves)


def test_healthy_a_loss_that_is_constant_before_its_start_step() -> None:
    curves = healthy()
    curves["loss/kl"] = [0.0] * 30 + curves["loss/kl"][30:]
    curves["grad/kl"] = [None] * 30 + curves["grad/kl"][30:]
    assert clear(LossWithoutGradient(), curves)


def test_healthy_a_kl_under_its_free_bits() -> None:
    curves = healthy()
    curves["loss/kl"] = curves["loss/kl"][:5] + [2.0] * (STEPS - 5)
    curves["grad/kl"] = curves["grad/kl"][:5] + [0.0] * (STEPS - 5)
    assert clear(LossWithoutGradient(), curves)


def test_healthy_steps_that_grad_scaler_skipped_have_no_gradients_at_all() -> None:
    curves = healthy()
    for name in curves:
        if name.startswith("grad"):
            curves[name] = [None if i < 14 else x for i, x in enumerate(curves[name])]
    assert clear(LossWithoutGradient(), curves)


# GRD102


def test_a_distillation_of_a_ten_thousandth_is_an_error() -> None:
    finding = one(WeakGradient(), scaled(healthy(), "dino", 1e-4))
    assert (finding.loss, finding.severity, codes(finding)[0]) == ("dino", "error", "weight-too-small")
    assert finding.confirm is not None
    name, factor = finding.confirm.removeprefix("weight:").split("*")
    assert name == "dino"
    assert 3e3 < float(factor) < 3e4, "the factor brings it back into its band"


def test_a_distillation_between_the_two_limits_is_a_warning() -> None:
    finding = one(WeakGradient(), scaled(healthy(), "dino", 0.25))
    assert (finding.loss, finding.severity) == ("dino", "warning")
    assert finding.p is not None
    assert finding.p < 0.01
    assert {fix.action for fix in finding.fixes} >= {"scale_weight", "scale_rate", "balance"}
    assert clear(WeakGradient(distill=0.02, distill_error=0.01), scaled(healthy(), "dino", 0.25))


def test_a_weak_velocity_is_a_warning() -> None:
    finding = one(WeakGradient(), scaled(healthy(), "flow", 1e-4))
    assert (finding.loss, finding.severity, codes(finding)[0]) == ("flow", "warning", "weight-too-small")


def test_the_loss_that_outweighs_all_is_blamed() -> None:
    (flow,) = [f for f in fired(WeakGradient(), scaled(healthy(), "dino", 1e3)) if f.loss == "flow"]
    assert codes(flow)[0] == "weight-too-large"
    assert flow.fixes[0].target == "dino"
    assert flow.fixes[0].params["factor"] < 0.1
    assert [str(cause.message) for cause in flow.causes] == [
        "The weight of dino is too large against flow.",
        "The weight of flow is too small against dino.",
    ]


def test_every_rule_that_blames_a_weight_says_whose_in_both_languages() -> None:
    heavy = scaled(healthy(), "kl", 1e3)
    heavy |= {"grad/clip_ratio": [0.05] * STEPS, "grad_cos/dino|flow": [-0.8] * STEPS}
    findings = diagnose(recorded(heavy), rules=[rule() for rule in OWN]).findings
    causes = {(f.code, c.code): c for f in findings for c in f.causes}
    said = {key: cause.message.text("en") for key, cause in causes.items()}
    assert said["GRD103", "weight-too-large"] == "The weight of kl is too large against dino."
    assert said["BAL801", "weight-too-large"] == "The weight of kl is too large against flow."
    assert said["GRD107", "weight-too-large"] == "The weight of kl is too large against the others."
    assert said["GRD104", "conflicting-losses"] == "dino and flow want opposite things of the parameters they share."
    assert causes["GRD107", "weight-too-large"].message.text("zh-CN") == "kl 的权重太大（比较对象：其他损失）。"


@pytest.mark.parametrize(
    ("losses", "leader"),
    [
        ([0.7, 1e5, 1e6, 1e6] + [3e5] * (STEPS - 4), "OPT704"),
        ([0.7, 1e5, 1e6, 1e6] + [math.nan] * (STEPS - 4), "OPT704"),
        ([0.7] * STEPS, None),
        ([0.7] * 10 + [0.5] * (STEPS - 10), None),
    ],
    ids=["explodes", "breaks", "stuck", "falls"],
)
def test_what_an_explosion_makes_of_the_gradients_is_listed_under_the_rate(losses: Curve, leader: str | None) -> None:
    """A rate 150 times too high: the distillation is weak because the velocity exploded. A velocity that is only stuck
    may lack weight, and one that falls explains nothing."""
    curves = scaled(healthy(), "flow", 1e4) | {"loss/flow": losses, "step/z_head_rms_update": [0.17] * STEPS}
    found = diagnose(recorded(curves), rules=[rule() for rule in (*OWN, UpdateTooLarge)]).findings
    weak = {f.code: f.explained_by for f in found if f.code in ("GRD102", "GRD103", "BAL801") and f.loss != "kl"}
    assert set(weak) == {"GRD102", "GRD103", "BAL801"}
    assert (found[0].code == "OPT704") == (leader is not None)
    assert [f.severity for f in found if f.code == "OPT704"] == ["info" if losses[-1] == 0.5 else "warning"]
    assert {by == "OPT704" for by in weak.values()} == {leader is not None}


def test_a_weak_kl_is_a_warning_only_when_the_posterior_has_left_the_prior() -> None:
    near = one(WeakGradient(), scaled(healthy(), "kl", 1e-4))
    assert (near.loss, near.severity) == ("kl", "info")
    far = one(WeakGradient(), scaled(healthy(), "kl", 1e-4) | {"kl/per_dim": [2.3] * STEPS})
    assert (far.severity, codes(far)[:2]) == ("warning", ["weight-too-small", "kl-too-weak"])


def test_temperatures_are_blamed_where_the_entropies_say_so() -> None:
    weak = scaled(healthy(), "dino", 1e-2)
    collapsed = {"ent/teacher_norm": [0.001] * STEPS, "ent/teacher_mi": [0.0] * STEPS}
    assert codes(one(WeakGradient(), weak | collapsed))[0] == "teacher-temperature-low"
    assert codes(one(WeakGradient(), weak | {"ent/student_norm": [0.001] * STEPS}))[0] == "student-temperature-low"


def test_a_knob_is_turned_where_the_script_has_one() -> None:
    finding = one(WeakGradient(), scaled(healthy(), "dino", 1e-3), knobs={"teacher_temp": 0.04})
    assert [fix.params for fix in finding.fixes if fix.action == "scale_knob"] == [{"factor": 2.0}]


@pytest.mark.parametrize(("loss", "metric", "floor"), [("dino", "distill/kl", 0.01), ("flow", "flow/nmse", 0.001)])
def test_healthy_a_loss_at_its_floor_has_nothing_to_pull(loss: str, metric: str, floor: float) -> None:
    assert clear(WeakGradient(), scaled(healthy(), loss, 1e-3) | {metric: [floor] * STEPS})


def test_healthy_gradients_that_are_all_tiny() -> None:
    curves = healthy()
    for name in [name for name in curves if name.startswith("grad")]:
        if not name.startswith("grad_cos"):
            curves[name] = [None if x is None else x * 1e-9 for x in curves[name]]
    assert clear(WeakGradient(), curves)


def test_healthy_a_kl_as_latent_diffusion_weighs_it() -> None:
    curves = {n: c for n, c in scaled(healthy(), "kl", 1e-5).items() if "dino" not in n}
    as_autoencoder = {n.replace("flow", "rec"): c for n, c in curves.items()} | {"kl/per_dim": [4.0] * STEPS}
    assert ask(WeakGradient(), as_autoencoder, losses={"rec": "other", "kl": "kl"}).clear == ("GRD102",)


def test_a_warm_up_of_the_weight_is_not_judged() -> None:
    curves = healthy()
    ramp = np.minimum(1.0, np.arange(STEPS) / 30)
    for name in ("weight/dino", "grad_weighted/dino"):
        curves[name] = list(np.array(curves[name], float) * ramp)
    assert clear(WeakGradient(), curves)


def test_one_loss_alone_has_no_rival() -> None:
    alone = {name: curve for name, curve in healthy().items() if "dino" not in name and "kl" not in name}
    for rule in (WeakGradient(), DominantGradient(), RatioOutOfBand()):
        assert ask(rule, alone).skipped[0][1].reason.key == "skip.rivals"


# GRD103


@pytest.mark.parametrize("loss", ["dino", "kl"])
def test_a_loss_that_is_nearly_everything_is_named(loss: str) -> None:
    finding = one(DominantGradient(), scaled(healthy(), loss, 1e3))
    assert (finding.subject, finding.severity, codes(finding)[0]) == (loss, "warning", "weight-too-large")
    assert finding.confirm is not None
    assert finding.confirm.startswith(f"weight:{loss}*0.0")


def test_healthy_a_velocity_far_above_a_faint_kl() -> None:
    curves = {name: curve for name, curve in scaled(healthy(), "kl", 1e-4).items() if "dino" not in name}
    assert clear(DominantGradient(), curves)


def test_healthy_a_loss_that_dominates_one_that_has_learned() -> None:
    curves = {name: curve for name, curve in scaled(healthy(), "dino", 1e-4).items() if "kl" not in name}
    assert fired(DominantGradient(), curves)
    assert clear(DominantGradient(), curves | {"distill/kl": [0.01] * STEPS})


def test_the_share_is_a_threshold() -> None:
    curves = scaled(healthy(), "dino", 30)
    assert clear(DominantGradient(), curves)
    assert fired(DominantGradient(share=0.8), curves)


# GRD104


def opposed(cosine: float) -> Curves:
    rng = np.random.default_rng(1)
    return healthy() | {"grad_cos/dino|flow": [cosine + 0.03 * x for x in rng.normal(size=STEPS)]}


def test_two_losses_that_undo_each_other_are_a_warning() -> None:
    finding = one(OpposedGradients(), opposed(-0.9))
    assert (finding.subject, finding.severity, codes(finding)) == ("dino|flow", "warning", ["conflicting-losses"])
    assert one(OpposedGradients(), opposed(-0.5)).severity == "info"
    assert one(OpposedGradients(cancelling=-0.4), opposed(-0.5)).severity == "warning"


def test_the_loss_that_is_made_worse_is_named() -> None:
    curves = opposed(-0.5) | {"descent/flow": [-0.01] * STEPS}
    finding = one(OpposedGradients(), curves)
    assert finding.severity == "warning"
    assert finding.confirm == "without:flow"
    assert "flow loses" in str(finding.message)


def test_healthy_a_kl_at_its_balance_is_opposed_to_the_others() -> None:
    rng = np.random.default_rng(2)
    strong = {f"grad_cos/{pair}": [-0.7 + 0.05 * x for x in rng.normal(size=STEPS)] for pair in ("dino|kl", "flow|kl")}
    assert clear(OpposedGradients(), healthy() | strong)


def test_healthy_a_negligible_loss_opposes_nothing() -> None:
    curves = opposed(-0.9)
    curves["grad_weighted/dino"] = [0.01 * x for x in curves["grad_weighted/dino"] if x is not None]
    assert clear(OpposedGradients(), curves)


def test_healthy_opposed_now_and_then() -> None:
    curves = healthy()
    curves["grad_cos/dino|flow"] = [-0.8 if i % 3 == 0 else 0.1 for i in range(STEPS)]
    assert clear(OpposedGradients(), curves)


def test_only_a_kl_and_one_loss_are_no_pair() -> None:
    curves = {name: curve for name, curve in healthy().items() if "dino" not in name}
    assert ask(OpposedGradients(), curves).skipped[0][1].reason.key == "skip.pairs"


# GRD105


def test_a_head_that_no_loss_reaches_is_an_error_when_it_is_trainable() -> None:
    curves = {name: curve for name, curve in healthy().items() if name != "grad_module/flow/flow_head"}
    finding = one(UnreachedHead(), curves, facts=heads_audit())
    assert (finding.subject, finding.severity, codes(finding)) == ("flow_head", "error", ["wrong-wiring"])
    unaudited = one(UnreachedHead(), curves)
    assert (unaudited.severity, codes(unaudited)) == ("warning", ["wrong-wiring", "frozen-head"])


def test_a_frozen_head_is_told_from_the_audit() -> None:
    curves = {name: curve for name, curve in healthy().items() if name != "grad_module/flow/flow_head"}
    finding = one(UnreachedHead(), curves, facts=heads_audit(flow_head={"trainable": 0, "frozen": 2}))
    assert (finding.severity, codes(finding)[0]) == ("warning", "frozen-head")


def test_a_head_that_is_lost_on_the_way_is_a_warning() -> None:
    curves = healthy()
    curves["grad_module/flow/flow_head"] = curves["grad_module/flow/flow_head"][:25] + [0.0] * (STEPS - 25)
    finding = one(UnreachedHead(), curves, facts=heads_audit())
    assert finding.severity == "warning"
    assert "since step 1,250" in str(finding.message)


def test_a_head_that_another_loss_trains_is_a_warning() -> None:
    curves = healthy()
    curves["grad_module/kl/flow_head"] = curves.pop("grad_module/flow/flow_head")
    finding = one(UnreachedHead(), curves, facts=heads_audit())
    assert (finding.subject, finding.loss, finding.severity) == ("flow_head", "flow", "warning")
    assert "only by kl" in str(finding.message)


def test_healthy_a_head_of_another_name_may_be_trained_by_any_loss() -> None:
    curves = {name.replace("flow_head", "trunk"): curve for name, curve in healthy().items()}
    assert ask(UnreachedHead(), curves, heads=["trunk"]).clear == ("GRD105",)


def test_healthy_a_loss_without_gradient_is_not_told_twice() -> None:
    curves = detached(healthy(), "dino") | {"grad_module/flow/dino_head": [0.1] * STEPS}
    assert clear(UnreachedHead(), curves, facts=heads_audit())


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("flow_head", "velocity"),
        ("dino_head", "distill"),
        ("projector", "distill"),
        ("mu", "kl"),
        ("z-head", "kl"),
        ("z_proj", None),
        ("decoder", None),
        ("", None),
    ],
)
def test_heads_are_known_by_their_names(head: str, kind: str | None) -> None:
    assert kind_of_head(head) == kind


# GRD106


def test_a_loss_that_most_updates_make_worse_is_named_with_its_opponent() -> None:
    rng = np.random.default_rng(3)
    curves = opposed(-0.6) | {
        "descent/dino": list(rng.normal(-0.01, 0.005, STEPS)),
        "loss/dino": [2.0 + 0.01 * i + 0.02 * x for i, x in enumerate(rng.normal(size=STEPS))],
    }
    finding = one(AscendingLoss(), curves)
    assert (finding.loss, codes(finding)[0], finding.confirm) == ("dino", "conflicting-losses", "without:flow")


def test_without_an_opponent_the_rate_is_blamed() -> None:
    curves = {name: curve for name, curve in healthy().items() if "kl" not in name}
    curves |= {"descent/dino": [-0.01] * STEPS, "loss/dino": [2.0 + 0.01 * i for i in range(STEPS)]}
    finding = one(AscendingLoss(), curves)
    assert (codes(finding)[0], finding.confirm) == ("rate-too-large", "lr:all*0.3")


def test_healthy_a_kl_that_rises_while_another_loss_shapes_the_latent() -> None:
    curves = healthy() | {"descent/kl": [-0.01] * STEPS, "loss/kl": [1.0 + 0.05 * i for i in range(STEPS)]}
    assert clear(AscendingLoss(), curves)


def test_healthy_a_loss_that_falls_all_the_same() -> None:
    curves = healthy() | {"descent/flow": [-0.001] * STEPS, "loss/flow": [2.0 - 0.02 * i for i in range(STEPS)]}
    assert clear(AscendingLoss(), curves)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_healthy_a_loss_that_is_not_minimised_may_rise(weight: float) -> None:
    risen = {"descent/dino": [-0.01] * STEPS, "loss/dino": [1.0 + 0.05 * i for i in range(STEPS)]}
    assert clear(AscendingLoss(), healthy() | risen | {"weight/dino": [weight] * STEPS})


def test_healthy_a_plateau_where_updates_help_as_often_as_not() -> None:
    rng = np.random.default_rng(4)
    assert clear(AscendingLoss(), healthy() | {"descent/flow": list(rng.normal(0, 0.01, STEPS))})


# GRD107


def test_a_tight_clip_is_a_warning_and_a_gentle_one_a_remark() -> None:
    rng = np.random.default_rng(5)
    tight = one(ClipAlwaysActive(), healthy() | {"grad/clip_ratio": noisy(0.02, rng)})
    assert (tight.severity, codes(tight)[0]) == ("warning", "clip-too-low")
    assert next(fix for fix in tight.fixes if fix.action == "edit").params["value"] == pytest.approx(0.41, rel=0.2)
    assert one(ClipAlwaysActive(), healthy() | {"grad/clip_ratio": noisy(0.3, rng)}).severity == "info"
    assert clear(ClipAlwaysActive(ratio=0.1), healthy() | {"grad/clip_ratio": noisy(0.3, rng)})


def test_a_clip_that_hides_an_imbalance_says_so() -> None:
    curves = scaled(healthy(), "dino", 100) | {"grad/clip_ratio": [0.02] * STEPS}
    finding = one(ClipAlwaysActive(), curves)
    assert finding.subject == "dino"
    assert codes(finding) == ["clip-too-low", "weight-too-large"]


def test_summed_micro_batches_are_thought_of() -> None:
    facts = {**heads_audit(), "accumulation": {"backwards": 4}}
    curves = healthy() | {"grad/clip_ratio": [0.02] * STEPS}
    assert "gradient-summed" in codes(one(ClipAlwaysActive(), curves, facts=facts))


def test_healthy_a_clip_for_spikes_and_for_the_warm_up() -> None:
    ratio: Curve = [0.1 if i < 5 or i % 10 == 0 else None for i in range(STEPS)]
    assert clear(ClipAlwaysActive(), healthy() | {"grad/clip_ratio": ratio})


# BAL801


@pytest.mark.parametrize(
    ("loss", "factor", "severity"),
    [("dino", 0.5, "info"), ("dino", 0.01, "warning"), ("dino", 3, "info"), ("dino", 100, "warning")],
)
def test_a_distillation_out_of_its_band(loss: str, factor: float, severity: str) -> None:
    finding = one(RatioOutOfBand(), scaled(healthy(), loss, factor))
    assert (finding.loss, finding.subject, finding.severity) == (loss, loss, severity)
    assert codes(finding)[0] == ("weight-too-small" if factor < 1 else "weight-too-large")


def test_a_kl_below_its_band_is_never_more_than_a_remark() -> None:
    assert one(RatioOutOfBand(), scaled(healthy(), "kl", 1e-6)).severity == "info"
    assert one(RatioOutOfBand(), scaled(healthy(), "kl", 1e3)).severity == "warning"


def test_a_velocity_whose_weight_is_tiny_is_blamed_for_both() -> None:
    findings = fired(RatioOutOfBand(), scaled(healthy(), "flow", 1e-4))
    assert {finding.loss for finding in findings} == {"flow"}
    assert {codes(finding)[0] for finding in findings} == {"weight-too-small"}
    assert all(finding.confirm and float(finding.confirm.split("*")[1]) > 1e3 for finding in findings)


def test_the_band_is_a_threshold() -> None:
    assert clear(RatioOutOfBand(distill_low=0.05), scaled(healthy(), "dino", 0.5))


def test_healthy_a_distillation_that_has_learned_pulls_no_more() -> None:
    assert clear(RatioOutOfBand(), scaled(healthy(), "dino", 1e-3) | {"distill/kl": [0.01] * STEPS})


def test_a_weak_loss_is_told_once() -> None:
    """The findings of one mistake are one group, led by the one that is nearest to it."""
    diagnosis = diagnose(recorded(scaled(healthy(), "dino", 1e-4)), rules=[rule() for rule in OWN])
    alarms = [group for group in diagnosis.groups if group[0].severity != "info"]
    assert [finding.code for finding in alarms[0]] == ["GRD102", "BAL801"]
    assert len(alarms) == 1


# What they share


def test_strengths_leave_out_what_does_not_take_part() -> None:
    curves = healthy() | {"weight/kl": [0.0] * STEPS, "grad_weighted/dino": [0.0] * STEPS}
    assert set(strengths(RunView(recorded(curves)))) == {"flow"}


def test_together_is_on_common_steps() -> None:
    view = RunView(recorded({"a": [1.0, None, 3.0, 4.0], "b": [None, 2.0, 30.0, 40.0]}))
    a, b = together([view["a"], view["b"]])
    assert list(a) == [(100, 3.0), (150, 4.0)]
    assert list(b) == [(100, 30.0), (150, 40.0)]
    assert together([]) == ()


@pytest.mark.parametrize(
    ("weights", "doubtful", "first"),
    [
        ({"flow": 1.0, "dino": 300.0}, None, "weight-too-large"),
        ({"flow": 1e-4, "dino": 1.0}, None, "weight-too-small"),
        ({"flow": 1.0, "dino": 1.0}, "dino", "weight-too-large"),
        ({"flow": 1.0, "dino": 1.0}, "flow", "weight-too-small"),
    ],
)
def test_the_more_unusual_weight_is_blamed(weights: dict[str, float], doubtful: str | None, first: str) -> None:
    curves = healthy() | {f"weight/{loss}": [weight] * STEPS for loss, weight in weights.items()}
    assert blamed(RunView(recorded(curves)), "flow", "dino", doubtful=doubtful)[0].code == first


@pytest.mark.parametrize(("goal", "now", "factor"), [(1.0, 0.3, 3.0), (1.0, 1e-30, 1e12), (1e-30, 1.0, 1e-12)])
def test_factors_have_one_digit_and_bounds(goal: float, now: float, factor: float) -> None:
    assert factor_to(goal, now) == factor


# GRD108

PROBED = {"losses": {**KINDS, "aux": "other"}, "heads": [*HEADS, "aux_head"]}


def probed(*reached: str) -> Curves:
    """The healthy run, and a loss of no known meaning that reaches these modules."""
    rng = np.random.default_rng(3)
    own = {"weight/aux": [1.0] * STEPS, "loss/aux": noisy(0.5, rng, 0.05, 2.0), "grad/aux": noisy(0.3, rng)}
    shared = {f"grad_module/{loss}/trunk": noisy(0.3, rng) for loss in KINDS}
    return healthy() | own | shared | {f"grad_module/aux/{module}": noisy(0.2, rng) for module in reached}


def test_a_loss_that_trains_its_own_head_alone_is_a_remark_that_says_how_to_be_sure() -> None:
    finding = one(CutOffLoss(), probed("aux_head"), **PROBED)
    assert (finding.loss, finding.severity, finding.confirm) == ("aux", "info", "without:aux")
    assert codes(finding) == ["detached-branch"]
    for lang in ("en", "zh-CN"):
        message = finding.message.text(lang)
        assert all(word in message for word in ("aux_head", "trunk", "--ignore GRD108", "without:aux"))
    zeroed = probed("aux_head") | {"grad_module/aux/trunk": [0.0] * STEPS}
    assert one(CutOffLoss(), zeroed, **PROBED).loss == "aux", "exactly 0 is no gradient"


def test_two_cut_off_losses_do_not_hide_each_other() -> None:
    curves = probed("aux_head")
    curves |= {name.replace("aux", "more"): curve for name, curve in curves.items() if "aux" in name}
    meta = {"losses": {**PROBED["losses"], "more": "other"}, "heads": [*PROBED["heads"], "more_head"]}
    assert {finding.loss for finding in fired(CutOffLoss(), curves, **meta)} == {"aux", "more"}


@pytest.mark.parametrize(
    ("why", "reached", "meta"),
    [
        ("it reaches the trunk", ("aux_head", "trunk"), {}),
        ("another loss reaches its head", ("dino_head",), {}),
        ("what it reaches is no head", ("critic",), {}),
        (
            "a velocity may be trained on latents that are detached",
            ("aux_head",),
            {"losses": {**KINDS, "aux": "velocity"}},
        ),
    ],
)
def test_healthy_a_loss_is_not_cut_off(why: str, reached: tuple[str, ...], meta: dict[str, Any]) -> None:
    assert clear(CutOffLoss(), probed(*reached), **{**PROBED, **meta}), why


def test_healthy_losses_that_share_nothing() -> None:
    """A generator and its critic, and one batch that reached the trunk."""
    apart = {
        name: curve for name, curve in probed("aux_head").items() if "/trunk" not in name and "/z_head" not in name
    }
    assert clear(CutOffLoss(), apart, **PROBED)
    two = {name: curve for name, curve in probed("aux_head").items() if not any(one in name for one in ("dino", "kl"))}
    assert clear(CutOffLoss(), two, **PROBED)
    once = probed("aux_head") | {"grad_module/aux/trunk": [0.1, *[0.0] * (STEPS - 1)]}
    assert clear(CutOffLoss(), once, **PROBED)
    short = {name: curve[:6] for name, curve in probed("aux_head").items()}
    assert ask(CutOffLoss(), short, **PROBED).skipped[0][1].reason.key == "skip.short"


AUDIT: dict[str, Any] = {**heads_audit(), "frozen_parts": [], "teacher": {"parameters": 11}}


def untaught(**changed: Curve) -> Curves:
    """The healthy run, but the distillation reaches its head alone; the others share a trunk or have a part of it."""
    rng = np.random.default_rng(5)
    curves = {name: curve for name, curve in healthy().items() if not name.startswith("grad_module/dino")}
    parts = {"flow": ("trunk", "late"), "kl": ("trunk",)}
    curves |= {f"grad_module/{loss}/{part}": noisy(0.3, rng) for loss, own in parts.items() for part in own}
    return curves | {"grad_module/dino/dino_head": noisy(0.7, rng)} | changed


def test_a_distillation_that_teaches_nothing_but_its_head_is_a_warning() -> None:
    finding = one(CutOffLoss(), untaught(), facts=AUDIT)
    assert (finding.loss, finding.severity, finding.certainty) == ("dino", "warning", "suspected")
    assert (codes(finding), finding.confirm) == (["detached-branch"], "without:dino")
    for lang in ("en", "zh-CN"):
        assert all(
            word in finding.message.text(lang) for word in ("dino_head", "late, trunk, z_head", "--ignore GRD108")
        )
    every = diagnose(recorded(untaught(), facts=AUDIT), rules=[rule() for rule in OWN])
    assert [f.code for f in every.findings] == ["GRD108"]


def test_one_other_loss_is_enough_and_two_stages_do_not_hide_it() -> None:
    alone = {name: curve for name, curve in untaught().items() if "kl" not in name}
    assert one(CutOffLoss(), alone, facts=AUDIT).severity == "warning"
    staged = {n: c for n, c in untaught().items() if n not in ("grad_module/flow/trunk", "grad_module/flow/z_head")}
    assert one(CutOffLoss(), staged, facts=AUDIT).loss == "dino", "the velocity is on detached latents, as it may be"


def test_a_child_that_holds_the_head_does_not_hide_it() -> None:
    """Top-level children stand in the reach matrix beside the heads in them."""
    own = untaught()["grad_module/dino/dino_head"]
    finding = one(CutOffLoss(), untaught(**{"grad_module/dino/trunk": own}), facts=AUDIT)
    assert {e.metric: e.value for e in finding.evidence}["grad_module/dino/trunk"] > 0, "told as it was measured"
    a_little_more = [None if x is None else 1.001 * x for x in own]
    assert clear(CutOffLoss(), untaught(**{"grad_module/dino/trunk": a_little_more}), facts=AUDIT)


@pytest.mark.parametrize(
    ("why", "facts", "heads"),
    [
        ("the teacher is a copy of it: a network of its own", {"teacher": {"parameters": 2}}, {}),
        ("it may stand on frozen features", {"frozen_parts": ["backbone"]}, {}),
        ("its name is that of a network", {}, {"dino_head": "dino_student"}),
        ("nobody has looked whether anything is frozen", {"frozen_parts": None}, {}),
    ],
)
def test_healthy_a_distillation_with_a_head_of_its_own_by_design_is_no_alarm(
    why: str, facts: dict[str, Any], heads: dict[str, str]
) -> None:
    names = [heads.get(head, head) for head in HEADS]
    told_of = {heads.get(head, head): fact for head, fact in AUDIT["heads"].items()}
    curves = {name.replace("/dino_head", f"/{names[-1]}"): curve for name, curve in untaught().items()}
    every = diagnose(
        recorded(curves, facts={**AUDIT, "heads": told_of, **facts}, heads=names), rules=[rule() for rule in OWN]
    )
    assert {(f.code, f.severity) for f in every.findings} == {("GRD108", "info")}, why


def test_healthy_a_distillation_that_reaches_more_than_its_head_or_has_nothing_to_teach() -> None:
    assert clear(CutOffLoss(), untaught(**{"grad_module/dino/student": [0.1] * STEPS}), facts=AUDIT)
    assert clear(CutOffLoss(), untaught(**{"grad_module/flow/dino_head": [0.1] * STEPS}), facts=AUDIT)
    heads_only = {n: c for n, c in untaught().items() if "/trunk" not in n and "/late" not in n}
    assert clear(CutOffLoss(), heads_only, facts=AUDIT), "a backbone that is frozen while heads are trained"
    alone = {n: c for n, c in untaught().items() if "kl" not in n and "flow" not in n}
    assert clear(CutOffLoss(), alone, facts=AUDIT)
