"""What is told of a training before it is started, against what it then takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lossdoctor.config import load, override
from lossdoctor.errors import UsageError
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.reference.config import rooted
from lossdoctor.reference.rehearsal import Rehearsal, rehearse

PRODUCTION = Path(__file__).parents[2] / "examples" / "production" / "captions_256.toml"


def allocated(step: Callable[[], object]) -> int:
    """The most bytes that torch's own allocator held at any time of a step, over what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as told:
        step()
    now = most = 0
    events = told.profiler.kineto_results.events()
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.fixture(scope="module", params=["digits", "encoders"])
def config(request: pytest.FixtureRequest, tiny: ReferenceConfig, twin: ReferenceConfig) -> ReferenceConfig:
    if request.param == "digits":
        return override(tiny, {"train.batch": 64})
    return override(twin, {"train.batch": 64, "velocity.width": 64})


@pytest.fixture(scope="module")
def trainer(config: ReferenceConfig) -> Trainer:
    made = Trainer(config)
    if made.config.teacher.path is None:
        made.adopt(made.autoencoder.state_dict())
    made.run(1)
    return made


@pytest.fixture(scope="module")
def told(config: ReferenceConfig) -> Rehearsal:
    return rehearse(config)


def test_weights_and_optimizer_are_those_of_the_training_to_the_byte(told: Rehearsal, trainer: Trainer) -> None:
    def size(tensors: object) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    system, memory = trainer.system, told.memory
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert memory.weights == size([*system.parameters(), *system.buffers()])
    assert memory.gradients == size(trained)
    assert memory.optimizer == size(t for state in trainer.optimizer.state.values() for t in state.values())
    assert memory.ema == size([*trainer.ema.model.parameters(), *trainer.ema.model.buffers()])
    assert sum(part.trained for part in told.parts) == sum(p.numel() for p in trained)
    assert sum(part.parameters for part in told.parts) == sum(p.numel() for p in system.parameters())
    assert (told.pictures, told.vocabulary) == (len(trainer.training_set), len(trainer.tokenizer))


def test_the_peak_is_that_of_the_allocator(told: Rehearsal, trainer: Trainer) -> None:
    batch = trainer.loader.draw()
    given = sum(t.nbytes for t in {id(t): t for t in (batch.pictures, *batch.views)}.values())
    given += 2 * batch.source_noise.nbytes

    def step() -> None:
        torch.autograd.backward(sum(trainer.system.losses(batch).values()))

    trainer.optimizer.zero_grad(set_to_none=True)
    measured = allocated(step) + given
    trainer.optimizer.zero_grad(set_to_none=True)
    assert told.memory.gradients + told.memory.working == pytest.approx(measured, rel=0.05)


def test_the_work_is_that_of_a_step(told: Rehearsal, trainer: Trainer) -> None:
    batch = trainer.loader.draw()
    with FlopCounterMode(display=False) as counted:
        torch.autograd.backward(sum(trainer.system.losses(batch).values()))
    trainer.optimizer.zero_grad(set_to_none=True)
    assert told.work.step == counted.get_total_flops()
    assert 0 < told.work.frozen < told.work.step
    assert told.work.due is not None
    assert 0 < told.work.due < told.work.step


def test_each_of_several_processes_takes_its_share(tiny: ReferenceConfig) -> None:
    alone, one = rehearse(tiny), rehearse(override(tiny, {"train.batch": 64}), 2)
    assert one.memory.working == alone.memory.working
    assert (one.memory.exchange, alone.memory.exchange) == (alone.memory.gradients, 0)
    assert one.work.step == 2 * alone.work.step
    with pytest.raises(UsageError, match=r"set train\.batch=30"):
        rehearse(tiny, 3)


def test_the_example_of_production_size_is_of_that_size() -> None:
    """On fewer pictures at once than it has, which leaves the parameters as they are and the rehearsal short."""
    config = override(rooted(load(ReferenceConfig, PRODUCTION), PRODUCTION.parent), {"train.batch": 2})
    told = rehearse(config)
    size = {part.name: part.parameters for part in told.parts}
    assert size["autoencoder"] == 83_653_863, "that of Stable Diffusion"
    assert size["teacher"] == 86_580_480, "DINOv2-B"
    assert 100e6 < size["velocity"] < 400e6
    assert (told.pictures, told.epoch) == (None, None)
    assert told.memory.due is None, "gradients of that size are sketched"
    assert told.untrained == ("vae.path", "teacher.path")
