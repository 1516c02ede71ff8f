from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.curves import Trend
from lossdoctor.keys import Key
from lossdoctor.report.digest import Line
from lossdoctor.report.wording import (
    ASCII,
    UNICODE,
    broken,
    course,
    duration,
    glyphs_for,
    improves,
    number,
    percent,
    plain,
    small_curve,
    visible,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (0.012345, "0.0123"),
        (0.9999, "1.00"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (999_999.0, "999,999"),
        (1e6, "1.0e6"),
        (-0.5, "-0.500"),
        (1.23e-4, "0.000123"),
        (9.99e-5, "1.0e-4"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "."),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value, ".") == text


@given(st.floats(-1e307, 1e307))
def test_numbers_are_short_and_right(value: float) -> None:
    written = number(value)
    assert len(written) <= 9
    assert float(written.replace(",", "")) == pytest.approx(value, rel=0.051, abs=5e-324)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.714, "71 %"),
        (-0.02, "-2 %"),
        (0.0, "0 %"),
        (4e-4, "0.04 %"),
        (1.0, "100 %"),
        (12.34, "1,234 %"),
        (1e-9, "1e-7 %"),
        (math.nan, "nan"),
    ],
)
def test_percents(share: float, text: str) -> None:
    assert percent(share) == text


def test_chosen_numbers_are_as_chosen() -> None:
    assert [plain(value) for value in (1.0, 0.5, 1e-2, 1e-7, None)] == ["1", "0.5", "0.01", "1e-7", ""]


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0.0123, "12.3 ms", "12.3 毫秒"),
        (1.5, "1.50 s", "1.50 秒"),
        (59.4, "59 s", "59 秒"),
        (59.6, "1 min 0 s", "1 分 0 秒"),
        (3599.7, "1 h 0 min", "1 小时 0 分"),
        (90_000, "25 h 0 min", "25 小时 0 分"),
    ],
)
def test_durations(seconds: float, english: str, chinese: str) -> None:
    assert duration(seconds, "en") == english
    assert duration(seconds, "zh-CN") == chinese


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_small_curves_have_one_sign_per_value_and_keep_the_order(shape: list[float]) -> None:
    drawn = small_curve(tuple(shape), UNICODE)
    assert len(drawn) == (len(shape) if len(shape) > 1 else 0)
    for i in range(len(drawn)):
        for j in range(len(drawn)):
            assert not (shape[i] > shape[j] and drawn[i] < drawn[j])
    assert small_curve(tuple(shape), ASCII) == ""


def test_small_curves_do_not_blow_up_jitter() -> None:
    assert len(set(small_curve((1000.0, 1001.0, 999.5), UNICODE))) == 1
    assert small_curve((1.0, 2.0), UNICODE) == "▁█"


@pytest.mark.parametrize(
    ("encoding", "glyphs"),
    [("utf-8", UNICODE), ("gbk", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), ("nonsense", ASCII)],
)
def test_signs_fit_the_terminal(encoding: str, glyphs: object) -> None:
    assert glyphs_for(encoding) is glyphs


def line(direction: str = "up", better: str = "none", end: float = 1.0, count: int = 20, wrong: int = 0) -> Line:
    trend = Trend(direction, 0.0, 0.0, 0.0, 0.0, 20)  # type: ignore[arg-type]
    return Line("x", Key("x", "loss", better=better), 0.0, end, (), trend, count, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "better", "expected"),
    [
        ("up", "up", True),
        ("down", "up", False),
        ("down", "down", True),
        ("up", "none", None),
        ("flat", "up", None),
        ("unknown", "down", None),
    ],
)
def test_only_a_trend_of_a_metric_with_a_direction_is_an_improvement(
    direction: str, better: str, expected: bool | None
) -> None:
    assert improves(line(direction, better)) is expected
    assert improves(line(direction, better, end=math.nan)) is None


def test_courses() -> None:
    assert course(line("up"), UNICODE, "en") == "↗ rising"
    assert course(line("down"), ASCII, "en") == "v falling"
    assert course(line("flat"), UNICODE, "zh-CN") == "→ 无趋势"
    assert course(line(count=1), UNICODE, "en") == "measured once"
    assert course(line(end=math.inf), UNICODE, "en") == ""
    assert broken(line(), "en") == ""
    assert broken(line(wrong=3), "en") == "3 not finite"


@given(st.text())
def test_visible_names_are_on_one_printable_line(name: str) -> None:
    assert visible(name).isprintable()
    assert len(visible(name)) == len(name)
