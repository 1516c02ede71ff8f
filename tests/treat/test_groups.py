"""Parameter groups against the model: nothing missing, nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lossdoctor.errors import UsageError
from lossdoctor.treat import param_groups, table


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3)])
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.z_head, self.flow_head = nn.Linear(8, 4), nn.Linear(8, 2)
        self.tied = nn.Linear(8, 7, bias=False)
        self.tied.weight = self.words.weight


def groups_of(model: Model, **options: object) -> list[dict[str, object]]:
    heads = {"z_head": model.z_head, "flow_head": model.flow_head}
    return param_groups(model, heads, lr=1e-3, **options)  # type: ignore[arg-type]


def rate(groups: list[dict[str, object]], parameter: nn.Parameter) -> tuple[float, float]:
    (own,) = [g for g in groups if any(p is parameter for p in g["params"])]  # type: ignore[attr-defined]
    return own["lr"], own["weight_decay"]  # type: ignore[return-value]


def test_every_trainable_parameter_is_there_once() -> None:
    model = Model()
    groups = groups_of(model, layers=list(model.blocks), layer_decay=0.5)
    counted = Counter(id(p) for g in groups for p in g["params"])  # type: ignore[attr-defined]
    assert counted == Counter(id(p) for p in model.parameters() if p.requires_grad)
    assert max(counted.values()) == 1
    torch.optim.AdamW(groups)  # it refuses parameters that are there twice


def test_who_learns_and_decays_how() -> None:
    model = Model()
    groups = groups_of(model, weight_decay=0.1, layers=list(model.blocks), layer_decay=0.5)
    assert rate(groups, model.z_head.weight) == pytest.approx((3e-3, 0.0))
    assert rate(groups, model.z_head.bias) == pytest.approx((3e-3, 0.0))
    assert rate(groups, model.words.weight) == pytest.approx((1e-3 * 0.5**3, 0.0)), (
        "an embedding, also where it is tied"
    )
    assert rate(groups, model.blocks[2][0].weight) == pytest.approx((0.5e-3, 0.1))
    assert rate(groups, model.blocks[0][0].weight) == pytest.approx((0.125e-3, 0.1))
    assert rate(groups, model.blocks[0][1].weight)[1] == 0.0, "a norm"
    assert rate(groups_of(model), model.blocks[0][0].weight) == (1e-3, 0.01)
    assert rate(groups_of(model, head_weight_decay=0.2), model.flow_head.weight)[1] == 0.2


def test_a_head_outside_of_the_model_is_taken_along() -> None:
    model, head = Model(), nn.Linear(8, 3)
    groups = param_groups(model, {"own": head}, lr=1.0)
    assert rate(groups, head.weight) == (3.0, 0.0)


def test_the_table_counts_all() -> None:
    model = Model()
    rows = table(groups_of(model))
    assert sum(row.elements for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {row.name for row in rows} == {"backbone", "z_head", "flow_head"}


def test_what_cannot_be_is_refused() -> None:
    model = Model()
    with pytest.raises(UsageError, match=r"(?s)A parameter has one head.*'a' and 'b'"):
        param_groups(model, {"a": model.z_head, "b": model.z_head}, lr=1.0)
    for wrong in (
        dict(lr=0.0),
        dict(lr=1.0, lr_scale=0.0),
        dict(lr=1.0, layer_decay=2.0),
        dict(lr=1.0, weight_decay=-1),
    ):
        with pytest.raises(UsageError, match="Parameter groups"):
            param_groups(model, {}, **wrong)  # type: ignore[arg-type]
