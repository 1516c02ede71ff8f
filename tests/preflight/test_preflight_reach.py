"""The reach check: which loss reaches what, who steps it, and whether the teacher is one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis
from lossdoctor.preflight.reach import RULES

CODES = {rule.code for rule in RULES}


class Net(nn.Module):
    """Posterior, flow and distillation on one body; the flow head begins at zero, as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.1), nn.BatchNorm1d(16))
        self.z_head = nn.Linear(16, 8)
        self.flow_head = nn.Linear(4, 4)
        self.dino_head = nn.Linear(16, 3)
        nn.init.zeros_(self.flow_head.weight)
        nn.init.zeros_(self.flow_head.bias)
        self.x = torch.randn(8, 4)

    def losses(self, broken: str = "") -> dict[str, Any]:
        h = self.body(self.x)
        mu, logvar = self.z_head(h).chunk(2, 1)
        said = self.dino_head(h.detach() if broken == "cut" else h)
        v = (mu if broken == "bypassed" else self.flow_head(mu)) - self.x
        if broken == "detached":
            said = said.detach()
        losses: dict[str, Any] = {
            "flow": v.square().mean(),
            "kl": (mu**2 + logvar.exp() - 1 - logvar).mean() / 2,
            "dino": -said.log_softmax(1).mean(),
        }
        if broken == "no graph":
            losses["kl"] = torch.tensor(losses["kl"].item())
        if broken == "zeroed":
            losses["kl"] = 0 * losses["kl"]
        return losses

    def heads(self) -> dict[str, nn.Module]:
        return {"z_head": self.z_head, "flow_head": self.flow_head, "dino_head": self.dino_head}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def adam(*modules: nn.Module, decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for m in modules for p in m.parameters()], weight_decay=decay)


def told(net: Net, optimizer: Any = None, losses: Any = None, **others: Any) -> Diagnosis:
    optimizer = adam(net) if optimizer is None else optimizer
    return preflight.check(
        model=net, optimizer=optimizer, losses=losses or net.losses, **{"heads": net.heads(), **others}
    )


def teacher_of(net: Net) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(False).eval()


def test_a_sound_program_is_clear(net: Net) -> None:
    diagnosis = told(net, teacher=teacher_of(net))
    assert set(diagnosis.clear) >= CODES, [str(f.message) for f in diagnosis.findings]


def test_groups_several_optimizers_a_frozen_part_and_a_teacher_inside_are_clear(net: Net) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = net, teacher_of(net)
            self.encoder = nn.Linear(3, 3).requires_grad_(False)

    model = Both()
    optimizers = [torch.optim.SGD(net.body.parameters(), lr=0.1), adam(net.z_head, net.flow_head, net.dino_head)]
    diagnosis = preflight.check(
        model=model, optimizer=optimizers, losses=net.losses, heads=net.heads(), teacher=model.teacher
    )
    assert set(diagnosis.clear) >= CODES, [str(f.message) for f in diagnosis.findings]


@pytest.mark.parametrize(
    ("broken", "code", "cause", "words"),
    [
        ("detached", "GRD101", "detached-branch", "dino has no gradient"),
        ("no graph", "GRD101", "detached-branch", "kl has no gradient"),
        ("zeroed", "GRD101", "detached-branch", "kl reaches no trainable parameter"),
        ("bypassed", "GRD105", "wrong-wiring", "flow_head"),
    ],
)
def test_wiring_is_named(net: Net, broken: str, code: str, cause: str, words: str) -> None:
    findings = told(net, losses=lambda: net.losses(broken)).findings
    [finding] = [one for one in findings if one.code == code]
    assert finding.causes[0].code == cause
    assert words in str(finding.message)
    assert finding.message.text("zh-CN")


def test_a_distillation_that_reaches_its_head_alone_is_named_and_a_remark_where_that_may_be_meant(net: Net) -> None:
    def cut(**more: Any) -> str:
        [finding] = told(net, losses=lambda: net.losses("cut"), **more).findings
        assert (finding.code, finding.loss, finding.certainty) == ("GRD108", "dino", "likely")
        for lang in ("en", "zh-CN"):
            assert all(word in finding.message.text(lang) for word in ("dino_head", "body"))
        return finding.severity

    assert cut() == cut(teacher=teacher_of(net)) == "warning"
    assert cut(teacher=copy.deepcopy(net.dino_head).requires_grad_(False).eval()) == "info", "it is the whole student"


def test_an_unknown_loss_on_a_head_of_its_own_is_a_remark_before_the_first_step_too(net: Net) -> None:
    probe = nn.Linear(16, 2)
    net.add_module("probe", probe)

    def losses() -> dict[str, Any]:
        return {**net.losses(), "aux": probe(net.body(net.x).detach()).square().mean()}

    [finding] = told(net, losses=losses, heads={**net.heads(), "probe": probe}).findings
    assert (finding.code, finding.loss, finding.severity) == ("GRD108", "aux", "info")


def test_a_loss_without_graph_is_found_whatever_it_looks_like(net: Net) -> None:
    losses: Mapping[str, Tensor | None] = {"a": net.losses()["flow"].detach(), "b": None, "c": net.losses()["kl"]}
    [finding] = [f for f in told(net, losses=lambda: losses, heads={}).findings if f.code == "GRD101"]
    assert finding.loss == "a"


def test_a_head_of_another_loss_and_a_frozen_one_are_named(net: Net) -> None:
    losses = lambda: {"flow": net.losses()["kl"], "dino": net.losses()["dino"]}  # noqa: E731
    messages = [str(f.message) for f in told(net, losses=losses).findings if f.code == "GRD105"]
    assert messages == ["No loss reaches the head flow_head."]
    net.dino_head.requires_grad_(False)
    [finding] = [f for f in told(net).findings if f.subject == "dino_head"]
    assert (finding.causes[0].code, finding.severity) == ("frozen-head", "warning")


def test_who_steps_what_is_told(net: Net) -> None:
    [missing] = told(net, optimizer=adam(net.body, net.z_head, net.flow_head)).findings
    assert (missing.code, missing.subject, missing.severity) == ("OPT702", "dino_head", "error")
    [twice] = told(net, optimizer=[adam(net), adam(net.dino_head)]).findings
    assert (twice.code, twice.causes[0].code) == ("OPT704", "twice-in-optimizer")
    assert "two optimizers" in str(twice.message)
    [decay] = told(net, optimizer=adam(net, decay=0.05)).findings
    assert (decay.code, decay.severity) == ("OPT703", "warning")
    assert told(net, optimizer=adam(net, decay=0.01)).worst() == "info", "the default of AdamW is only mentioned"


def test_the_teacher_is_looked_at(net: Net) -> None:
    codes = lambda teacher: {f.code: f.causes[0].code for f in told(net, teacher=teacher).findings}  # noqa: E731
    assert codes(net)["DST206"] == "teacher-is-student"
    assert codes(copy.deepcopy(net).eval()) == {"DST207": "teacher-trainable"}
    assert codes(copy.deepcopy(net).requires_grad_(False).train()) == {"DST207": "teacher-in-train-mode"}


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: torch.zeros(()), "a mapping"),
        (dict, "empty mapping"),
        (lambda: {"kl": 0.5}, "float"),
        (lambda: {"kl": torch.tensor(float("nan"))}, "loss kl of losses() is nan"),
    ],
)
def test_losses_that_cannot_be_used_are_told_and_the_wiring_still_is(net: Net, losses: Any, words: str) -> None:
    diagnosis = told(net, losses=losses, optimizer=adam(net.body), teacher=net)
    failed = next(f for f in diagnosis.findings if f.code == "PRE001")
    assert words in str(failed.message)
    assert {"OPT702", "DST206"} <= {f.code for f in diagnosis.findings}
    assert {"GRD101", "GRD105"} <= {code for code, _ in diagnosis.skipped}
