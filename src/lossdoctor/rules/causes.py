"""The roots of trouble rules can name. The sentence of each is the message `cause.<code>`."""

from __future__ import annotations

CAUSES: tuple[str, ...] = (
    # wiring of losses and weights
    "detached-branch",
    "weight-not-applied",
    "weight-too-small",
    "weight-too-large",
    "wrong-wiring",
    "conflicting-losses",
    # distillation
    "teacher-temperature-low",
    "teacher-temperature-high",
    "student-temperature-low",
    "logits-shrunk",
    "no-centering",
    "teacher-not-updated",
    "teacher-is-student",
    "teacher-trainable",
    "teacher-in-train-mode",
    "distillation-formula",
    # posterior
    "kl-on-scaled-latent",
    "kl-on-sample",
    "kl-formula",
    "kl-reduction",
    "kl-too-strong",
    "kl-too-weak",
    "logvar-unclamped",
    # velocity
    "target-formula",
    "target-sign",
    "path-derivative-missing",
    "broadcast-shapes",
    "time-reversed",
    "time-not-connected",
    "time-sampling",
    "latent-scale",
    "latent-offset",
    "trainable-target",
    "velocity-not-learned",
    # inference
    "inference-sign",
    "inference-scale",
    "inference-time",
    "inference-condition",
    "inference-formula",
    "sampler-grid",
    "sampler-state",
    # preflight
    "function-failed",
    # condition
    "condition-not-connected",
    "condition-shuffled",
    "null-rate",
    # optimizer and averages
    "not-in-optimizer",
    "twice-in-optimizer",
    "rate-too-small",
    "rate-too-large",
    "clip-too-low",
    "weight-decay-on-head",
    "frozen-head",
    "ema-is-model",
    "ema-not-updated",
    "ema-half-precision",
    "ema-too-slow",
    "ema-per-micro-batch",
    "gradient-dropped",
    "gradient-summed",
    # several ranks
    "data-not-sharded",
    "one-seed-for-all",
    "not-broadcast",
    "outside-the-wrapper",
    # numerics and the log
    "overflow",
    "unstable-training",
    "constant-loss",
    "resumed-run",
    "too-few-measurements",
)
