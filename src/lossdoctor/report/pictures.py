"""Pictures of a run: its curves in small panels, and labelled samples. Needs matplotlib, the extra `demo`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lossdoctor.curves import block_medians, ends
from lossdoctor.errors import MissingExtraError
from lossdoctor.keys import describe
from lossdoctor.messages import text
from lossdoctor.record import Series
from lossdoctor.report.wording import visible
from lossdoctor.store import Run

_COLUMNS = 4
_POINTS = 100
"""Medians drawn as the line of a panel; the raw values stay behind it, faintly."""
_FEW = 6
"""Fewer points than these are marked one by one."""
_WIDE = 20.0
"""A positive curve that spans more than this factor is drawn on a log axis."""
_ENDLESS = 1e100
"""Beyond this factor the margins of a log axis overflow."""
_REFERENCE: dict[str, Any] = {"color": "0.6", "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
_CHINESE = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)
"""Fonts with Simplified Chinese, as they come with Linux, Windows and macOS."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot, as planned: the patterns of metrics it holds. `code` names it in the message catalogues.

    reference: the value worth comparing with, if there is one. log: may have a log axis. each: one plot per metric
    instead of one for all. over: the values at the end, over the "tenth" of time or the number "K" of solver steps that
    their names hold, instead of all values over the steps of the training.
    """

    code: str
    patterns: tuple[str, ...]
    reference: float | None = None
    log: bool = False
    each: bool = False
    over: Literal["tenth", "K"] | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """One small plot, as drawn: its curves by name. colour: the number of the first one's colour."""

    panel: Panel
    title: str
    curves: dict[str, Series]
    colour: int = 0


PANELS = (
    Panel("loss", ("loss/<loss>",), log=True, each=True),
    Panel("strength", ("grad_weighted/<loss>",), log=True),
    Panel("share", ("grad_share/<loss>",), reference=0.0),
    Panel("update", ("step/<head>_update_ratio",), log=True),
    Panel("nmse", ("flow/nmse",)),
    Panel("cos", ("flow/cos",), reference=1.0),
    Panel("speed", ("flow/speed_ratio",), reference=1.0),
    Panel("times", ("flow/nmse_t{0..9}",), over="tenth"),
    Panel("use", ("flow/cond_ratio", "flow/time_ratio"), reference=1.0),
    Panel("posterior", ("mu/abs_mean", "std/mean", "z_init/var"), reference=1.0),
    Panel("kl", ("kl/per_dim",), log=True),
    Panel("entropy", ("ent/teacher", "ent/student", "ent/teacher_mi")),
    Panel("endpoint", ("flow/endpt_rmse@K", "flow/endpt_rmse_shuffled@K"), over="K"),
    Panel("distance", ("flow/endpt_sw@K", "flow/endpt_sw_floor"), over="K"),
)
"""In reading order; a panel none of whose metrics was measured is left out."""


def draw_curves(run: Run, path: str | Path, lang: str = "en") -> bool:
    """Write the headline curves of a run to a PNG. False, and no file, when there is nothing to draw.

    Raises MissingExtraError without matplotlib, OSError when the file cannot be written.
    """
    with _matplotlib(lang) as (figure_of, drawn):
        plots = [plot for panel in PANELS for plot in _plots(panel, _by_pattern(run), run, drawn)]
        if not plots:
            return False
        columns = min(_COLUMNS, len(plots))
        rows = math.ceil(len(plots) / columns)
        figure = figure_of(figsize=(3.4 * columns, 2.4 * rows + 0.3), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, plot in zip(axes, plots, strict=False):
            _draw(axis, plot)
        for axis in axes[len(plots) :]:
            axis.set_axis_off()
        figure.supxlabel(text("picture.steps", drawn), fontsize=9, color="0.3")
        figure.savefig(path, dpi=150)
    return True


def draw_samples(images: npt.NDArray[np.float32], captions: Sequence[str], path: str | Path, columns: int = 10) -> None:
    """Write pictures in a grid, each with its caption under it. images: (N, H, W) in [0, 1]; captions: N texts.

    Raises MissingExtraError without matplotlib, OSError when the file cannot be written.
    """
    with _matplotlib("en") as (figure_of, _):
        rows = math.ceil(len(images) / columns)
        figure = figure_of(figsize=(1.15 * columns, 1.4 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for axis, image, caption in zip(axes, images, captions, strict=False):
            axis.imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
            # A title below its axes takes part in the layout; plain text would not, and rows would overlap.
            axis.set_title(_wrapped(caption), y=-0.08, va="top", fontsize=7)
        figure.savefig(path, dpi=150)


def _plots(panel: Panel, names: dict[str, list[str]], run: Run, lang: str) -> Iterator[Plot]:
    found = sorted((name for pattern in panel.patterns for name in names.get(pattern, ())), key=_by_number)
    curves = {name: series for name in found if len(series := run[name].finite)}
    if panel.each:
        yield from (Plot(panel, name, {name: curve}, place) for place, (name, curve) in enumerate(curves.items()))
    elif curves:
        yield Plot(panel, text(f"panel.{panel.code}", lang), curves)


def _by_pattern(run: Run) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in run:
        if (key := describe(name)) is not None:
            names.setdefault(key.pattern, []).append(name)
    return names


def _by_number(name: str) -> tuple[str, int]:
    stem, _, number = name.partition("@")
    return stem, int(number) if number.isdigit() else 0


def _draw(axis: Any, plot: Plot) -> None:
    axis.set_title(visible(plot.title), fontsize=9, loc="left")
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    if plot.panel.over == "tenth":
        _draw_tenths(axis, plot)
    elif plot.panel.over == "K":
        _draw_counts(axis, plot)
    else:
        _draw_curves(axis, plot)
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(fontsize=6.5, frameon=False, handlelength=1.0, labelspacing=0.2, borderaxespad=0.2)


def _draw_curves(axis: Any, plot: Plot) -> None:
    """All values over the steps, faintly, and their medians."""
    _scale(axis, plot)
    if plot.panel.reference is not None:
        axis.axhline(plot.panel.reference, **_REFERENCE)
    for place, (name, series) in enumerate(plot.curves.items(), start=plot.colour):
        colour, medians = f"C{place}", block_medians(series, _POINTS)
        if len(medians) < len(series):
            axis.plot(series.steps, series.values, color=colour, alpha=0.2, linewidth=0.6, zorder=2, rasterized=True)
        marker = "o" if len(medians) < _FEW else None
        label = visible(_short(name))
        axis.plot(medians.steps, medians.values, color=colour, linewidth=1.4, marker=marker, markersize=3, label=label)


def _draw_tenths(axis: Any, plot: Plot) -> None:
    """One bar per tenth of [0, 1], at its place in time."""
    now = {int(_short(name)): ends(series.values)[1] for name, series in plot.curves.items()}
    axis.bar([tenth / 10 + 0.05 for tenth in now], list(now.values()), width=0.085, color="C0", alpha=0.75)
    axis.set_xlim(0, 1)
    axis.set_xlabel("t", fontsize=8, labelpad=1)


def _draw_counts(axis: Any, plot: Plot) -> None:
    """One line per metric over the number of solver steps; a metric without that number is a level to compare with."""
    lines: dict[str, dict[int, float]] = {}
    for name, series in plot.curves.items():
        base, count = _by_number(name)
        now = ends(series.values)[1]
        if count:
            lines.setdefault(base, {})[count] = now
        else:
            axis.axhline(now, label=visible(name), **_REFERENCE)
    for base, values in lines.items():
        axis.plot(list(values), list(values.values()), linewidth=1.4, marker="o", markersize=3, label=visible(base))
    counts = sorted({count for values in lines.values() for count in values})
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xticks([], minor=True)


def _scale(axis: Any, plot: Plot) -> None:
    """A log axis where it was planned and the curves span decades, with plain numbers at it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.locator_params(axis="x", nbins=5)
    values = np.concatenate([series.values for series in plot.curves.values()])
    low, high = float(values.min()), float(values.max())
    if not plot.panel.log or low <= 0 or not _WIDE <= high / low <= _ENDLESS:
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 1e3 else (1.0, 3.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    """What tells one curve of a panel from the others: the loss, the head, the number of steps, or the name."""
    holes = (key := describe(name)) and key.match(name)
    return next(iter(holes.values())) if holes else name


def _wrapped(caption: str, width: int = 14) -> str:
    """The caption in two or three lines under a narrow picture."""
    lines = [""]
    for word in visible(caption).split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(filter(None, lines))


@contextmanager
def _matplotlib(lang: str) -> Iterator[tuple[Callable[..., Any], str]]:
    """matplotlib's Figure, drawing without a window, and the language its fonts can draw: English where no other."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "demo", "drawing pictures") from error
    font = _chinese_font() if lang == "zh-CN" else None
    fonts = [font, "DejaVu Sans"] if font else ["DejaVu Sans"]
    with rc_context({"font.family": fonts, "axes.unicode_minus": font is None}):
        yield Figure, lang if font else "en"


@functools.cache
def _chinese_font() -> str | None:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return next((font for font in _CHINESE if font in installed), None)
