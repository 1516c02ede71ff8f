from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lossdoctor.errors import MissingExtraError
from lossdoctor.keys import KEYS
from lossdoctor.messages import languages, text
from lossdoctor.record import Record
from lossdoctor.report import pictures
from lossdoctor.report.pictures import PANELS, draw_curves, draw_samples
from lossdoctor.store import MemoryWriter, Run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    return saved


def titles(figure: Figure) -> list[str]:
    return [title for axis in figure.axes if (title := axis.get_title(loc="left"))]


def test_panels_show_metrics_that_exist_and_have_a_title_in_every_language() -> None:
    patterns = {key.pattern for key in KEYS}
    for panel in PANELS:
        assert set(panel.patterns) <= patterns
        if not panel.each:
            assert all(text(f"panel.{panel.code}", lang) for lang in languages())


def test_a_whole_run_fills_the_grid(whole_run: Run, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    assert draw_curves(whole_run, tmp_path / "curves.png")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[0] > 1000
    assert picture.shape[1] > 1500
    assert dict(mpl.rcParams) == before, "drawing must not leave settings behind"


def test_axes_are_chosen_by_what_is_shown(whole_run: Run, drawn: list[Figure]) -> None:
    draw_curves(whole_run, "unused.png")
    axes = {axis.get_title(loc="left"): axis for axis in drawn[0].axes}
    assert axes["loss/kl"].get_yscale() == "log"
    assert axes["loss/flow"].get_yscale() == "linear"
    assert axes["velocity cosine (1: perfect)"].get_yscale() == "linear"
    assert len(axes["velocity error by t, at the end"].patches) == 10
    endpoint = axes["endpoint error by solver steps, at the end"]
    assert [list(line.get_xdata()) for line in endpoint.get_lines()] == [[8, 16, 32, 64]] * 2
    distance = axes["endpoint sliced W2 by solver steps"]
    labels = {text.get_text() for text in distance.get_legend().get_texts()}
    assert labels == {"flow/endpt_sw", "flow/endpt_sw_floor"}


def test_a_loss_has_one_colour_everywhere(whole_run: Run, drawn: list[Figure]) -> None:
    draw_curves(whole_run, "unused.png")
    axes = {axis.get_title(loc="left"): axis for axis in drawn[0].axes}
    shares = {line.get_label(): line.get_color() for line in axes["share in the total gradient"].get_lines()}
    for loss in ("dino", "flow", "kl"):
        assert axes[f"loss/{loss}"].get_lines()[-1].get_color() == shares[loss]


def test_broken_curves_and_any_names_are_drawn(troubled_run: Run, tmp_path: Path) -> None:
    assert draw_curves(troubled_run, tmp_path / "curves.png")


@pytest.mark.parametrize("values", [[0.0], [1e-300, 1e300], [-1e15, 1e15], [5.0, 5.0], [np.nan]])
def test_hostile_values_are_drawn(values: list[float], tmp_path: Path) -> None:
    writer = MemoryWriter()
    writer.append([Record(step, {"loss/$x_1$ \n": value, "kl/per_dim": value}) for step, value in enumerate(values)])
    assert draw_curves(writer.run(), tmp_path / "curves.png") is bool(np.isfinite(values).any())


def test_nothing_to_draw_leaves_no_file(empty_run: Run, tmp_path: Path) -> None:
    assert not draw_curves(empty_run, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_without_a_chinese_font_titles_are_english(
    whole_run: Run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_chinese_font", lambda: None)
    draw_curves(whole_run, "unused.png", lang="zh-CN")
    assert "speed ratio (1: matched)" in titles(drawn[0])


def test_with_a_chinese_font_titles_are_chinese(
    whole_run: Run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_chinese_font", lambda: "DejaVu Sans")
    draw_curves(whole_run, "unused.png", lang="zh-CN")
    assert text("panel.speed", "zh-CN") in titles(drawn[0])


@pytest.mark.parametrize("count", [1, 7, 23])
def test_samples_have_their_captions_under_them(count: int, drawn: list[Figure]) -> None:
    images = np.random.default_rng(0).random((count, 8, 8)).astype(np.float32)
    captions = [f"a handwritten {i}" for i in range(count)]
    draw_samples(images, captions, "unused.png")
    shown = [axis for axis in drawn[0].axes if axis.images]
    assert [axis.get_title().replace("\n", " ") for axis in shown] == captions
    for axis, image in zip(shown, images, strict=True):
        assert np.array_equal(axis.images[0].get_array(), image)
        assert axis.images[0].get_clim() == (0.0, 1.0)


def test_without_matplotlib_the_extra_is_named(whole_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[demo\]"):
        draw_curves(whole_run, "unused.png")
