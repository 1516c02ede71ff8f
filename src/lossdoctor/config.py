"""Settings: frozen dataclasses, read from and written to TOML, changed by dotted keys.

A field is a bool, int, float, str, `Literal[...]`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, another dataclass,
or one of these `| None`. TOML has no null: None is written by leaving the key out, so an optional field has None as its
default.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from lossdoctor.errors import UsageError, mismatch

C = TypeVar("C")


def load(cls: type[C], path: str | Path) -> C:
    """Read a TOML file into the dataclass `cls`; keys that are not there keep their defaults.

    Raises UsageError when the file cannot be read, is not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise UsageError(mismatch(f"cannot read {path}", "a TOML file", reason, "check the path")) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(mismatch(f"{path} is not TOML", "TOML", str(error), "see https://toml.io")) from error
    return build(cls, tables)


def build(cls: type[C], tables: Mapping[str, Any]) -> C:
    """The dataclass `cls` from nested mappings. Raises UsageError as `load` does."""
    built: C = _dataclass(cls, tables, "")
    return built


def override(cfg: C, changes: Mapping[str, Any]) -> C:
    """A copy of `cfg` with some fields changed, named by dotted keys: `{"train.steps": 100}`.

    Raises UsageError for an unknown key or a value of the wrong type.
    """
    for name, value in changes.items():
        cfg = _replaced(cfg, name.split("."), value, name)
    return cfg


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Texts such as "train.steps=100" as changes for `override`: the value is TOML, or else the text itself.

    Raises UsageError for a text without "=".
    """
    changes: dict[str, Any] = {}
    for given in texts:
        name, equals, value = given.partition("=")
        if not equals or not name.strip():
            raise UsageError(
                mismatch("not an assignment", "key=value", repr(given), "write it like train.steps=100, without spaces")
            )
        changes[name.strip()] = _value(value.strip())
    return changes


def dump(cfg: object) -> str:
    """The dataclass as TOML, which `load` reads back to an equal one."""
    return "\n".join(_lines(_plain(cfg), ())).strip() + "\n"


# From TOML to dataclasses


def _dataclass(cls: Any, tables: Any, where: str) -> Any:
    if not isinstance(tables, Mapping):
        raise _wrong_type(where, f"a table of {', '.join(_names(cls))}", tables)
    hints = typing.get_type_hints(cls)
    for name in tables:
        if name not in _names(cls):
            raise _unknown_key(cls, name, where)
    return cls(**{name: _checked(hints[name], value, _join(where, name)) for name, value in tables.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    """The value as the type says it; an int is welcome where a float is asked for, nothing else is converted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if type(value) is hint else _dataclass(hint, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(next(option for option in arguments if option is not type(None)), value, where)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise _wrong_type(where, " | ".join(map(repr, arguments)), value)
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise _wrong_type(where, f"{len(kinds)} values", value)
        return tuple(
            _checked(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, Mapping):
        return {name: _checked(arguments[1], item, _join(where, name)) for name, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong_type(where, _type_name(hint), value)
    return value


def _replaced(cfg: Any, path: list[str], value: Any, full: str) -> Any:
    name, *rest = path
    where = full.removesuffix(".".join(path)).removesuffix(".")
    if isinstance(cfg, Mapping):
        return {**cfg, ".".join(path): value}
    if not dataclasses.is_dataclass(cfg):
        raise UsageError(
            mismatch(f"{where} has no parts", "a key of a table", full, f"set {where} itself: {where}=value")
        )
    if name not in _names(cfg):
        raise _unknown_key(type(cfg), name, where)
    if rest:
        value = _replaced(getattr(cfg, name), rest, value, full)
    checked = _checked(typing.get_type_hints(type(cfg))[name], value, full)
    return dataclasses.replace(cfg, **{name: checked})  # type: ignore[type-var]


def _value(written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written


# From dataclasses to TOML


def _plain(cfg: Any) -> dict[str, Any]:
    return {name: getattr(cfg, name) for name in _names(cfg)}


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """The scalars of a table first, then the tables inside it: after a header everything belongs to that header."""
    inner = {name: _plain(v) if dataclasses.is_dataclass(v) else v for name, v in table.items()}
    tables = {name: value for name, value in inner.items() if isinstance(value, Mapping)}
    scalars = {name: value for name, value in inner.items() if name not in tables and value is not None}
    lines = [f"{_key(name)} = {_written(value)}" for name, value in scalars.items()]
    for name, value in tables.items():
        lines += ["", f"[{'.'.join(map(_key, (*path, name)))}]", *_lines(value, (*path, name))]
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _written(name)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON escapes are TOML escapes; TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    raise UsageError(
        mismatch(
            "this cannot be written as TOML",
            "bool, int, float, str, tuple",
            repr(value),
            "use one of these in the field",
        )
    )


# What goes wrong


def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if field.init)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def _unknown_key(cls: Any, name: str, where: str) -> UsageError:
    near = difflib.get_close_matches(name, _names(cls), n=3)
    todo = f"did you mean {' or '.join(_join(where, n) for n in near)}?" if near else "take one of these"
    return UsageError(
        mismatch(
            f"unknown key {_join(where, name)!r}",
            f"a key of {where or 'the file'}: {', '.join(_names(cls))}",
            name,
            todo,
        )
    )


def _wrong_type(where: str, expected: str, value: Any) -> UsageError:
    got = f"{value!r} ({type(value).__name__})"
    return UsageError(mismatch(f"{where or 'the file'} has the wrong type", expected, got, f"correct {where}"))
