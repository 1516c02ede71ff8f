"""What users read, in their language: a folder of JSON catalogues per language, filled in as `str.format` does.

Every language has the same files, and every file the same keys: metrics, the report, one file per family of rules. Only
the page of a rule, `rule.<code>.page`, is missing in English: there it is the docstring of the rule.
Texts of plugins are added behind ours; a language they lack falls back to their English.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from importlib import resources

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages.numbers import Formatter

_LANGUAGES = ("en", "zh-CN")
_FORMATTER = Formatter()
_ADDED: dict[str, dict[str, str]] = {lang: {} for lang in _LANGUAGES}


def languages() -> tuple[str, ...]:
    """The languages there is a catalogue for; the first is the default."""
    return _LANGUAGES


def text(key: str, lang: str = "en", **params: object) -> str:
    """The message `key` in a language, with its {placeholders} filled in; a `g` in them is that of `numbers`.

    Raises UsageError for an unknown language, KeyError for a message or a placeholder that is missing: a mistake in the
    program, which the tests look for.
    """
    own = _catalogue(lang)
    catalogue = next((one for one in (own, _ADDED[lang], _ADDED["en"]) if key in one), None)
    if catalogue is None:
        raise KeyError(f"no message {key!r}; add it to a file of messages/{lang}/ and to the other languages")
    try:
        return _FORMATTER.vformat(catalogue[key], (), params)
    except KeyError as missing:
        raise KeyError(f"message {key!r} needs the parameter {missing}, and got {sorted(params)}") from missing


def has(key: str, lang: str) -> bool:
    """Whether the message is there in this very language."""
    return key in _catalogue(lang) or key in _ADDED[lang]


def add(lang: str, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Add texts of a plugin. Returns the keys that are taken by other words, which stay as they are."""
    taken = []
    for key, message in texts.items():
        if key in _catalogue(lang) or _ADDED[lang].setdefault(key, message) != message:
            taken.append(key)
    return tuple(taken)


def keys(lang: str = "en") -> tuple[str, ...]:
    """All message keys of a language, in the order of its catalogue, without those of plugins."""
    return tuple(_catalogue(lang))


def default_language() -> str:
    """The language of the locale: the first of LC_ALL, LC_MESSAGES and LANG that is set, as POSIX has it."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return "zh-CN" if locale.lower().startswith("zh") else "en"


@functools.cache
def _catalogue(lang: str) -> dict[str, str]:
    if lang not in _LANGUAGES:
        raise UsageError(
            mismatch("unknown language", " | ".join(_LANGUAGES), repr(lang), f"choose one, such as {_LANGUAGES[0]!r}")
        )
    catalogue: dict[str, str] = {}
    for file in sorted(resources.files(__name__).joinpath(lang).iterdir(), key=lambda file: file.name):
        catalogue |= json.loads(file.read_text(encoding="utf-8"))
    return catalogue
