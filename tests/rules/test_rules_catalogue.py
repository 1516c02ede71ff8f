"""The catalogue of rules against the folder, the vocabulary and the message catalogues."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from lossdoctor import rules
from lossdoctor.keys import KEYS
from lossdoctor.messages import keys, text
from lossdoctor.rules import RULES, Rule
from lossdoctor.rules.causes import CAUSES
from lossdoctor.rules.rule import HEADINGS

FOLDER = Path(rules.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if re.match(r"[a-z]{3}\d{3}_", path.name))
PATTERNS = {key.pattern for key in KEYS}
AUDITS = {"optimizers", "heads", "weight_decay", "teacher", "ema", "modes", "dtypes", "autocast", "accumulation"}
CHINESE_HEADINGS = ("症状", "原因", "证据", "修复", "何时忽略", "确认")

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


def test_the_catalogue_is_the_folder() -> None:
    listed = [f"{rule.code.lower()}_{rule.name.replace('-', '_')}" for rule in RULES]
    assert listed == sorted(listed)
    assert [path.stem for path in FILES] == listed, "one file per rule, one entry in RULES of rules/__init__.py"


def test_codes_and_names_are_given_once() -> None:
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)


def test_the_contract_is_kept() -> None:
    """Every rule of the contract exists: codes are for ever."""
    expected = {
        "GRD": range(101, 109),
        "DST": range(201, 210),
        "PST": range(301, 310),
        "VEL": range(401, 412),
        "SMP": range(501, 507),
        "CND": range(601, 603),
        "OPT": range(701, 708),
        "BAL": range(801, 802),
        "NUM": range(901, 904),
        "RNK": range(1, 4),
        "RUN": range(1, 4),
    }
    assert {f"{family}{n:03}" for family, numbers in expected.items() for n in numbers} <= {rule.code for rule in RULES}


@each_rule
def test_the_page_is_whole(rule: type[Rule]) -> None:
    page = inspect.cleandoc(rule.page())
    first, *rest = page.splitlines()
    assert first.endswith(".")
    assert rest[0] == ""
    starts = [line.partition(":")[0] for line in rest if line.partition(":")[0] in HEADINGS]
    assert tuple(starts) == HEADINGS
    chinese = text(f"rule.{rule.code}.page", "zh-CN")
    found = [heading for line in chinese.splitlines() for heading in CHINESE_HEADINGS if line.startswith(heading)]
    assert tuple(found) == CHINESE_HEADINGS


@each_rule
def test_it_says_what_it_needs_in_known_words(rule: type[Rule]) -> None:
    for need in rule.needs:
        for one in need.split(" or "):
            if one.startswith("audit"):
                assert one == "audit" or one.removeprefix("audit:") in AUDITS
            elif not one.startswith("eval/"):
                assert one in PATTERNS, f"{one} is no pattern of keys.KEYS"


@each_rule
def test_it_explains_rules_that_exist(rule: type[Rule]) -> None:
    codes = {other.code for other in RULES}
    for one in rule.explains:
        assert one in codes or one in {code[:3] for code in codes}
    assert rule.code not in rule.explains


@each_rule
def test_thresholds_are_numbers_with_a_source(rule: type[Rule]) -> None:
    source = Path(inspect.getfile(rule)).read_text(encoding="utf-8")
    for name, default in rule.thresholds().items():
        assert isinstance(default, (int, float))
        line = next(line for line in source.splitlines() if re.match(rf"\s+{name}: (int|float|bool) = ", line))
        below = source.split(line)[1].lstrip().startswith('"""')
        assert "#" in line or below, f"{rule.code}.{name}: say where the number comes from"


def test_every_cause_has_a_sentence_and_a_rule() -> None:
    told = {key.removeprefix("cause.") for key in keys("en") if key.startswith("cause.")}
    assert told == set(CAUSES)
    named = {key.removeprefix("cause_of.") for key in keys("en") if key.startswith("cause_of.")}
    assert named - {"the_others"} <= set(CAUSES)
    assert len(set(CAUSES)) == len(CAUSES)
    sources = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py") if path.name != "causes.py")
    assert [cause for cause in CAUSES if f'"{cause}"' not in sources] == [], "causes that no rule names"


def test_every_message_said_is_in_the_catalogue() -> None:
    """`say(key)`, `edit(what)` and `Cause(code)` with a literal name something that is there."""
    known = set(keys("en"))
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="say"), args=[ast.Constant(value=str(key)), *_]):
                    assert key in known, f"{path.name}: {key}"
                case ast.Call(func=ast.Name(id="edit"), args=[ast.Constant(value=str(what)), *_]):
                    assert f"fix.{what}" in known, f"{path.name}: fix.{what}"
                case ast.Call(func=ast.Name(id="Cause"), args=[ast.Constant(value=str(code)), *_]):
                    assert code in CAUSES, f"{path.name}: {code}"


def test_the_faults_of_the_clinic_name_what_exists() -> None:
    from lossdoctor.clinic.faults import FAULTS

    codes = {rule.code for rule in RULES}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert set(fault.rules) <= codes
        assert set(fault.causes) <= set(CAUSES)
        assert f"fault.{fault.name}" in keys("en")
