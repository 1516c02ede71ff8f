"""Turning, packing, joining and resolving against plain loops."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.record import Series
from lossdoctor.store.layout import CHUNK, NOTHING, decode, encode, join, pack, resolve, turn, unpack

INT64 = st.integers(-(2**63), 2**63 - 1)
STEPS = st.one_of(
    st.lists(st.one_of(INT64, st.integers(-3, 3)), min_size=1, max_size=40),
    st.builds(
        lambda a, s, n: [a + s * i for i in range(n)], st.integers(-9, 9), st.integers(-3, 9), st.integers(1, CHUNK)
    ),
    st.builds(lambda n: [2**63 - 1 - i for i in range(n)][::-1], st.integers(1, 9)),
    st.just([-(2**63), 2**63 - 1]),
    st.just([-(2**63), 0, 2**63 - 1]),
)


def series(steps: list[int], values: list[float] | None = None) -> Series:
    numbers = [0.5 * i for i in range(len(steps))] if values is None else values
    return Series(np.array(steps, np.int64), np.array(numbers, np.float64))


@settings(deadline=None)
@given(STEPS)
def test_a_chunk_comes_back_whatever_its_steps(steps: list[int]) -> None:
    row = pack(series(steps))
    assert row[:2] == (min(steps), max(steps))
    back = unpack([row[:4]])
    assert back.steps.tolist() == steps
    assert back.values.tolist() == [0.5 * i for i in range(len(steps))]


@settings(deadline=None)
@given(st.lists(STEPS, max_size=5))
def test_chunks_come_back_one_after_the_other(pieces: list[list[int]]) -> None:
    back = unpack([pack(series(steps))[:4] for steps in pieces])
    assert back.steps.tolist() == [step for steps in pieces for step in steps]
    assert back.values.tolist() == [0.5 * i for steps in pieces for i in range(len(steps))]


@pytest.mark.parametrize("start", [0, 7, 2**62])
@pytest.mark.parametrize("stride", [1, 50])
def test_even_steps_take_no_room(start: int, stride: int) -> None:
    assert pack(series([start + stride * i for i in range(CHUNK)]))[2] is None
    assert pack(series([start, start + stride, start + 3 * stride]))[2] is not None


@settings(deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=9))
def test_the_bounds_of_a_chunk_are_of_its_finite_numbers(values: list[float]) -> None:
    finite = [v for v in values if np.isfinite(v)]
    bounds = pack(series(list(range(len(values))), values))[4:]
    assert bounds == ((min(finite), max(finite)) if finite else (None, None))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 9), st.floats(allow_nan=False)), max_size=30))
def test_of_two_values_for_a_step_the_later_counts(points: list[tuple[int, float]]) -> None:
    found = resolve(series([s for s, _ in points], [v for _, v in points]) if points else NOTHING)
    assert list(found) == sorted(dict(points).items())


@settings(deadline=None)
@given(st.lists(st.tuples(INT64, st.dictionaries(st.integers(0, 6), st.floats(allow_nan=False))), max_size=20))
def test_turning_the_tail_is_a_loop_over_rows_and_columns(rows: list[tuple[int, dict[int, float]]]) -> None:
    expected: dict[int, list[tuple[int, float]]] = {}
    for step, numbers in rows:
        for column, value in numbers.items():
            expected.setdefault(column, []).append((step, value))
    packed = [(s, struct.pack(f"<{len(n)}I", *n), struct.pack(f"<{len(n)}d", *n.values())) for s, n in rows]
    assert {column: list(points) for column, points in turn(packed).items()} == expected


def test_joining_is_concatenation() -> None:
    assert len(join([])) == 0
    assert list(join([NOTHING, series([3, 1]), NOTHING, series([1])])) == [(3, 0.0), (1, 0.5), (1, 0.0)]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_is_a_name(name: str) -> None:
    assert decode(encode(name)) == name


@pytest.mark.parametrize(
    "row",
    [
        (0, 1, None, b"1234567"),
        (0, 1, None, b""),
        (0, 3, None, bytes(24)),
        (0, 0, None, bytes(16)),
        (5, 1, None, bytes(16)),
        (0, 1, bytes(8), bytes(16)),
        (0, 1, bytes(9), bytes(8)),
        (-(2**63), 2**63 - 1, None, bytes(16)),
        (-(2**63), 2**63 - 1, None, bytes(24)),
    ],
)
def test_a_damaged_chunk_is_told(row: tuple[int, int, bytes | None, bytes]) -> None:
    with pytest.raises(ValueError, match=r"chunk|buffer"):
        unpack([row])


@pytest.mark.parametrize(("columns", "numbers"), [(bytes(4), bytes(16)), (bytes(3), bytes(8)), (bytes(8), bytes(8))])
def test_a_damaged_tail_is_told(columns: bytes, numbers: bytes) -> None:
    with pytest.raises(ValueError, match=r"record|buffer"):
        turn([(0, columns, numbers)])
