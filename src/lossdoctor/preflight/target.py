"""Is the user's v_target the derivative of the user's x_t?

d x_t / dt is taken numerically from the function itself. If v_target is something else, what it is is named by fitting.
Where a sampler was given that reaches z1 with a network that says exactly this, training and sampling agree, and
nothing is wrong: `preflight.check` then takes the finding back.
"""

from __future__ import annotations

from collections.abc import Sequence

from lossdoctor.preflight.answers import Answers, all_clear, all_skipped, fired, only
from lossdoctor.preflight.given import Given
from lossdoctor.preflight.training import Shapes, Training, read
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.vel409_broadcast_target import BroadcastTarget
from lossdoctor.rules.vel411_target_off_path import TargetOffPath

RULES = (BroadcastTarget, TargetOffPath)
NEEDS = ("target", "z0", "z1")

_BACK = {
    "negative": ("sign", "backwards"),
    "scaled": ("factor", "factor.known", "angle"),
    "scaled_sign": ("sign", "backwards", "factor", "factor.known", "angle"),
    "angle": ("factor", "factor.known", "angle"),
    "straight": ("derivative",),
    "data": (),
    "source": (),
}
"""What v_target can be that a sampler can turn into a velocity, and the mistakes of a sampler that does not."""

_ANGLE = (0.6366197723675814, 1.5707963267948966)


def ask(given: Given) -> Answers:
    """Answers for `RULES`. Raises Failed when the function fails."""
    try:
        training = read(given)
    except Shapes as shapes:
        finding = BroadcastTarget().finding(
            shapes.message,
            causes=(Cause("broadcast-shapes"),),
            fixes=(edit("match_shapes", "target"),),
            subject="target",
            severity="error",
            certainty="confirmed",
            confirm="lossdoctor preflight",
        )
        return only(RULES, finding)
    if training.reversed_source:
        return fired(RULES, [_turned(training, given.t_source)])
    if training.kind == "velocity":
        return all_clear(RULES)
    if training.path is None and training.kind == "unknown":
        # x_t may hold a noise of its own that the derivative knows nothing of.
        return {
            **all_skipped((TargetOffPath,), say("preflight.target.no_path", residual=training.residual)),
            BroadcastTarget: Clear(),
        }
    return fired(RULES, [_off(training)])


def converted(off: Finding, wrong: Sequence[Finding], *, clear: bool) -> bool:
    """Whether the sampler makes a velocity of this target: it reaches z1 (`clear`), or has only other mistakes."""
    kind = off.message.key.removeprefix("preflight.target.")
    if kind not in _BACK:
        return False
    unknown = ("unknown", "worse", *(f"kind.{one}" for one in ("velocity", "negative", "data", "source", "straight")))
    told = [one.message.key.removeprefix("preflight.sampler.") for one in wrong]
    return clear or (bool(told) and not set(told) & {*_BACK[kind], *unknown, "condition", "time_range"})


def _turned(training: Training, t_source: float) -> Finding:
    return TargetOffPath().finding(
        say("preflight.target.turned", declared=t_source, other=1 - t_source),
        evidence=(Evidence("preflight/path_residual", training.residual, None),),
        causes=(Cause("time-reversed"),),
        fixes=(edit("declare_source", other=1 - t_source),),
        subject="target",
        certainty="confirmed",
        confirm="lossdoctor preflight",
    )


def _off(training: Training) -> Finding:
    back = training.kind == "scaled" and training.factor < 0
    sentence = f"preflight.target.{training.kind}" + ("_sign" if back else "")
    angle = training.kind == "scaled" and any(abs(training.factor / one - 1) < 1e-3 for one in _ANGLE)
    if angle:
        sentence = "preflight.target.angle"
    sign = back or training.kind == "negative"
    straight = angle or training.kind == "straight"
    cause = "target-sign" if sign else "path-derivative-missing" if straight else "target-formula"
    return TargetOffPath().finding(
        say(sentence, mismatch=training.mismatch, factor=training.factor),
        evidence=(
            Evidence("preflight/target_mismatch", training.mismatch, 0.0),
            Evidence("preflight/target_factor", training.factor, 1.0),
        ),
        causes=(Cause(cause),),
        fixes=(edit("flip_target" if sign else "target_from_path", "target"),),
        subject="target",
        certainty="confirmed" if training.kind != "unknown" else "likely",
        confirm="lossdoctor preflight",
    )
