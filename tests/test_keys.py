from __future__ import annotations

import math

import pytest

from lossdoctor.keys import FAMILIES, KEYS, Key, describe
from lossdoctor.messages import languages, text

PATTERNS = [key.pattern for key in KEYS]
NAMES = ("flow", "kl z0", "teacher", "loss.λ", "a", "0")
"""Fillings of `<...>`; none is a word that a pattern spells out, such as "total"."""


def filled(pattern: str, name: str, number: int) -> str:
    for hole in ("<loss>", "<head>", "<module>", "<a>", "<b>", "<input>"):
        pattern = pattern.replace(hole, name)
    return pattern.replace("{0..9}", str(number)).replace("@K", f"@{2**number}")


def known(name: str) -> Key:
    key = describe(name)
    assert key is not None
    return key


def holes(name: str) -> dict[str, str] | None:
    return known(name).match(name)


def test_patterns_are_unique() -> None:
    assert len(set(PATTERNS)) == len(PATTERNS)


@pytest.mark.parametrize("key", KEYS, ids=PATTERNS)
def test_every_name_of_a_pattern_finds_it_and_no_other(key: Key) -> None:
    for name in NAMES:
        for number in (0, 9):
            concrete = filled(key.pattern, name, number)
            assert describe(concrete) is key
            rivals = [other.pattern for other in KEYS if other is not key and other.match(concrete) is not None]
            # Only a name spelled out in full may also fit an open pattern: it goes first.
            assert not rivals or not key.open, rivals


@pytest.mark.parametrize("key", KEYS, ids=PATTERNS)
def test_ranges_and_families_make_sense(key: Key) -> None:
    assert key.lower < key.upper
    assert key.family in FAMILIES
    assert key.better in ("up", "down", "none")
    if key.better == "down":
        assert key.lower == 0.0, "a smaller value is only better above a floor"


def test_holes_tell_what_fills_them() -> None:
    assert holes("grad_module/kl/z_head.mu") == {"loss": "kl", "module": "z_head.mu"}
    assert holes("grad_cos/dino|flow") == {"a": "dino", "b": "flow"}
    assert holes("flow/nmse_t7") == {"tenth": "7"}
    assert holes("flow/endpt_rmse@64") == {"K": "64"}
    assert holes("flow/cos") == {}


@pytest.mark.parametrize(
    "name", ["", "accuracy", "flow/nmse_t10", "flow/endpt_rmse@", "grad/", "flow/cos ", "step/z_head"]
)
def test_foreign_names_are_not_described(name: str) -> None:
    assert describe(name) is None


def test_names_spelled_out_go_before_open_patterns() -> None:
    assert known("grad/total").pattern == "grad/total"
    assert known("grad/clip_ratio").pattern == "grad/clip_ratio"
    assert known("loss/total").pattern == "loss/total"


@pytest.mark.parametrize("lang", languages())
@pytest.mark.parametrize("key", KEYS, ids=PATTERNS)
def test_every_key_has_one_line_in_every_language(key: Key, lang: str) -> None:
    line = text(f"metric.{key.pattern}", lang)
    assert line.strip() == line
    assert line
    assert "\n" not in line
    assert len(line) <= 100


def test_infinite_means_unbounded() -> None:
    assert describe("logvar/mean") == Key("logvar/mean", "posterior", headline=True, lower=-math.inf, upper=math.inf)
