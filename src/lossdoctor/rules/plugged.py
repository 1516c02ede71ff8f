"""Rules of other packages: the entry points `lossdoctor.rules`, and the texts of `lossdoctor.messages`.

The name of an entry point is the code of its rule, so that a rule that cannot be loaded still has a place among the
skipped ones. Whatever is wrong with a package, every other rule is asked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import threading
from importlib import resources
from typing import Any, ClassVar, get_args

from lossdoctor import messages
from lossdoctor.errors import PluginError
from lossdoctor.plugins import Plugged, plugged, told_of, wanted
from lossdoctor.rules.finding import DEPTHS, SEVERITIES, Outcome, Skipped, say
from lossdoctor.rules.rule import Rule, Status
from lossdoctor.rules.view import RunView

_CODE = re.compile(r"[A-Z]{3}[0-9]{3}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_loading = threading.RLock()


class NotLoaded(Rule):
    """Stands where a rule of another package would be: always skipped, with the reason."""

    package: ClassVar[str]
    error: ClassVar[str]

    def check(self, run: RunView) -> Outcome:
        """Why there is no answer."""
        return Skipped(
            say("skip.plugin", package=self.package, error=self.error), say("enable.plugin", package=self.package)
        )


def added(own: tuple[type[Rule], ...]) -> tuple[type[Rule], ...]:
    """The rules of other packages, sorted by code. own: ours, whose codes, families and names are taken.

    The first call in a process imports them, and warns once per package of what cannot be used.
    """
    with _loading:
        return _added(own) if wanted() else ()


def origin(rule: type[Rule]) -> str | None:
    """The package a rule comes from, with its version; None for ours."""
    return _ORIGINS.get(rule.code)


_ORIGINS: dict[str, str] = {}


@functools.cache
def _added(own: tuple[type[Rule], ...]) -> tuple[type[Rule], ...]:
    found: dict[str, type[Rule]] = {}
    troubles: dict[str, list[PluginError]] = {}
    for texts in plugged("lossdoctor.messages"):
        try:
            _add_texts(texts)
        except PluginError as error:
            troubles.setdefault(texts.package, []).append(error)
    for one in plugged("lossdoctor.rules"):
        try:
            _check_code(one, own, found)
            found[one.name] = _loaded(one, (*own, *found.values()))
        except PluginError as error:
            troubles.setdefault(one.package, []).append(error)
            if not _CODE.fullmatch(one.name) or one.name in found or _ours(one.name, own):
                continue  # no code of its own to be skipped under: the warning has to do
            found[one.name] = _stand_in(one, error)
        _ORIGINS[one.name] = f"{one.package} {one.version}"
    told_of(troubles)
    return tuple(rule for _, rule in sorted(found.items()))


def _ours(code: str, own: tuple[type[Rule], ...]) -> bool:
    return code[:3] in {rule.code[:3] for rule in own}


def _check_code(one: Plugged, own: tuple[type[Rule], ...], found: dict[str, type[Rule]]) -> None:
    if not _CODE.fullmatch(one.name):
        raise one.unusable("an entry point named by the code of its rule, such as LAB001", one.name)
    if _ours(one.name, own):
        families = ", ".join(sorted({rule.code[:3] for rule in own}))
        raise one.unusable(f"a code that does not begin as the rules of lossdoctor do: {families}", one.name)
    if one.name in found:
        raise one.unusable("a code that no other plugin has", f"{one.name}, which is of {_ORIGINS[one.name]}")


def _loaded(one: Plugged, others: tuple[type[Rule], ...]) -> type[Rule]:
    """The rule, when it can be asked, listed and explained. Raises PluginError."""
    rule = one.load()
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise one.unusable("a class derived from lossdoctor.rules.Rule", repr(rule))
    try:
        needed: list[tuple[str, bool, object]] = [
            ("the code of its entry point", getattr(rule, "code", None) == one.name, getattr(rule, "code", "no code")),
            ("a name such as flat-loss", _NAME.fullmatch(getattr(rule, "name", "")) is not None, "another name"),
            ("a name no other rule has", rule.name not in {other.name for other in others}, rule.name),
            ("a docstring, its page", bool(inspect.cleandoc(rule.page())), "none"),
            (f"a severity of {SEVERITIES}", rule.severity in SEVERITIES, rule.severity),
            (f"a depth of {DEPTHS}", rule.depth in DEPTHS, rule.depth),
            (f"a status of {get_args(Status)}", rule.status in get_args(Status), rule.status),
            ("needs: a tuple of names", _names(rule.needs), rule.needs),
            ("explains: a tuple of codes", _names(rule.explains), rule.explains),
            ("thresholds that are numbers", _numbers(rule.thresholds().values()), rule.thresholds()),
        ]
        rule()
        for lang in messages.languages():
            if messages.has(f"rule.{rule.code}.page", lang):
                messages.text(f"rule.{rule.code}.page", lang)
    except (Exception, SystemExit) as error:
        raise one.unusable("a rule that can be made without arguments and explained", error) from error
    for expected, holds, got in needed:
        if not holds:
            raise one.unusable(expected, got)
    return rule


def _names(given: Any) -> bool:
    return isinstance(given, tuple) and all(isinstance(name, str) for name in given)


def _numbers(given: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in given)


def _stand_in(one: Plugged, error: PluginError) -> type[Rule]:
    reason = " ".join(str(error).split())
    known = {"code": one.name, "name": "plugin-not-loaded", "status": "preview", "since": one.version}
    told = {"package": one.package, "error": reason, "__doc__": f"Not loaded: {reason}"}
    return type("NotLoaded", (NotLoaded,), {**known, **told, "__module__": __name__})


def _add_texts(one: Plugged) -> None:
    """`en.json`, `zh-CN.json` of the package the entry point names; another language than English may be missing."""
    try:
        folder = resources.files(importlib.import_module(one.entry.value))
        for lang in messages.languages():
            file = folder.joinpath(f"{lang}.json")
            if lang != "en" and not file.is_file():
                continue
            texts = json.loads(file.read_text(encoding="utf-8"))
            if not all(isinstance(text, str) for text in texts.values()):
                raise TypeError(f"{lang}.json is not an object of texts")
            if taken := messages.add(lang, texts):
                raise ValueError(f"keys that are taken, in {lang}.json: {', '.join(taken)}")
    except (Exception, SystemExit) as error:
        raise one.unusable("a package with en.json, and zh-CN.json if there is one: objects of texts", error) from error
