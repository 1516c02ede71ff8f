"""Probability paths, ODE solvers, time samplers, and distances between sets of samples. Knows no training run."""

from lossdoctor.flow.distances import energy_distance, sliced_wasserstein
from lossdoctor.flow.paths import (
    PATHS,
    Coefficients,
    Linear,
    Path,
    PathFit,
    Polynomial,
    Scheduled,
    Trigonometric,
    check_times,
    expand_time,
    fit_path,
    source_time,
)
from lossdoctor.flow.solvers import SOLVERS, Field, Solver, dopri5, integrate, observed_order, trajectory
from lossdoctor.flow.times import TIME_SAMPLERS, EdgeWeighted, LogitNormal, Stepwise, TimeMixture, TimeSampler, Uniform

__all__ = [
    "PATHS",
    "SOLVERS",
    "TIME_SAMPLERS",
    "Coefficients",
    "EdgeWeighted",
    "Field",
    "Linear",
    "LogitNormal",
    "Path",
    "PathFit",
    "Polynomial",
    "Scheduled",
    "Solver",
    "Stepwise",
    "TimeMixture",
    "TimeSampler",
    "Trigonometric",
    "Uniform",
    "check_times",
    "dopri5",
    "energy_distance",
    "expand_time",
    "fit_path",
    "integrate",
    "observed_order",
    "sliced_wasserstein",
    "source_time",
    "trajectory",
]
