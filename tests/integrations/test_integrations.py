"""Doors open when they are used, name what is missing, and find the sinks of other people's trackers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import lossdoctor as ld
from lossdoctor.exchange import read
from lossdoctor.integrations.trackers import sink_of
from lossdoctor.treat import RatioController


def test_without_the_extra_the_error_names_it() -> None:
    code = """
import sys
import lossdoctor as ld
assert not [name for name in sys.modules if name.startswith("lossdoctor.integrations")]
sys.modules.update(dict.fromkeys(["lightning", "pytorch_lightning", "transformers"]))
for part in ("lightning", "transformers"):
    try:
        getattr(ld.integrations, part)
    except ImportError as error:
        assert f"lossdoctor[{part}]" in str(error), error
        assert isinstance(error, ld.errors.MissingExtraError)
    else:
        raise AssertionError(part)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_door_names_the_known() -> None:
    with pytest.raises(AttributeError, match="accelerate, lightning, transformers"):
        _ = ld.integrations.fabric


def test_the_trackers_of_accelerate(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    try:
        accelerator.init_trackers("tb")
        (sink,) = ld.integrations.accelerate.sinks(accelerator)
        assert isinstance(sink, ld.sinks.TensorBoard)
        sink.open({})
        sink.write([ld.Record(3, {"loss/a": 0.5})])
        sink.close()
        accelerator.log({"mine": 1.0}, step=0)
        accelerator.end_training()
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    found = read(tmp_path / "tb").run
    assert (list(found["loss/a"]), list(found["mine"])) == ([(3, 0.5)], [(0, 1.0)])


def test_a_state_of_accelerate_holds_that_of_a_balancer(tmp_path: Path) -> None:
    """A loop that goes on from `save_state` is the one that never stopped, bit for bit."""
    models = []
    for begin in (0, 5):
        accelerator = Accelerator(cpu=True)
        try:
            torch.manual_seed(begin)
            model, optimizer = accelerator.prepare(
                core := torch.nn.Linear(4, 4), torch.optim.AdamW(core.parameters(), lr=0.01)
            )
            balance = RatioController(bands={"kl": (5.0, 6.0)}, warmup=0)
            with ld.Doctor(model, optimizer, every=1, strict=True, balance=balance) as doctor:
                accelerator.register_for_checkpointing(doctor)
                if begin:
                    accelerator.load_state(str(tmp_path / "state"))
                for step in range(begin, 10):
                    if step == 5 and not begin:
                        accelerator.save_state(str(tmp_path / "state"))
                        assert doctor.state_dict()["balance"]["factors"]["kl"] != 1.0
                    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
                    v = model(torch.nn.functional.dropout(x))
                    losses = {"flow": (v - x).square().mean(), "kl": v.square().mean()}
                    doctor.backward(losses, backward=accelerator.backward)
                    optimizer.step()
                    optimizer.zero_grad()
            assert (doctor.step, doctor.run["balance/kl"].steps[0]) == (10, max(begin, 1))
            models.append((doctor.state_dict(), [p.detach().clone() for p in core.parameters()]))
        finally:
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
    assert models[0][0] == models[1][0]
    assert all(torch.equal(a, b) for a, b in zip(models[0][1], models[1][1], strict=True))
    kept = torch.load(tmp_path / "state" / "custom_checkpoint_0.pkl", weights_only=True)
    assert kept["step"] == 5


def test_a_tracker_without_a_sink_has_none() -> None:
    for tracker in (None, object(), "run", ld.Run):
        assert sink_of(tracker) is None
