"""Anything as strict JSON: other programs read these files, and a strange value must not lose a whole event."""

from __future__ import annotations

import json
from typing import Any


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as JSON would give them back.

    NaN and infinity become the strings "NaN", "Infinity" and "-Infinity", for strict JSON has no numbers for them.
    Arrays and tensors become lists, any other stranger its `repr`. Of keys that are the same as text the last counts.
    """
    try:
        result: dict[str, Any] = json.loads(json.dumps(fields, default=_stranger), parse_constant=str)
        return result
    except Exception:
        # A cycle, a key that is no text, a broken __repr__: keep what can be kept, field by field.
        return {str(name): _alone(value) for name, value in fields.items()}


def dumps(value: dict[str, Any], indent: int | None = None) -> str:
    """Text of a plain object, pure ASCII: line separators and lone surrogates cannot break a line or an encoder."""
    return json.dumps(value, allow_nan=False, indent=indent)


def _alone(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=_stranger), parse_constant=str)
    except Exception:
        return _shown(value)


def _stranger(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return _shown(value)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} without a repr: {type(error).__name__}>"
