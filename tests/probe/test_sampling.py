"""Slow copies read in a sample, against every element of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lossdoctor.probe.sampling import LONG, ONE_IN, Sample
from lossdoctor.probe.updates import ShadowWatch, shadow_watch

LONGER = 3 * LONG + 77


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(LONGER,), (7, 3), (), (2, LONG), (0,), (LONG - 1,)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def test_short_tensors_are_whole_and_of_long_ones_every_element_has_its_turn() -> None:
    given = [torch.arange(one.numel(), dtype=torch.float64).view(one.shape) for one in tensors()]
    sample = Sample.of(given)
    seen: list[set[float]] = [set() for _ in sample.groups]
    for _ in range(ONE_IN):
        for group, vector in zip(seen, sample.vectors(given), strict=True):
            group |= set(vector.tolist())
        sample = sample.next()
    by_factor = dict(zip(sample.factors, zip(sample.groups, seen, strict=True), strict=True))
    places, elements = by_factor.pop(1.0)
    assert set(places) == {1, 2, 4, 5}
    assert elements == set(map(float, range(LONG - 1)))
    ((factor, (places, elements)),) = by_factor.items()
    assert set(places) == {0, 3}
    assert factor == pytest.approx(ONE_IN, rel=0.03)
    assert len(elements) > 0.97 * LONGER, "but for a tail shorter than a period"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lengths_are_right_on_average_and_nearly_right_each_time(dtype: torch.dtype) -> None:
    given = tensors(dtype)
    wanted = sum(float(one.double().square().sum()) for one in given)
    sample, found = Sample.of(given), []
    for _ in range(ONE_IN):
        each = zip(sample.factors, sample.vectors(given), strict=True)
        found.append(sum(factor * float(vector.square().sum()) for factor, vector in each))
        sample = sample.next()
    assert sum(found) / ONE_IN == pytest.approx(wanted, rel=0.01)
    assert found == [pytest.approx(wanted, rel=0.1)] * ONE_IN


def test_a_tensor_that_lies_otherwise_in_memory_is_read_as_its_twin() -> None:
    turned = torch.randn(300, LONG // 100).t()
    sample = Sample.of([turned])
    assert torch.equal(sample.vectors([turned])[0], sample.vectors([turned.contiguous()])[0])


class Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.small = nn.Linear(256, 4 * LONG // 256), nn.Linear(5, 3)


@pytest.mark.parametrize("momentum", [0.9, 0.9999])
def test_an_ema_of_long_weights(momentum: float) -> None:
    torch.manual_seed(0)
    model, ema = Long(), Long()
    watch = shadow_watch("ema", ema, model)
    assert watch is not None
    for _ in range(3):
        watch.arm()
        with torch.no_grad():
            for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
        found = watch.settle()
        assert found is not None
        assert found.gap is not None
        # The share of the gap that was closed is the same everywhere, so that a sample is as good as everything.
        assert float((found.moved / found.gap).sqrt()) == pytest.approx(1 - momentum, rel=1e-3)
        live = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        far = torch.cat([p.detach().reshape(-1) for p in ema.parameters()]) - live
        assert float((found.distance / found.live).sqrt()) == pytest.approx(float(far.norm() / live.norm()), rel=0.03)
    assert watch.settle() is None, "nothing was remembered"


def test_what_stands_still_or_is_the_same_is_exactly_zero() -> None:
    model = Long()
    teacher = copy.deepcopy(model)
    watch = ShadowWatch(list(teacher.parameters()), list(model.parameters()))
    watch.arm()
    found = watch.settle()
    assert found is not None
    assert (found.moved, found.distance, found.gap) == (0.0, 0.0, 0.0)
    alone = ShadowWatch(list(teacher.parameters()), None)
    alone.arm()
    with torch.no_grad():
        teacher.small.bias[0] += 1.0
    found = alone.settle()
    assert found is not None
    assert float(found.moved) == pytest.approx(1.0), "one element of a short tensor"
    assert found.live is None
