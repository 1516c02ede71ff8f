"""Every form of a diagnosis, as a whole text, and against the schema of its format."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.verdict import DOCUMENTS
from lossdoctor.report.verdict.text import Verdict
from lossdoctor.report.verdict.wording import confirmation
from lossdoctor.rules import RULES
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Skipped, say
from lossdoctor.rules.fixes import ablate, scale_weight, warm_up_weight
from lossdoctor.rules.receipts import treated

SARIF = json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0.json").read_text(encoding="utf-8"))


def finding(code: str = "GRD102", severity: str = "warning", loss: str | None = "dino", **more: object) -> Finding:
    name = next((rule.name for rule in RULES if rule.code == code), "weak-gradient")
    return Finding(
        code=code,
        name=name,
        severity=severity,  # type: ignore[arg-type]
        certainty="suspected",
        depth="mechanism",
        message=Message("cause.weight-too-small"),
        evidence=(
            Evidence("grad_weighted/dino", 0.0031, 0.05, 100, 2450),
            Evidence("grad/total", 1.25),
            Evidence("ent/teacher", 0.5),
        ),
        causes=(Cause("weight-too-small"), Cause("teacher-temperature-low")),
        fixes=(scale_weight("dino", 4.0), warm_up_weight("kl", 500), ablate("without:dino")),
        loss=loss,
        confirm="weight:dino*4",
        **more,  # type: ignore[arg-type]
    )


def diagnosis(*findings: Finding, run: str = "runs/exp1") -> Diagnosis:
    skipped = (
        ("DST201", Skipped(say("skip.kind", kind="distill"), say("enable.kind", kind="distill"))),
        ("SMP505", Skipped(say("skip.preflight"))),
    )
    return Diagnosis(run, 2500, 51, findings, ("NUM901", "VEL401"), skipped)


TREATED = treated(
    [
        {
            "kind": "balance", "step": step, "balancer": "ratio", "before": {"flow": 1.0, "dino": before, "kl": 1.0},
            "after": {"flow": 1.0, "dino": before / 4, "kl": 1.0}, "predicted": {"flow": 1.4, "dino": 0.31},
            "reasons": {"dino": "3 of flow, wanted 0.2 to 0.5"},
            "why": {"dino": {"code": "band", "params": {"ratio": 3.0, "anchor": "flow", "low": 0.2, "high": 0.5}}},
        } if kind == "balance" else {
            "kind": kind, "step": step, "balancer": "ratio", "verdict": "rolled back" if step > 1000 else "kept",
            "losses_before": {"flow": 0.61, "dino": 2.2}, "losses_after": {"flow": 0.55, "dino": 2.31},
            "hurt": ["dino"] if step > 1000 else [],
            "why": {"code": "rolled_back", "params": {"losses": "dino", "worse": 2.0}},
        }
        for kind, step, before in (
            ("balance", 50, 1.0), ("balance_outcome", 250, 0.0), ("balance", 300, 0.25), ("balance_outcome", 500, 0.0),
            ("balance", 550, 0.0625), ("balance_outcome", 750, 0.0), ("balance", 1000, 0.0156),
            ("balance_outcome", 1200, 0.0), ("balance_stopped", 1200, 0.0),
        )
    ]
)  # fmt: skip

CASES = {
    "sick": diagnosis(
        finding(severity="error"),
        finding("BAL801", explained_by="GRD102"),
        finding("OPT701", loss=None, subject="z_head"),
    ),
    "many": diagnosis(*(finding(loss=f"loss{n}") for n in range(6))),
    "clear": diagnosis(),
    "treated": replace(diagnosis(), treated=TREATED),
    "untouched": replace(diagnosis(), treated=treated([], "pcgrad")),
    "nothing": Diagnosis("runs/empty", 0, 0, (), (), (("GRD101", Skipped(say("skip.short", least=12, found=0))),)),
}


def printed(told: Diagnosis, lang: str, *, verbose: bool = False, width: int = 80) -> str:
    page = io.StringIO()
    Console(file=page, width=width, no_color=True, highlight=False).print(Verdict(told, lang, verbose=verbose))
    return page.getvalue()


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_terminal(case: str, verbose: bool, lang: str, snapshot: SnapshotAssertion) -> None:
    told = printed(CASES[case], lang, verbose=verbose)
    assert told == snapshot
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("case", CASES)
def test_by_default_it_fits_on_a_screen(case: str) -> None:
    assert len(printed(CASES[case], "en").splitlines()) <= 40


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
@pytest.mark.parametrize("form", ["markdown", "github"])
def test_documents(form: str, lang: str, snapshot: SnapshotAssertion) -> None:
    assert DOCUMENTS[form](list(CASES.values()), lang) == snapshot


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["runs/exp1", "a b/<c>&%", "", "ä\n\x00"])
def test_sarif_is_sarif(case: str, name: str) -> None:
    told = CASES[case]
    named = Diagnosis(name, told.steps, told.measured, told.findings, told.clear, told.skipped)
    log = json.loads(DOCUMENTS["sarif"]([named, named], "en"))
    jsonschema.Draft7Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(log)
    results = log["runs"][0]["results"]
    assert [one["ruleId"] for one in results] == [finding.code for finding in told.findings]
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert all(rules[one["ruleIndex"]]["id"] == one["ruleId"] for one in results)


def test_github_commands_stay_on_their_line() -> None:
    nasty = Message("skip.failed", {"error": "a\nb%::error::c"})
    one = Finding("GRD102", "weak-gradient", "info", "likely", "root", nasty)
    told = DOCUMENTS["github"]([diagnosis(one, run="a,b:c\nd")], "en")
    assert told.count("\n") == 1
    assert told.startswith("::notice title=GRD102 weak-gradient (a%2Cb%3Ac d)::")
    assert "%25" in told


def test_markdown_shows_names_as_they_are() -> None:
    one = Finding(
        "GRD102", "x", "info", "likely", "root", Message("skip.failed", {"error": "<b>*a*|`x`</b>"}), loss="a|b_c"
    )
    told = DOCUMENTS["markdown"]([diagnosis(one)], "en")
    assert "\\<b\\>\\*a\\*\\|\\`x\\`" in told
    assert "a\\|b\\_c" in told


@pytest.mark.parametrize(
    ("confirm", "told"),
    [
        ("weight:dino*4", "lossdoctor ablate --arms 'weight:dino*4' -- python train.py"),
        ("without:kl", "lossdoctor ablate --arms without:kl -- python train.py"),
        ("kl/ratio", "see where kl/ratio goes after the change"),
        ("lossdoctor preflight", "lossdoctor preflight"),
        (None, ""),
    ],
)
def test_how_to_make_sure_is_something_to_do(confirm: str | None, told: str) -> None:
    assert confirmation(replace(finding(), confirm=confirm), "en") == told
