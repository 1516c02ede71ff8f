"""Training by the Hugging Face Trainer with the callback: bit for bit the same, and the numbers of a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import lossdoctor as ld
from lossdoctor.integrations.transformers import LossDoctorCallback
from lossdoctor.treat import RatioController

WEIGHTS = {"a": 0.5, "flow": 2.0}
STEPS = 6
BATCH = 12
KEYS = ("grad", "descent/", "loss/", "step/", "weight/", "lr/", "wd/", "flow/")


class Net(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(drop))
        self.a_head, self.flow_head = nn.Linear(16, 3), nn.Linear(17, 4)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.a_head(h), self.flow_head(torch.cat([h, t], -1))


def losses(model: nn.Module, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    a, v = model(x, t)
    ld.flow(v, -x, t, z1=x)
    return {"a": a.square().mean(), "flow": (v + x).square().mean()}


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, rows: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x, self.t = torch.randn(rows, 4, generator=generator), torch.rand(rows, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "t": self.t[index]}


class Mine(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss = ld.total(losses(model, inputs["x"], inputs["t"]), WEIGHTS)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> None:
        return None  # in order


class Keeping(TrainerCallback):
    def __init__(self) -> None:
        self.after: list[Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        self.after += [p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()]


def trainer(folder: Path, *, micro: int = 1, clip: float = 0.0, drop: float = 0.0, **more: Any) -> Mine:
    torch.manual_seed(0)
    settings = {
        "max_steps": STEPS,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.01,
        **more,
    }
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no",
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=micro, max_grad_norm=clip,
        remove_unused_columns=False, **settings,
    )  # fmt: skip
    return Mine(model=Net(drop), args=args, train_dataset=Rows(STEPS * micro * BATCH), eval_dataset=Rows(BATCH))


PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2},
    "all": {"micro": 2, "clip": 0.1, "drop": 0.3, "bf16": True},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_training_is_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    kept: list[list[Tensor]] = []
    for watched in (False, True):
        training, keeping = trainer(tmp_path, **PROGRAMS[name]), Keeping()
        training.add_callback(keeping)
        doctor = LossDoctorCallback(training, heads=["a_head"], every=2, strict=True)
        if watched:
            training.add_callback(doctor)
        training.train()
        kept.append(keeping.after)
    assert len(kept[0]) == len(kept[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert doctor.doctor is not None
    assert doctor.doctor.step == STEPS
    assert "backward" not in vars(training.accelerator)
    assert {"grad/a", "grad_cos/a|flow", "descent/flow", "grad_module/a/a_head"} <= set(doctor.doctor.run)
    assert not [event for event in doctor.doctor.run.events if event["kind"] in ("failure", "passed_over")]


def test_numbers_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    training = trainer(tmp_path, micro=2, clip=0.1)
    callback = LossDoctorCallback(training, heads=["a_head"], every=1, strict=True)
    training.add_callback(callback)
    training.train()
    assert callback.doctor is not None
    found = callback.doctor.run

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    rows = Rows(STEPS * 2 * BATCH)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        for x, t in zip(rows.x.split(2 * BATCH), rows.t.split(2 * BATCH), strict=True):
            doctor.backward(losses(model, x, t), WEIGHTS)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    wanted = doctor.run
    names = [name for name in wanted if name.startswith(KEYS)]
    assert {"grad/clip_ratio", "grad/flow", "step/a_head_grad_norm", "descent/a"} <= set(names)
    for name in names:
        assert found[name].values == pytest.approx(wanted[name].values, rel=2e-3, abs=1e-6), name


def test_a_scaler_is_divided_out_and_a_step_it_skips_is_none(tmp_path: Path) -> None:
    """The Trainer takes fp16 on a GPU alone; here its accelerator gets the scaler it would have there."""
    doctors = []
    # A fused optimizer is called at a step that is skipped, with gradients that are still scaled, and changes nothing.
    for optim, scale in (("adamw_torch", None), ("adamw_torch", 2.0**10), ("adamw_torch_fused", 2.0**10)):
        training = trainer(tmp_path, optim=optim)
        training.add_callback(callback := LossDoctorCallback(training, heads=["a_head"], every=1, strict=True))
        if scale is not None:
            training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            overflow(training, at=STEPS - 1)
        training.train()
        assert callback.doctor is not None
        doctors.append(callback.doctor)
    assert [one.step for one in doctors] == [STEPS, STEPS - 1, STEPS]
    for name in (name for name in doctors[0].run if name.startswith(KEYS) and not name.startswith("flow/")):
        wanted, *found = (one.run[name].values[: STEPS - 1] for one in doctors)
        assert all(each == pytest.approx(wanted, rel=1e-4, abs=1e-7) for each in found), name
    assert doctors[2].run["step/a_head_update_ratio"].values[-1] == 0


def overflow(training: Mine, at: int) -> None:
    """Let the gradients of one step be infinite."""
    compute, factors = training.compute_loss, torch.ones(STEPS)
    factors[at] = torch.inf
    training.compute_loss = lambda *args, **more: compute(*args, **more) * factors[training.state.global_step]


def balanced() -> dict[str, Any]:
    """Options of a Doctor whose balancer changes weights from the first step on."""
    return {
        "balance": RatioController(bands={"kl": (5.0, 6.0)}, warmup=0),
        "kinds": {"a": "kl"},
        "every": 1,
        "strict": True,
    }


def test_training_from_a_checkpoint_is_that_without_a_break(tmp_path: Path) -> None:
    """Bit for bit, with a balancer whose last change was still to be judged when the checkpoint was written."""
    run, models, doctors = tmp_path / "run", [], []
    for begin in (None, str(tmp_path / "out" / "checkpoint-3")):
        # Asked for because of other callbacks; the Trainer then warns that it knows none of that name.
        restore = {"restore_callback_states_from_checkpoint": begin is not None}
        training = trainer(tmp_path / "out", save_strategy="steps", save_steps=3, drop=0.3, **restore)
        callback = LossDoctorCallback(training, run=run, **balanced())
        training.add_callback(callback)
        training.train(resume_from_checkpoint=begin)
        assert callback.doctor is not None
        models.append(training.model.state_dict())
        doctors.append(callback.doctor.state_dict())
    kept = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text("utf-8"))
    assert kept["stateful_callbacks"]["lossdoctor"]["step"] == 3
    assert kept["stateful_callbacks"]["lossdoctor"]["balance"]["open"] is not None
    assert kept["stateful_callbacks"]["lossdoctor"]["balance"]["factors"]["a"] != 1.0
    assert doctors[0] == doctors[1]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert list(ld.Run.open(run)["grad/a"].steps) == list(range(STEPS))


def test_a_checkpoint_of_a_training_that_was_not_measured(tmp_path: Path) -> None:
    first = trainer(tmp_path / "out", save_strategy="steps", save_steps=3, max_steps=3)
    first.train()
    second = trainer(tmp_path / "out", save_strategy="steps", save_steps=1)
    second.add_callback(callback := LossDoctorCallback(second, **balanced()))
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert callback.doctor is not None
    assert list(callback.doctor.run["grad/a"].steps) == [3, 4, 5]


def test_a_training_that_begins_anew_after_an_error(tmp_path: Path) -> None:
    """As auto_find_batch_size does it, in the same run."""
    training = trainer(tmp_path)
    training.add_callback(callback := LossDoctorCallback(training, run=tmp_path / "run", every=1, strict=True))
    compute, calls = training.compute_loss, []

    def once_too_large(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return compute(*args, **kwargs)

    training.compute_loss = once_too_large
    with pytest.raises(RuntimeError, match="out of memory"):
        training.train()
    training.train()
    assert callback.doctor is not None
    assert callback.doctor.step == STEPS
    assert "backward" not in vars(training.accelerator)
    assert list(ld.Run.open(tmp_path / "run")["grad/a"].steps) == list(range(STEPS))
