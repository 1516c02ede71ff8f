"""Numbers in messages are for human eyes, at any size, and say what they are."""

from __future__ import annotations

import math
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.messages import _catalogue, keys, languages, text
from lossdoctor.messages.numbers import Formatter, readable
from lossdoctor.rules.opt704_update_too_large import _much

SIZES = (1e-300, 3.4e-6, 9.99e-5, 0.0123, 0.9996, 7.0, 99.6, 510.2, 51_234.0, 999_999.0, 1e6, 2.5e17, 1e300)


@pytest.mark.parametrize(
    ("value", "two", "three"),
    [
        (510.0, "510", "510"),
        (0.0123, "0.012", "0.0123"),
        (3.4e-6, "3.4e-6", "3.4e-6"),
        (12_345.6, "12,346", "12,346"),
        (99.96, "100", "100"),
        (0.30000001, "0.3", "0.3"),
        (-1e9, "-1e9", "-1e9"),
        (0.0, "0", "0"),
        (math.nan, "nan", "nan"),
        (-math.inf, "-inf", "-inf"),
        (1_000, "1,000", "1,000"),
    ],
)
def test_a_measured_number(value: float, two: str, three: str) -> None:
    assert (readable(value, 2), readable(value, 3)) == (two, three)


@pytest.mark.parametrize(("value", "told"), [(30_000.0, "30000"), (1e-5, "1e-5"), (0.07, "0.07"), (1_000_000, "1e6")])
def test_a_chosen_number_is_as_it_was_chosen(value: float, told: str) -> None:
    assert Formatter().format("{value:g}", value=value) == told


@given(st.floats(-1e300, 1e300), st.integers(1, 7))
def test_no_digit_that_was_asked_for_is_lost(value: float, digits: int) -> None:
    assert float(readable(value, digits).replace(",", "")) == pytest.approx(
        value, rel=0.51 * 10 ** (1 - digits), abs=1e-323
    )


@pytest.mark.parametrize("lang", languages())
def test_no_message_writes_an_exponent_that_can_be_read_without(lang: str) -> None:
    """Every number of every message, at every size."""
    for key in keys(lang):
        holes = [part for part in string.Formatter().parse(_catalogue(lang)[key]) if part[1]]
        for _, name, spec, _ in holes:
            for size in SIZES if spec and spec.endswith("g") else ():
                told = Formatter().format(f"{{{name}:{spec}}}", **{str(name): size})
                assert re.fullmatch(r"[\d,]+(\.\d+)?(e-?[1-9]\d*)?", told), (key, told)
                assert ("e" in told) == (not 1e-4 <= size < 1e6), (key, told)


@pytest.mark.parametrize(
    ("update", "english", "chinese"),
    [(5.1, "510 % of its weights", "其权重的 510 %"), (51.0, "51 times its weights", "其权重的 51 倍")],
)
def test_a_change_of_many_times_is_told_in_times(update: float, english: str, chinese: str) -> None:
    assert [_much(update).text(lang) for lang in languages()] == [english, chinese]
    told = text("rule.OPT704", head="z", much=_much(update), first_step=1, last_step=2)
    assert f"by {english} (median" in told
