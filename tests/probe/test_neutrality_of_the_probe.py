"""What the probe borrows it puts back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from lossdoctor.probe.neutrality import (
    Autocast,
    batch_coupled,
    evaluation,
    every_module,
    same_buffers,
    same_randomness,
    stochastic,
)


def streams() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_streams_go_on_where_they_were() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = streams()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(KeyError), same_randomness(torch.device("cpu")):
        streams()
        raise KeyError
    assert streams() == wanted


def test_written_buffers_are_restored_though_batch_norm_does_not_count_its_writes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = [b.clone() for b in model.buffers()]
    with same_buffers(every_module([model, model])):
        model(torch.randn(8, 3))
        assert not torch.equal(model[1].running_mean, before[0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_a_buffer_saved_for_backward_stays_valid() -> None:
    table = nn.Module()
    table.register_buffer("frequencies", torch.arange(3.0))
    x = torch.ones(3, requires_grad=True)
    loss = (x.square() * table.frequencies).sum()
    with same_buffers([table]):
        pass
    loss.backward()
    assert x.grad.tolist() == [0.0, 2.0, 4.0]


def test_every_submodule_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    model[1].eval()
    with evaluation([model]):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False, False]


def test_batch_coupling_is_a_training_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert batch_coupled(every_module([model]))
    assert not batch_coupled(every_module([model.eval()]))
    assert not batch_coupled([nn.LayerNorm(2)])


def test_stochastic_is_a_training_dropout() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    assert stochastic(every_module([model]))
    assert not stochastic(every_module([model.eval()]))
    assert not stochastic([nn.Dropout(0.0)])


def test_autocast_state_is_entered_again_without_its_cache() -> None:
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = Autocast.capture(torch.device("cpu"))
    assert layer(torch.zeros(1, 4)).dtype == torch.float32
    with state.again(), torch.no_grad():
        assert layer(torch.zeros(1, 4)).dtype == torch.bfloat16
        assert not torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Autocast.capture(torch.device("cpu")).again(), torch.no_grad():
            layer(torch.zeros(1, 4))
        out = layer(torch.zeros(1, 4)).sum()
    out.backward()
    assert layer.weight.grad is not None, "a cast made by the probe would have cut the graph"
    off = Autocast.capture(torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16), off.again():
        assert layer(torch.zeros(1, 4)).dtype == torch.float32
