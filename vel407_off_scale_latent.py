"""VEL407: latents of the wrong size."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView, middle, span

@dataclass(frozen=True)
class OffScaleLatent(Rule):
    """The data end of the flow is far from the scale of its source.

    Symptom: the loss is fine, even better than usual; samples are washed out, or only noise.
    Cause: the scale factor of the latents is missing, doubled, or that of another autoencoder.
    Evidence: `flow/z1_std` more than `far` times larger or smaller than 1 and than `flow/z0_std`; known factors
    are named. `flow/z1_mean_abs` above `shifted` deviations: the shift is missing.
    Fix: the same scale and shift in training and in inference.
    Ignore when: the path and the noise are chosen for data of this scale.
    Confirm: preflight: scale
    """

    code, name = "VEL407", "off-scale-latent"
    needs = ("flow/z1_std",)
    kind = "velocity"
    depth = "root"
    severity = "error"
    explains = ("VEL402", "VEL405", "SMP503", "SMP504", "CND601", "GRD102", "GRD103", "BAL801")
    far: float = 3.0  # docs/log.md, the clinic: healthy 0.99 to 1.01; pixels in [-1, 1] have 0.3 to 0.6
    shifted: float = 3.0  # deviations; raw latents with a missing shift have more

    def check(self, run: RunView) -> Outcome:
        curve = run.settled("flow/z1_std")
        std, source = middle(curve), middle(run.settled("flow/z0_std"))
        offset = middle(run.settled("flow/z1_mean_abs"))
        sizes = [std] if not source > 0 else [std, std / source]
        off = all(size > self.far for size in sizes) or all(0 < size < 1 / self.far for size in sizes)
        shifted = offset > self.shifted * std > 0
        if not off and not shifted:
            return Clear()
        known = next((name for name, size in KNOWN.items() if abs(std / size - 1) < 0.1), None)
        key = "rule.VEL407.known" if known else "rule.VEL407" if off else "rule.VEL407.shifted"
        finding = self.finding(
            say(key, std=std, offset=offset, known=known),
            evidence=[
                Evidence("flow/z1_std", std, self.far if std > 1 else 1 / self.far, **span(curve)),
                *([Evidence("flow/z1_mean_abs", offset, self.shifted * std, **span(curve))] if shifted else []),
            ],
            causes=[Cause(code) for code in (["latent-scale"] if off else []) + (["latent-offset"] if shifted else [])],
            fixes=[edit("one_latent_scale")],
            certainty="likely",
            loss=run.of_kind("velocity")[0],
        )
        return Fired((finding,))


KNOWN = {
    "0.18215 is missing (raw latents of Stable Diffusion)": 5.49,
    "0.13025 is missing (raw latents of SDXL)": 7.68,
    "0.18215 was multiplied twice": 0.18215,
    "0.13025 was multiplied twice": 0.13025,
    "0.2325 was multiplied twice": 0.2325,
}
"""Standard deviations that give away a known scale factor."""
