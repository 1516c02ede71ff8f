from __future__ import annotations

import pytest
import torch
from torch import nn

from lossdoctor.reference.ema import Ema


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(dtype)


def stir(net: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            tensor.add_(torch.randn_like(tensor))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_averages_by_the_formula(decay: float) -> None:
    net = model()
    ema, expected = Ema(net, decay), [p.detach().double() for p in net.parameters()]
    for n in range(30):
        stir(net)
        ema.update(net)
        kept = min(decay, (1 + n) / (10 + n))
        expected = [
            kept * old + (1 - kept) * new.detach().double() for old, new in zip(expected, net.parameters(), strict=True)
        ]
    for averaged, value in zip(ema.model.parameters(), expected, strict=True):
        assert torch.allclose(averaged.double(), value, atol=1e-5)


def test_the_initial_weights_are_soon_forgotten() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    ema = Ema(net, 0.9999)
    with torch.no_grad():
        net[0].weight.zero_()
    for _ in range(100):
        ema.update(net)
    assert ema.model[0].weight.abs().max() < 1e-6


def test_half_precision_is_averaged_in_full() -> None:
    net = model(torch.float16)
    ema = Ema(net, 0.9999)
    ema.updates = 10**6
    with torch.no_grad():
        net[0].weight.add_(1.0)
    before = ema.model[0].weight.clone()
    ema.update(net)
    assert ema.model[0].weight.dtype == torch.float32
    assert torch.allclose(ema.model[0].weight - before, torch.full_like(before, 1e-4), rtol=0.01, atol=0)


def test_buffers_are_copied_and_nothing_is_shared() -> None:
    net = model()
    ema = Ema(net, 0.9)
    stir(net)
    ema.update(net)
    assert torch.equal(ema.model[1].running_mean, net[1].running_mean)
    pointers = {t.data_ptr() for t in net.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in ema.model.state_dict().values()}
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_it_goes_on_exactly() -> None:
    net = model()
    ema = Ema(net, 0.99)
    stir(net)
    ema.update(net)
    other = Ema(model(), 0.99)
    other.load_state_dict(ema.state_dict())
    stir(net)
    for one in (ema, other):
        one.update(net)
    assert other.updates == 2
    for a, b in zip(ema.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
