"""SMP504: a velocity that is learned, and samples that are not like the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.rules.endpoints import by_steps, seen
from lossdoctor.rules.finding import Clear, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import field_causes, learned, the_loss
from lossdoctor.rules.velocity import seen as seen_in_training
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class EndpointOffDistribution(Rule):
    """The training metrics are good, and the end points of sampling are far from the data all the same.

    Symptom: the loss says one thing and the pictures another.
    Cause: inference is not what was trained: another field, time, condition, scale, or an average of the weights that
    is not up to date.
    Evidence: the velocity is learned (`flow/nmse` under `learned` of a trivial predictor), and at the largest K
    `flow/endpt_sw@K` is more than `far` times `flow/endpt_sw_floor`, the distance of real samples from real ones, and
    more than `size` of the standard deviation of the data. `flow/endpt_energy@K` must agree, at `far` squared, since it
    grows with the square.
    Fix: see the finding it follows from; otherwise sample with the very function that training calls.
    Ignore when: sampling is guided or tempered on purpose, or the end points are measured early in a long training:
    distances to the data fall more slowly than the loss.
    Confirm: lossdoctor preflight, which compares the sampler with the training formula
    """

    code, name = "SMP504", "endpoint-off-distribution"
    needs = ("flow/endpt_sw@K or flow/endpt_energy@K", "flow/nmse")
    depth = "consequence"
    learned: float = 0.7  # of a trivial predictor; docs/log.md, the clinic: healthy at most 0.46
    far: float = 4.0  # times the floor; docs/log.md, the clinic: healthy 0.85 to 1.4, other fields 4 to 65
    size: float = 0.25  # standard deviations of the data: what a floor of many samples cannot make small

    def check(self, run: RunView) -> Outcome:
        """The largest K, where the solver no longer matters."""
        sw, energy = by_steps(run, "endpt_sw"), by_steps(run, "endpt_energy")
        floors = {name: run.now(f"flow/endpt_{name}_floor") for name in ("sw", "energy")}
        if not learned(run, self.learned):
            return Skipped(say("skip.not_learned"), say("enable.longer"))
        times = []
        if sw and floors["sw"] > 0:
            data = run.now("flow/z1_std")
            far = sw[max(sw)] / floors["sw"]
            small = sw[max(sw)] <= self.size * (data if math.isfinite(data) else 0.0)
            times.append(0.0 if small else far)
        if energy and floors["energy"] > 0:
            times.append(math.sqrt(max(energy[max(energy)] / floors["energy"], 0.0)))
        if not times:
            return Skipped(say("skip.no_end"))
        if not min(times) > self.far:
            return Clear()
        name, found = ("sw", sw) if sw and floors["sw"] > 0 else ("energy", energy)
        k = max(found)
        finding = self.finding(
            say("rule.SMP504", steps=k, times=found[k] / floors[name], nmse=run.now("flow/nmse")),
            evidence=(
                *seen(run, f"flow/endpt_{name}@{k}", self.far * floors[name]),
                *seen(run, f"flow/endpt_{name}_floor"),
                *seen_in_training(run, "nmse"),
            ),
            causes=field_causes(run) or causes_of(("inference-formula", "inference-condition", "ema-not-updated")),
            fixes=(edit("one_formula"),),
            loss=the_loss(run),
            confirm="lossdoctor preflight",
        )
        return outcome([finding])
