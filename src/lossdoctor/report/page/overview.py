"""The second part of the page: the run at a glance, by family, with synced charts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lossdoctor.curves import block_medians
from lossdoctor.record import Series
from lossdoctor.report.digest import Digest
from lossdoctor.report.grids import Grid
from lossdoctor.report.page.heat import matrix, over_time
from lossdoctor.report.page.markup import element, escaped, say
from lossdoctor.rules.view import RunView

COLUMNS = 48
"""Cells along the steps of a run in the picture of the velocity error by time."""


APART = 10.0
"""Times the median of another loss, from which on losses are drawn on a logarithmic axis."""


def chart(title: str, series: Sequence[str], *, log: bool = False, **marks: object) -> str:
    """A synced chart of some curves; the script of the page draws it. title is HTML already."""
    return element(
        "figure",
        element("figcaption", title),
        class_="chart",
        data_series=json.dumps(list(series)),
        data_log="1" if log else None,
        **marks,
    )


def overview(view: RunView, digest: Digest) -> str:
    """Everything that is there, family by family."""
    return "".join(_panels(view, digest))


def _panels(view: RunView, digest: Digest) -> Iterator[str]:
    grids = {grid.code: grid for grid in digest.grids}
    losses = list(view.losses)
    families = {
        "family.loss": [_losses(view, [f"loss/{name}" for name in (*losses, "total")])],
        "family.gradient": [
            _some(view, "panel.strength", [*(f"grad_weighted/{name}" for name in losses), "grad/total"], log=True),
            _some(view, "panel.update", sorted(view.matching("step/<head>_update_ratio")), log=True),
            _some(view, "panel.slow", ["ema/distance", "teacher/distance"], log=True),
        ],
        "family.velocity": [
            _some(view, "panel.nmse", ["flow/nmse"]),
            _some(view, "panel.cos", ["flow/cos", "flow/speed_ratio"]),
            _some(view, "panel.use", ["flow/cond_ratio", "flow/time_ratio", "flow/time_reversal"], log=True),
        ],
        "family.posterior": [
            _sigma(view),
            _some(view, "panel.posterior", ["mu/abs_mean", "std/mean", "z_init/var"]),
            _some(view, "panel.kl", ["kl/per_dim"], log=True),
        ],
        "family.distillation": [
            _entropies(view),
            _some(view, "panel.distill", ["distill/kl", "distill/agreement"]),
        ],
    }
    for family, charts in families.items():
        if any(charts):
            yield element("h3", say(family)) + element("div", "".join(charts), class_="grid")
    if "reach" in grids:
        yield _grid(grids["reach"])
    if "cosines" in grids:
        yield _grid(grids["cosines"], signed=True)
    yield _slices(view)
    yield _endpoint(view)


def _some(view: RunView, key: str, names: Sequence[str], *, log: bool = False) -> str:
    there = [name for name in names if len(view[name]) > 1]
    positive = all((view[name].finite.values > 0).any() for name in there)
    return chart(say(key), there, log=log and positive) if there else ""


def _losses(view: RunView, names: Sequence[str]) -> str:
    """Values of the losses; on a logarithmic axis where one would press the others to the ground."""
    values = [found for name in names if len(found := view[name].finite.values) > 1]
    sizes = [float(np.median(one)) for one in values]
    unlike = bool(values) and min(one.min() for one in values) > 0 and max(sizes) > APART * min(sizes)
    return _some(view, "panel.losses", names, log=unlike)


def _entropies(view: RunView) -> str:
    """Entropies against their maximum ln K, which is a line."""
    there = [name for name in ("ent/teacher", "ent/student", "ent/teacher_marginal") if len(view[name]) > 1]
    share = view.ratio("ent/teacher", "ent/teacher_norm")
    top = float(np.median(share.values)) if len(share) else math.nan
    line = top if math.isfinite(top) else None
    name = None if line is None else "ln K"
    return chart(say("panel.entropy"), there, data_threshold=line, data_threshold_name=name) if there else ""


def _sigma(view: RunView) -> str:
    """The band from the smallest to the largest standard deviation of the posterior, around its mean."""
    names = ["std/min", "std/max", "std/mean"]  # the mean last, over the band
    if any(len(view[name]) < 2 for name in names):
        return ""
    positive = bool((view["std/min"].finite.values > 0).any())
    return chart(say("panel.sigma"), names, log=positive, data_band="1", data_threshold=1)


def _grid(grid: Grid, *, signed: bool = False) -> str:
    note = element("p", say(f"grid.{grid.code}.note"), class_="quiet")
    return element("h3", say(f"grid.{grid.code}")) + matrix(grid.rows, grid.columns, grid.values, signed=signed) + note


def _slices(view: RunView) -> str:
    """Velocity error by time, over the training."""
    tenths = [f"flow/nmse_t{place}" for place in range(10)]
    there = [name for name in tenths if len(view[name].finite)]
    if not there:
        return ""
    first = min(int(view[name].steps[0]) for name in there)
    last = max(int(view[name].steps[-1]) for name in there)
    across = max(1, min(COLUMNS, max(len(view[name]) for name in there)))
    cells = [_along(view[name], first, last, across) for name in tenths]
    rows = [f"{place / 10:.1f}" for place in range(10)]
    head = element("h3", say("page.slices"))
    return head + over_time(rows, cells, first, last) + element("p", say("grid.times.note"), class_="quiet")


def _along(series: Series, first: int, last: int, across: int) -> list[float | None]:
    """Medians of the values in equal stretches of steps; None where there is no value."""
    finite = series.finite
    edges = np.linspace(first, last + 1, across + 1)
    places = np.clip(np.searchsorted(edges, finite.steps, side="right") - 1, 0, across - 1)
    return [
        float(np.median(finite.values[places == column])) if (places == column).any() else None
        for column in range(across)
    ]


def _endpoint(view: RunView) -> str:
    """Errors of free integration against the number of solver steps, both logarithmic, with the observed order."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for pattern in ("flow/ode_error@K", "flow/ode_error_heun@K", "flow/endpt_rmse@K", "flow/endpt_sw@K"):
        points = [(int(holes["K"]), view.now(name)) for name, holes in view.matching(pattern).items()]
        found = sorted((k, value) for k, value in points if math.isfinite(value) and value > 0)
        if len(found) > 1:
            curves[pattern.removesuffix("@K")] = found
    if not curves:
        return ""
    orders = [
        f"{name.removeprefix('flow/')} {view.now(name):.2f}"
        for name in ("flow/ode_order", "flow/ode_order_heun")
        if math.isfinite(view.now(name))
    ]
    order = element("p", say("page.order", orders=", ".join(orders)), class_="quiet") if orders else ""
    drawn = element(
        "figure", element("figcaption", say("page.endpoint")), class_="chart", data_points=json.dumps(curves)
    )
    return element("h3", say("family.endpoint")) + element("div", drawn, class_="grid") + order


def every_metric(view: RunView) -> str:
    """A list to search, each metric with its chart when it is opened."""
    rows = []
    for name in view:
        series = view[name]
        last = f"{series.values[-1]:.4g}" if len(series) else ""
        small = " ".join(f"{value:.3g}" for value in block_medians(series, 2).values)
        summary = element("summary", element("code", escaped(name)) + element("span", escaped(last), class_="value"))
        rows.append(element("details", summary + chart("", [name]), class_="metric", data_name=name, title=small))
    label = element("label", say("page.search"), for_="search")
    box = '<input id="search" type="search" autocomplete="off" spellcheck="false">'
    count = element("p", say("page.metrics", n=len(rows)), class_="quiet")
    return count + element("div", label + box, class_="search") + element("div", "".join(rows), id="metrics")


def facts(digest: Digest, lang_free: Sequence[tuple[str, str]]) -> str:
    """What was trained, as pairs."""
    told = [(say(f"fact.{code}"), escaped(value)) for code, value in digest.facts.items()]
    told += [(escaped(name), escaped(value)) for name, value in lang_free]
    return element("dl", "".join(element("dt", name) + element("dd", value) for name, value in told))
