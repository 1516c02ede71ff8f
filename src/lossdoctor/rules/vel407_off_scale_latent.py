"""VEL407: the data end of the flow is at another scale than its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import ends, share_above, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import together
from lossdoctor.rules.velocity import seen, settled, the_loss, too_short, typical
from lossdoctor.rules.view import LEAST, RunView, middle, span

SCALES = {"Stable Diffusion": 0.18215, "SDXL": 0.13025, "MAR": 0.2325}
"""What well-known image autoencoders have their latents multiplied with, 1 / std of the latents as they come."""


@dataclass(frozen=True)
class OffScaleLatent(Rule):
    """The latents that the flow ends in have a standard deviation far from 1 and from that of its source.

    Symptom: the loss looks good, often better than usual, since most of it is the trivial part; samples are washed out,
    or lack the details.
    Cause: the scale factor of the autoencoder is missing, was applied twice, or belongs to another autoencoder; or its
    shift is missing.
    Evidence: `flow/z1_std`, and its ratio to `flow/z0_std` where known, are both above `high`, or both under `low`, or
    match a well-known scale factor within `named` of it. From `mild` on it is mentioned, and so are latents whose
    scale moves because they are trained in this run. A `flow/z1_mean_abs` of `offset` standard deviations is a shift.
    Fix: multiply by 1 / std of the latents after encoding, and divide by the same before decoding, in training and in
    inference.
    Ignore when: the flow was designed for this scale. Pixels in [0, 1] have a standard deviation of about 0.3 and a
    mean above it: no warning, but a flow learns them better as [-1, 1].
    Confirm: flow/z1_std near 1 once this is right
    """

    code, name = "VEL407", "off-scale-latent"
    needs = ("flow/z1_std",)
    depth = "root"
    explains = ("VEL402", "VEL403", "SMP503")
    high: float = 4.0  # raw latents: MAR 4.3, Stable Diffusion 5.5, SDXL 7.7; trained posteriors reach 3.3
    low: float = 0.2  # scaled twice: 0.13, 0.18, 0.23; pixels of natural images in [0, 1]: 0.25 and more
    mild: float = 2.5  # factor from 1; pixels in [-1, 1] are at 0.5, trained latents within a factor of 1.3
    named: float = 0.1  # share of a factor: the std of latents varies by so much between data sets
    offset: float = 3.0  # standard deviations; pixels in [0, 1] have 2, latents with a forgotten shift 0.1 and more
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Scale first; a shift only where the scale is right."""
        z1 = settled(run, "z1_std")
        if (short := too_short(z1)) is not None:
            return short
        off = self._off(run, z1)
        above, below = share_above(off, self.high), share_below(off, self.low)
        tests = [min(above.p, below.p)]
        # A frozen autoencoder has one scale; where it moves, the latents are trained here, and others judge that.
        trained = self._moves(run)
        known = None if trained else self._known(run, z1, off)
        if known is not None or max(above.share, below.share) >= self.persistent:
            p = None if known is not None else min(above.p, below.p)
            return outcome([self._scale(run, z1, known, "info" if trained else "warning", p)])
        wide, narrow = share_above(off, self.mild), share_below(off, 1 / self.mild)
        if max(wide.share, narrow.share) >= self.persistent:
            return outcome([self._scale(run, z1, None, "info", min(wide.p, narrow.p))], tests)
        shift = run.ratio("flow/z1_mean_abs", "flow/z1_std", loss=the_loss(run)).finite
        moved = share_above(shift, self.offset)
        if len(shift) >= LEAST and moved.share >= self.persistent:
            return outcome([self._offset(run, shift, moved.p)], tests)
        return Clear((*tests, moved.p))

    def _off(self, run: RunView, z1: Series) -> Series:
        """How far z1 is from 1 or from z0, whichever is less; 1 where the two do not agree on the side."""
        z0 = settled(run, "z0_std")
        if not len(z0):
            return z1
        z1, z0 = together((z1, z0))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            ratio = z1.values / z0.values
            nearer = np.where(z1.values > 1, np.minimum(z1.values, ratio), np.maximum(z1.values, ratio))
            agree = (z1.values > 1) == (ratio > 1)
        return Series(z1.steps, np.where(agree, nearer, 1.0)).finite

    def _moves(self, run: RunView) -> bool:
        first, last = ends(run["flow/z1_std"].values)
        return abs(last - first) > self.named * max(first, last)

    def _known(self, run: RunView, z1: Series, off: Series) -> tuple[str, str, float] | None:
        """The autoencoder whose factor explains the scale, how it was misapplied, and the factor."""
        level = middle(z1)
        if not (middle(off) > self.mild or middle(off) < 1 / self.mild):
            return None
        pixels = typical(run, "z1_mean_abs") > level
        for model, scale in SCALES.items():
            for how, expected in (("unscaled", 1 / scale), ("twice", scale), ("thrice", scale * scale)):
                if abs(level / expected - 1) <= self.named and not (pixels and how != "unscaled"):
                    return how, model, scale
        return None

    def _scale(
        self, run: RunView, z1: Series, known: tuple[str, str, float] | None, severity: Severity, p: float | None
    ) -> Finding:
        told = {"std": middle(z1), "source": typical(run, "z0_std"), **span(z1)}
        if known is None:
            message = say("rule.VEL407", factor=1 / max(middle(z1), 1e-12), **told)
        else:
            how, model, scale = known
            message = say(f"rule.VEL407.{how}", model=model, scale=scale, **told)
        limit = self.high if middle(z1) > 1 else self.low
        return self.finding(
            message,
            evidence=(Evidence("flow/z1_std", middle(z1), limit, **span(z1)), *seen(run, "z0_std")),
            causes=(Cause("latent-scale"),),
            fixes=(edit("scale_latents", factor=1 / max(middle(z1), 1e-12)),),
            loss=the_loss(run),
            severity=severity,
            certainty="likely" if known is not None else "suspected",
            confirm="flow/z1_std",
            p=p,
        )

    def _offset(self, run: RunView, shift: Series, p: float) -> Finding:
        return self.finding(
            say("rule.VEL407.offset", ratio=middle(shift), mean=typical(run, "z1_mean_abs"), **span(shift)),
            evidence=(*seen(run, "z1_mean_abs"), *seen(run, "z1_std")),
            causes=(Cause("latent-offset"), Cause("latent-scale")),
            fixes=(edit("shift_latents"),),
            loss=the_loss(run),
            confirm="flow/z1_mean_abs",
            p=p,
        )
