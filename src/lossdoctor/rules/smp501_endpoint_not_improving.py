"""SMP501: more steps of the sampler do not bring it nearer to where it should end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.rules.endpoints import by_steps, own_sampler, seen
from lossdoctor.rules.finding import Cause, Clear, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import field_causes, the_loss
from lossdoctor.rules.view import RunView

_RISE_OF_RANDOM_PART = math.sqrt(2)
"""What part of z1 the pairing leaves open is averaged by few steps and drawn at random by many: its error rises by up
to this factor in a perfect model."""


@dataclass(frozen=True)
class EndpointNotImproving(Rule):
    """The end points of sampling do not get better with more steps.

    Symptom: 64 steps look no better than 8, or worse.
    Cause: the sampler does not follow the field it is given, or the field is not the one that was trained.
    Evidence: judged is what means something. The error against a fine solution of the same field (`flow/ode_error@K`)
    must fall with K at `order` or more, or be under `solved`. The distance to the own target (`flow/endpt_rmse@K`) is
    judged only where it is under `paired` of `flow/endpt_rmse_shuffled@K`, and must not rise by more than the random
    part explains. Otherwise `flow/endpt_sw@K` and `flow/endpt_energy@K` must not rise by `rise` to more than `far`
    times their floors.
    Fix: use one formula for training and inference; lossdoctor preflight names the one that differs.
    Ignore when: the sampler adds noise on purpose: it does not solve this equation. A distance to the own target that
    grows with K is healthy under independent pairs, and is not judged.
    Confirm: the same field with Euler's method: doctor.endpoint(..., solver="euler")
    """

    code, name = "SMP501", "endpoint-not-improving"
    needs = ("flow/ode_error@K or flow/endpt_sw@K or flow/endpt_rmse@K",)
    depth = "consequence"
    order: float = 0.25  # docs/log.md, the clinic: Euler 0.92 to 1.14, a sampler that stops at 0.99 of the way 0.62
    solved: float = 0.02  # relative error that has settled, whatever it was before
    paired: float = 0.8  # of the shuffled distance; independent pairs 0.98 to 1.02
    rise: float = 1.2  # docs/log.md, the clinic: healthy 0.85 to 1.05
    far: float = 2.0  # times the floor; healthy 0.85 to 1.4

    def check(self, run: RunView) -> Outcome:
        """The three questions in turn: the first that can be asked of the pairing decides between the last two."""
        asked = False
        error = by_steps(run, "ode_error")
        if len(error) > 1:
            asked = True
            few, many = min(error), max(error)
            falls = error[many] <= error[few] * (few / many) ** self.order
            if not falls and error[many] > self.solved:
                return self._fired(run, "rule.SMP501", "ode_error", error, self._solver_codes(run))
        rmse, shuffled = by_steps(run, "endpt_rmse"), by_steps(run, "endpt_rmse_shuffled")
        if len(rmse) > 1 and any(rmse[k] < self.paired * shuffled[k] for k in rmse.keys() & shuffled.keys()):
            few, many = min(rmse), max(rmse)
            if rmse[many] > 1.05 * _RISE_OF_RANDOM_PART * rmse[few]:
                return self._fired(run, "rule.SMP501.pairs", "endpt_rmse", rmse, ())
            return Clear()
        distances = {name: by_steps(run, name) for name in ("endpt_sw", "endpt_energy")}
        judged = {name: far for name, far in distances.items() if len(far) > 1 and run.now(f"flow/{name}_floor") > 0}
        if judged and all(self._leaves(run, name, far) for name, far in judged.items()):
            name = next(iter(judged))
            return self._fired(run, "rule.SMP501.distribution", name, judged[name], ())
        return Clear() if asked or judged else Skipped(say("skip.one_count"))

    def _leaves(self, run: RunView, name: str, far: dict[int, float]) -> bool:
        few, many = min(far), max(far)
        return far[many] > self.rise * far[few] and far[many] > self.far * run.now(f"flow/{name}_floor")

    def _solver_codes(self, run: RunView) -> tuple[str, ...]:
        return ("sampler-grid", "sampler-state") if own_sampler(run) else ()

    def _fired(
        self, run: RunView, sentence: str, name: str, values: dict[int, float], codes: tuple[str, ...]
    ) -> Outcome:
        few, many = min(values), max(values)
        causes = (*map(Cause, codes), *field_causes(run)) or causes_of(("inference-formula", "velocity-not-learned"))
        finding = self.finding(
            say(sentence, few=few, many=many, first=values[few], last=values[many]),
            evidence=(*seen(run, f"flow/{name}@{few}"), *seen(run, f"flow/{name}@{many}", values[few])),
            causes=causes,
            fixes=(edit("check_grid"), edit("one_formula")) if name == "ode_error" else (edit("one_formula"),),
            loss=the_loss(run),
            confirm="doctor.endpoint(..., solver='euler')",
        )
        return outcome([finding])
