"""SMP502: a sampler that is less accurate than its number of steps allows."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.endpoints import by_steps, nominal_order, own_sampler, seen
from lossdoctor.rules.finding import Certainty, Clear, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import the_loss
from lossdoctor.rules.view import RunView

_STALE = 3.0
"""Times the error of Euler's method that a stale state costs in a field that does not depend on the time."""


@dataclass(frozen=True)
class WrongOrder(Rule):
    """The sampler is further from the solution of its own field than a plain Euler method with as many steps.

    Symptom: many steps are needed where a few should do; samples overshoot slightly, or lag behind.
    Cause: a grid of N points taken for N steps, so that the last step leaves [0, 1]; a time that is not the one of the
    state; the state of the step before.
    Evidence: `flow/ode_order` is under `share` of the nominal order while `flow/ode_order_euler` on the same field is
    not; or `flow/ode_error@K` is more than `worse` times `flow/ode_error_euler@K` at every K. If the calls of the
    sampler were recorded: `flow/sampler_gap@K`, the way that its own times do not account for, or
    `flow/sampler_lag@K`, the distance of the states it asks at from those its own steps lead to, is above `replayed`.
    Fix: step from t_k to t_(k+1) with t_k = k / N for k = 0 ... N, and evaluate the field at the current state.
    Ignore when: the sampler adds noise, or its grid is uneven on purpose, as shifted times are: such a grid may be good
    for pictures and cost accuracy. Where the recorded calls account for the whole path this is only mentioned.
    Confirm: doctor.endpoint(..., solver="euler") on the same field
    """

    code, name = "SMP502", "wrong-order"
    needs = ("flow/ode_error@K",)
    depth = "root"
    explains = ("SMP501", "SMP503")
    share: float = 0.5  # of the nominal order; docs/log.md, the clinic: Euler 0.92 to 1.14, Heun 1.95 to 2.1
    settled: float = 1e-3  # relative error under which the order is a matter of rounding
    worse: float = 1.3  # docs/log.md, the clinic: grids and stale states 1.4 to 5.5, one step less 1.2 at eight steps
    replayed: float = 0.02  # relative to the path; exact for a one-step method on any grid, a lost step of eight 0.1

    def check(self, run: RunView) -> Outcome:
        """The order first, then the size of the error."""
        errors = by_steps(run, "ode_error")
        if len(errors) < 2:
            return Skipped(say("skip.one_count"))
        if max(errors.values()) < self.settled:
            return Clear()
        order, euler = run.now("flow/ode_order"), run.now("flow/ode_order_euler")
        nominal = nominal_order(run)
        if order < self.share * nominal and errors[max(errors)] > self.settled:
            rough = not own_sampler(run) or euler < self.share
            codes = () if rough else ("sampler-grid", "sampler-state")
            return self._fired(
                run,
                "rule.SMP502.rough" if rough else "rule.SMP502",
                {"order": order, "nominal": nominal},
                codes,
                "info" if rough else "warning",
            )
        plain = by_steps(run, "ode_error_euler")
        ratios = {k: errors[k] / plain[k] for k in errors.keys() & plain.keys() if plain[k] > self.settled / 100}
        if not ratios or min(ratios.values()) <= self.worse:
            return Clear()
        few, many = min(ratios), max(ratios)
        told = {"few": few, "many": many, "first": ratios[few], "last": ratios[many]}
        lag, gap = by_steps(run, "sampler_lag").get(few), by_steps(run, "sampler_gap").get(few)
        if lag is None or gap is None:
            codes = ("sampler-state", "sampler-grid") if ratios[few] > _STALE else ("sampler-grid", "sampler-state")
            return self._fired(run, "rule.SMP502.worse", told, codes, "warning")
        if max(lag, gap) <= self.replayed:
            return self._fired(run, "rule.SMP502.uneven", told, ("sampler-grid",), "info")
        codes = ("sampler-state", "sampler-grid") if lag > self.replayed else ("sampler-grid", "sampler-state")
        return self._fired(run, "rule.SMP502.worse", told, codes, "warning", certainty="likely")

    def _fired(
        self,
        run: RunView,
        sentence: str,
        told: dict[str, float],
        codes: tuple[str, ...],
        severity: Severity,
        *,
        certainty: Certainty = "suspected",
    ) -> Outcome:
        counts = by_steps(run, "ode_error")
        few, many = min(counts), max(counts)
        finding = self.finding(
            say(sentence, **told),
            evidence=(
                *seen(run, "flow/ode_order", self.share * nominal_order(run)),
                *(one for k in (few, many) for one in seen(run, f"flow/ode_error@{k}")),
                *(one for k in (few, many) for one in seen(run, f"flow/ode_error_euler@{k}")),
                *seen(run, f"flow/sampler_gap@{few}", self.replayed),
                *seen(run, f"flow/sampler_lag@{few}", self.replayed),
            ),
            causes=causes_of(codes),
            fixes=(edit("check_grid"), edit("current_state")) if codes else (edit("smooth_field"),),
            loss=the_loss(run),
            severity=severity,
            certainty=certainty,
            confirm="doctor.endpoint(..., solver='euler')",
        )
        return outcome([finding])
