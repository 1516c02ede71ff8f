"""The catalogue is what the folder holds, and every unit keeps the promises of the package."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lossdoctor import metrics
from lossdoctor.metrics.reading import Metric
from lossdoctor.probe.snapshot import DistillBatch, FlowBatch, Gradients, HeadUpdate, PosteriorBatch, Shadow, Updates

FOLDER = Path(metrics.__file__).parent
FILES = {path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"}


def test_the_catalogue_lists_the_folder() -> None:
    listed = {*metrics.FAMILIES, *metrics.FOUNDATIONS}
    missing, stale = FILES - listed, listed - FILES
    assert not missing, f"add to FAMILIES or FOUNDATIONS in metrics/__init__.py: {sorted(missing)}"
    assert not stale, f"no such file: {sorted(stale)}"
    for names in (metrics.FAMILIES, metrics.FOUNDATIONS):
        assert list(names) == sorted(names)
    assert set(metrics.FAMILIES) <= set(metrics.__all__)


@pytest.mark.parametrize("family", metrics.FAMILIES)
def test_every_family_has_one_entry_and_documents_its_functions(family: str) -> None:
    module = getattr(metrics, family)
    assert callable(module.measure)
    assert module.__doc__
    for name, value in vars(module).items():
        if isinstance(value, Metric) and not name.startswith("_"):
            assert value.__doc__, f"{family}.{name}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_families_import_foundations_and_no_other_family(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lossdoctor.metrics":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lossdoctor.metrics."):
            imported.add(str(node.module).split(".")[2])
    assert imported <= set(metrics.FOUNDATIONS)


WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select", "aten::is_nonzero"}


class Waits(TorchDispatchMode):
    """Notes every operation that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        by_mask = name.startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for arg in args
            if isinstance(arg, (list, tuple))
            for index in arg
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def everything() -> dict[str, Any]:
    """One call per family that uses all it can be given."""
    z0, z1, t = torch.randn(40, 3), torch.randn(40, 3), torch.rand(40)
    cond = {"label": torch.arange(40) % 3, "scale": 1.0}
    flow = FlowBatch(z1, z1 - z0, t, t, z0 + t[:, None] * (z1 - z0), z0, z1, cond, lambda x, t, c: x * t[:, None])
    gram, one = torch.eye(3, dtype=torch.float64), torch.tensor(1.0)
    gradients = Gradients(
        ("a", "b"), torch.ones(2), {"": gram, "m": gram}, (True, True), {"m": (True, True)}, accumulated=one
    )
    head = HeadUpdate(torch.ones(2), torch.ones(2), torch.ones(2), torch.tensor([3, 4]), 0.1, 0.2)
    shadow = Shadow(one, one, one, one, one)
    updates = Updates({"h": head}, ("a", "b"), torch.ones(2), (True, True), one, one)
    private = torch.Generator().manual_seed(0)
    return {
        "distillation": lambda: metrics.distillation.measure.deferred(DistillBatch(z0, z1, 0.1, one, t[:3]), loss=one),
        "endpoint": lambda: metrics.endpoint.measure.deferred(z0, z1, flow.velocity, cond, steps=(2, 4)),
        "gradients": lambda: metrics.gradients.measure.deferred(gradients),
        "posterior": lambda: metrics.posterior.measure.deferred(PosteriorBatch(z0, z1, None, one), weight=one),
        "probes": lambda: metrics.probes.measure(flow, generator=private),
        "steps": lambda: metrics.steps.measure.deferred(updates, shadow, shadow),
        "velocity": lambda: metrics.velocity.measure.deferred(flow, loss=one, generator=private),
    }


@pytest.mark.parametrize("family", metrics.FAMILIES)
def test_measuring_never_waits_for_the_device(family: str) -> None:
    with Waits() as waits:
        readings = everything()[family]()
    assert readings
    assert waits.seen == []


def test_the_watch_on_waiting_sees_it() -> None:
    with Waits() as waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert waits.seen == ["aten::index", "aten::_local_scalar_dense"]


@pytest.mark.parametrize("family", sorted(FILES - {"reading"}))
def test_no_metric_asks_the_device(family: str) -> None:
    """Also where the test above does not come by; only rows of strings are taken on the host."""
    tree = ast.parse((FOLDER / f"{family}.py").read_text(encoding="utf-8"))
    asked = [
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("item", "tolist", "cpu", "nonzero")
    ]
    assert asked == (["tolist"] if family == "condition" else [])
