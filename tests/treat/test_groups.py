"""Parameter groups against the model: nothing missing, nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lossdoctor.errors import UsageError
from lossdoctor.treat import Audit, audit, param_groups, table


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


def test_the_table_as_it_is_printed() -> None:
    model = Model()
    heads = {"z_head": model.z_head, "flow_head": model.flow_head}
    groups = param_groups(model, heads, lr=1e-3, layers=list(model.blocks), layer_decay=0.5)
    assert groups.table("en").splitlines() == [
        "group          rate  weight decay  tensors  elements",
        "backbone   0.000125             0        4        80",
        "backbone   0.000125          0.01        1        64",
        "backbone    0.00025          0.01        1        64",
        "backbone    0.00025             0        3        24",
        "backbone     0.0005          0.01        1        64",
        "backbone     0.0005             0        3        24",
        "z_head        0.003             0        2        36",
        "flow_head     0.003             0        2        18",
        "total                                   17       374",
    ]
    assert groups.table("zh-CN").splitlines()[0].split() == ["参数组", "学习率", "权重衰减", "张量数", "元素数"]
    assert groups.table("en").splitlines()[-1].split() == ["total", "17", "374"]
    assert param_groups(nn.Linear(2, 2), {"[bold]odd": nn.Linear(2, 2)}, lr=1.0).table("en").count("[bold]odd") == 1


def test_a_part_has_its_own_rate_and_a_head_in_it_stays_a_head() -> None:
    model = Model()
    groups = groups_of(model, parts={"middle": (model.blocks[1], 2.0), "whole": (model.z_head, 7.0)})
    assert rate(groups, model.blocks[1][0].weight) == pytest.approx((2e-3, 0.01))
    assert rate(groups, model.blocks[1][0].bias) == pytest.approx((2e-3, 0.0))
    assert rate(groups, model.z_head.weight) == pytest.approx((3e-3, 0.0))
    assert rate(groups, model.blocks[0][0].weight) == (1e-3, 0.01)
    assert {row.name for row in table(groups)} == {"backbone", "middle", "z_head", "flow_head"}
    for wrong in (
        {"a": (model.blocks[0], 1.0), "b": (model.blocks, 1.0)}, {"a": (model.blocks, 0.0)},
        {"z_head": (model.blocks, 1.0)}, {"backbone": (model.blocks, 1.0)},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"(?s)expected:.*got:"):
            groups_of(model, parts=wrong)


def test_own_groups_are_without_complaint() -> None:
    model, head = Model(), nn.Linear(8, 3)
    groups = param_groups(model, {"own": head}, lr=1.0, layers=list(model.blocks), layer_decay=0.9)
    assert groups.audit(model, head).ok
    assert audit(torch.optim.AdamW(groups).param_groups, model, head) == Audit()


def test_an_audit_names_what_is_wrong() -> None:
    model = Model()
    held = [p for p in model.parameters() if p is not model.z_head.bias]
    groups = [{"params": held}, {"params": [model.words.weight, nn.Parameter(torch.zeros(3))]}]
    found = audit(groups, model)
    assert found == Audit(("z_head.bias",), ("words.weight",), ("frozen.weight", "frozen.bias"), 1)
    assert not found.ok
    assert audit([{"params": []}], nn.Linear(1, 1)).missing == ("weight", "bias")
    assert audit([{"params": []}], nn.Linear(1, 1).requires_grad_(False)).ok
    twice = list(nn.Linear(2, 2).parameters())
    assert audit([{"params": [twice[0], twice[0]]}], nn.ParameterList(twice)).twice == ("0",)


def test_what_cannot_be_is_refused() -> None:
    model = Model()
    with pytest.raises(UsageError, match=r"(?s)A parameter has one head, or one part.*'a' and 'b'"):
        param_groups(model, {"a": model.z_head, "b": model.z_head}, lr=1.0)
    for wrong in (
        dict(lr=0.0),
        dict(lr=1.0, lr_scale=0.0),
        dict(lr=1.0, layer_decay=2.0),
        dict(lr=1.0, weight_decay=-1),
    ):
        with pytest.raises(UsageError, match="Parameter groups"):
            param_groups(model, {}, **wrong)  # type: ignore[arg-type]
