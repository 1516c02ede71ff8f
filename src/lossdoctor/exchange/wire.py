"""Protocol buffers as they lie in a file: fields by number, without the program that defined them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: an integer, 8 bytes, counted bytes (text, a message, packed numbers), 4 bytes."""
_SIZES = {FIXED64: 8, FIXED32: 4}


def fields(message: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Every field of a message: its number, its wire type, its integer (0 if none) and its bytes (empty if none).

    Raises ValueError when the message is damaged.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield tag >> 3, kind, value, b""
            continue
        if kind == BYTES:
            size, at = varint(message, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - at:
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, kind, 0, message[at : at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    """The unsigned integer at a place, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("an integer is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def signed(value: int) -> int:
    """A varint as int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def unpacked(data: bytes, code: str) -> float:
    """The one number in these bytes, by its code in `struct`. Raises ValueError when they have another size."""
    if len(data) != struct.calcsize(code):
        raise ValueError(f"{len(data)} bytes for a number of {struct.calcsize(code)}")
    (value,) = struct.unpack(code, data)
    return float(value)


def text(data: bytes) -> str:
    """A string; what is not UTF-8 in it is kept as it is."""
    return data.decode("utf-8", "surrogateescape")
