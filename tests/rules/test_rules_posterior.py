"""PST: for every rule a sick run, its healthy twin, and what must not be called a bug.

Runs are made from latents: at every step mu, logvar and z are drawn, and measured as the doctor measures them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Finding, Rule, RunView, Skipped
from lossdoctor.rules.kl_formula import Formula, formula
from lossdoctor.rules.posterior import adrift, approaching, distance, held, pull, role, stronger, the_loss
from lossdoctor.rules.pst301_prior_not_approached import PriorNotApproached
from lossdoctor.rules.pst302_off_prior_sample import OffPriorSample
from lossdoctor.rules.pst303_scaled_kl import ScaledKl
from lossdoctor.rules.pst304_kl_on_sample import KlOnSample
from lossdoctor.rules.pst305_variance_collapse import VarianceCollapse
from lossdoctor.rules.pst306_posterior_collapse import PosteriorCollapse
from lossdoctor.rules.pst307_kl_reduction import KlReduction
from lossdoctor.rules.pst308_kl_unused import KlUnused
from lossdoctor.rules.pst309_unclamped_logvar import UnclampedLogvar
from lossdoctor.store import MemoryWriter, Run

OWN = [rule for rule in RULES if rule.code.startswith("PST")]
KINDS = {"flow": "velocity", "dino": "distill", "kl": "kl"}
AUTOENCODER = {"recon": "other", "kl": "kl"}
STEPS, EVERY, BATCH, DIMENSIONS = 60, 10, 64, 32

Array = np.ndarray[Any, np.dtype[np.float64]]
Kl = Callable[[Array, Array, Array], float]
"""(mu, logvar, z), each (B, D), to the KL that a script computes."""
Curves = dict[str, list[float]]


def course(start: float, end: float, *, pace: float = 12.0) -> Array:
    return end + (start - end) * np.exp(-np.arange(STEPS) / pace)


def closed(mu: Array, logvar: Array) -> Array:
    return (mu**2 + np.exp(logvar) - 1 - logvar) / 2


def summed(terms: Array) -> float:
    return float(terms.sum(1).mean())


def right(mu: Array, logvar: Array, z: Array) -> float:
    return summed(closed(mu, logvar))


def posterior(
    *,
    signal: Array | float = 0.25,
    std: Array | float = 0.7,
    offset: float = 0.0,
    kl: Kl | None = right,
    fresh: bool = False,
    seed: int = 0,
) -> Curves:
    """What `lossdoctor.posterior` records. signal: rms of mu. fresh: the KL sees another sample than was handed in."""
    rng = np.random.default_rng(seed)
    signals, stds = (np.broadcast_to(np.asarray(x, float), STEPS) for x in (signal, std))
    wide = 0.1 * rng.normal(size=DIMENSIONS)
    curves: dict[str, list[float]] = {}
    for size, width in zip(signals, stds, strict=True):
        mu = offset + size * rng.normal(size=(BATCH, DIMENSIONS))
        logvar = 2 * math.log(width) + wide + 0.02 * rng.normal(size=(BATCH, DIMENSIONS))
        sigma = np.exp(logvar / 2)
        z, other = (mu + sigma * rng.normal(size=mu.shape) for _ in range(2))
        true = float(closed(mu, logvar).mean())
        row = {
            "mu/abs_mean": np.abs(mu).mean(),
            "mu/rms": math.sqrt((mu**2).mean()),
            "logvar/mean": logvar.mean(),
            "std/mean": sigma.mean(),
            "std/rms": math.sqrt((sigma**2).mean()),
            "std/min": sigma.min(),
            "std/max": sigma.max(),
            "z_init/mean": z.mean(),
            "z_init/var": z.var(),
            "z_init/std_per_dim_mean": z.std(0).mean(),
            "kl/per_dim": true,
            "posterior/active_units": (mu.var(0) > 0.01).mean(),
            "posterior/snr": (mu.var(0) / (sigma**2).mean(0)).mean(),
        }
        if kl is not None:
            given = kl(mu, logvar, other if fresh else z)
            row |= {"kl/given_per_dim": given / DIMENSIONS, "kl/ratio": given / DIMENSIONS / true, "loss/kl": given}
        for name, value in row.items():
            curves.setdefault(name, []).append(float(value))
    return curves


def gradients(kl: float = 0.105, *, weight: float = 0.07, flow: float = 0.4, seed: int = 1) -> Curves:
    """Weighted gradient norms of a KL beside a velocity loss and a distillation."""
    rng = np.random.default_rng(seed)

    def noisy(level: float) -> list[float]:
        return list(level * np.exp(0.08 * rng.normal(size=STEPS)))

    return {
        "weight/kl": [weight] * STEPS,
        "weight/flow": [1.0] * STEPS,
        "grad/kl": noisy(kl / weight) if weight else noisy(1.5),
        "grad_weighted/kl": noisy(kl),
        "grad_weighted/flow": noisy(flow),
        "grad/total": noisy(math.hypot(kl, flow)),
        "loss/flow": noisy(0.7),
    }


def source(curves: Curves, **more: Any) -> Curves:
    """The same latent as the beginning of a flow whose end has a std of 1."""
    z0 = [math.sqrt(value) for value in curves["z_init/var"]]
    ends = {"flow/z0_std": z0, "flow/z1_std": list(1 + 0.01 * np.random.default_rng(4).normal(size=STEPS))}
    return {**curves, **ends, "loss/dino": [1.0] * STEPS, **gradients(), **more}


def target(curves: Curves, scale: float = 1.0, **more: Any) -> Curves:
    """The same latent, times a constant, as the end of a flow from noise."""
    ends = {
        "flow/z0_std": list(1 + 0.01 * np.random.default_rng(4).normal(size=STEPS)),
        "flow/z1_std": [scale * math.sqrt(value) for value in curves["z_init/var"]],
    }
    return {**curves, **ends, **gradients(), **more}


def healthy(**more: Any) -> Curves:
    """As in the reference system: the KL is at its balance with the losses that shape the source of the flow."""
    return source(posterior(signal=course(0.1, 0.25), std=course(0.5, 0.8), **more))


def neglected(**more: Any) -> Curves:
    """The same with a KL that is too weak: std falls, mu grows."""
    return source(posterior(signal=course(0.1, 0.9), std=course(0.5, 0.2, pace=25), **more)) | gradients(
        1e-5, weight=7e-6
    )


def recorded(curves: Mapping[str, Any], **meta: Any) -> Run:
    shapes = {"posterior_dimensions": DIMENSIONS, "batch": BATCH}
    writer = MemoryWriter({"losses": KINDS, "heads": ["z_head", "flow_head"], "shapes": shapes, **meta})
    for i in range(max(map(len, curves.values()), default=0)):
        values = {name: curve[i] for name, curve in curves.items() if i < len(curve)}
        writer.append([Record(i * EVERY, values, full=True)])
    return writer.run()


def ask(rule: Rule, curves: Mapping[str, Any], **more: Any) -> Diagnosis:
    return diagnose(recorded(curves, **more), rules=[rule])


def only(diagnosis: Diagnosis) -> Finding:
    """The one finding, whole."""
    assert not diagnosis.skipped, diagnosis.skipped
    (finding,) = diagnosis.findings
    whole(finding)
    return finding


def whole(finding: Finding) -> None:
    """Texts in both languages, finite evidence with its steps, causes and fixes."""
    for lang in ("en", "zh-CN"):
        texts = [finding.message.text(lang), *(c.message.text(lang) for c in finding.causes)]
        texts += [fix.message.text(lang) for fix in finding.fixes]
        assert all(texts)
        assert not any(re.search(r"\b(nan|inf)\b|[{}]", text) for text in texts), texts
    assert finding.causes
    assert finding.fixes
    for evidence in finding.evidence:
        assert math.isfinite(evidence.value), evidence
        assert evidence.threshold is None or math.isfinite(evidence.threshold)
        assert evidence.first_step is not None
        assert evidence.last_step is not None
        assert 0 <= evidence.first_step <= evidence.last_step


def assert_clear(rule: Rule, curves: Mapping[str, Any], **more: Any) -> None:
    diagnosis = ask(rule, curves, **more)
    assert diagnosis.clear == (rule.code,), (diagnosis.findings, diagnosis.skipped)


def alarms(curves: Mapping[str, Any], **more: Any) -> list[str]:
    diagnosis = diagnose(recorded(curves, **more), rules=[rule() for rule in OWN])
    assert not any(skipped.reason.key == "skip.failed" for _, skipped in diagnosis.skipped)
    return [finding.code for finding in diagnosis.findings if finding.severity != "info"]


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.code)
def test_a_healthy_run_is_clear(rule: type[Rule]) -> None:
    assert_clear(rule(), healthy())


# Healthy runs that look sick


def test_healthy_kl_that_rises_while_another_loss_shapes_the_latent() -> None:
    """Its gradient is a force of its own: that is a balance."""
    curves = source(posterior(signal=course(0.1, 0.9), std=course(0.9, 0.35, pace=25)))
    assert curves["kl/per_dim"][-1] > 5 * curves["kl/per_dim"][0]
    assert not alarms(curves)


@pytest.mark.parametrize("std", [1e-4, 2e-4, 1e-5])
def test_healthy_autoencoder_of_latent_diffusion(std: float) -> None:
    """logvar at -17 to -23 and a KL at 1e-6 beside a reconstruction that is summed: warnings would be wrong."""
    curves = posterior(signal=course(0.3, 5.49), std=course(0.5, std, pace=5)) | {
        "loss/recon": list(course(3e4, 900)),
        **{name.replace("flow", "recon"): curve for name, curve in gradients(3e-5, weight=1e-6, flow=40.0).items()},
    }
    assert math.log(std) * 2 < -17
    assert not alarms(curves, losses=AUTOENCODER)
    told = ask(OffPriorSample(), curves, losses=AUTOENCODER).findings
    assert [finding.severity for finding in told] == ["info"]


def test_healthy_latents_at_the_end_of_a_flow_with_a_tiny_kl() -> None:
    """As in end-to-end latent diffusion: the flow sees the latents normalised, at a std of 1."""
    curves = posterior(signal=course(0.3, 5.0), std=course(0.5, 1e-3, pace=5))
    normalised = target(curves, **{"flow/z1_std": [1.0] * STEPS}) | gradients(1e-5, weight=1e-6)
    assert not alarms(normalised)
    scaled = target(posterior(signal=5.4, std=0.01), 0.18215) | gradients(1e-5, weight=1e-6)
    assert not alarms(scaled)


def test_healthy_plain_autoencoder_with_informative_dimensions() -> None:
    """A std of 0.1 and 2 nats per dimension are what a good code costs."""
    curves = posterior(signal=course(0.1, 0.99), std=course(1.0, 0.1)) | {
        name.replace("flow", "recon"): curve for name, curve in gradients(1.5, weight=1.0, flow=1.6).items()
    }
    assert not alarms(curves, losses=AUTOENCODER)
    assert not alarms(source(posterior(signal=course(0.1, 0.99), std=course(1.0, 0.1))))


def test_healthy_kl_whose_weight_has_not_begun() -> None:
    """Off for the first half: what happens then is not the KL's doing."""
    late = np.arange(STEPS) >= STEPS // 2
    curves = source(posterior(signal=np.where(late, 0.25, 3.0), std=np.where(late, 0.8, 0.01)))
    curves["weight/kl"] = list(np.where(late, 0.07, 0.0))
    curves["grad_weighted/kl"] = list(np.where(late, curves["grad_weighted/kl"], 0.0))
    assert not alarms(curves)


def test_healthy_mean_over_dimensions_under_a_weight_for_it() -> None:
    curves = source(posterior(signal=course(0.1, 0.25), std=course(0.5, 0.8), kl=lambda *x: right(*x) / DIMENSIONS))
    assert not alarms(curves)
    told = only(ask(KlReduction(), curves))
    assert told.severity == "info"
    assert "32 dimensions" in str(told.message)


def test_healthy_estimate_from_a_sample() -> None:
    """log q(z) - log p(z), and z^2 where its mean belongs, are noisy and right on average."""

    def difference(mu: Array, logvar: Array, z: Array) -> float:
        return summed((z**2 - (z - mu) ** 2 / np.exp(logvar) - logvar) / 2)

    def square(mu: Array, logvar: Array, z: Array) -> float:
        return summed((z**2 - 1 - logvar) / 2)

    for estimate in (difference, square):
        for fresh in (False, True):
            curves = healthy(kl=estimate, fresh=fresh)
            assert np.ptp(curves["kl/ratio"]) > 0.05
            assert not alarms(curves)


def test_healthy_kl_in_half_precision() -> None:
    rng = np.random.default_rng(7)

    def rounded(mu: Array, logvar: Array, z: Array) -> float:
        return right(mu, logvar, z) * (1 + 0.01 * float(rng.normal()))

    assert not alarms(healthy(kl=rounded))


def test_healthy_free_bits() -> None:
    """max(KL, floor): the ratio is erratic by design, and never below 1."""
    curves = source(
        posterior(signal=course(1.0, 0.05), std=course(0.4, 0.95), kl=lambda *x: max(right(*x), 0.1 * DIMENSIONS))
    )
    assert not alarms(curves)
    told = only(ask(KlOnSample(), curves))
    assert told.severity == "info"
    assert "free bits" in str(told.message)


def test_healthy_conditions_of_which_there_are_few() -> None:
    """Captions that repeat make values of logvar repeat: that share alone means nothing."""
    assert not alarms(healthy() | {"logvar/clamped": [0.16] * STEPS})


def test_healthy_start_with_a_kl_near_zero() -> None:
    curves = source(posterior(signal=course(0.001, 0.9), std=course(1.0, 0.5)))
    assert curves["kl/per_dim"][0] < 0.01
    assert not alarms(curves)


# PST301, PST302, PST305: the prior that nobody holds


def test_a_posterior_that_does_not_approach_its_prior() -> None:
    finding = only(ask(PriorNotApproached(), neglected()))
    assert finding.severity == "warning"
    assert [cause.code for cause in finding.causes] == ["kl-too-weak", "weight-too-small"]
    assert {e.metric for e in finding.evidence} >= {"mu/abs_mean", "std/mean", "logvar/mean", "grad_weighted/kl"}
    assert finding.confirm == "without:kl"
    assert finding.fixes[0].params["factor"] > 100


def test_an_approaching_posterior_is_clear_however_weak_the_kl() -> None:
    curves = source(posterior(signal=course(1.5, 0.5, pace=30), std=course(0.2, 0.5, pace=30))) | gradients(1e-5)
    assert_clear(PriorNotApproached(), curves)


def test_without_gradients_it_is_a_remark() -> None:
    curves = {name: curve for name, curve in neglected().items() if not name.startswith("grad")}
    finding = only(ask(PriorNotApproached(), curves))
    assert finding.severity == "info"
    assert "not measured" in str(finding.message)


def test_the_methods_own_metrics_are_enough() -> None:
    """An imported run may have no KL per dimension."""
    kept = ("mu/abs_mean", "std/mean", "logvar/mean", "z_init", "flow", "grad", "loss", "weight")
    curves = {name: curve for name, curve in neglected().items() if name.startswith(kept)}
    assert only(ask(PriorNotApproached(), curves)).severity == "warning"
    assert_clear(PriorNotApproached(), {name: curve for name, curve in healthy().items() if name.startswith(kept)})


def test_a_source_that_is_no_sample_of_the_prior() -> None:
    narrow = source(posterior(signal=0.1, std=0.35)) | gradients(1e-5)
    finding = only(ask(OffPriorSample(), narrow))
    assert finding.severity == "warning"
    assert "narrower" in str(finding.message)
    assert finding.causes[0].code == "kl-too-weak"
    wide = source(posterior(signal=3.0, std=0.35)) | gradients(1e-5)
    assert "wider" in str(only(ask(OffPriorSample(), wide)).message)


@pytest.mark.parametrize("offset", [-0.8, 0.8])
def test_a_source_that_is_off_centre(offset: float) -> None:
    finding = only(ask(OffPriorSample(), source(posterior(offset=offset)) | gradients(1e-5)))
    assert finding.causes[0].code == "latent-offset"
    assert finding.evidence[0].metric == "z_init/mean"


def test_off_the_prior_where_the_kl_holds_is_a_remark() -> None:
    assert only(ask(OffPriorSample(), source(posterior(signal=0.1, std=0.35)))).severity == "info"


def test_latents_that_run_away_from_the_scale_they_had() -> None:
    """The data end of a flow, scaled on the first batch, and a KL that does not hold the latents there."""
    curves = target(posterior(signal=course(0.9, 4.0), std=course(0.5, 0.01)), 1.0) | gradients(1e-5)
    assert curves["flow/z1_std"][-1] > 2
    assert only(ask(OffPriorSample(), curves)).severity == "warning"
    held_back = curves | gradients()
    assert only(ask(OffPriorSample(), held_back)).severity == "info"


def test_a_deterministic_code() -> None:
    finding = only(ask(VarianceCollapse(), neglected()))
    assert finding.causes[0].code == "kl-too-weak"
    assert "on its way" in str(finding.message)
    assert [fix.action for fix in finding.fixes] == ["scale_weight", "ablate", "warm_up_weight"]
    gone = source(posterior(signal=0.99, std=course(0.5, 0.01, pace=3))) | gradients(1e-5)
    assert "becomes" in str(only(ask(VarianceCollapse(), gone)).message)


def test_its_page_tells_both_remedies() -> None:
    page = " ".join(VarianceCollapse.page().split())
    assert "textbook" in page
    assert "without:kl" in page


def test_a_small_std_that_does_not_fall_is_clear() -> None:
    assert_clear(VarianceCollapse(), source(posterior(signal=0.9, std=0.35)) | gradients(1e-5))


def test_a_weak_kl_in_full() -> None:
    assert alarms(neglected()) == ["PST305", "PST301"]  # mu has spread, so the samples are as wide as the prior's
    diagnosis = diagnose(recorded(neglected()), rules=[PriorNotApproached(), VarianceCollapse()])
    assert [(f.code, f.explained_by) for f in diagnosis.findings] == [("PST305", None), ("PST301", "PST305")]


@pytest.mark.parametrize("rule", [PriorNotApproached, OffPriorSample, VarianceCollapse])
def test_a_kl_that_is_off_is_not_judged(rule: type[Rule]) -> None:
    curves = neglected() | {"weight/kl": [0.0] * STEPS}
    told = ask(rule(), curves).skipped
    assert [(code, skipped.reason.key) for code, skipped in told] == [(rule.code, "skip.kl_off")]


# PST303, PST304, PST307: which formula it is


def from_moments(z: Array) -> Array:
    mean, variance = z.mean(0), z.var(0)
    return ((mean**2 + variance - 1 - np.log(variance)) / 2)[None]


PARTS: dict[str, Kl] = {
    "(std^2 - 1 - logvar) / 2": lambda mu, logvar, z: summed((np.exp(logvar) - 1 - logvar) / 2),
    "mu^2 / 2": lambda mu, logvar, z: summed(mu**2 / 2),
    "(mu^2 + std^2) / 2": lambda mu, logvar, z: summed((mu**2 + np.exp(logvar)) / 2),
    "-logvar / 2": lambda mu, logvar, z: summed(-logvar / 2),
    "(mu^2 + std - 1 - logvar) / 2": lambda mu, logvar, z: summed((mu**2 + np.exp(logvar / 2) - 1 - logvar) / 2),
    "mu^2 + (std^2 - 1 - logvar) / 2": lambda mu, logvar, z: summed(mu**2 / 2 + closed(mu, logvar)),
    "(mu^2 + std^2 - 1 - ln std) / 2": lambda mu, logvar, z: summed((mu**2 + np.exp(logvar) - 1 - logvar / 2) / 2),
}
SAMPLES: dict[str, Kl] = {
    "(z^2 + std^2 - 1 - logvar) / 2": lambda mu, logvar, z: summed(closed(z, logvar)),
    "z^2 / 2": lambda mu, logvar, z: summed(z**2 / 2),
}
ROUGHLY: dict[str, Kl] = {
    "(z^2 + std^2 - 1 - logvar) / 2": SAMPLES["(z^2 + std^2 - 1 - logvar) / 2"],
    "z^2 / 2": SAMPLES["z^2 / 2"],
    "(z^2 - 1 - ln z^2) / 2": lambda mu, logvar, z: summed((z**2 - 1 - np.log(z**2)) / 2),
    "(mean(z)^2 + var(z) - 1 - ln var(z)) / 2": lambda mu, logvar, z: summed(from_moments(z)),
}


def trained(kl: Kl, *, fresh: bool = False, **more: Any) -> Curves:
    """A posterior on its way, with mu well above 0, under another KL."""
    given = {"signal": course(0.2, 0.8), "std": course(0.4, 0.7), **more}
    return source(posterior(**given, kl=kl, fresh=fresh))


def told(curves: Curves, **meta: Any) -> Formula:
    found = formula(RunView(recorded(curves, **meta)))
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "kl"), PARTS.items(), ids=PARTS)
@pytest.mark.parametrize("factor", [1.0, 1 / DIMENSIONS, 2.0])
def test_a_kl_with_a_term_missing_is_named(name: str, kl: Kl, factor: float) -> None:
    curves = trained(lambda *x: factor * kl(*x))
    found = told(curves)
    assert (found.kind, found.name, found.exact) == ("part", name, True)
    assert found.factor == pytest.approx(factor)
    finding = only(ask(KlOnSample(), curves))
    assert finding.severity == "error"
    assert [cause.code for cause in finding.causes] == ["kl-formula"]
    assert name in str(finding.message)


@pytest.mark.parametrize(("name", "kl"), SAMPLES.items(), ids=SAMPLES)
def test_a_kl_of_the_sample_handed_in_is_named(name: str, kl: Kl) -> None:
    finding = only(ask(KlOnSample(), trained(kl)))
    assert finding.severity == "error"
    assert [cause.code for cause in finding.causes] == ["kl-on-sample"]
    assert name in str(finding.message)


@pytest.mark.parametrize(("name", "kl"), ROUGHLY.items(), ids=ROUGHLY)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_kl_of_another_sample_is_recognised_through_its_noise(name: str, kl: Kl, fresh: bool) -> None:
    curves = trained(kl, fresh=fresh, signal=course(0.1, 0.4))
    finding = only(ask(KlOnSample(), curves))
    assert finding.causes[0].code == "kl-on-sample"
    assert name in str(finding.message)


@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_another_formula_is_no_sample(strength: float) -> None:
    curves = trained(
        lambda mu, logvar, z: summed((strength * mu) ** 6 + (np.exp(logvar) - 1 - logvar) / 2), signal=course(0.3, 2.0)
    )
    finding = only(ask(KlOnSample(), curves))
    assert finding.causes[0].code == "kl-formula"


@pytest.mark.parametrize("scale", [0.18215, 0.13025, 0.2325, 1 / 0.18215, 1 / 0.13025])
@pytest.mark.parametrize("factor", [1.0, 1 / DIMENSIONS, 2.0])
def test_a_kl_of_scaled_latents_is_named(scale: float, factor: float) -> None:
    curves = trained(lambda mu, logvar, z: factor * right(scale * mu, logvar + 2 * math.log(scale), z))
    finding = only(ask(ScaledKl(), curves))
    assert finding.severity == "error"
    assert finding.causes[0].code == "kl-on-scaled-latent"
    assert f"{scale:.5g}" in str(finding.message)
    assert_clear(KlOnSample(), curves)
    assert_clear(KlReduction(), curves)


def test_a_kl_of_scaled_means_alone() -> None:
    found = told(trained(lambda mu, logvar, z: right(0.18215 * mu, logvar, z)))
    assert (found.kind, found.scale, found.mean_only) == ("scaled", 0.18215, True)


def test_a_scale_that_nobody_knows_is_a_warning() -> None:
    finding = only(ask(ScaledKl(), trained(lambda mu, logvar, z: right(0.4 * mu, logvar + 2 * math.log(0.4), z))))
    assert finding.severity == "warning"
    assert "0.4 times" in str(finding.message)


REDUCTIONS = {
    "double": (2.0, "warning"),
    "half": (0.5, "warning"),
    "mean": (1 / DIMENSIONS, "info"),
    "double mean": (2 / DIMENSIONS, "warning"),
    "half mean": (0.5 / DIMENSIONS, "warning"),
    "batch sum": (48, "info"),
    "batch mean": (1 / 48, "warning"),
    "weighted": (0.07, "info"),
    "weighted mean": (0.07 / DIMENSIONS, "info"),
}


@pytest.mark.parametrize(("name", "told_as"), REDUCTIONS.items(), ids=REDUCTIONS)
def test_a_reduction_is_named(name: str, told_as: tuple[float, str]) -> None:
    factor, severity = told_as
    shapes = {"posterior_dimensions": DIMENSIONS, "batch": 48}
    curves = healthy(kl=lambda *x: factor * right(*x))
    assert told(curves, shapes=shapes).reduction == name
    finding = only(ask(KlReduction(), curves, shapes=shapes))
    assert finding.severity == severity
    assert finding.causes[0].code == "kl-reduction"
    assert finding.evidence[0].value == pytest.approx(factor)


def test_a_factor_without_a_name_is_a_remark() -> None:
    finding = only(ask(KlReduction(), healthy(kl=lambda *x: 0.0123 * right(*x))))
    assert finding.severity == "info"


def test_a_mean_under_a_weight_for_a_sum_is_a_warning() -> None:
    curves = neglected(kl=lambda *x: right(*x) / DIMENSIONS) | gradients(0.005)
    finding = only(ask(KlReduction(), curves))
    assert finding.severity == "warning"
    assert "seems chosen for a sum" in str(finding.message)
    diagnosis = diagnose(recorded(curves), rules=[rule() for rule in OWN])
    assert diagnosis.findings[0].code == "PST307"
    assert {finding.explained_by for finding in diagnosis.findings[1:]} == {"PST307"}


def test_the_sign_of_a_kl_is_an_error() -> None:
    finding = only(ask(KlReduction(), healthy(kl=lambda *x: -right(*x))))
    assert finding.severity == "error"
    assert finding.causes[0].code == "kl-formula"


def test_a_ratio_alone_tells_the_reduction() -> None:
    """Runs from before the given KL was recorded by itself."""
    curves = {name: curve for name, curve in healthy(kl=lambda *x: 2 * right(*x)).items() if name != "kl/given_per_dim"}
    assert only(ask(KlReduction(), curves)).severity == "warning"


@pytest.mark.parametrize("rule", [ScaledKl, KlOnSample, KlReduction])
def test_too_few_steps_for_a_formula(rule: type[Rule]) -> None:
    curves = {name: curve[:8] for name, curve in healthy().items()}
    assert isinstance(rule().check(RunView(recorded(curves))), Skipped)
    at_prior = source(posterior(signal=1e-4, std=1.0)) | {"kl/per_dim": [1e-6] * STEPS}
    assert isinstance(rule().check(RunView(recorded(at_prior))), Skipped)


# PST306


def collapsed(**more: Any) -> Curves:
    return source(posterior(signal=course(0.5, 1e-3, pace=2), std=course(0.7, 1.0, pace=2), **more))


def test_a_collapsed_posterior() -> None:
    finding = only(ask(PosteriorCollapse(), collapsed()))
    assert [cause.code for cause in finding.causes] == ["kl-too-strong", "weight-too-large"]
    assert finding.confirm == "weight:kl*0.1"


def test_a_latent_that_no_other_loss_reaches_is_wired_wrongly() -> None:
    reach = {"grad_module/kl/z_head": [0.1] * STEPS, "grad_module/flow/z_head": [0.0] * STEPS}
    assert only(ask(PosteriorCollapse(), collapsed() | reach)).causes[0].code == "wrong-wiring"
    reach["grad_module/flow/z_head"] = [0.1] * STEPS
    assert only(ask(PosteriorCollapse(), collapsed() | reach)).causes[0].code == "kl-too-strong"


def test_healthy_posterior_that_is_the_prior_by_construction() -> None:
    told = ask(PosteriorCollapse(), collapsed() | {"mu/abs_mean": [0.0] * STEPS}).skipped
    assert [skipped.reason.key for _, skipped in told] == ["skip.zero_mean"]


def test_healthy_small_but_telling_posterior() -> None:
    """0.005 nats per dimension on average, all in two dimensions of 32."""
    curves = collapsed() | {"posterior/active_units": [2 / 32] * STEPS}
    assert_clear(PosteriorCollapse(), curves)
    assert_clear(PosteriorCollapse(), collapsed() | {"posterior/snr": [0.5] * STEPS})


# PST308


def without_loss(curves: Curves, *others: str) -> Curves:
    kept = {name: curve for name, curve in curves.items() if not name.endswith("/kl")}
    return kept | {f"loss/{other}": [1.0] * STEPS for other in others}


def test_a_kl_that_is_not_among_the_losses() -> None:
    curves = without_loss(neglected())
    finding = only(ask(KlUnused(), curves, losses={"flow": "velocity", "dino": "distill"}))
    assert finding.severity == "warning"
    assert finding.causes[0].code == "weight-not-applied"
    assert "flow" in str(finding.message)


@pytest.mark.parametrize("name", ["elbo", "vae_loss", "nll"])
def test_healthy_kl_inside_another_loss(name: str) -> None:
    kinds = {"flow": "velocity", name: "other"}
    assert only(ask(KlUnused(), without_loss(neglected(), name), losses=kinds)).severity == "info"
    alone = {
        key: curve for key, curve in without_loss(neglected(), "recon").items() if key not in ("loss/flow", "loss/dino")
    }
    assert only(ask(KlUnused(), alone, losses={"recon": "other"})).severity == "info"


def test_healthy_kl_that_works_from_inside_another_loss() -> None:
    """The posterior goes to the prior, so something takes it there."""
    curves = without_loss(source(posterior(signal=course(1.5, 0.5, pace=30), std=course(0.2, 0.7, pace=30))), "recon")
    assert only(ask(KlUnused(), curves, losses={"flow": "velocity", "recon": "other"})).severity == "info"


def test_a_declared_weight_that_is_not_applied() -> None:
    curves = healthy() | {"weight/kl": [1.0] * STEPS}
    finding = only(ask(KlUnused(), curves, knobs={"w_kl": 0.01}))
    assert finding.severity == "warning"
    assert "0.01" in str(finding.message)
    # The arm that applies what was declared.
    assert finding.confirm == "weight:kl*0.01"
    assert finding.fixes[1].params == {"factor": 0.01}
    halved = curves | {"loss/kl": [value / 2 for value in curves["loss/kl"]]}  # of two micro-batches
    assert only(ask(KlUnused(), halved, knobs={"kl_weight": 0.01})).severity == "warning"


def test_healthy_weight_inside_the_loss() -> None:
    curves = healthy() | {"weight/kl": [1.0] * STEPS}
    inside = curves | {"loss/kl": [0.01 * value for value in curves["loss/kl"]]}
    assert_clear(KlUnused(), inside, knobs={"w_kl": 0.01})
    assert_clear(KlUnused(), curves, knobs={"w_kl": 1.0})
    assert_clear(KlUnused(), healthy(), knobs={"w_kl": 0.07})
    assert_clear(KlUnused(), curves)


def test_a_weight_of_zero_is_a_remark_unless_another_was_declared() -> None:
    curves = healthy() | {"weight/kl": [0.0] * STEPS}
    assert only(ask(KlUnused(), curves)).severity == "info"
    assert only(ask(KlUnused(), curves, knobs={"kl_weight": 0.1})).severity == "warning"


@pytest.mark.parametrize(
    ("arm", "clear"),
    [("weight:kl*0.1", True), ("only:flow", True), ("without:kl", True), ("only:kl", False), ("lr:all*2", False)],
)
def test_a_weight_that_an_experiment_sets_is_not_the_one_declared(arm: str, clear: bool) -> None:
    curves = healthy() | {"weight/kl": [1.0] * STEPS}
    told = ask(KlUnused(), curves, knobs={"w_kl": 0.01}, experiment={"arm": arm})
    assert (not told.findings) is clear


# PST309


def test_a_logvar_beyond_its_range() -> None:
    curves = healthy()
    curves["std/max"][-5:] = [math.exp(40 / 2)] * 5
    finding = only(ask(UnclampedLogvar(), curves))
    assert finding.severity == "warning"
    assert "40" in str(finding.message)
    curves["std/max"][-1] = math.inf
    assert only(ask(UnclampedLogvar(), curves)).severity == "error"


def test_a_logvar_far_below() -> None:
    curves = healthy()
    curves["std/min"][-5:] = [math.exp(-50 / 2), 0.0, 0.0, 0.0, 0.0]
    assert only(ask(UnclampedLogvar(), curves)).evidence[0].metric == "std/min"


def test_a_logvar_that_grows_without_an_end() -> None:
    rising = list(np.exp(np.linspace(-1, 9, STEPS)))
    assert "rises without an end" in str(only(ask(UnclampedLogvar(), healthy() | {"std/max": rising})).message)


@pytest.mark.parametrize("logvar", [-30.0, -23.0, -17.0, 20.0, 30.0])
def test_healthy_logvar_on_or_inside_a_clamp(logvar: float) -> None:
    std = [math.exp(logvar / 2)] * STEPS
    assert_clear(UnclampedLogvar(), healthy() | ({"std/min": std} if logvar < 0 else {"std/max": std}))


def test_healthy_single_odd_batch() -> None:
    curves = healthy()
    curves["std/max"][3] = 1e9
    assert_clear(UnclampedLogvar(), curves)


# What all have in common

FIELDS = [
    (PriorNotApproached, {"far": 1e9}, neglected()),
    (PriorNotApproached, {"weak": 1e-9}, neglected()),
    (OffPriorSample, {"low": 1e-9}, source(posterior(signal=0.1, std=0.35)) | gradients(1e-5)),
    (OffPriorSample, {"high": 1e9}, source(posterior(signal=3.0, std=0.35)) | gradients(1e-5)),
    (OffPriorSample, {"mean": 1e9}, source(posterior(offset=0.8)) | gradients(1e-5)),
    (VarianceCollapse, {"falling": 1e-9}, neglected()),
    (VarianceCollapse, {"weak": 1e-9}, neglected()),
    (VarianceCollapse, {"collapsed": 1e-9}, source(posterior(signal=0.99, std=0.01)) | gradients(1e-5)),
    (PosteriorCollapse, {"nats": 1e-12}, collapsed()),
    (PosteriorCollapse, {"snr": 1e-12}, collapsed()),
    (UnclampedLogvar, {"limit": 1e3}, healthy() | {"std/max": [math.exp(20.0)] * STEPS}),
    (UnclampedLogvar, {"least": 100}, healthy() | {"std/max": [math.exp(20.0)] * STEPS}),
    (UnclampedLogvar, {"rise": 1e3}, healthy() | {"std/max": list(np.exp(np.linspace(-1, 9, STEPS)))}),
]


@pytest.mark.parametrize(("rule", "setting", "curves"), FIELDS, ids=lambda value: getattr(value, "code", None))
def test_thresholds_decide(rule: type[Rule], setting: dict[str, float], curves: Curves) -> None:
    assert ask(rule(), curves).findings
    assert not ask(rule(**setting), curves).findings


def hostile() -> dict[str, dict[str, Any]]:
    names = [*healthy(), "flow/z1_mean_abs"]
    values = {
        "empty": [], "one": [0.5], "zero": [0.0] * 40, "constant": [0.5] * 40, "nan": [math.nan] * 40,
        "infinite": [math.inf] * 40, "tiny": [1e-300] * 40, "huge": [1e300] * 40, "negative": [-1.0] * 40,
        "mixed": [math.nan, 1e300, -1e300, 0.0, math.inf] * 8,
        "wild": list(np.random.default_rng(0).normal(size=40) * 1e6),
    }  # fmt: skip
    return {label: dict.fromkeys(names, curve) for label, curve in values.items()}


@pytest.mark.parametrize("curves", hostile().values(), ids=hostile())
@pytest.mark.parametrize(
    "shapes", [{}, {"posterior_dimensions": 0, "batch": 0}, {"posterior_dimensions": 1, "batch": 1}]
)
def test_hostile_runs_are_survived(curves: dict[str, Any], shapes: dict[str, int]) -> None:
    run = recorded(curves, shapes=shapes, knobs={"w_kl": "none", "beta": 0.5})
    diagnosis = diagnose(run, rules=[rule() for rule in OWN])
    assert not any(skipped.reason.key == "skip.failed" for _, skipped in diagnosis.skipped), diagnosis.skipped
    for finding in diagnosis.findings:
        whole(finding)


@pytest.mark.parametrize("missing", sorted(healthy()))
@pytest.mark.parametrize("make", [healthy, neglected])
def test_without_one_metric_the_others_still_judge(missing: str, make: Callable[[], Curves]) -> None:
    curves = make()
    del curves[missing]
    told = alarms(curves)
    assert not told or make is neglected


def test_short_runs_say_what_is_missing() -> None:
    curves = {name: curve[:8] for name, curve in neglected().items()}
    for rule in (PriorNotApproached, OffPriorSample, VarianceCollapse, PosteriorCollapse):
        told = rule().check(RunView(recorded(curves)))
        assert isinstance(told, Skipped), rule
        assert told.reason.text("zh-CN")
        assert told.enable is not None
        assert told.enable.text("en")


def test_every_finding_of_every_sick_run_can_be_told() -> None:
    for _, _, curves in FIELDS:
        for finding in diagnose(recorded(curves), rules=[rule() for rule in OWN]).findings:
            whole(finding)


# The shared questions


def view(curves: Mapping[str, Any], **meta: Any) -> RunView:
    return RunView(recorded(curves, **meta))


def test_what_the_latent_is_for() -> None:
    assert role(view(healthy())) == "source"
    assert role(view(target(posterior()))) == "target"
    assert role(view(target(posterior(signal=course(0.2, 2.0)), 0.18215))) == "target"
    assert role(view(posterior() | {"loss/flow": [1.0] * STEPS})) == "unknown"
    assert role(view(posterior(), losses=AUTOENCODER)) == "autoencoder"
    # A source of std 1 beside data of std 1: the one that agrees at every step.
    alike = source(posterior(signal=0.71, std=0.71))
    assert role(view(alike)) == "source"


def test_a_redrawn_sample_is_recognised_too() -> None:
    curves, again = posterior(seed=0), posterior(seed=5)
    assert role(view(source(curves) | {"flow/z0_std": [math.sqrt(v) for v in again["z_init/var"]]})) == "source"


def test_how_far_from_the_prior() -> None:
    curves = healthy()
    exact = distance(view(curves))
    assert exact.values.tolist() == curves["kl/per_dim"][-len(exact) :]
    del curves["kl/per_dim"]
    rough = distance(view(curves))
    assert rough.values == pytest.approx(exact.values, abs=0.02)


def test_who_holds_it() -> None:
    assert held(view(healthy())) is True
    assert held(view(neglected())) is False
    assert held(view(posterior())) is None
    assert pull(view(posterior())) is None
    assert the_loss(view(posterior() | {"loss/kl_z": [1.0] * STEPS})) is None
    assert the_loss(view(healthy())) == "kl"
    assert [fix.action for fix in stronger(view(posterior() | {"loss/kl_z": [1.0] * STEPS}))] == ["ablate"]
    assert not approaching(distance(view(neglected())))
    assert not adrift(view(healthy()))
