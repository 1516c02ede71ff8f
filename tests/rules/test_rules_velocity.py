"""VEL: for every rule a sick run, its healthy twin, and what must not be called a bug."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Finding, Rule, RunView, Skipped
from lossdoctor.rules.vel401_misaligned_velocity import MisalignedVelocity
from lossdoctor.rules.vel402_speed_mismatch import SpeedMismatch
from lossdoctor.rules.vel403_edge_degradation import EdgeDegradation
from lossdoctor.rules.vel404_starved_time_bins import StarvedTimeBins, _at_most
from lossdoctor.rules.vel405_time_ignored import TimeIgnored
from lossdoctor.rules.vel406_time_reversed import TimeReversed
from lossdoctor.rules.vel407_off_scale_latent import OffScaleLatent
from lossdoctor.rules.vel408_shrinking_latent import ShrinkingLatent
from lossdoctor.rules.vel409_broadcast_target import BroadcastTarget
from lossdoctor.rules.vel410_structureless_latent import StructurelessLatent, gaussian_floor
from lossdoctor.rules.vel411_target_off_path import TargetOffPath
from lossdoctor.rules.velocity import field_causes, learned, over_trivial, target_codes, the_loss, visits, width
from lossdoctor.store import MemoryWriter, Run

OWN = [rule for rule in RULES if rule.code.startswith("VEL")]
STEPS, EVERY, BATCH = 60, 10, 256

Curve = list[float]
Curves = dict[str, Curve]


def noisy(level: float, rng: np.random.Generator, spread: float = 0.05, start: float | None = None) -> Curve:
    """A curve as training makes them: from `start` to `level` in a tenth of the run, with noise that remembers."""
    noise = np.zeros(STEPS)
    for i, drawn in enumerate(rng.normal(size=STEPS)):
        noise[i] = 0.5 * (noise[i - 1] if i else 0.0) + 0.85 * drawn
    begin = level if start is None else start
    course = level + (begin - level) * np.exp(-np.arange(STEPS) / 4)
    return list((course * np.exp(spread * noise)).astype(float))


def counts(shares: list[float], rng: np.random.Generator) -> Curves:
    drawn = rng.multinomial(BATCH, shares, size=STEPS)
    return {f"flow/count_t{i}": list(drawn[:, i].astype(float)) for i in range(10)}


def healthy(seed: int = 0) -> Curves:
    """The measured steps of a flow like the ring of the clinic."""
    rng = np.random.default_rng(seed)
    bins = (0.12, 0.1, 0.13, 0.12, 0.12, 0.13, 0.16, 0.17, 0.31, 0.78)
    return {
        "loss/flow": noisy(0.52, rng, 0.1, 2.6),
        "weight/flow": [1.0] * STEPS,
        "grad_weighted/flow": noisy(0.8, rng, 0.2, 1.1),
        "grad/total": noisy(0.8, rng, 0.2, 1.1),
        "flow/nmse": noisy(0.22, rng, 0.1, 1.0),
        "flow/nmse_mean": noisy(0.995, rng, 0.003),
        "flow/nmse_zero": [1.0] * STEPS,
        "flow/cos": noisy(0.82, rng, 0.03, 0.1),
        "flow/speed_ratio": noisy(0.88, rng, 0.03, 0.15),
        "flow/mse_zero": noisy(2.47, rng, 0.04),
        "flow/loss_ratio": [1.0 + 1e-7 * float(x) for x in rng.normal(size=STEPS)],
        **{f"flow/nmse_t{i}": noisy(level, rng, 0.3, 1.0) for i, level in enumerate(bins)},
        **counts([0.1] * 10, rng),
        "flow/t_unique": [float(BATCH)] * STEPS,
        "flow/time_ratio": noisy(4.9, rng, 0.4, 1.0),
        "flow/time_reversal": noisy(9.0, rng, 0.4, 1.0),
        "flow/field_mismatch": [0.0] * STEPS,
        "flow/field_reversed": noisy(1.48, rng, 0.2, 0.2),
        "flow/target_mismatch": [7.7e-8] * STEPS,
        "flow/target_scale": [1.0] * STEPS,
        "flow/z0_std": noisy(1.0, rng, 0.03),
        "flow/z1_std": noisy(1.0, rng, 0.01),
        "flow/z1_mean_abs": noisy(0.05, rng, 0.3),
    }


def run(curves: Mapping[str, list[float]], **meta: object) -> Run:
    writer = MemoryWriter({"kinds": {"flow": "velocity", "kl": "kl"}, **meta})
    records = []
    for i in range(max(map(len, curves.values()), default=0)):
        records.append(Record(i * EVERY, {name: c[i] for name, c in curves.items() if i < len(c)}, full=True))
    writer.append(records)
    return writer.run()


def asked(rule: Rule, curves: Mapping[str, list[float]], **meta: object) -> Diagnosis:
    told = diagnose(run(curves, **meta), rules=[rule])
    failed = [str(skipped.reason) for _, skipped in told.skipped if skipped.reason.key == "skip.failed"]
    assert not failed
    for finding in told.findings:
        for lang in ("en", "zh-CN"):
            assert finding.message.text(lang)
            assert all(cause.message.text(lang) for cause in finding.causes)
            assert all(fix.message.text(lang) for fix in finding.fixes)
        for seen in finding.evidence:
            assert math.isfinite(seen.value)
            assert seen.last_step is None or seen.last_step >= (seen.first_step or 0)
    return told


def one(rule: Rule, curves: Mapping[str, list[float]], **meta: object) -> Finding:
    told = asked(rule, curves, **meta)
    assert len(told.findings) == 1, (told.clear, [str(s.reason) for _, s in told.skipped])
    return told.findings[0]


def clear(rule: Rule, curves: Mapping[str, list[float]], **meta: object) -> bool:
    told = asked(rule, curves, **meta)
    return told.findings == () and told.clear == (rule.code,)


def skipped(rule: Rule, curves: Mapping[str, list[float]], **meta: object) -> str:
    told = asked(rule, curves, **meta)
    assert [code for code, _ in told.skipped] == [rule.code], told
    return told.skipped[0][1].reason.key


def codes(finding: Finding) -> list[str]:
    return [cause.code for cause in finding.causes]


RNG = np.random.default_rng(7)


def with_(curves: Curves, **changed: Curve | None) -> Curves:
    """Other curves under flow/<name>, and none for None."""
    edited = {**curves, **{f"flow/{name}": curve for name, curve in changed.items() if curve is not None}}
    return {name: curve for name, curve in edited.items() if changed.get(name.removeprefix("flow/"), curve) is not None}


# The healthy twin


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_clear(seed: int) -> None:
    told = diagnose(run(healthy(seed)), rules=[rule() for rule in OWN])
    assert told.findings == ()
    assert {code for code, _ in told.skipped} == {"VEL408", "VEL410"}, "neither a trained target nor a posterior"


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("steps", [0, 1, 11, STEPS])
def test_hostile_runs_do_not_break_a_rule(rule: type[Rule], value: float, steps: int) -> None:
    names = [*healthy(), "flow/source_gradient", "posterior/snr", "flow/loss_ratio_pairs"]
    asked_alone = {name: [value] * steps for name in names}
    told = diagnose(run(asked_alone), rules=[rule()])
    assert [s.reason.key for _, s in told.skipped if s.reason.key == "skip.failed"] == []
    for lang in ("en", "zh-CN"):
        told.to_json(lang)
    mixed = {**healthy(), **{name: [value if i % 2 else 0.5 for i in range(STEPS)] for name in rule.needs}}
    assert all(s.reason.key != "skip.failed" for _, s in diagnose(run(mixed), rules=[rule()]).skipped)


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
def test_missing_curves_do_not_break_a_rule(rule: type[Rule]) -> None:
    """An imported run has a few curves, and any one may be missing or short."""
    curves = healthy() | {"flow/source_gradient": [0.1] * STEPS, "posterior/snr": [1e-6] * STEPS}
    for name in curves:
        for kept in ([], curves[name][:1], curves[name][:5]):
            told = diagnose(run({**curves, name: kept}), rules=[rule()])
            assert [str(s.reason) for _, s in told.skipped if s.reason.key == "skip.failed"] == []
            told.to_json("en")


# VEL401


def test_a_velocity_that_learns_nothing() -> None:
    rng = np.random.default_rng(1)
    found = one(MisalignedVelocity(), with_(healthy(), nmse=noisy(0.99, rng, 0.01), cos=noisy(0.05, rng)))
    assert found.severity == "warning"
    assert found.depth == "consequence"
    assert codes(found)[0] == "velocity-not-learned"
    assert found.confirm == "only:flow"


def test_a_trivial_predictor_is_the_mean_where_that_is_better() -> None:
    rng = np.random.default_rng(1)
    curves = with_(healthy(), nmse=noisy(0.39, rng, 0.01), nmse_mean=noisy(0.4, rng, 0.01))
    assert one(MisalignedVelocity(), curves).evidence[0].value == pytest.approx(0.39, rel=0.05)
    assert clear(MisalignedVelocity(), with_(curves, nmse_mean=None))


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"grad_weighted/flow": [0.01] * STEPS}, "weight-too-small"),
        ({"step/flow_head_rms_update": [0.3] * STEPS}, "rate-too-large"),
        ({"step/flow_head_update_ratio": [1e-7] * STEPS}, "rate-too-small"),
        ({"flow/loss_ratio": list(np.linspace(0.99, 1.01, STEPS))}, "broadcast-shapes"),
        ({"flow/target_mismatch": [2.0] * STEPS, "flow/target_scale": [-1.0] * STEPS}, "target-sign"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_evidence_at_hand_names_why_nothing_is_learned(changed: Curves, cause: str) -> None:
    curves = with_(healthy(), nmse=noisy(1.0, np.random.default_rng(1), 0.01)) | changed
    assert codes(one(MisalignedVelocity(), curves))[0] == cause


@pytest.mark.parametrize("level", [0.23, 0.35, 0.79])
def test_healthy_plateaus_above_0(level: float) -> None:
    """A velocity loss has a floor above 0."""
    assert clear(MisalignedVelocity(), with_(healthy(), nmse=noisy(level, np.random.default_rng(2), 0.03)))


def test_healthy_resumed_and_still_learning() -> None:
    rng = np.random.default_rng(2)
    flat = noisy(0.4, rng, 0.05)
    assert clear(MisalignedVelocity(), with_(healthy(), nmse=flat)), "flat from the first step: it was converged"
    late = list(np.linspace(1.0, 0.86, STEPS) * np.array(noisy(1.0, rng, 0.005)))
    assert clear(MisalignedVelocity(), with_(healthy(), nmse=late)), "slow, but it falls"


def test_healthy_before_its_start_step() -> None:
    """A loss that is constant by design before its start is judged from there on."""
    weight = [0.0] * 35 + [1.0] * 25
    nmse = [1.0] * 35 + noisy(0.3, np.random.default_rng(2), 0.05, 1.0)[:25]
    curves = with_(healthy(), nmse=nmse) | {"weight/flow": weight}
    assert clear(MisalignedVelocity(), curves)


def test_the_bar_of_a_trivial_predictor_can_be_set() -> None:
    curves = with_(healthy(), nmse=noisy(0.8, np.random.default_rng(2), 0.02))
    assert clear(MisalignedVelocity(), curves)
    assert one(MisalignedVelocity(trivial=0.7), curves)


# VEL402


@pytest.mark.parametrize(
    ("speed", "cos", "nmse", "sentence"),
    [(2.0, 0.8, 1.8, "rule.VEL402.long"), (0.1, 0.6, 0.89, "rule.VEL402"), (30.0, 0.01, 900.0, "rule.VEL402.long")],
)
def test_a_speed_that_nothing_explains(speed: float, cos: float, nmse: float, sentence: str) -> None:
    rng = np.random.default_rng(3)
    changed = {"speed_ratio": noisy(speed, rng), "cos": noisy(cos, rng, 0.02), "nmse": noisy(nmse, rng, 0.02)}
    found = one(SpeedMismatch(), with_(healthy(), **changed))
    assert found.message.key == sentence
    assert ("rate-too-large" in codes(found)) == (nmse > 1)


def test_healthy_slow_while_the_error_is_high() -> None:
    """A regressor shrinks: at nmse 0.785 and cos 0.463 the speed is about the cosine."""
    rng = np.random.default_rng(3)
    changed = {"speed_ratio": noisy(0.47, rng, 0.03), "cos": noisy(0.463, rng, 0.02), "nmse": noisy(0.785, rng, 0.01)}
    assert clear(SpeedMismatch(), with_(healthy(), **changed))


def test_healthy_in_one_dimension() -> None:
    """Where some targets are nearly 0 the mean ratio of speeds is huge, and means nothing."""
    rng = np.random.default_rng(3)
    target = rng.normal(size=(STEPS, BATCH))
    pred = 0.8 * target + 0.4 * rng.normal(size=(STEPS, BATCH)) * 0.8
    speed = np.mean(np.abs(pred) / np.abs(target), axis=1)
    nmse = np.mean((pred - target) ** 2, axis=1) / np.mean(target**2, axis=1)
    cos = np.mean(np.sign(pred * target), axis=1)
    assert np.median(speed) > 1.3
    changed = {"speed_ratio": list(speed), "nmse": list(nmse), "cos": list(cos)}
    assert clear(SpeedMismatch(), with_(healthy(), **changed))


def test_an_unknown_direction_has_no_length() -> None:
    rng = np.random.default_rng(3)
    changed = {"speed_ratio": noisy(0.001, rng), "cos": noisy(0.03, rng), "nmse": noisy(0.999, rng, 0.001)}
    assert clear(SpeedMismatch(), with_(healthy(), **changed))


# VEL403


@pytest.mark.parametrize("end", [0, 9])
def test_an_end_that_is_worse_than_nothing(end: int) -> None:
    rng = np.random.default_rng(4)
    found = one(EdgeDegradation(), with_(healthy(), **{f"nmse_t{end}": noisy(1.8, rng, 0.1)}))
    assert found.severity == "warning"
    assert found.subject == f"t{end}"
    starved = with_(healthy() | counts([0.01 if i == end else 0.11 for i in range(10)], rng))
    starved[f"flow/nmse_t{end}"] = noisy(1.8, rng, 0.1)
    assert codes(one(EdgeDegradation(), starved))[0] == "time-sampling"


def test_the_cause_of_a_bad_end_follows_the_evidence() -> None:
    bad = with_(healthy(), nmse_t9=[1.8] * STEPS)
    assert codes(one(EdgeDegradation(), bad | {"grad_weighted/flow": [0.01] * STEPS}))[0] == "weight-too-small"
    assert "latent-scale" in codes(one(EdgeDegradation(), with_(bad, z1_std=[5.5] * STEPS)))


def test_a_rare_end_far_above_its_neighbour_is_mentioned() -> None:
    rng = np.random.default_rng(4)
    curves = healthy() | counts([0.014, *[0.1215] * 8, 0.014], rng)
    assert clear(EdgeDegradation(), curves), "at the data end 2.5 times its neighbour is usual"
    found = one(EdgeDegradation(), with_(curves, nmse_t0=noisy(0.6, rng)))
    assert (found.severity, found.message.key) == ("info", "rule.VEL403.rare")


@pytest.mark.parametrize("level", [0.6, 0.9, 1.0])
def test_healthy_ends_near_1(level: float) -> None:
    """The data end tends to what the source contributes: near 1 is not a bug."""
    rng = np.random.default_rng(4)
    assert clear(EdgeDegradation(), with_(healthy(), nmse_t9=noisy(level, rng, 0.05)))


def test_an_end_is_not_judged_where_the_middle_is_no_better() -> None:
    changed = {f"nmse_t{i}": [1.3] * STEPS for i in range(10)}
    assert clear(EdgeDegradation(), with_(healthy(), **changed))
    empty = {f"nmse_t{i}": None for i in (0, 9)}
    assert skipped(EdgeDegradation(), with_(healthy(), **empty)) == "skip.short"


# VEL404


def test_times_that_are_never_drawn() -> None:
    rng = np.random.default_rng(5)
    narrow = [0.0, 0.0, 0.0024, 0.0856, 0.412, 0.412, 0.0856, 0.0024, 0.0, 0.0]
    found = one(StarvedTimeBins(), healthy() | counts(narrow, rng))
    assert (found.severity, codes(found)) == ("warning", ["time-sampling"])
    assert "0-0.3, 0.7-1" in str(found.message)
    assert found.p is not None
    assert found.p < 1e-4


def test_healthy_logit_normal_times() -> None:
    """The standard logit-normal gives each end 1.4 %, as SD3 trains: mentioned at most. A shift takes one end more."""
    rng = np.random.default_rng(5)
    standard = [0.0140, 0.0688, 0.1157, 0.1441, 0.1574, 0.1574, 0.1441, 0.1157, 0.0688, 0.0140]
    shifted = [0.137, 0.252, 0.199, 0.145, 0.104, 0.073, 0.0491, 0.029, 0.0114, 0.0005]
    for shares in (standard, shifted):
        told = asked(StarvedTimeBins(), healthy() | counts(shares, rng))
        assert [finding.severity for finding in told.findings] == ["info"]


def test_times_that_are_not_those_of_the_sampler() -> None:
    """The script names a uniform sampler, and a tenth stays empty; with a sampler that leaves it out it is a remark."""
    rng = np.random.default_rng(5)
    drawn = healthy() | counts([0.0, 0.2, *[0.1] * 8], rng)
    told = {
        asked: {f"flow/density_t{i}": [asked if i == 0 else 1.0] * STEPS for i in range(10)} for asked in (1.0, 0.0)
    }
    found = one(StarvedTimeBins(), drawn | told[1.0])
    assert (found.severity, found.message.key) == ("warning", "rule.VEL404.declared")
    assert "asks for 10 % there" in str(found.message)
    as_asked = one(StarvedTimeBins(), drawn | told[0.0])
    assert (as_asked.severity, as_asked.message.key) == ("info", "rule.VEL404.few")
    assert one(StarvedTimeBins(), drawn).message.key == "rule.VEL404.few"


def test_few_times_prove_nothing() -> None:
    short = {name: curve[:15] for name, curve in healthy().items() if "count" not in name}
    short |= {f"flow/count_t{i}": [1.0 if i < 9 else 0.0] * 15 for i in range(10)}
    short["flow/t_unique"] = [9.0 + 3] * 15
    assert skipped(StarvedTimeBins(), short) == "skip.few_times"


def test_times_of_a_batch_that_are_one_count_once() -> None:
    """One time per batch: a tenth that none of 60 batches met is chance."""
    tenth = np.arange(STEPS) % 9
    one_time = {f"flow/count_t{i}": list(BATCH * (tenth == i).astype(float)) for i in range(10)}
    curves = with_(healthy() | one_time, t_unique=[1.0] * STEPS)
    assert visits(RunView(run(curves)))[1] == STEPS
    assert skipped(StarvedTimeBins(), curves) == "skip.few_times"


def test_healthy_training_for_a_few_steps() -> None:
    curves = healthy() | counts([0.25, 0, 0.25, 0, 0, 0.25, 0, 0.25, 0, 0], np.random.default_rng(5))
    assert skipped(StarvedTimeBins(), with_(curves, t_unique=[4.0] * STEPS)) == "skip.short_list"


@pytest.mark.parametrize(("found", "n", "share"), [(0, 1000, 0.005), (3, 1000, 0.005), (2, 50, 0.1), (40, 9000, 0.005)])
def test_the_binomial_test_is_exact(found: int, n: int, share: float) -> None:
    slow = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(found + 1))
    assert _at_most(found, n, share) == pytest.approx(slow, rel=1e-9)
    assert _at_most(n * share, n, share) == 1.0
    assert _at_most(0, 0, share) == 1.0


# VEL405, VEL406


def test_no_time_reaches_the_network() -> None:
    found = one(TimeIgnored(), with_(healthy(), time_ratio=[1.0] * STEPS))
    assert (found.severity, found.depth, codes(found)) == ("error", "root", ["time-not-connected"])


def test_healthy_a_velocity_that_hardly_depends_on_the_time() -> None:
    rng = np.random.default_rng(6)
    near = [1 + 0.004 * abs(float(x)) for x in rng.normal(size=STEPS)]
    assert one(TimeIgnored(), with_(healthy(), time_ratio=near)).severity == "info"
    assert clear(TimeIgnored(), with_(healthy(), time_ratio=noisy(1.1, rng, 0.02)))


def test_a_dead_network_does_not_ignore_the_time() -> None:
    curves = with_(healthy(), time_ratio=[1.0] * STEPS, nmse=[1.0] * STEPS)
    assert skipped(TimeIgnored(), curves) == "skip.not_learned"


@pytest.mark.parametrize(("level", "reversed_"), [(0.11, 0.0), (0.58, 0.02)])
def test_time_runs_the_other_way(level: float, reversed_: float) -> None:
    rng = np.random.default_rng(6)
    changed = {
        "time_reversal": noisy(level, rng, 0.1),
        "field_mismatch": noisy(0.7, rng),
        "field_reversed": [reversed_] * STEPS,
    }
    found = one(TimeReversed(), with_(healthy(), **changed))
    assert (found.severity, codes(found)[0]) == ("error", "time-reversed")
    alone = one(TimeReversed(), with_(healthy(), **{**changed, "field_mismatch": None, "field_reversed": None}))
    assert (alone.severity, alone.certainty) == ("warning", "suspected")


def test_another_wrong_field_is_not_reversed() -> None:
    rng = np.random.default_rng(6)
    changed = {"time_reversal": noisy(0.74, rng), "field_mismatch": [2.0] * STEPS, "field_reversed": [1.66] * STEPS}
    assert clear(TimeReversed(), with_(healthy(), **changed))
    assert clear(TimeReversed(), with_(healthy(), time_reversal=noisy(1.0, rng, 0.03)))


# VEL407


@pytest.mark.parametrize(
    ("std", "sentence", "model"),
    [
        (5.49, "rule.VEL407.unscaled", "Stable Diffusion"),
        (7.68, "rule.VEL407.unscaled", "SDXL"),
        (4.3, "rule.VEL407.unscaled", "MAR"),
        (0.183, "rule.VEL407.twice", "Stable Diffusion"),
        (0.0332, "rule.VEL407.thrice", "Stable Diffusion"),
        (20.0, "rule.VEL407", None),
        (0.08, "rule.VEL407", None),
    ],
)
def test_latents_at_another_scale(std: float, sentence: str, model: str | None) -> None:
    scaled = {"z1_std": noisy(std, np.random.default_rng(7), 0.005), "z1_mean_abs": [0.05 * std] * STEPS}
    found = one(OffScaleLatent(), with_(healthy(), **scaled))
    assert (found.severity, codes(found), found.message.key) == ("warning", ["latent-scale"], sentence)
    assert found.message.params.get("model") == model
    assert found.fixes[0].params["factor"] == pytest.approx(1 / std, rel=0.03)


@pytest.mark.parametrize(("std", "mean"), [(0.5, 0.1), (0.31, 0.13), (0.25, 0.47), (0.6, 0.3), (2.0, 0.1)])
def test_healthy_pixels_and_latents_about_1(std: float, mean: float) -> None:
    """Pixels in [-1, 1] and in [0, 1], latents within a factor of two: hinted at, never warned about."""
    curves = with_(healthy(), z1_std=[std] * STEPS, z1_mean_abs=[mean] * STEPS)
    assert all(finding.severity == "info" for finding in asked(OffScaleLatent(), curves).findings)


def test_healthy_both_ends_at_one_scale() -> None:
    assert clear(OffScaleLatent(), with_(healthy(), z1_std=[5.49] * STEPS, z0_std=[5.0] * STEPS))
    assert clear(OffScaleLatent(), with_(healthy(), z0_std=[0.1] * STEPS)), "the source is off, not the latents"


def test_healthy_a_trained_latent_finds_its_scale() -> None:
    rng = np.random.default_rng(7)
    trained = noisy(4.4, rng, 0.01, 1.0)
    assert one(OffScaleLatent(), with_(healthy(), z1_std=trained)).severity == "info"


def test_a_forgotten_shift() -> None:
    found = one(OffScaleLatent(), with_(healthy(), z1_mean_abs=[4.0] * STEPS))
    assert codes(found)[0] == "latent-offset"


# VEL408


def test_a_latent_that_shrinks_under_the_velocity_loss() -> None:
    rng = np.random.default_rng(8)
    shrinks = list(np.linspace(0.9, 0.3, STEPS) * np.array(noisy(1.0, rng, 0.01)))
    curves = with_(healthy(), z1_std=shrinks, source_gradient=noisy(0.01, rng, 0.3))
    found = one(ShrinkingLatent(), curves)
    assert (codes(found), found.confirm) == (["trainable-target"], "without:flow")
    assert clear(ShrinkingLatent(), with_(curves, source_gradient=[-0.01] * STEPS)), "it pulls outwards"
    assert clear(ShrinkingLatent(), with_(curves, z1_std=noisy(0.5, rng, 0.01))), "small, and stays"
    assert skipped(ShrinkingLatent(), with_(curves, source_gradient=None)) == "skip.fixed_latent"


def test_healthy_a_latent_that_comes_down_to_its_prior() -> None:
    """A KL that shapes the latent brings it to the scale of the source, and that is not shrinking."""
    rng = np.random.default_rng(8)
    down = list((1 + np.exp(-np.arange(STEPS) / 15)) * np.array(noisy(1.0, rng, 0.005)))
    assert clear(ShrinkingLatent(), with_(healthy(), z1_std=down, source_gradient=[0.1] * STEPS))


# VEL409


def pairs(weight: Callable[[np.random.Generator, int], np.ndarray] | None, *, learned: bool) -> Curves:
    """Ratios of real losses: of all pairs for None, else of the own pairs, weighted."""
    ratio, ratio_pairs, nmse, speed = [], [], [], []
    for seed in range(STEPS):
        rng = np.random.default_rng(seed)
        v = rng.normal(size=(BATCH, 4)) + 0.2
        p = 0.8 * v + 0.3 * rng.normal(size=v.shape) if learned else 0.2 + 0.05 * rng.normal(size=v.shape)
        own, every = (p - v) ** 2, ((p[:, None] - v) ** 2).mean()
        loss = every if weight is None else (weight(rng, BATCH)[:, None] * own).mean()
        ratio.append(float(loss / own.mean()))
        ratio_pairs.append(float(loss / every))
        nmse.append(float(own.mean() / (v**2).mean()))
        speed.append(float(np.mean(np.linalg.norm(p, axis=1) / np.linalg.norm(v, axis=1))))
    return {"loss_ratio": ratio, "loss_ratio_pairs": ratio_pairs, "nmse": nmse, "speed_ratio": speed}


def test_every_prediction_against_every_target() -> None:
    sick = pairs(None, learned=False)
    found = one(BroadcastTarget(), with_(healthy(), **sick))
    assert (found.severity, found.message.key, codes(found)) == ("error", "rule.VEL409", ["broadcast-shapes"])
    guessed = one(BroadcastTarget(), with_(healthy(), **{**sick, "loss_ratio_pairs": None}))
    assert (guessed.severity, guessed.message.key) == ("warning", "rule.VEL409.mean")
    assert codes(guessed)[0] == "broadcast-shapes"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("learned_", [True, False])
def test_healthy_weighted_and_constant_losses(known: bool, learned_: bool) -> None:
    """A sum over dimensions is a constant, a weighting by the time is none; both know their own pairs."""
    for weight in (
        lambda rng, n: np.full(n, 4.0),
        lambda rng, n: rng.uniform(0, 2, n),
        lambda rng, n: rng.exponential(size=n),
    ):
        curves = pairs(weight, learned=learned_)
        if not known:
            curves.pop("loss_ratio_pairs")
        assert clear(BroadcastTarget(), with_(healthy(), **curves))


# VEL410


def test_a_latent_that_carries_nothing() -> None:
    rng = np.random.default_rng(9)
    curves = with_(healthy(), nmse=noisy(0.79, rng, 0.01)) | {
        "posterior/snr": noisy(1e-5, rng),
        "loss/kl": [0.1] * STEPS,
    }
    found = one(StructurelessLatent(), curves)
    assert (codes(found), found.confirm) == (["kl-too-strong"], "weight:kl*0.1")
    assert clear(StructurelessLatent(), curves | {"posterior/snr": noisy(0.2, rng)}), "at the floor, and informative"
    assert clear(StructurelessLatent(), curves | {"flow/nmse": noisy(0.4, rng)}), "collapsed, and something to learn"


def test_the_floor_of_independent_gaussians() -> None:
    """Against integration of the conditional variance a^2 b^2 / ((1-t)^2 a^2 + t^2 b^2) over t."""
    t = (np.arange(200_000) + 0.5) / 200_000
    for a, b in ((1.0, 1.0), (0.5, 2.0), (1.0, 5.49)):
        variance = np.mean(a**2 * b**2 / ((1 - t) ** 2 * a**2 + t**2 * b**2))
        assert gaussian_floor(a, b) == pytest.approx(variance / (a**2 + b**2), rel=1e-4)
        assert gaussian_floor(a, b) == pytest.approx(gaussian_floor(b, a))
    assert gaussian_floor(math.nan, 1.0) == gaussian_floor(1.0, 1.0) == pytest.approx(math.pi / 4)


# VEL411


@pytest.mark.parametrize(
    ("mismatch", "scale", "size", "sentence", "cause"),
    [
        (2.0, -1.0, 2.5, "rule.VEL411.sign", "target-sign"),
        (0.49, 0.81, 2.0, "rule.VEL411.straight", "path-derivative-missing"),
        (1.2, 0.41, 1.0, "rule.VEL411.end", "target-formula"),
        (0.5, 0.5, 0.25, "rule.VEL411", "target-formula"),
    ],
)
def test_a_target_that_is_not_the_velocity(
    mismatch: float, scale: float, size: float, sentence: str, cause: str
) -> None:
    rng = np.random.default_rng(10)
    changed = {"target_mismatch": noisy(mismatch, rng, 0.01), "target_scale": noisy(scale, rng, 0.01)}
    found = one(TargetOffPath(), with_(healthy(), **changed, mse_zero=noisy(size, rng, 0.02)))
    assert (found.severity, found.message.key, codes(found)[0]) == ("error", sentence, cause)


@pytest.mark.parametrize(("size", "end"), [(16.0, "noise"), (1.0, "data"), (17.0, "straight")])
def test_data_and_noise_as_a_target_are_told_apart_by_their_size(size: float, end: str) -> None:
    changed = {"target_mismatch": [1.2] * STEPS, "target_scale": [-0.4] * STEPS, "z0_std": [4.0] * STEPS}
    found = one(TargetOffPath(), with_(healthy(), **changed, mse_zero=[size] * STEPS))
    assert found.message.key == f"rule.VEL411.{end}"


def test_healthy_rounding_of_a_target() -> None:
    assert clear(TargetOffPath(), with_(healthy(), target_mismatch=noisy(0.01, np.random.default_rng(10))))


# What they share


def test_what_is_shared_says_nothing_where_nothing_was_measured() -> None:
    view = RunView(run({}))
    assert the_loss(view) is None
    assert learned(view)
    assert not len(over_trivial(view))
    assert visits(view) == ([0.0] * 10, 0)
    assert math.isnan(width(over_trivial(view)))
    assert target_codes(view) == ()
    assert field_causes(view) == ()


def test_all_find_a_broken_run_together() -> None:
    """The sign of the target leads, and what follows from it stands under it."""
    rng = np.random.default_rng(11)
    curves = with_(healthy(), target_mismatch=[2.0] * STEPS, target_scale=[-1.0] * STEPS)
    told = diagnose(run(with_(curves, nmse=noisy(1.0, rng, 0.01))), rules=[rule() for rule in OWN])
    assert [(finding.code, finding.explained_by) for finding in told.findings] == [
        ("VEL411", None),
        ("VEL401", "VEL411"),
    ]


def test_short_runs_are_skipped() -> None:
    short = {name: curve[:8] for name, curve in healthy().items()}
    told = diagnose(run(short), rules=[rule() for rule in OWN if rule is not StarvedTimeBins])
    assert told.findings == ()
    assert told.clear == ()
    assert all(isinstance(outcome, Skipped) for _, outcome in told.skipped)
