"""The KL check: the formula behind the user's function, found by calling it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lossdoctor import preflight
from lossdoctor.losses import gaussian_kl
from lossdoctor.preflight.kl import RULES

CODES = {rule.code for rule in RULES} - {"PST309"}
KL = Callable[[Tensor, Tensor], Any]


def elements(mu: Tensor, logvar: Tensor) -> Tensor:
    return (mu.square() + logvar.exp() - 1 - logvar) / 2


def total(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1).mean()


def of_scaled(mu: Tensor, logvar: Tensor, scale: float) -> Tensor:
    return gaussian_kl(scale * mu, logvar + 2 * math.log(scale), reduction="sum")


def of_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    z = mu + torch.randn_like(mu) * (logvar / 2).exp()
    return total(elements(z, logvar))


HEALTHY: dict[str, KL] = {
    "library": lambda mu, logvar: gaussian_kl(mu, logvar, reduction="sum"),
    "textbook": lambda mu, logvar: torch.mean(
        -0.5 * torch.sum((1 + logvar - mu**2 - logvar.exp()).flatten(1), dim=1), dim=0
    ),
    "distributions": lambda mu, logvar: (
        kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    ),
    "per sample": lambda mu, logvar: elements(mu, logvar).flatten(1).sum(1),
    "a python number": lambda mu, logvar: total(elements(mu, logvar)).item(),
    "half precision": lambda mu, logvar: total(elements(mu.half().float(), logvar.half().float())),
    "bfloat16": lambda mu, logvar: total(elements(mu.bfloat16().float(), logvar.bfloat16().float())),
    "float32 inside": lambda mu, logvar: total(torch.lerp(elements(mu, logvar), torch.zeros(()), 0.0).float()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_the_closed_form_is_clear_however_it_is_written(name: str) -> None:
    diagnosis = preflight.check(kl=HEALTHY[name])
    assert set(diagnosis.clear) >= CODES, [str(finding.message) for finding in diagnosis.findings]


BROKEN: dict[str, tuple[KL, str, str, str]] = {
    "stable diffusion": (lambda m, v: of_scaled(m, v, 0.18215), "PST303", "kl-on-scaled-latent", "0.18215"),
    "unscaled": (lambda m, v: of_scaled(m, v, 1 / 0.13025), "PST303", "kl-on-scaled-latent", "7.6775"),
    "any scale": (lambda m, v: of_scaled(m, v, 0.5), "PST303", "kl-on-scaled-latent", "0.5 times the latent"),
    "scaled mean": (lambda m, v: total(elements(0.18215 * m, v)), "PST303", "kl-on-scaled-latent", "times mu"),
    "sample": (of_sample, "PST304", "kl-on-sample", "random numbers"),
    "no mean": (lambda m, v: total(elements(0 * m, v)), "PST304", "kl-formula", "mu^2 is missing"),
    "mean only": (lambda m, v: total(m.square() / 2), "PST304", "kl-formula", "logvar has no part"),
    "std": (lambda m, v: total((m**2 + (v / 2).exp() - 1 - v) / 2), "PST304", "kl-formula", "std stands"),
    "sixth power": (
        lambda m, v: total((0.3 * m) ** 6 + (v.exp() - 1 - v) / 2), "PST304", "kl-formula", "(0.3 mu)^6",
    ),
    "turned": (
        lambda m, v: kl_divergence(Normal(0.0, 1.0), Normal(m, (v / 2).exp())).flatten(1).sum(1).mean(),
        "PST304", "kl-formula", "other way round",
    ),
    "other": (lambda m, v: total(m.abs() ** 1.5 + v.square()), "PST304", "kl-formula", "no known formula"),
    "double": (lambda m, v: 2 * total(elements(m, v)), "PST307", "kl-reduction", "1/2 is lost"),
    "half": (lambda m, v: total(elements(m, v)) / 2, "PST307", "kl-reduction", "applied twice"),
    "mean": (lambda m, v: elements(m, v).mean(), "PST307", "kl-reduction", "mean over 6"),
    "double mean": (lambda m, v: 2 * elements(m, v).mean(), "PST307", "kl-reduction", "1/2 is lost"),
    "batch sum": (lambda m, v: elements(m, v).sum(), "PST307", "kl-reduction", "summed over the batch"),
    "batch mean": (lambda m, v: total(elements(m, v)) / len(m), "PST307", "kl-reduction", "divided by the batch"),
    "weight inside": (lambda m, v: 0.013 * total(elements(m, v)), "PST307", "kl-reduction", "already inside"),
    "sign": (lambda m, v: -total(elements(m, v)), "PST307", "kl-formula", "wrong sign"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_other_formula_is_named(name: str) -> None:
    kl, code, cause, words = BROKEN[name]
    [finding] = preflight.check(kl=kl).findings
    assert (finding.code, finding.causes[0].code) == (code, cause), str(finding.message)
    assert words in str(finding.message)
    assert finding.message.text("zh-CN")


def test_choices_are_only_mentioned() -> None:
    for name in ("mean", "batch sum"):
        assert preflight.check(kl=BROKEN[name][0]).worst() == "info"
    free_bits = lambda m, v: elements(m, v).mean(0).clamp(min=0.5).sum()  # noqa: E731
    [finding] = preflight.check(kl=free_bits).findings
    assert (finding.code, finding.severity) == ("PST304", "info")
    assert "free bits" in str(finding.message)


def test_an_own_scale_factor_is_tried() -> None:
    [finding] = preflight.check(kl=lambda m, v: of_scaled(m, v, 0.3611), latent_scale=0.3611).findings
    assert "0.3611" in str(finding.message)


def test_the_shape_of_the_latents_is_kept() -> None:
    def kl(mu: Tensor, logvar: Tensor) -> Tensor:
        assert mu.shape[1:] == (4, 3, 3)
        return total(elements(mu, logvar))

    mu, logvar = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    assert set(preflight.check(kl=kl, mu=mu, logvar=logvar).clear) >= CODES | {"PST309"}


@pytest.mark.parametrize("value", [-40.0, 40.0])
def test_a_logvar_without_bounds_is_told(value: float) -> None:
    logvar = torch.zeros(4, 3)
    logvar[1, 1] = value
    [finding] = preflight.check(kl=HEALTHY["textbook"], mu=torch.zeros(4, 3), logvar=logvar).findings
    assert (finding.code, finding.causes[0].code) == ("PST309", "logvar-unclamped")


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (lambda mu: mu, "TypeError"),
        (elements, "one number"),
        (lambda m, v: None, "NoneType"),
        (lambda m, v: total(elements(m, v)) * math.inf, "infinity"),
    ],
)
def test_a_kl_that_cannot_be_used_is_told(kl: KL, words: str) -> None:
    [finding] = preflight.check(kl=kl).findings
    assert (finding.code, finding.subject) == ("PRE001", "kl")
    assert words in str(finding.message)
