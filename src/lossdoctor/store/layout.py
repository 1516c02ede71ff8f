"""How a run lies in `run.db`, and how numbers become bytes.

A record is first a row of `tail`: its columns and its numbers, packed. Every `CHUNK` records the tail is turned around,
into one piece per column in `chunk`, of at most `CHUNK` points, and emptied. The wall clock of a record and whether it
was measured in full are columns like any metric, with reserved numbers, so that everything is stored in one way.

`low` and `high` bound the finite numbers of a chunk, for programs that draw a run without reading every point. Of a
full chunk without broken numbers `glance` holds a few points, so that a long run can be judged without reading it.
Names are stored as UTF-8 bytes with surrogates passed through: any Python text comes back as it went in, also "", NUL
and lone surrogates. All numbers are little endian; a float64 comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series

APPLICATION_ID = 0x4C4F5344  # "LOSD", in the header of the file: says whose it is
VERSION = 1
CHUNK = 512
TIME, FULL, FIRST_METRIC = 0, 1, 2

SCHEMA = (
    "CREATE TABLE metric (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE)",
    "CREATE TABLE tail (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, columns BLOB NOT NULL, numbers BLOB NOT NULL)",
    # steps is NULL where they run evenly from first to last; else first and last bound them.
    "CREATE TABLE chunk (id INTEGER PRIMARY KEY, series INTEGER NOT NULL, first INTEGER NOT NULL,"
    " last INTEGER NOT NULL, steps BLOB, numbers BLOB NOT NULL, low REAL, high REAL)",
    "CREATE INDEX chunk_of_series ON chunk (series, id, first, last)",
)
GLANCES = (
    "CREATE TABLE IF NOT EXISTS glance (series INTEGER NOT NULL, chunk INTEGER NOT NULL, first INTEGER NOT NULL,"
    " last INTEGER NOT NULL, low REAL NOT NULL, high REAL NOT NULL, points BLOB NOT NULL,"
    " PRIMARY KEY (series, chunk)) WITHOUT ROWID"
)
"""Beside the format: files without it are read as well, only slower; see `glance`."""

TailRow = tuple[int, bytes, bytes]
"""step, columns, numbers."""
ChunkRow = tuple[int, int, bytes | None, bytes, float | None, float | None]
"""first, last, steps, numbers, low, high."""

NOTHING = Series(np.empty(0, np.int64), np.empty(0, np.float64))


def encode(name: str) -> bytes:
    """A metric name as stored."""
    return name.encode("utf-8", "surrogatepass")


def decode(name: bytes) -> str:
    """A stored metric name as text."""
    return name.decode("utf-8", "surrogatepass")


def join(parts: Iterable[Series]) -> Series:
    """Points one after the other, in writing order."""
    some = [part for part in parts if len(part)]
    if len(some) < 2:
        return some[0] if some else NOTHING
    return Series(np.concatenate([part.steps for part in some]), np.concatenate([part.values for part in some]))


def resolve(written: Series) -> Series:
    """Points sorted by step, each step once: of two values for one step the one written later counts."""
    steps = written.steps
    if len(steps) < 2 or bool((steps[1:] > steps[:-1]).all()):
        return written
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    latest = np.append(ordered[1:] != ordered[:-1], True)
    return Series(ordered[latest], written.values[order[latest]])


def between(points: Series, first: int, last: int) -> Series:
    """A copy of the points with these steps, both included, in writing order."""
    here = (points.steps >= first) & (points.steps <= last)
    return Series(points.steps[here], points.values[here])


def turn(rows: Sequence[TailRow]) -> dict[int, Series]:
    """Tail rows as columns, each in writing order. Raises ValueError when a row is damaged."""
    columns = np.frombuffer(b"".join(row[1] for row in rows), "<u4")
    values = np.frombuffer(b"".join(row[2] for row in rows), "<f8")
    counts = [len(row[1]) // 4 for row in rows]
    if any(len(row[2]) != 8 * count for row, count in zip(rows, counts, strict=True)):
        raise ValueError("a record of the tail has more columns than numbers, or fewer")
    if not len(columns):
        return {}
    steps = np.repeat(np.array([row[0] for row in rows], np.int64), counts)
    order = np.argsort(columns, kind="stable")
    ordered, steps, values = columns[order], steps[order], values[order].astype(np.float64, copy=False)
    starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
    ends = np.append(starts[1:], len(ordered))
    return {
        int(ordered[a]): Series(steps[a:b], values[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    }


def pack(points: Series) -> ChunkRow:
    """At least one point as a row of `chunk`."""
    steps, values = points.steps, points.values
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
    evenly = _even(steps)
    packed = None if evenly else steps.astype("<i8", copy=False).tobytes()
    return int(steps.min()), int(steps.max()), packed, values.astype("<f8", copy=False).tobytes(), low, high


def unpack(rows: Sequence[tuple[int, int, bytes | None, bytes]]) -> Series:
    """The points of rows of `chunk` (first, last, steps, numbers), one after the other. Raises ValueError on damage."""
    if not rows:
        return NOTHING
    # Joined in a bytearray: the points lie there once, in an array that can be written.
    values = np.frombuffer(bytearray().join([row[3] for row in rows]), "<f8").astype(np.float64, copy=False)
    sizes = np.array([len(row[3]) for row in rows])
    counts, starts = sizes // 8, (np.cumsum(sizes) - sizes) // 8
    first, last = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    gaps = np.maximum(counts - 1, 1)
    stride = (last - first) // gaps
    whole = (stride * gaps == last - first) & ((stride > 0) == (counts > 1))
    uneven = [(i, row[2]) for i, row in enumerate(rows) if row[2] is not None]
    for i, packed in uneven:
        whole[i] = len(packed) == sizes[i]
    if not (whole & (sizes > 0) & (sizes % 8 == 0)).all():
        raise ValueError("a chunk has other steps than numbers")
    # All even steps at once: step = first + stride * place in the chunk. A million points in four passes.
    steps = np.repeat(stride, counts)
    steps *= np.arange(len(values))
    steps += np.repeat(first - stride * starts, counts)
    for i, packed in uneven:
        steps[starts[i] : starts[i] + counts[i]] = np.frombuffer(packed, "<i8")
    return Series(steps, values)


def apart(bounds: npt.NDArray[np.int64], least: int) -> list[int]:
    """How many chunks to take at a time, about `least`, so that each lot ends before the next one begins.

    bounds: (N, 2), first and last step of each chunk in writing order. The counts add up to N. Where training went back
    and wrote steps again, the chunks that share steps are one lot: `resolve` of each lot is then `resolve` of all.
    """
    if not len(bounds):
        return []
    so_far = np.maximum.accumulate(bounds[:, 1])
    to_come = np.minimum.accumulate(bounds[::-1, 0])[::-1]
    cuts = np.append(np.flatnonzero(so_far[:-1] < to_come[1:]) + 1, len(bounds))
    counts, done = [], 0
    while done < len(bounds):
        # The last cut may be nearer than `least`.
        cut = int(cuts[min(int(np.searchsorted(cuts, done + least)), len(cuts) - 1)])
        counts.append(cut - done)
        done = cut
    return counts


def _even(steps: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    if len(steps) == 1:
        return True
    stride = int(steps[1]) - int(steps[0])
    # Asked in Python's integers first: a difference of far steps wraps around in int64.
    if stride < 1 or int(steps[0]) + stride * (len(steps) - 1) != int(steps[-1]):
        return False
    return bool((np.diff(steps) == stride).all())
