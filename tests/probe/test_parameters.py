"""Which parameter is reported where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossdoctor.errors import UsageError
from lossdoctor.probe.parameters import OUTSIDE, check_heads, parameter_map, unwrapped


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.body = nn.ModuleDict({"inner": nn.Linear(2, 3), "last": nn.Linear(3, 1)})
        self.tail = nn.Linear(3, 1)
        self.tail.weight = self.body["last"].weight  # tied
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def test_heads_children_loose_and_outside_parameters() -> None:
    model, outside = Model(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *outside.parameters()], lr=0.1)
    found = parameter_map(model, {"head": model.body["last"], "extra": outside}, [optimizer])
    names = {
        id(p): n for n, p in [*model.named_parameters(), *(("outside." + n, p) for n, p in outside.named_parameters())]
    }
    labels = {names[id(p)]: label for p, label in zip(found.parameters, found.labels, strict=True)}
    assert labels == {
        "scale": ("scale",),
        "body.inner.weight": ("body",),
        "body.inner.bias": ("body",),
        "body.last.weight": ("head", "body"),
        "body.last.bias": ("head", "body"),
        "tail.bias": ("tail",),
        "outside.weight": ("extra", OUTSIDE),
        "outside.bias": ("extra", OUTSIDE),
    }
    assert found.modules() == ("scale", "body", "head", "tail", "extra", OUTSIDE)


def test_a_head_that_is_a_child_is_reported_once() -> None:
    model = Model()
    found = parameter_map(model, {"tail": model.tail}, [])
    assert {label for p, label in zip(found.parameters, found.labels, strict=True) if p is model.tail.bias} == {
        ("tail",)
    }


def test_wrappers_are_looked_through() -> None:
    model = Model()
    assert unwrapped(torch.optim.swa_utils.AveragedModel(model)).__class__ is Model
    assert unwrapped(nn.DataParallel(model)) is model
    only_child = nn.Sequential(model)
    assert unwrapped(only_child) is only_child


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"z": None}, r"heads\['z'\] is not a module.*top-level modules are body, tail, frozen"),
        ({"z": nn.SiLU()}, r"heads\['z'\] has no parameters"),
        ({"tail": nn.Linear(1, 1)}, r"another module than model\.tail"),
    ],
)
def test_unknown_heads_are_refused(heads, message) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        check_heads(Model(), heads)
