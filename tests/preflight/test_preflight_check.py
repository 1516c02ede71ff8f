"""`preflight.check` as a whole: what is skipped, what is said, and that it leaves no trace."""

from __future__ import annotations

import copy
import io
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor import preflight
from lossdoctor.errors import UsageError
from lossdoctor.messages import languages
from lossdoctor.preflight import CHECKS
from lossdoctor.report.verdict import DOCUMENTS
from lossdoctor.report.verdict.text import Verdict
from lossdoctor.rules import RULES, Rule

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/diagnosis.schema.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/preflight.md").read_text(encoding="utf-8")


def euler(v: Any, x: Tensor, c: Any, steps: int) -> Tensor:
    for k in range(steps):
        x = x + v(x, torch.full((len(x), 1), k / steps), c) / steps
    return x


def backwards(v: Any, x: Tensor, c: Any, steps: int) -> Tensor:
    return euler(lambda *a: -v(*a), x, c, steps)


def pair() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"z0": torch.randn(16, 4, generator=generator), "z1": torch.randn(16, 4, generator=generator)}


# The catalogue


def test_the_catalogue_is_the_folder_and_the_page() -> None:
    folder = Path(preflight.__file__).parent
    checks = {path.stem for path in folder.glob("*.py") if "\nRULES = (" in path.read_text(encoding="utf-8")}
    assert set(CHECKS) == checks, "list every check in CHECKS of preflight/__init__.py"
    assert list(CHECKS) == sorted(CHECKS)
    for name in CHECKS:
        assert f"## {name}\n" in PAGE, f"describe the check {name} in docs/preflight.md"


def test_every_rule_belongs_to_one_check_and_has_a_page() -> None:
    owned: list[type[Rule]] = [rule for part in CHECKS.values() for rule in part.RULES]
    assert len(owned) == len(set(owned))
    assert set(owned) <= set(RULES)
    for part in CHECKS.values():
        assert all(rule.code in PAGE for rule in part.RULES)


# Nothing unchecked looks healthy


def test_without_arguments_everything_is_skipped_by_name() -> None:
    diagnosis = preflight.check()
    assert not diagnosis.judged
    assert diagnosis.findings == ()
    assert diagnosis.clear == ()
    reasons = [str(why.reason) for _, why in diagnosis.skipped]
    for name in CHECKS:
        assert any(f"the check {name} needs" in reason for reason in reasons)


def test_every_rule_has_one_answer() -> None:
    everything = {rule.code for part in CHECKS.values() for rule in part.RULES} | {"NUM901", "PRE001"}
    for arguments in ({}, {"sampler": euler, **pair()}, {"sampler": backwards, **pair()}, {"z1": pair()["z1"]}):
        diagnosis = preflight.check(**arguments)
        answers = [*{f.code for f in diagnosis.findings}, *diagnosis.clear, *(code for code, _ in diagnosis.skipped)]
        assert sorted(answers) == sorted(everything)


def test_findings_that_follow_stand_behind_their_root() -> None:
    wrong = lambda z0, z1, t: (torch.lerp(z0, z1, t), z0 - z1)  # noqa: E731
    diagnosis = preflight.check(target=wrong, sampler=euler, **pair())
    assert [(f.code, f.explained_by) for f in diagnosis.findings] == [("VEL411", None), ("SMP506", "VEL411")]


# What is said


@pytest.mark.parametrize("lang", languages())
@pytest.mark.parametrize("sampler", [euler, backwards, lambda: None])
def test_every_form_and_language_tells_it(sampler: Any, lang: str) -> None:
    diagnosis = preflight.check(sampler=sampler, **pair())
    jsonschema.validate(diagnosis.to_json(lang), SCHEMA)
    for form in ("json", "markdown", "sarif", "github"):
        told = DOCUMENTS[form]([diagnosis], lang)
        assert all(finding.code in told for finding in diagnosis.findings)
    page = io.StringIO()
    Console(file=page, width=100).print(Verdict(diagnosis, lang, verbose=True))
    assert "preflight" in page.getvalue()
    assert ("before the first step" if lang == "en" else "第一步之前") in page.getvalue()


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"t_source": 0.5}, "t_source 0.0 or 1.0"),
        ({"sampler": torch.zeros(3)}, "sampler is a function"),
        ({"z0": torch.zeros(3, 2), "z1": torch.zeros(3, 4)}, "one shape"),
        ({"mu": torch.zeros(3), "logvar": torch.zeros(4)}, "one shape"),
        ({"z1": torch.zeros(0, 3)}, "not empty"),
        ({"z1": torch.tensor(1.0)}, "z1 is a batch"),
        ({"z1": [1.0, 2.0]}, "list"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preflight.check(**arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["z0", "z1"])
def test_a_batch_that_is_not_finite_is_told(name: str, bad: float) -> None:
    batch = pair()
    batch[name][2, 1] = bad
    diagnosis = preflight.check(sampler=euler, velocity=lambda x, t, c: x, **batch)
    [finding] = diagnosis.findings
    assert (finding.code, finding.subject) == ("NUM901", name)
    assert "1 of 64" in str(finding.message)
    assert {code for code, why in diagnosis.skipped if "see NUM901" in str(why.reason)} >= {"SMP501", "VEL405"}


# Neutrality


class Restless(nn.Module):
    """Does everything a function of a user can do to the state around it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)
        self.negative_zero = nn.Parameter(torch.tensor([0.0, -0.0]))
        nn.init.zeros_(self.head.weight)
        self.body[1].eval()

    def forward(self, x: Tensor, t: Any, c: Any) -> Tensor:
        random.random()
        np.random.rand()
        torch.rand(1)
        return self.head(self.body(x)) + t + c[:, None]

    def losses(self) -> dict[str, Tensor]:
        self.train()
        loss = self(torch.randn(16, 4), torch.rand(16, 1), torch.rand(16)).square().mean()
        loss.backward(retain_graph=True)
        self.head.requires_grad_(False)
        return {"flow": loss}

    def sample(self, v: Any, x: Tensor, c: Tensor, steps: int) -> Tensor:
        self.eval()
        return euler(v, x.add_(0), c, steps)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "parameters": [(p.detach().clone(), p.requires_grad) for p in model.parameters()],
        "signs": [torch.signbit(p.detach()) for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identities": [(id(p), None if p.grad is None else id(p.grad)) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "modes": [m.training for m in model.modules()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "streams": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_different_afterwards(fails: bool) -> None:
    torch.manual_seed(0)
    model = Restless()
    optimizer = torch.optim.AdamW(model.parameters())
    model.body[0].weight.grad = torch.randn(8, 4)
    batch = pair() | {"cond": torch.rand(16), "null_cond": torch.zeros(16)}
    kept = {name: tensor.clone() for name, tensor in batch.items()}

    def broken() -> dict[str, Tensor]:
        model.losses()
        raise RuntimeError("after the harm was done")

    before = state(model, optimizer)
    diagnosis = preflight.check(
        model=model,
        optimizer=optimizer,
        losses=broken if fails else model.losses,
        heads={"head": model.head},
        teacher=copy.deepcopy(model),
        sampler=model.sample,
        velocity=model,
        target=lambda z0, z1, t: (torch.lerp(z0, z1, t).add_(0), z1.sub_(z0)),
        kl=lambda mu, logvar: (mu.square_() + logvar.exp() - 1 - logvar).sum(1).mean() / 2,
        **batch,
    )
    after = state(model, optimizer)
    for name, value in before.items():
        assert same(value, after[name]), name
    assert same(kept, batch)
    assert ("PRE001" in {f.code for f in diagnosis.findings}) == fails
    assert {"SMP501", "VEL411", "PST304"} <= set(diagnosis.clear), diagnosis.findings


def test_it_is_a_public_part() -> None:
    assert ld.preflight.check is preflight.check
