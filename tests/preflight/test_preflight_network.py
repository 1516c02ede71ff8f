"""The condition and time checks: what the user's velocity listens to, asked before it has learned anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis

CODES = {"CND601", "VEL405"}
B, CLASSES = 8, 5


class Velocity(nn.Module):
    """v(x, t, label): a last layer that begins at zero, embeddings that can be left out."""

    def __init__(self, *, deaf: str = "", thousand: bool = False, zero: bool = True, null_rate: float = 0.2) -> None:
        super().__init__()
        self.inlet, self.time, self.label = nn.Linear(3, 32), nn.Linear(16, 32), nn.Embedding(CLASSES + 1, 32)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(32, 3)
        self.deaf, self.thousand, self.null_rate = deaf, thousand, null_rate
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        frequencies = 10 ** -torch.linspace(3, 7, 8) if self.thousand else torch.arange(1.0, 9.0)
        angles = t.reshape(-1, 1) * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        hidden = self.inlet(x) + (0 if self.deaf == "time" else time)
        hidden = hidden + (0 if self.deaf == "label" else self.label(label))
        if self.deaf == "x":
            hidden = time
        return self.head(self.drop(nn.functional.silu(hidden)))


def told(velocity: Callable[..., Any], **others: Any) -> Diagnosis:
    torch.manual_seed(0)
    z0, z1 = torch.randn(B, 3), torch.randn(B, 3)
    cond = torch.arange(B) % CLASSES
    return preflight.check(**{"velocity": velocity, "z0": z0, "z1": z1, "cond": cond, **others})


def net(**options: Any) -> Velocity:
    torch.manual_seed(0)
    return Velocity(**options)


def adapted(model: Velocity, style: str) -> Callable[..., Any]:
    match style:
        case "(x, t, c)":
            return model
        case "(t, x, c)":
            other = lambda t, x, c: model(x, t, c)  # noqa: E731
            return lambda x, t, c: other(t, x, c)
        case "t of (B,) only":

            def strict(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
                if t.ndim != 1:
                    raise ValueError("t must be (B,)")
                return model(x, t, c)

            return strict
    return lambda x, t, c: -model(x, 1 - t, c)


STYLES = ("(x, t, c)", "(t, x, c)", "t of (B,) only", "reversed and negative")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("zero", [True, False])
def test_a_connected_network_is_clear_also_before_its_last_layer_has_moved(style: str, zero: bool) -> None:
    model = net(zero=zero)
    diagnosis = told(adapted(model, style), model=model, null_cond=torch.full((B,), CLASSES))
    assert set(diagnosis.clear) >= CODES, diagnosis


@pytest.mark.parametrize("style", STYLES)
def test_what_is_not_connected_is_named(style: str) -> None:
    for deaf, code, cause in (
        ("time", "VEL405", "time-not-connected"),
        ("label", "CND601", "condition-not-connected"),
    ):
        model = net(deaf=deaf)
        [finding] = [f for f in told(adapted(model, style), model=model).findings if f.code in CODES]
        assert (finding.code, finding.causes[0].code, finding.severity) == (code, cause, "error")


def test_a_null_condition_that_changes_nothing_is_named() -> None:
    model = net(zero=False)
    ignoring = lambda x, t, c: model(x, t, torch.where(c == CLASSES, torch.arange(B) % CLASSES, c))  # noqa: E731
    [finding] = [f for f in told(ignoring, null_cond=torch.full((B,), CLASSES)).findings if f.code == "CND601"]
    assert "guidance" in str(finding.message)


@pytest.mark.parametrize("null", [CLASSES, torch.tensor(CLASSES), torch.tensor([CLASSES]), torch.full((B,), CLASSES)])
def test_the_null_condition_may_be_that_of_one_sample(null: Any) -> None:
    diagnosis = told(net(zero=False), null_cond=null, cond=torch.ones(B, dtype=torch.int64))
    assert "CND601" in diagnosis.clear, diagnosis.findings


def test_an_embedding_made_for_steps_of_training_is_named() -> None:
    model = net(thousand=True, zero=False)
    [finding] = [f for f in told(model).findings if f.code == "VEL405"]
    assert "made for steps of training" in str(finding.message)
    assert told(lambda x, t, c: model(x, 1000 * t, c)).clear.count("VEL405") == 1


def test_times_up_to_1000_are_used_where_the_sampler_uses_them() -> None:
    def sampler(v: Any, x: Tensor, c: Any, steps: int) -> Tensor:
        for t in torch.linspace(1000, 1000 / steps, steps):
            x = x - v(x, t.repeat(len(x)), c) / steps
        return x

    diagnosis = told(net(thousand=True, zero=False), sampler=sampler, t_source=1.0)
    assert {"VEL405", "SMP501"} <= set(diagnosis.clear), diagnosis.findings


def test_texts_and_nests_are_exchanged_and_one_condition_is_left_out() -> None:
    model = net(zero=False)
    spoken = lambda x, t, c: model(x, t, torch.tensor([len(text) for text in c]))  # noqa: E731
    texts = ["a" * (1 + i % 3) for i in range(B)]
    assert "CND601" in told(spoken, cond=texts).clear
    assert "CND601" in told(lambda x, t, c: model(x, t, c["y"]), cond={"y": torch.arange(B) % 3, "w": 1.0}).clear
    deaf = lambda x, t, c: model(x, t, torch.zeros(B, dtype=torch.int64))  # noqa: E731
    assert [f.code for f in told(deaf, cond=texts).findings] == ["CND601"]
    for cond in (torch.zeros(B, dtype=torch.int64), object()):
        reasons = {code: str(why.reason) for code, why in told(deaf, cond=cond).skipped}
        assert "cannot be exchanged" in reasons["CND601"]


def test_a_network_that_does_not_look_at_x_is_left_out() -> None:
    reasons = {code: str(why.reason) for code, why in told(net(deaf="x", zero=False)).skipped}
    assert "does not look at its input" in reasons["CND601"]


def test_a_batch_of_one_is_judged_by_the_null_condition() -> None:
    model = net(zero=False)
    one = {"z0": torch.zeros(1, 3), "z1": torch.ones(1, 3), "cond": torch.ones(1, dtype=torch.int64)}
    assert "CND601" in {code for code, _ in told(model, **one).skipped}
    assert "CND601" in told(model, **one, null_cond=torch.zeros(1, dtype=torch.int64)).clear


@pytest.mark.parametrize(("nulls", "fires"), [(0, False), (10, False), (13, False), (40, True), (64, True)])
def test_the_null_rate_is_held_against_the_one_declared(nulls: int, fires: bool) -> None:
    model = net(zero=False, null_rate=0.2)
    cond = torch.where(torch.arange(64) < nulls, CLASSES, torch.arange(64) % CLASSES)
    z0, z1 = torch.randn(64, 3), torch.randn(64, 3)
    found = told(model, model=model, z0=z0, z1=z1, cond=cond, null_cond=torch.tensor(CLASSES).repeat(64))
    fired = [f for f in found.findings if f.code == "CND602"]
    # None of 64 is as unlikely as 6e-7 at 20 %.
    assert bool(fired) == (fires or nulls == 0), found
    if fired and nulls not in (0, 64):
        assert "null_rate says 20 %" in str(fired[0].message)


def test_no_declared_rate_is_told() -> None:
    bare = net(zero=False)
    reasons = {
        c: str(w.reason) for c, w in told(adapted(bare, "t of (B,) only"), null_cond=torch.tensor([0] * B)).skipped
    }
    assert "no module declares a rate" in reasons["CND602"]


@pytest.mark.parametrize(
    ("velocity", "words"),
    [
        (lambda x, t: x, "TypeError"),
        (lambda x, t, c: x[:, :1], "shape (8, 1)"),
        (lambda x, t, c: x.sqrt(), "NaN"),
        (lambda x, t, c: (x, t), "tuple"),
    ],
)
def test_a_velocity_that_cannot_be_used_is_told_once(velocity: Callable[..., Any], words: str) -> None:
    [finding] = told(velocity).findings
    assert (finding.code, finding.subject) == ("PRE001", "velocity")
    assert words in str(finding.message)
