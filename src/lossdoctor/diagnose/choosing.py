"""Which rules are asked, and with which thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.rules import Rule, every_rule


def configured(
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Rule, ...]:
    """The rules to ask. select, ignore: codes, or beginnings of codes such as "VEL". settings: code to field to value.

    Raises UsageError for a code that begins no rule, a field the rule does not have, or a value of another type.
    """
    rules = every_rule()
    for given in (*select, *ignore, *(settings or {})):
        if not any(_means(given, rule) for rule in rules):
            known = ", ".join(sorted({rule.code[:3] for rule in rules}))
            raise UsageError(
                mismatch(
                    "There is no such rule.",
                    f"a code such as GRD101, or its beginning: {known}",
                    given,
                    "list the rules with: lossdoctor explain",
                )
            )
    asked = [rule for rule in rules if not select or any(_means(code, rule) for code in select)]
    asked = [rule for rule in asked if not any(_means(code, rule) for code in ignore)]
    return tuple(_with_settings(rule, (settings or {}).get(rule.code, {})) for rule in asked)


def _means(code: str, rule: type[Rule]) -> bool:
    return bool(code) and (rule.code.startswith(code.upper()) or rule.name == code)


def _with_settings(rule: type[Rule], settings: Mapping[str, Any]) -> Rule:
    known = rule.thresholds()
    values = {}
    for field, value in settings.items():
        if field not in known:
            names = ", ".join(known) or "none"
            raise UsageError(
                mismatch(
                    f"{rule.code} has no such setting.",
                    f"one of: {names}",
                    field,
                    f"see lossdoctor explain {rule.code}",
                )
            )
        try:
            values[field] = type(known[field])(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                mismatch(f"{rule.code}.{field} is a number.", type(known[field]).__name__, repr(value), "give a number")
            ) from error
    return rule(**values)
