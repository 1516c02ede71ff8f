"""The loop over the rules: who is asked, what survives, what leads, and that nothing a run holds can break it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from lossdoctor.diagnose import SCHEMA, Diagnosis, configured, diagnose
from lossdoctor.errors import UsageError
from lossdoctor.record import Record
from lossdoctor.rules import RULES, Cause, Clear, Evidence, Fired, Outcome, Rule, RunView, Skipped
from lossdoctor.rules.finding import Message, say
from lossdoctor.rules.fixes import scale_weight
from lossdoctor.rules.strengths import too_small
from lossdoctor.store import MemoryWriter, Run

SCHEMA_FILE = Path(__file__).parents[1] / "docs" / "schemas" / "diagnosis.schema.json"


def run(steps: int = 40, **values: float) -> Run:
    writer = MemoryWriter({"kinds": {"kl": "kl", "flow": "velocity"}})
    values = {"loss/kl": 1.0, "loss/flow": 1.0, **values}
    writer.append([Record(step, values, full=True) for step in range(steps)])
    return writer.run()


def rule(code: str, outcome: Outcome | Exception, **attributes: object) -> Rule:
    """A rule of this code with a fixed answer."""

    @dataclass(frozen=True)
    class Fixed(Rule):
        """Fixed."""

        def check(self, run: RunView) -> Outcome:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    return type(f"Rule{code}", (Fixed,), {"code": code, "name": f"name-{code.lower()}", **attributes})()


def firing(
    code: str,
    *,
    loss: str | None = None,
    p: float | None = None,
    cause: str | Cause = "",
    **attributes: object,
) -> Rule:
    base = rule(code, Clear(), **attributes)
    causes = [Cause(cause) if isinstance(cause, str) else cause] if cause else []
    finding = base.finding(say("skip.missing", metrics="x"), loss=loss, p=p, causes=causes)
    return rule(code, Fired((finding,)), **attributes)


def codes(diagnosis: Diagnosis) -> list[list[str]]:
    return [[finding.code for finding in group] for group in diagnosis.groups]


def test_every_rule_is_in_exactly_one_list() -> None:
    asked = [
        firing("AAA101"),
        rule("AAA102", Clear()),
        rule("AAA103", Clear(), needs=("grad/total",)),
        rule("AAA104", Clear(), kind="distill"),
        rule("AAA105", ValueError("mean of nothing")),
    ]
    told = diagnose(run(), rules=asked)
    assert codes(told) == [["AAA101"]]
    assert told.clear == ("AAA102",)
    assert [code for code, _ in told.skipped] == ["AAA103", "AAA104", "AAA105"]
    reasons = [str(skipped.reason) for _, skipped in told.skipped]
    assert "grad/total" in reasons[0]
    assert "distill" in reasons[1]
    assert "mean of nothing" in reasons[2]
    assert told.skipped[0][1].enable == Message("absent.gradients.todo")


def reason(told: Diagnosis) -> tuple[str, str | None]:
    (skipped,) = (skipped for _, skipped in told.skipped)
    return skipped.reason.key, skipped.enable.key if skipped.enable else None


def test_what_a_run_lacks_because_nothing_is_missing_is_told_as_such() -> None:
    beside = rule("AAA101", Clear(), needs=("grad/clip_ratio",), beside_the_point=lambda self, run: say("skip.no_clip"))
    assert reason(diagnose(run(), rules=[beside])) == ("skip.no_clip", None)
    teachers = rule("AAA101", Clear(), needs=("teacher/distance or audit:teacher",))
    assert reason(diagnose(run(), rules=[teachers])) == ("skip.kind", "enable.kind")
    there = diagnose(run(**{"loss/dino": 1.0}), rules=[teachers])
    assert reason(there) == ("skip.missing", "absent.teacher.todo")


def test_the_length_of_a_run_is_that_of_its_training() -> None:
    """End points are measured once more after the last step."""
    writer = MemoryWriter({})
    writer.append([Record(step, {"loss/flow": 1.0}, full=True) for step in range(10)])
    writer.append([Record(10, {"flow/endpt_rmse@8": 1.0})])
    assert diagnose(writer.run()).steps == 10


def test_needs_are_patterns_alternatives_and_audits() -> None:
    there = run(**{"grad/kl": 1.0})
    asked = [
        rule("AAA101", Clear(), needs=("grad/<loss>",)),
        rule("AAA102", Clear(), needs=("flow/nmse or grad/<loss>",)),
        rule("AAA103", Clear(), needs=("audit:teacher",)),
    ]
    assert diagnose(there, rules=asked).clear == ("AAA101", "AAA102")


def test_findings_that_could_be_chance_are_withdrawn() -> None:
    many = [rule(f"AAA{n}", Clear(p=(0.5,))) for n in range(101, 200)]
    told = diagnose(run(), rules=[firing("BBB101", p=0.01), firing("BBB102", p=1e-6), firing("BBB103"), *many])
    assert codes(told) == [["BBB102"], ["BBB103"]]
    assert "BBB101" in told.clear
    alone = diagnose(run(), rules=[firing("BBB101", p=0.01)])
    assert codes(alone) == [["BBB101"]]


@pytest.mark.parametrize("loss", ["kl", None])
def test_what_follows_stands_under_its_root(loss: str | None) -> None:
    root = firing("AAA109", loss=loss, depth="root", explains=("AAA102", "BBB"))
    followers = [
        firing("AAA102", loss="kl", severity="error"),
        firing("BBB101", explains=("CCC101",)),
        firing("CCC101"),
    ]
    other = firing("AAA103", loss="flow", severity="info")
    told = diagnose(run(), rules=[*followers, root, other])
    assert codes(told) == [["AAA109", "AAA102", "BBB101", "CCC101"], ["AAA103"]]
    assert [finding.explained_by for finding in told.findings] == [None, "AAA109", "AAA109", "AAA109", None]


def test_a_group_is_as_bad_as_its_worst_finding() -> None:
    asked = [
        firing("AAA101", severity="warning", depth="root"),
        firing("AAA103", severity="warning", explains=("AAA104",)),
        firing("AAA104", severity="error"),
    ]
    assert codes(diagnose(run(), rules=asked)) == [["AAA103", "AAA104"], ["AAA101"]]


def test_another_loss_explains_nothing() -> None:
    told = diagnose(run(), rules=[firing("AAA101", loss="kl", explains=("AAA102",)), firing("AAA102", loss="flow")])
    assert codes(told) == [["AAA101"], ["AAA102"]]


def test_the_same_first_cause_makes_a_group_and_rings_do_not_hang() -> None:
    same = [firing("AAA102", cause="detached-branch", depth="consequence"), firing("AAA101", cause="detached-branch")]
    assert codes(diagnose(run(), rules=same)) == [["AAA101", "AAA102"]]
    ring = [firing(f"AAA10{n}", explains=(f"AAA10{n % 3 + 1}",)) for n in (1, 2, 3)]
    assert sorted(code for group in codes(diagnose(run(), rules=ring)) for code in group) == [
        "AAA101",
        "AAA102",
        "AAA103",
    ]


def test_a_weight_of_another_loss_is_another_root() -> None:
    asked = [firing(f"AAA10{n}", cause=too_small(loss, "flow")) for n, loss in enumerate(("kl", "dino", "kl"))]
    assert codes(diagnose(run(), rules=asked)) == [["AAA100", "AAA102"], ["AAA101"]]


def test_order_is_by_severity_then_depth_then_certainty() -> None:
    asked = [
        firing("AAA101", severity="info", depth="root"),
        firing("AAA102", severity="warning", depth="consequence"),
        firing("AAA103", severity="warning", depth="root"),
        firing("AAA104", severity="error", depth="consequence"),
    ]
    assert [group[0] for group in codes(diagnose(run(), rules=asked))] == ["AAA104", "AAA103", "AAA102", "AAA101"]


def full_diagnosis() -> Diagnosis:
    base = rule("AAA101", Clear())
    finding = base.finding(
        say("skip.missing", metrics="x"),
        evidence=[Evidence("loss/kl", math.nan, 0.1, 3, 9), Evidence("loss/<b>", math.inf)],
        causes=[Cause("detached-branch")],
        fixes=[scale_weight("kl", 2.0)],
        loss="kl",
        subject="head",
        confirm="without:kl",
    )
    asked = [rule("AAA101", Fired((finding,))), rule("AAA102", Skipped(say("skip.preflight")))]
    return diagnose(run(), rules=asked, name="runs/x")


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_json_keeps_to_its_schema(lang: str) -> None:
    from lossdoctor.report.verdict.json import document

    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    told = json.loads(document([full_diagnosis()], lang))
    jsonschema.validate(told, schema)
    assert told["schema"] == SCHEMA
    assert told["findings"][0]["evidence"][0]["value"] == "nan"
    jsonschema.validate(json.loads(document([diagnose(run(0))], lang)), schema)
    assert isinstance(json.loads(document([full_diagnosis(), full_diagnosis()], lang)), list)


def test_choosing_and_setting_rules() -> None:
    assert configured() == tuple(rule() for rule in RULES)
    assert {type(one).code[:3] for one in configured(select=["GRD", "opt701"])} == {"GRD", "OPT"}
    assert "GRD102" not in {type(one).code for one in configured(ignore=["GRD102"])}
    name = next(rule for rule in RULES if rule.thresholds())
    field, default = next(iter(name.thresholds().items()))
    assert getattr(configured(select=[name.code], settings={name.code: {field: default}})[0], field) == default
    for wrong in (
        {"select": ["XYZ"]},
        {"ignore": [""]},
        {"settings": {"XYZ101": {}}},
        {"settings": {name.code: {"x": 1}}},
    ):
        with pytest.raises(UsageError, match="lossdoctor explain"):
            configured(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="number"):
        configured(settings={name.code: {field: "much"}})


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300])
@pytest.mark.parametrize("steps", [0, 1, 2, 11, 12, 40])
def test_no_run_breaks_a_rule(value: float, steps: int) -> None:
    """Every metric there can be, at one hostile value, through every rule."""
    from lossdoctor.keys import KEYS

    names = {key.pattern.replace("{0..9}", "0").replace("@K", "@8") for key in KEYS}
    names |= {name.replace("<loss>", loss) for name in names for loss in ("kl", "flow", "dino")}
    metrics = {
        name.replace("<head>", "head").replace("<module>", "head"): value for name in names if "<loss>" not in name
    }
    told = diagnose(run(steps, **metrics))
    failed = [str(skipped.reason) for _, skipped in told.skipped if skipped.reason.key == "skip.failed"]
    assert failed == []
    for lang in ("en", "zh-CN"):
        told.to_json(lang)
    assert len(told.clear) + len(told.skipped) + len({finding.code for finding in told.findings}) == len(RULES)
