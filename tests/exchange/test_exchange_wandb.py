"""Files as W&B writes them: blocks of 32 KiB, pieces with a CRC-32 of kind and bytes, protocol buffers inside."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read
from lossdoctor.exchange.leveldb import BLOCK
from lossdoctor.exchange.wandb import MAGIC


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def counted(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def history(step: int, *, nested: bool = True, **values: Any) -> bytes:
    """A record of the log: history is field 2, an item has a key (1) or a nested key (2) and JSON (16)."""
    items = b""
    for name, value in values.items():
        parts = name.split("/") if nested else [name]
        key = b"".join(counted(2 if nested else 1, part.encode()) for part in parts)
        items += counted(1, key + counted(16, json.dumps(value).encode()))
    return varint(1 << 3) + varint(step + 1) + counted(2, items + counted(2, varint(1 << 3) + varint(step)))


def log(records: Iterable[bytes]) -> bytes:
    data = bytearray(MAGIC)

    def piece(kind: int, content: bytes) -> None:
        data.extend(struct.pack("<IHB", zlib.crc32(bytes([kind]) + content), len(content), kind) + content)

    for record in records:
        rest, first = record, True
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data.extend(bytes(room))
                room = BLOCK
            part, rest = rest[: room - 7], rest[room - 7 :]
            piece((1 if first else 4) if not rest else (2 if first else 3), part)
            first = False
            if not rest:
                break
    return bytes(data)


def made(path: Path, content: bytes, name: str = "run-abc.wandb") -> Path:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
    return path / name


def points(imported: Imported) -> dict[str, list[tuple[int, float]]]:
    return {name: list(imported.run[name]) for name in imported.run}


@pytest.mark.parametrize("nested", [True, False])
def test_history(nested: bool, tmp_path: Path) -> None:
    rows = [history(step, nested=nested, **{"train/kl": 0.5 * step, "_timestamp": 1.7e9 + step}) for step in range(3)]
    others = [counted(6, b"files"), counted(7, b"stats"), varint(1 << 3) + varint(9)]
    imported = read(made(tmp_path, log([others[0], *rows, *others[1:]])))
    assert imported.format == "wandb"
    assert points(imported) == {"train/kl": [(0, 0.0), (1, 0.5), (2, 1.0)]}
    assert imported.run.times.values.tolist() == [1.7e9, 1.7e9 + 1, 1.7e9 + 2]
    assert imported.notes.step == "_step"


def test_values_of_every_sort(tmp_path: Path) -> None:
    row = history(-1, a=math.nan, b=-math.inf, c={"d": 1, "e": {"f": True}}, g="text", h={"_type": "histogram"}, n=None)
    imported = read(made(tmp_path, log([row, history(7, _step=3, x=1)])))
    assert repr(points(imported)) == repr(
        {"a": [(-1, math.nan)], "b": [(-1, -math.inf)], "c/d": [(-1, 1.0)], "c/e/f": [(-1, 1.0)], "x": [(3, 1.0)]}
    )
    assert dict(imported.notes.ignored) == {"g": 1, "h": 1}


@given(st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=8))
@settings(max_examples=30)
def test_records_of_any_length(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    rows = [history(step, x=step, note="." * length) for step, length in enumerate(lengths)]
    imported = read(made(tmp_path_factory.getbasetemp(), log(rows)))
    assert points(imported) == {"x": [(step, float(step)) for step in range(len(rows))]}
    assert not imported.notes.lost.total()


def test_cut_at_every_byte(tmp_path: Path) -> None:
    rows = [history(step, x=12.5 * step) for step in range(4)]
    whole = log(rows)
    ends = [len(log(rows[:count])) for count in range(5)]
    for size in range(len(MAGIC), len(whole) + 1):
        there = sum(end <= size for end in ends) - 1
        path = made(tmp_path, whole[:size])
        if not there:
            with pytest.raises(UsageError, match="no numbers"):
                read(path)
            continue
        imported = read(path)
        assert points(imported) == {"x": [(step, 12.5 * step) for step in range(there)]}
        assert imported.notes.lost["bytes"] == size - ends[there]


def test_a_record_cut_off_between_two_blocks_is_counted(tmp_path: Path) -> None:
    imported = read(made(tmp_path, log([history(0, x=1), history(1, x=2, note="." * 2 * BLOCK)])[:BLOCK]))
    assert points(imported) == {"x": [(0, 1.0)]}
    assert imported.notes.lost["damaged"] == 1


def test_after_damage_the_next_block_is_read(tmp_path: Path) -> None:
    rows = [history(step, x=step, note="." * 3000) for step in range(60)]
    data = bytearray(log(rows))
    data[BLOCK + 5000] ^= 1
    imported = read(made(tmp_path, bytes(data)))
    steps = imported.run["x"].steps.tolist()
    assert 45 <= len(steps) < 60
    assert steps[0] == 0
    assert steps[-1] == 59
    assert imported.notes.lost["bytes"] > 0


def test_a_damaged_byte_never_gives_a_wrong_number(tmp_path: Path) -> None:
    whole = log([history(step, x=12.5 * step) for step in range(4)])
    right = {(step, 12.5 * step) for step in range(4)}
    for place in range(len(MAGIC), len(whole)):
        try:
            imported = read(made(tmp_path, whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :]))
        except UsageError:
            continue
        assert set(imported.run["x"]) < right
        assert imported.notes.lost.total()


def test_the_folder_of_a_run_and_of_all(tmp_path: Path) -> None:
    for number in (1, 2):
        made(tmp_path, log([history(0, x=number)]), f"wandb/offline-run-{number}/run-{number}.wandb")
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-2")
    assert points(read(tmp_path / "wandb" / "offline-run-1")) == {"x": [(0, 1.0)]}
    with pytest.raises(
        UsageError, match=r"(?s)several runs.*'offline-run-1/run-1.wandb', 'offline-run-2/run-2.wandb'\n"
    ):
        read(tmp_path / "wandb")
    assert points(read(tmp_path, run="wandb/offline-run-2/run-2.wandb")) == {"x": [(0, 2.0)]}
