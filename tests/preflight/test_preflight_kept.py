"""What preflight found, kept in a run: nothing is lost on the way, and what cannot be read does no harm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.diagnose import Diagnosis, assembled, diagnose
from lossdoctor.messages import languages
from lossdoctor.record import Record
from lossdoctor.rules.finding import Evidence, Fired, say
from lossdoctor.rules.smp502_wrong_order import WrongOrder
from lossdoctor.store import MemoryWriter, Run, RunWriter

Z = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def sampler(sign: float = 1.0) -> Callable[..., Tensor]:
    def euler(velocity: Callable[..., Tensor], z: Tensor, cond: Any, steps: int) -> Tensor:
        for k in range(steps):
            z = z + sign * velocity(z, torch.full((len(z), 1), k / steps), cond) / steps
        return z

    return euler


def failing(z0: Tensor, z1: Tensor, t: Tensor) -> Any:
    raise ValueError("not today")


def checked(**given: Any) -> Diagnosis:
    return ld.preflight.check(z0=Z, z1=Z.flip(0) * 3, **given)


def kept(*diagnoses: Diagnosis, values: dict[str, float] | None = None) -> Diagnosis:
    writer = MemoryWriter({})
    for step in range(30):
        writer.append([Record(step, {"loss/flow": 1.0, **(values or {})}, full=True)])
    for one in diagnoses:
        for fields in one.events():
            writer.event("preflight", **fields)
    return diagnose(writer.run())


@pytest.mark.parametrize(
    "given", [{"sampler": sampler(-1.0)}, {"target": failing}, {"sampler": sampler(0.5), "target": failing}]
)
def test_every_finding_comes_back(given: dict[str, Any]) -> None:
    found = checked(**given)
    again = kept(found)
    assert found.findings
    for finding in found.findings:
        (same,) = [one for one in again.findings if (one.code, one.subject) == (finding.code, finding.subject)]
        assert replace(same, explained_by=None) == replace(finding, explained_by=None)
        assert [same.message.text(lang) for lang in languages()] == [finding.message.text(lang) for lang in languages()]
    assert set(found.clear) <= {*again.clear, *(one.code for one in again.findings)}


def test_clear_ones_count_and_the_last_one_does() -> None:
    sick, healthy = checked(sampler=sampler(-1.0)), checked(sampler=sampler())
    without = kept()
    assert {"SMP505", "PRE001", "SMP506"} <= {code for code, _ in without.skipped}
    assert {"SMP505", "PRE001", "SMP506"} <= set(kept(sick, healthy).clear)
    assert "SMP506" in {one.code for one in kept(healthy, sick).findings}
    codes = [*(one.code for one in kept(sick).findings), *kept(sick).clear, *(code for code, _ in kept(sick).skipped)]
    asked = {*without.clear, *(code for code, _ in without.skipped), *(one.code for one in without.findings)}
    assert set(codes) == asked, "every rule is still told of"


def test_numbers_that_json_does_not_have() -> None:
    finding = WrongOrder().finding(say("skip.kind", kind="x"), evidence=(Evidence("preflight/x", math.inf, 0.0),))
    again = kept(assembled({"SMP502": (WrongOrder(), Fired((finding,)))}))
    (same,) = [one for one in again.findings if one.code == "SMP502"]
    assert same.evidence[0].value == math.inf


@pytest.mark.parametrize(
    "broken",
    [
        {"findings": 3}, {"findings": [3]}, {"findings": [{}]}, {"code": ["SMP502"]}, {"code": "NONE"},
        {"outcome": ["fired"]}, {"outcome": None},
    ],
)  # fmt: skip
def test_an_event_of_any_shape_does_no_harm(broken: dict[str, Any]) -> None:
    writer = MemoryWriter({})
    writer.append([Record(0, {"loss/flow": 1.0}, full=True)])
    event = next(one for one in checked(sampler=sampler(-1.0)).events() if one["outcome"] == "fired")
    for name, value in {"severity": "loud", "message": {"key": "nobody.says.this", "params": {}}, "fixes": 5}.items():
        torn = {**event["findings"][0], name: value}
        writer.event("preflight", **{**event, "findings": [torn], **broken})
    assert not [one for one in diagnose(writer.run()).findings if one.code.startswith("SMP")]


def test_a_doctor_keeps_it(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = checked(sampler=sampler(-1.0))
    with ld.Doctor(model, optimizer, run=tmp_path / "run", every=1, live=False, preflight=found) as doctor:
        for _ in range(3):
            doctor.backward({"flow": model(torch.ones(2, 3)).square().mean()})
            optimizer.step()
            optimizer.zero_grad()
    again = diagnose(Run.open(tmp_path / "run"))
    assert {one.code for one in found.findings} <= {one.code for one in again.findings}
    with RunWriter(tmp_path / "run", resume=True) as writer:
        writer.event("experiment", code=found.findings[0].code, loss=None, subject=None, certainty="confirmed")
    assert {one.code for one in found.findings} <= {one.code for one in diagnose(Run.open(tmp_path / "run")).findings}
