"""Are the latents that the flow ends in of the size it is made for, as a whole and channel by channel?"""

from __future__ import annotations

from torch import Tensor

from lossdoctor.preflight.answers import Answers, all_skipped, fired
from lossdoctor.preflight.given import Given
from lossdoctor.rules.finding import Cause, Evidence, Finding, Severity, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.vel407_off_scale_latent import SCALES, OffScaleLatent

RULES = (OffScaleLatent,)
NEEDS = ("z1",)

LEAST = 32
"""Numbers from which on a standard deviation means something: known to 12 %."""
_SURE = 0.2
"""How far from 1 a standard deviation is that other pictures than the autoencoder's own do not explain."""
_MORE = {"Stable Diffusion 3": 1.5305, "FLUX": 0.3611}
"""Factors of autoencoders too near to 1 to be recognised where the own factor is not known."""
_NAMED = 0.15
"""Share of a factor by which one batch may miss it; the rule allows 0.1 over a whole run."""


def ask(given: Given) -> Answers:
    """Answers for `RULES`, with the thresholds of the rule."""
    assert given.z1 is not None
    z1 = given.z1.double()
    if z1.numel() < LEAST:
        return all_skipped(RULES, say("preflight.scale.few", count=z1.numel(), least=LEAST))
    rule, std, mean = OffScaleLatent(), _within(z1), float(z1.mean())
    if std == 0:
        return fired(RULES, [_finding("preflight.scale.constant", "warning", std, mean, 1.0, value=mean)])
    known = _known(std, given.latent_scale, pixels=abs(mean) > std)
    if known is not None:
        how, model, scale = known
        return fired(RULES, [_finding(f"preflight.scale.{how}", "error", std, mean, 1.0, model=model, scale=scale)])
    if given.latent_scale is not None and (misfit := _misfit(std, mean, given.latent_scale, rule)) is not None:
        return fired(RULES, [misfit])
    source = 1.0 if given.z0 is None else _within(given.z0.double())
    off = min(std, std / source if source else std) if std > 1 else max(std, std / source if source else std)
    if off > rule.high or off < rule.low:
        return fired(RULES, [_finding("preflight.scale.off", "warning", std, mean, rule.high, source=source)])
    return fired(RULES, _channels(z1, rule) or _offset(std, mean, rule))


def _within(z: Tensor) -> float:
    """Standard deviation, for maps (B, C, ...) within the channels: where those lie is another question."""
    if z.ndim < 3:
        return float(z.std(correction=0))
    return float(z.transpose(0, 1).flatten(1).var(1, correction=0).mean().sqrt())


def _known(std: float, latent_scale: float | None, *, pixels: bool) -> tuple[str, str, float] | None:
    """Which scale factor is missing, or applied twice. Pixels in [0, 1] are as narrow as latents scaled twice.

    Where the user's own is known, no other is to be expected.
    """
    scales = {"latent_scale": latent_scale} if latent_scale else SCALES
    for model, scale in reversed(scales.items()):
        for how, expected in (("unscaled", 1 / scale), ("twice", scale)):
            # Not what hardly differs from 1.
            if abs(std / expected - 1) <= _NAMED and not 0.5 < expected < 2 and not (pixels and how == "twice"):
                return how, model, scale
    return None


def _misfit(std: float, mean: float, own: float, rule: OffScaleLatent) -> Finding | None:
    """A factor that is applied once, as it should be, and belongs to another autoencoder."""
    right = own / std
    for model, scale in {**SCALES, **_MORE}.items():
        if abs(std - 1) > _SURE and abs(right / scale - 1) <= rule.named and abs(own / scale - 1) > rule.named:
            told: dict[str, float | str] = {"own": own, "scale": scale, "model": model}
            return _finding("preflight.scale.other", "warning", std, mean, 1.0, **told)
    if not 1 / rule.mild <= std <= rule.mild:
        return _finding("preflight.scale.factor", "warning", std, mean, 1.0, own=own, right=right)
    return None


def _channels(z1: Tensor, rule: OffScaleLatent) -> list[Finding]:
    """Channels of maps (B, C, ...) that are alone in being constant, off scale or far from 0."""
    if z1.ndim < 3 or z1.shape[1] == 1:
        return []
    columns = z1.transpose(0, 1).flatten(1)
    std, mean = columns.std(1, correction=0), columns.mean(1)
    usual = float(std.median())
    for channel, (own, centre) in enumerate(zip(std.tolist(), mean.tolist(), strict=True)):
        told = {"channel": channel, "usual": usual}
        if own < rule.low * usual or own > rule.high * usual:
            return [_finding("preflight.scale.channel", "warning", own, centre, usual, **told)]
        if abs(centre) > rule.offset * own:
            return [_finding("preflight.scale.channel_mean", "warning", own, centre, usual, **told)]
    return []


def _offset(std: float, mean: float, rule: OffScaleLatent) -> list[Finding]:
    if abs(mean) <= rule.offset * std:
        return []
    return [_finding("preflight.scale.offset", "warning", std, mean, rule.offset)]


def _finding(
    sentence: str, severity: Severity, std: float, mean: float, threshold: float, **params: float | str
) -> Finding:
    moved = sentence.endswith(("offset", "_mean"))
    factor = 1 / std if std else 1.0
    return OffScaleLatent().finding(
        say(sentence, std=std, mean=mean, factor=factor, **params),
        evidence=(Evidence("preflight/z1_std", std, threshold), Evidence("preflight/z1_mean", mean, None)),
        causes=(Cause("latent-offset" if moved else "latent-scale"),),
        fixes=(edit("shift_latents"),) if moved else (edit("scale_latents", factor=factor),),
        subject="z1",
        severity=severity,
        certainty="likely",
        confirm="lossdoctor preflight",
    )
