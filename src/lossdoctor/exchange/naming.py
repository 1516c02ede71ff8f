"""From the names in a log to those of lossdoctor: as the user maps them, and where she does not, by obvious guesses.

A guess is made only for a name that can mean one thing, and only while no other metric claims the same name. Every one
is told, with the way to refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange.source import listed
from lossdoctor.keys import describe
from lossdoctor.kinds import guess_kind

_TRAINING = re.compile(r"(?:train|training)[/_.]", re.IGNORECASE)
"""Prefixes of what is measured while training. Values of a validation are other metrics."""
_TOTAL = {"loss", "total_loss", "loss_total", "loss/train", "losses/total"}
_ONE = (re.compile(r"loss(?:es)?[/_](.+)"), re.compile(r"(.+)[/_]loss"))
_NORM = {"grad_norm", "gradient_norm"}
_OTHER = re.compile(
    r"(?<![a-z])(?:val|valid|validation|test|eval|dev|epoch|avg|mean|std|weight|weights|weighted|coef|coeff|beta|lambda"
    r"|scale|scaled|ratio|grad|norm)(?![a-z])"
)
"""Words that make a name with "loss" in it something else than the value of a loss in training."""
_LIGHTNING = "_step"
"""Lightning adds it to what it also averages over epochs."""
_COUNT = re.compile(r"_(\d+)")


@dataclass(frozen=True)
class Renaming:
    """ours: the new name of every metric that gets one. guessed: those of them that the user did not map.

    undecided: a name of lossdoctor's, and the metrics that could be it. unmatched: patterns of the mapping that no
    metric has.
    """

    ours: Mapping[str, str]
    guessed: Mapping[str, str]
    undecided: Mapping[str, tuple[str, ...]]
    unmatched: tuple[str, ...]


def rename(names: Iterable[str], mapping: Mapping[str, str], *, guess: bool) -> Renaming:
    """Decide the name of each metric. mapping: theirs to ours; `*` on both sides stands for the same text.

    A name spelled out goes before a pattern, and of patterns the first. Raises UsageError when two metrics would get
    one name, or a pattern cannot be.
    """
    names = tuple(dict.fromkeys(names))
    _check(mapping)
    mapped = {name: ours for name in names if (ours := _mapped(name, mapping)) is not None}
    _check_apart(names, mapped)
    used = {theirs for theirs in mapping if any(_matches(theirs, name) is not None for name in names)}
    guessed, undecided = _guesses(names, mapped) if guess else ({}, {})
    return Renaming(
        {name: ours for name, ours in (mapped | guessed).items() if name != ours},
        guessed,
        undecided,
        tuple(theirs for theirs in mapping if theirs not in used),
    )


def obvious(name: str) -> str | None:
    """The name lossdoctor has for a metric called this elsewhere; None unless there is no doubt."""
    if describe(name) is not None and name != "loss/train":
        return None
    plain = _TRAINING.sub("", name, count=1) if _TRAINING.match(name) else name
    plain = plain.lower().removesuffix(_LIGHTNING)
    if plain in _TOTAL:
        return "loss/total"
    if plain in _NORM:
        return "grad/total"
    if plain == "kl" == name.lower():
        return "loss/kl"
    for pattern in _ONE:
        found = pattern.fullmatch(plain)
        if found and not _OTHER.search(found[1]) and guess_kind(found[1]) != "other":
            return f"loss/{found[1]}"
    # A tag of TensorBoard's has no "@": flow/endpt_rmse@8 comes back as flow/endpt_rmse_8.
    steps = _COUNT.sub(r"@\1", name)
    return steps if steps != name and describe(steps) is not None else None


def _guesses(names: tuple[str, ...], mapped: Mapping[str, str]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    claims: dict[str, list[str]] = {}
    for name in names:
        if name not in mapped and (ours := obvious(name)) is not None:
            claims.setdefault(ours, []).append(name)
    taken = {mapped.get(name, name) for name in names}
    guessed = {theirs[0]: ours for ours, theirs in claims.items() if len(theirs) == 1 and ours not in taken}
    undecided = {ours: tuple(theirs) for ours, theirs in claims.items() if len(theirs) > 1 and ours not in taken}
    return guessed, undecided


def _mapped(name: str, mapping: Mapping[str, str]) -> str | None:
    if name in mapping:
        return mapping[name]
    for theirs, ours in mapping.items():
        filling = _matches(theirs, name)
        if filling is not None:
            return ours.replace("*", filling)
    return None


def _matches(theirs: str, name: str) -> str | None:
    """What the `*` of a pattern stands for in a name; None when the name is another."""
    before, star, after = theirs.partition("*")
    if not star or name == theirs:
        return "" if name == theirs else None
    long_enough = len(name) >= len(before) + len(after)
    if not (long_enough and name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]


def _check(mapping: Mapping[str, str]) -> None:
    for theirs, ours in mapping.items():
        if theirs.count("*") > 1 or ours.count("*") > theirs.count("*"):
            raise UsageError(
                mismatch(
                    "A pattern has one star, and its new name at most one.",
                    "a mapping such as train/*=*",
                    f"{theirs}={ours}",
                    "write one mapping for each part of the names",
                )
            )
        if not ours:
            raise UsageError(
                mismatch("A metric needs a name.", "THEIRS=OURS", f"{theirs}=", "say what it is called here")
            )


def _check_apart(names: tuple[str, ...], mapped: Mapping[str, str]) -> None:
    """Two curves under one name would be a curve that nobody measured."""
    owner: dict[str, str] = {}
    for name in names:
        ours = mapped.get(name, name)
        if ours in owner:
            raise UsageError(
                mismatch(
                    "Two metrics would get the same name.",
                    "a name of its own for every metric",
                    f"{listed([owner[ours], name])}, both to be {ours!r}",
                    "map one of them to another name",
                )
            )
        owner[ours] = name
