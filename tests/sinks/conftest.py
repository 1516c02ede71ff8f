"""What every tracker is given: awkward names and numbers, events, and a whole small training with its report."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lossdoctor as ld
from lossdoctor.record import Record
from lossdoctor.sinks import Background, Sink

RECORDS = [
    Record(0, {"loss/flow": 0.1, "flow/endpt_rmse@8": -1e30, "step": 4.0}, time=1.5),
    Record(7, {"loss/flow": math.nan, "grad_cos/a|b": math.inf, "a.b//c/": 1.0, "x<1": -math.inf, "流": 2.0}, time=2.5),
    Record(2**40, {"loss/flow": 0.3, "-u7c-": 3.0, "..": 4.0, "/": 5.0, "": 6.0, "\x01": 7.0}, time=3.5, full=True),
]
FINDING = {
    "kind": "finding",
    "time": 3.0,
    "step": 7,
    "code": "GRD102",
    "name": "weak-gradient",
    "severity": "warning",
    "loss": "a|b",
    "message": "The gradient of a|b is 0.1 % of the total.",
}


@pytest.fixture
def given() -> Callable[[Sink], None]:
    """Records and a finding through a sink, which is then closed."""

    def give(sink: Sink) -> None:
        background = Background(sink)
        background.open({})
        background.write(RECORDS)
        background.event(FINDING)
        background.event({"kind": "arm", "time": 1.0})
        assert background.close(timeout=60)
        assert background.failure is None

    return give


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[Sink], Path]:
    """A small training with the sink; returns the report in the folder of the run."""

    def train(sink: Sink) -> Path:
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with ld.Doctor(model, optimizer, run=tmp_path / "run", every=2, sinks=[sink], strict=True) as doctor:
            for _ in range(4):
                out = model(torch.randn(8, 3))
                doctor.backward({"a": out.square().mean(), "kl": out.abs().mean()})
                optimizer.step()
                optimizer.zero_grad()
        assert not [event for event in ld.Run.open(tmp_path / "run").events if event["kind"] == "failure"]
        return tmp_path / "run" / "report.html"

    return train


def expected(name_of: Callable[[str], str] = str) -> dict[str, list[tuple[int, float]]]:
    """What RECORDS are when they are read back."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in RECORDS:
        for name, value in record.values.items():
            found.setdefault(name_of(name), []).append((record.step, value))
    return found
