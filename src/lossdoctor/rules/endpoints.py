"""What several rules of the sampler ask of the end points. They are often measured once, at the end of the run."""

from __future__ import annotations

import math

from lossdoctor.rules.finding import Evidence
from lossdoctor.rules.view import RunView


def by_steps(run: RunView, metric: str) -> dict[int, float]:
    """K to where `flow/<metric>@K` has come to, by K; only finite numbers."""
    prefix = f"flow/{metric}@"
    names = {int(name.removeprefix(prefix)): name for name in run if _is_one(name, prefix)}
    found = {k: run.now(names[k]) for k in sorted(names)}
    return {k: value for k, value in found.items() if math.isfinite(value)}


def seen(run: RunView, name: str, threshold: float | None = None) -> tuple[Evidence, ...]:
    """The last value of a metric, as evidence; nothing where it was not measured."""
    curve = run[name].finite
    if not len(curve):
        return ()
    last = int(curve.steps[-1])
    return (Evidence(name, run.now(name), threshold, last, last),)


def own_sampler(run: RunView) -> bool:
    """Whether the sampler is the user's, and not one of the doctor's solvers."""
    return any(name.startswith("flow/ode_error_euler@") for name in run)


def nominal_order(run: RunView) -> float:
    """The order the solver should show: at most 2, as networks with kinks show no more; 1 where it is not told."""
    told = (run.meta.get("endpoint") or {}).get("order")
    return min(float(told), 2.0) if isinstance(told, (int, float)) and told > 0 else 1.0


def _is_one(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).isdigit()
