from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.exchange.cells import clock, number, whole


@given(st.floats())
def test_a_float_is_itself_written_or_not(value: float) -> None:
    for cell in (value, repr(value), f" {value!r}\t"):
        assert repr(number(cell)) == repr(value)


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_step_is_exact(step: int) -> None:
    assert whole(step) == whole(str(step)) == whole(f" {step} ") == step


@given(st.integers(-(2**53), 2**53))
def test_a_step_that_pandas_made_a_float(step: int) -> None:
    assert whole(float(step)) == whole(f"{float(step)!r}") == step


@pytest.mark.parametrize("cell", ["", "x", "1_000", "1,5", None, [1.0], {"a": 1}, b"1", 10**400, "0x10"])
def test_what_is_no_number(cell: object) -> None:
    assert number(cell) is None
    assert whole(cell) is None


@pytest.mark.parametrize(
    "cell", [0.5, "0.5", "nan", math.inf, "1e400", True, 2**63, -(2**63) - 1, "9" * 30, "9" * 9999, 1e300]
)
def test_what_is_no_step(cell: object) -> None:
    assert whole(cell) is None


@pytest.mark.parametrize(
    ("cell", "value"), [("NaN", math.nan), ("Infinity", math.inf), ("-inf", -math.inf), (True, 1.0)]
)
def test_odd_numbers(cell: object, value: float) -> None:
    assert repr(number(cell)) == repr(value)


@pytest.mark.parametrize(
    "moment", [datetime(2024, 5, 6, 7, 8, 9, 250000), datetime(1999, 1, 1), datetime(9999, 12, 31)]
)
def test_moments_in_every_way_they_are_written(moment: datetime) -> None:
    expected = moment.replace(tzinfo=UTC).timestamp()
    there = timezone(timedelta(hours=5, minutes=30))
    for cell in (moment.isoformat(), moment.isoformat(" ") + "Z", f"{moment.replace(tzinfo=UTC).isoformat()}"):
        assert clock(cell) == expected
    if moment.year < 9999:
        assert clock(moment.replace(tzinfo=UTC).astimezone(there).isoformat()) == expected
    if moment.year < 5000:
        assert clock(expected) == clock(repr(expected)) == clock(1000 * expected) == expected


@pytest.mark.parametrize("cell", [0, 17.5, "3600", -1e9, math.nan, math.inf, "nan", None, "yesterday", [], 1e20])
def test_what_is_no_moment(cell: object) -> None:
    """Seconds since the start of a run, above all."""
    assert clock(cell) is None


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans(), st.binary()))
def test_nothing_is_too_strange(cell: object) -> None:
    number(cell)
    assert whole(cell) is None or number(cell) is not None
    moment = clock(cell)
    assert moment is None or math.isfinite(moment)
