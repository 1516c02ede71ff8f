"""LevelDB's log format, in which W&B and SwanLab write: blocks of 32 KiB with pieces of records, each with a checksum.

LevelDB itself would take CRC-32C; both take the CRC-32 of zlib, and begin the file with seven bytes of their own. The
format: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from lossdoctor.exchange.source import Notes

BLOCK = 32768
_PIECE = struct.Struct("<IHB")
"""Checksum, size and kind, before the bytes of a piece."""
HEAD = _PIECE.size
"""Bytes before the first piece of a file; as many as a piece has before its own."""
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def whole(path: Path, notes: Notes) -> Iterator[bytes]:
    """Records, put together of their pieces. After damage the next block begins anew; what is lost is counted."""
    pieces: list[bytes] = []
    for kind, data in _pieces(path, notes):
        if kind in (_MIDDLE, _LAST) and pieces:
            pieces.append(data)
            if kind == _LAST:
                yield b"".join(pieces)
                pieces = []
            continue
        notes.lost["damaged"] += bool(pieces)
        pieces = [data] if kind == _FIRST else []
        if kind == _FULL:
            yield data


def _pieces(path: Path, notes: Notes) -> Iterator[tuple[int, bytes]]:
    """Pieces with their kind; one of kind 0 where something is missing, and at the end."""
    with open(path, "rb") as file:
        offset = 0
        while block := file.read(BLOCK):
            at = HEAD if offset == 0 else 0
            while len(block) - at >= _PIECE.size:
                checksum, size, kind = _PIECE.unpack_from(block, at)
                data = block[at + _PIECE.size : at + _PIECE.size + size]
                if len(data) < size or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                    break
                at += _PIECE.size + size
                yield kind, data
            # What is left is too short for a piece: padding of zeros in a whole block.
            if at < len(block) < BLOCK or len(block) - at >= _PIECE.size:
                notes.lost["bytes"] += len(block) - at
                yield 0, b""
            offset += len(block)
    yield 0, b""
