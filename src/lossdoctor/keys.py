"""The vocabulary: every name a metric can have, as data.

Formulas are in the docstrings of `lossdoctor.metrics`; one-line descriptions are in the message catalogues under
`metric.<pattern>`. In a pattern `<loss>` stands for a name, `{0..9}` for a tenth of [0, 1], `@K` for a step count.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Literal

Better = Literal["up", "down", "none"]

_HOLES = {r"<(\w+)>": r"(?P<\1>.+?)", r"\{0\.\.9\}": r"(?P<tenth>[0-9])", r"@K": r"@(?P<K>[0-9]+)"}


@dataclass(frozen=True, slots=True)
class Key:
    """One kind of metric name.

    pattern: the name, with holes. family: the part of the method it belongs to. better: the direction that is an
    improvement whatever else happens; "none" where it depends, and then no report may colour it. headline: whether a
    summary of a run shows it. lower, upper: the range it can have, both included; infinite where unbounded.
    """

    pattern: str
    family: str
    better: Better = "none"
    headline: bool = False
    lower: float = -math.inf
    upper: float = math.inf

    def match(self, name: str) -> dict[str, str] | None:
        """What fills the holes of the pattern in a concrete name, or None when the name is of another kind."""
        found = _compiled(self.pattern).fullmatch(name)
        return None if found is None else found.groupdict()

    @property
    def open(self) -> bool:
        """Whether the pattern has holes that any text fills, so that names spelled out in full go before it."""
        return "<" in self.pattern


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    expression = re.escape(pattern).replace(r"\<", "<").replace(r"\>", ">")
    expression = expression.replace(re.escape("{0..9}"), "{0..9}")
    for hole, filled in _HOLES.items():
        expression = re.sub(hole, filled, expression)
    return re.compile(expression, re.DOTALL)


def _share(pattern: str, family: str, better: Better = "none", headline: bool = False) -> Key:
    return Key(pattern, family, better, headline, lower=0.0, upper=1.0)


def _size(pattern: str, family: str, better: Better = "none", headline: bool = False) -> Key:
    return Key(pattern, family, better, headline, lower=0.0)


def _cosine(pattern: str, family: str, better: Better = "none", headline: bool = False) -> Key:
    return Key(pattern, family, better, headline, lower=-1.0, upper=1.0)


FAMILIES = ("loss", "gradient", "step", "distillation", "posterior", "velocity", "endpoint", "ranks")
"""In the order in which a report tells them."""

KEYS: tuple[Key, ...] = (
    # A loss that rises may be healthy: a KL while another loss shapes the latent, a schedule that has just begun.
    Key("loss/<loss>", "loss", headline=True),
    Key("loss/total", "loss", headline=True),
    Key("weight/<loss>", "loss"),
    _size("grad/<loss>", "gradient", headline=True),
    _size("grad/total", "gradient", headline=True),
    _size("grad/clip_ratio", "gradient"),
    _size("grad/accumulation", "gradient"),
    Key("grad_weighted/<loss>", "gradient"),
    Key("grad_share/<loss>", "gradient"),
    _cosine("grad_cos/<a>|<b>", "gradient"),
    _size("grad_module/<loss>/<module>", "gradient"),
    Key("descent/<loss>", "gradient"),
    _size("balance/age", "gradient"),
    _size("balance/<loss>", "gradient"),
    _size("step/<head>_update_ratio", "step", headline=True),
    _size("step/<head>_rms_update", "step"),
    _size("step/<head>_grad_norm", "step"),
    _size("lr/<head>", "step"),
    _size("wd/<head>", "step"),
    _size("ema/distance", "step"),
    Key("ema/momentum", "step"),
    _size("teacher/distance", "step"),
    _size("teacher/moved", "step"),
    Key("teacher/momentum", "step"),
    _size("ent/teacher", "distillation", headline=True),
    _size("ent/student", "distillation", headline=True),
    _share("ent/teacher_norm", "distillation"),
    _share("ent/student_norm", "distillation"),
    _size("ent/teacher_marginal", "distillation"),
    _share("ent/teacher_marginal_norm", "distillation"),
    _size("ent/teacher_mi", "distillation", headline=True),
    _size("distill/kl", "distillation", headline=True),
    Key("distill/loss_ratio", "distillation"),
    _share("distill/agreement", "distillation", better="up", headline=True),
    Key("distill/max_logit_over_temp", "distillation"),
    _size("distill/feature_rank", "distillation"),
    _size("distill/teacher_temp", "distillation"),
    _size("distill/student_temp", "distillation"),
    _size("mu/abs_mean", "posterior", headline=True),
    _size("mu/rms", "posterior"),
    Key("logvar/mean", "posterior", headline=True),
    _share("logvar/clamped", "posterior"),
    _size("std/mean", "posterior", headline=True),
    _size("std/rms", "posterior"),
    _size("std/min", "posterior"),
    _size("std/max", "posterior"),
    Key("z_init/mean", "posterior", headline=True),
    _size("z_init/var", "posterior", headline=True),
    _size("z_init/std_per_dim_mean", "posterior"),
    _size("kl/per_dim", "posterior", headline=True),
    Key("kl/ratio", "posterior"),
    Key("kl/given_per_dim", "posterior"),
    Key("kl/beta_per_dim", "posterior"),
    _share("posterior/active_units", "posterior", headline=True),
    _size("posterior/snr", "posterior", headline=True),
    _size("flow/nmse", "velocity", better="down", headline=True),
    _cosine("flow/cos", "velocity", better="up", headline=True),
    _size("flow/speed_ratio", "velocity", headline=True),
    _size("flow/nmse_t{0..9}", "velocity", better="down"),
    _cosine("flow/cos_t{0..9}", "velocity", better="up"),
    _size("flow/count_t{0..9}", "velocity"),
    _size("flow/density_t{0..9}", "velocity"),
    Key("flow/t_min", "velocity"),
    Key("flow/t_max", "velocity"),
    _size("flow/t_unique", "velocity"),
    Key("flow/loss_ratio", "velocity"),
    Key("flow/loss_ratio_pairs", "velocity"),
    _size("flow/cond_distinct", "velocity"),
    _share("flow/cond_mode_share", "velocity"),
    Key("flow/cond_gain_cos", "velocity", better="up", headline=True, lower=-2.0, upper=2.0),
    _size("flow/cond_ratio", "velocity", better="up", headline=True),
    _size("flow/time_ratio", "velocity", better="up", headline=True),
    _size("flow/time_reversal", "velocity", headline=True),
    _size("flow/field_mismatch", "velocity", better="down"),
    Key("flow/field_scale", "velocity"),
    _size("flow/field_reversed", "velocity"),
    _size("flow/field_other_cond", "velocity"),
    _size("flow/target_mismatch", "velocity", better="down"),
    Key("flow/target_scale", "velocity"),
    _size("flow/nmse_zero", "velocity"),
    _size("flow/nmse_mean", "velocity"),
    _size("flow/mse_zero", "velocity"),
    _size("flow/z0_std", "velocity"),
    _size("flow/z1_std", "velocity"),
    _size("flow/z1_mean_abs", "velocity"),
    _size("flow/z1_std_spread", "velocity"),
    Key("flow/source_gradient", "velocity"),
    # Without a pairing between z0 and z1 a perfect model has a high pairwise error, and it rises with K.
    _size("flow/endpt_rmse@K", "endpoint", headline=True),
    _size("flow/endpt_rmse_shuffled@K", "endpoint"),
    _size("flow/endpt_rmse_heun@K", "endpoint"),
    _size("flow/ode_error@K", "endpoint"),
    _size("flow/ode_error_heun@K", "endpoint"),
    _size("flow/ode_error_euler@K", "endpoint"),
    _size("flow/sampler_gap@K", "endpoint"),
    _size("flow/sampler_lag@K", "endpoint"),
    Key("flow/ode_order", "endpoint"),
    Key("flow/ode_order_heun", "endpoint"),
    Key("flow/ode_order_euler", "endpoint"),
    _size("flow/endpt_sw@K", "endpoint", better="down", headline=True),
    _size("flow/endpt_sw_floor", "endpoint"),
    _size("flow/endpt_energy@K", "endpoint", better="down"),
    _size("flow/endpt_energy_floor", "endpoint"),
    _size("flow/endpt_std_ratio", "endpoint", headline=True),
    _size("flow/straightness", "endpoint"),
    _share("ranks/same/<input>", "ranks"),
    _size("ranks/weights_apart", "ranks"),
    _size("ranks/teacher_apart", "ranks"),
)

_IN_FULL_FIRST = sorted(KEYS, key=lambda key: (key.open, -len(key.pattern)))


def describe(name: str) -> Key | None:
    """The kind of metric a concrete name is: "grad/kl" is `grad/<loss>`. None for a name of the user's own."""
    return next((key for key in _IN_FULL_FIRST if key.match(name) is not None), None)
