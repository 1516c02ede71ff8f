"""A script under an arm, against the same script changed by hand: bit for bit."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.errors import UsageError
from lossdoctor.probe import experiment, ledger
from lossdoctor.probe.experiment import shuffled
from lossdoctor.probe.linearity import Linearity


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    experiment._experiment.cache_clear()
    yield
    experiment._experiment.cache_clear()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a_head, self.b_head = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def losses(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.body(x).tanh()
        return {"a": (self.a_head(h) - y).square().mean(), "b": self.b_head(h).square().mean()}


def train(
    doctor: bool | str = True,
    *,
    run: Path | None = None,
    weights: dict[str, float] | None = None,
    groups: Callable[[Model], list[dict[str, Any]]] | None = None,
    steps: int = 6,
    change: Callable[[Tensor], Tensor] = ld.condition,
    every: int = 2,
) -> tuple[Model, list[float]]:
    """The script. Returns the model and the rates its scheduler saw."""
    torch.manual_seed(0)
    model, rates = Model(), []
    pieces = groups(model) if groups else [{"params": model.parameters()}]
    optimizer = torch.optim.AdamW(pieces, lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    heads = {"a_head": model.a_head, "b_head": model.b_head}
    watch = ld.Doctor(model, optimizer, heads=heads, run=run, every=every, strict=True) if doctor else None
    factor = ld.knob("w_b", 2.0)
    own = {"a": 1.0, "b": factor, **(weights or {})}
    try:
        for _ in range(steps):
            x = torch.randn(8, 4)
            losses = model.losses(x, change(x[:, :2]))
            if watch is not None:
                watch.backward(losses, own)
            else:
                sum(own[name] * loss for name, loss in losses.items()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
    finally:
        if watch is not None:
            watch.close()
    return model, rates


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def by_hand(arm: str) -> tuple[Model, list[float]]:
    def groups(scale: float, decay: float) -> Callable[[Model], list[dict[str, Any]]]:
        def split(model: Model) -> list[dict[str, Any]]:
            head = {"params": list(model.a_head.parameters()), "lr": 0.01 * scale, "weight_decay": decay}
            return [{"params": [*model.body.parameters(), *model.b_head.parameters()]}, head]

        return split

    changed: dict[str, dict[str, Any]] = {
        "without:b": {"weights": {"b": 0.0}},
        "only:b": {"weights": {"a": 0.0}},
        "weight:a*3": {"weights": {"a": 3.0}},
        "knob:w_b*2": {"weights": {"b": 4.0}},
        "lr:a_head*3": {"groups": groups(3.0, 0.1)},
        "wd:a_head=0": {"groups": groups(1.0, 0.0)},
        "lr:a_head*3+wd:a_head=0+without:b": {"groups": groups(3.0, 0.0), "weights": {"b": 0.0}},
    }
    return train(doctor=False, **changed[arm])


ARMS = [
    "without:b",
    "only:b",
    "weight:a*3",
    "knob:w_b*2",
    "lr:a_head*3",
    "wd:a_head=0",
    "lr:a_head*3+wd:a_head=0+without:b",
]


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_the_change_made_by_hand(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, rates = by_hand(arm)
    untouched, _ = train(doctor=False)
    monkeypatch.setenv("LOSSDOCTOR_ARM", arm)
    got, seen = train()
    assert same(got, expected), "every weight, bit for bit"
    assert not same(got, untouched)
    assert seen == rates, "the scheduler goes on with the groups it knows"


def test_which_loss_of_a_trial_is_derived_does_not_depend_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs are compared number by number."""
    planned: list[Any] = []

    def plan(self: Linearity, *arguments: Any, made: Callable[..., Any] = Linearity.plan) -> Any:
        planned.append(made(self, *arguments)[0])
        return made(self, *arguments)

    def derived(run: str, *paces: float) -> set[str | None]:
        clock = itertools.accumulate(itertools.cycle(paces))
        monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        planned.clear()
        train(run=tmp_path / run)
        return set(planned) - {None}

    monkeypatch.setattr(Linearity, "plan", plan)
    free = [derived("one", 1.0, 1.0, 1.0, 9.0), derived("other", 1.0, 9.0, 1.0, 1.0)]
    assert free[0] != free[1], "else there is nothing to be seen here"
    monkeypatch.setenv("LOSSDOCTOR_ARM", "baseline")
    trial = [derived("one arm", 1.0, 1.0, 1.0, 9.0), derived("the other", 1.0, 9.0, 1.0, 1.0)]
    assert trial[0] == trial[1]
    assert len(trial[0]) == 1


def test_the_baseline_is_the_script_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train(doctor=False)
    monkeypatch.setenv("LOSSDOCTOR_ARM", "baseline")
    assert same(train()[0], expected)


def test_a_shuffled_condition_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def noted(cond: Tensor) -> Tensor:
        seen.append((cond, ld.condition(cond)))
        return seen[-1][1]

    monkeypatch.setenv("LOSSDOCTOR_ARM", "shuffle:cond")
    train(change=noted)
    batches: list[Tensor] = []
    monkeypatch.delenv("LOSSDOCTOR_ARM")
    train(change=lambda cond: batches.append(cond) or cond)
    assert len(batches) == len(seen) == 6
    for (before, after), plain in zip(seen, batches, strict=True):
        assert torch.equal(before, plain), "the script's own randomness goes on as in the baseline"
        assert not (before == after).all(1).any(), "nobody keeps a condition"
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))


class Pair(NamedTuple):
    words: list[str]
    ids: Tensor


@pytest.mark.parametrize("rows", [2, 3, 17])
def test_all_parts_of_a_condition_are_shuffled_alike(rows: int) -> None:
    numbers = torch.arange(rows)
    cond = {"ids": numbers, "pair": Pair([str(i) for i in range(rows)], numbers[:, None].half()), "none": None}
    out = shuffled(cond, seed=3)
    order = out["ids"].tolist()
    assert all(i != j for i, j in enumerate(order))
    assert sorted(order) == list(range(rows))
    assert isinstance(out["pair"], Pair)
    assert out["pair"].words == [str(i) for i in order]
    assert out["pair"].ids.flatten().tolist() == order
    assert out["none"] is None
    assert shuffled(numbers, seed=3).tolist() == order


@pytest.mark.parametrize("cond", [torch.ones(1, 3), torch.tensor(3.0), ["one"], 5, "text", object()])
def test_what_cannot_be_shuffled_is_refused(cond: Any) -> None:
    with pytest.raises(UsageError, match=r"(?s)shuffle:cond cannot be applied.*expected:.*got:.*to do:"):
        shuffled(cond, seed=0)


UNKNOWN = {
    "without:kl": r"no losses of that name.*a, b",
    "weight:c*2": r"no losses of that name.*a, b",
    "lr:z_head*2": r"no heads of that name.*a_head, all, b_head",
    "wd:c=0": r"no heads of that name",
    "knob:temp=1": r"no knobs of that name.*w_b",
    "balance:magic": "names no balancer",
    "nonsense": "is no arm",
}


@pytest.mark.parametrize(("arm", "message"), UNKNOWN.items())
def test_an_arm_the_script_cannot_have_fails_at_once(
    arm: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOSSDOCTOR_ARM", arm)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        train(run=tmp_path / "run")


def test_a_script_without_a_condition_cannot_shuffle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSDOCTOR_ARM", "shuffle:cond")
    with pytest.raises(UsageError, match=r"(?s)shuffle:cond.*lossdoctor.condition\(cond\)"):
        train(change=lambda cond: cond)


def test_a_knob_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSDOCTOR_ARM", "knob:mode*2")
    assert ld.knob("other", "cosine") == "cosine"
    with pytest.raises(UsageError, match=r"(?s)a number behind knob 'mode'.*'cosine'"):
        ld.knob("mode", "cosine")
    monkeypatch.setenv("LOSSDOCTOR_ARM", "knob:k*3")
    assert (ld.knob("k", 2), type(ld.knob("k", 2))) == (6, int)


@pytest.mark.parametrize("name", ["LOSSDOCTOR_STEPS", "LOSSDOCTOR_SEED", "LOSSDOCTOR_EVERY"])
@pytest.mark.parametrize("text", ["x", "1.5", "0"])
def test_numbers_in_the_environment(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    if (name, text) == ("LOSSDOCTOR_SEED", "0"):
        assert ld.seed_everything(3) == 0
    else:
        with pytest.raises(UsageError, match=f"(?s){name} cannot be read.*whole number"):
            train()


def test_after_its_steps_the_process_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"STEPS": "4", "RUN": str(tmp_path / "x"), "EVERY": "1", "SEED": "7", "ARM": "only:a"}.items():
        monkeypatch.setenv(f"LOSSDOCTOR_{name}", value)
    ld.seed_everything(1)
    with pytest.raises(SystemExit) as ended:
        train(run=tmp_path / "own", steps=100)
    assert ended.value.code == 0
    run = ld.Run.open(tmp_path / "x")
    assert not (tmp_path / "own").exists(), "the script's own folder is left alone"
    assert run["loss/a"].steps.tolist() == run["grad/total"].steps.tolist() == [0, 1, 2, 3]
    told = {"arm": "only:a", "seed": 7, "seeded": True, "steps": 4, "conditions": True, "knobs": ["w_b"]}
    assert run.meta["experiment"] == told


def test_two_doctors_of_one_script_have_a_folder_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOSSDOCTOR_RUN", str(tmp_path / "x"))
    train()
    train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x-2"]


def test_a_process_under_an_arm_ends_with_zero(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, lossdoctor as ld\n"
        "ld.seed_everything(0)\n"
        "model = torch.nn.Linear(3, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "doctor = ld.Doctor(model, optimizer)\n"
        "while True:\n"
        "    try:\n"
        "        doctor.backward({'mse': model(torch.randn(8, 3)).square().mean()})\n"
        "        optimizer.step()\n"
        "        optimizer.zero_grad()\n"
        "    except Exception:\n"
        "        raise SystemExit(3)\n"
    )
    told = {"LOSSDOCTOR_STEPS": "5", "LOSSDOCTOR_RUN": str(tmp_path / "run"), "LOSSDOCTOR_ARM": "lr:all*2"}
    done = subprocess.run([sys.executable, script], env={**os.environ, **told}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(ld.Run.open(tmp_path / "run")["loss/mse"]) == 5


def test_what_an_optimizer_notes_in_its_groups_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            super().step(closure)

    monkeypatch.setenv("LOSSDOCTOR_ARM", "lr:a_head*3")
    torch.optim.SGD(Model().parameters(), lr=0.1)  # from now on the parent's step runs hooks too
    model = Model()
    optimizer = Counting(model.parameters(), lr=0.1)
    before = copy.copy(optimizer.param_groups[0])
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        for _ in range(3):
            doctor.backward(model.losses(torch.randn(8, 4), torch.zeros(8, 2)))
            optimizer.step()
            optimizer.zero_grad()
        assert doctor.step == 3, "the step of the parent class is part of it"
        assert doctor.ret["lr/a_head"] == pytest.approx(0.3), "what is recorded is what was stepped with"
    (group,) = optimizer.param_groups
    assert group["count"] == 3
    assert group["lr"] == before["lr"]
    assert len(group["params"]) == 6


def test_a_step_that_raised_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moody(torch.optim.SGD):
        fails = True

        def step(self, closure: Any = None) -> None:
            if self.fails:
                raise RuntimeError("not now")
            super().step(closure)

    monkeypatch.setenv("LOSSDOCTOR_ARM", "lr:a_head*3")
    model = Model()
    optimizer = Moody(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        for moody in (True, False, False):
            Moody.fails = moody
            doctor.backward(model.losses(torch.randn(8, 4), torch.zeros(8, 2)))
            try:
                optimizer.step()
            except RuntimeError:
                assert moody
            optimizer.zero_grad()
        assert doctor.step == 2
    assert len(optimizer.param_groups) == 1, "the script has its own groups again"
