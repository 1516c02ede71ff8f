"""What is in one of TensorBoard's event files, read without TensorBoard.

The file is a chain of records: length (8 bytes), its checksum (4), an `Event` as protocol buffer, its checksum (4).
Checksums are CRC-32C, rotated and shifted by a constant.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lossdoctor.exchange.source import Notes
from lossdoctor.exchange.wire import BYTES, FIXED32, FIXED64, VARINT, fields, signed, text, unpacked, varint

PICTURE = 1 << 16
"""Bytes of an event without a scalar from which its checksum is spared: sums over megabytes take their time."""
HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_START = 1
"""Status of a session: training begins, or begins again, at the step of the event."""

_TYPES = {
    1: "<f",
    2: "<d",
    3: "<i",
    4: "<B",
    5: "<h",
    6: "<b",
    9: "<q",
    10: "<?",
    17: "<H",
    19: "<e",
    22: "<I",
    23: "<Q",
}
"""Types of tensors with numbers, by their code, as `struct` knows them."""
_BFLOAT16 = 14
_HALVES, _FLOATS, _SIGNED, _UNSIGNED = 13, {5: "<f", 6: "<d"}, (7, 10), (11, 16, 17)
"""Fields of a tensor that hold its numbers, where they are not in its bytes."""


@dataclass
class Event:
    """One event: wall clock in seconds, step, scalars by tag, tags of what is no scalar; whether training began."""

    time: float = 0.0
    step: int = 0
    scalars: list[tuple[str, float]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    starts: bool = False


def is_event_file(head: bytes) -> bool:
    """Whether the first bytes of a file are the length of a record with the right checksum."""
    return len(head) >= HEAD.size and _SUM.unpack(head[8:12])[0] == checksum(head[:8])


def events(path: Path, notes: Notes) -> Iterator[Event]:
    """Every whole event. What is cut off or damaged is noted down."""
    size = os.path.getsize(path)
    at = 0
    with open(path, "rb") as file:
        while at < size:
            head = file.read(HEAD.size)
            length = HEAD.unpack(head)[0] if is_event_file(head) else size
            if length > size - at - HEAD.size - _SUM.size:
                # Without its length nobody knows where the next record begins.
                notes.lost["bytes"] += size - at
                return
            at += HEAD.size + length + _SUM.size
            event = _sound(file.read(length), file.read(_SUM.size))
            if event is None:
                notes.lost["damaged"] += 1
            else:
                yield event


def checksum(data: bytes) -> int:
    """The masked CRC-32C of a record."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC = tuple(_crc_of(byte) for byte in range(256))


def _sound(message: bytes, expected: bytes) -> Event | None:
    """The event; None when it is damaged."""
    try:
        event = _event(message)
    except ValueError:
        return None
    if not (event.scalars or event.starts) and len(message) > PICTURE:
        return event
    return event if _SUM.pack(checksum(message)) == expected else None


def _event(message: bytes) -> Event:
    event = Event()
    for number, kind, value, data in fields(message):
        if (number, kind) == (1, FIXED64):
            event.time = unpacked(data, "<d")
        elif (number, kind) == (2, VARINT):
            event.step = signed(value)
        elif (number, kind) == (5, BYTES):
            for part, _, _, summary in fields(data):
                if part == 1:
                    _add(event, summary)
        elif (number, kind) == (7, BYTES):
            event.starts = any((part, status) == (1, _START) for part, _, status, _ in fields(data))
    return event


def _add(event: Event, summary: bytes) -> None:
    """One value of a summary: what it is called, and its number if it is one."""
    tag, value = "", None
    for number, kind, _, data in fields(summary):
        if (number, kind) == (1, BYTES):
            tag = text(data)
        elif (number, kind) == (2, FIXED32):
            value = unpacked(data, "<f")
        elif (number, kind) == (8, BYTES):
            value = _single(data)
    if value is None:
        event.others.append(tag)
    else:
        event.scalars.append((tag, value))


def _single(tensor: bytes) -> float | None:
    """The number of a tensor that has one; None when it has more, or none. Raises ValueError when it is damaged."""
    code, sizes, value = 0, [], None
    for number, kind, integer, data in fields(tensor):
        if number == 1:
            code = integer
        elif (number, kind) == (2, BYTES):
            sizes = [_size(dimension) for part, _, _, dimension in fields(data) if part == 2]
        elif (number, kind) == (4, BYTES) and data:
            value = _content(code, data)
        elif number in _FLOATS and kind in (BYTES, FIXED32, FIXED64) and data:
            value = _packed(data, _FLOATS[number])
        elif number in (*_SIGNED, *_UNSIGNED, _HALVES) and (kind == VARINT or data):
            value = _integer(number, code, integer if kind == VARINT else _packed_varint(data))
    return value if all(size == 1 for size in sizes) else None


def _size(dimension: bytes) -> int:
    """Of one dimension; a 0 is not written."""
    return next((signed(size) for part, _, size, _ in fields(dimension) if part == 1), 0)


def _content(code: int, data: bytes) -> float | None:
    """One number from the bytes of a tensor; a type that comes behind its bytes is none that anybody writes."""
    if code == _BFLOAT16 and len(data) == 2:
        return unpacked(b"\0\0" + data, "<f")
    known = _TYPES.get(code)
    return unpacked(data, known) if known and len(data) == struct.calcsize(known) else None


def _packed(packed: bytes, code: str) -> float | None:
    size = struct.calcsize(code)
    return unpacked(packed, code) if len(packed) == size else None


def _packed_varint(packed: bytes) -> int | None:
    value, end = varint(packed, 0)
    return value if end == len(packed) else None


def _integer(number: int, code: int, value: int | None) -> float | None:
    if value is None:
        return None
    if number == _HALVES:
        # The bits of the number, as an integer.
        return _content(code, struct.pack("<H", value & 0xFFFF))
    return float(signed(value) if number in _SIGNED else value)
