"""What ranks are compared by: the same for the same, other for other, and a distance that is about right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lossdoctor.doctor.likeness import Likeness, counted, differing, distance
from lossdoctor.probe.capture import Capture
from lossdoctor.probe.imprints import BUCKETS, alike, imprints, sketched


def handed_in(seed: int = 0, batch: int = 8, dtype: torch.dtype = torch.float32, mu: float = 1.0, **other) -> Capture:
    generator = torch.Generator().manual_seed(seed)
    z0, z1, noise = (torch.randn(batch, 4, generator=generator) for _ in range(3))
    t = torch.rand(batch, 1, generator=generator)
    given = {"z0": z0, "z1": z1, "t": t, "noise": noise, "logvar": torch.full_like(z0, -1.0)} | other
    capture = Capture()
    capture.add_flow(given["z1"], given["z1"] - given["z0"], given["t"], z0=given["z0"], z1=given["z1"])
    centre = mu * given["z1"]
    z = centre + torch.exp(given["logvar"] / 2) * given["noise"]
    capture.add_posterior(centre.to(dtype), given["logvar"].to(dtype), z.to(dtype), None)
    capture.add_distill(given["z1"], given["z1"], teacher_temp=0.1, student_temp=0.1)
    return capture


def told(**other) -> dict:
    return imprints(handed_in(**other))


def agree(a: dict, b: dict) -> set[str]:
    return {name for name in a.keys() & b.keys() if alike(a[name], b[name])}


def test_the_same_is_alike_and_another_draw_is_not() -> None:
    assert agree(told(), told()) == set(told())
    assert set(told()) == {
        "flow.z0",
        "flow.z1",
        "flow.v_target",
        "flow.t",
        "posterior.mu",
        "posterior.noise",
        "distill.teacher_logits",
    }
    for seed in range(1, 50):
        assert agree(told(), told(seed=seed)) == set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_is_found_again_under_other_means_and_rounding(dtype) -> None:
    a, b = told(mu=1.0, dtype=dtype), told(mu=-0.5, dtype=dtype)
    assert "posterior.noise" in agree(a, b)
    assert "posterior.mu" not in agree(a, b)


def test_noise_that_is_not_there_is_not_compared() -> None:
    none = torch.zeros(8, 4)
    assert "posterior.noise" not in told(noise=none)
    assert "posterior.noise" not in told(noise=torch.full((8, 4), torch.inf))
    # Only rounding is left of it, which is no noise that ranks could share.
    small = told(noise=1e-7 * torch.ones(8, 4))["posterior.noise"]
    assert not alike(small, told(seed=1, noise=-1e-7 * torch.ones(8, 4))["posterior.noise"])


def test_a_time_for_the_whole_batch_may_be_a_schedule() -> None:
    assert "flow.t" not in told(t=torch.tensor(0.3))
    assert "flow.t" not in told(t=torch.full((8, 1), 0.3))
    assert "flow.t" in told(batch=1, t=torch.rand(1, 1))


def test_samples_in_another_order_or_sparse_pictures_are_told_apart() -> None:
    z1 = torch.randn(16, 4)
    assert not alike(told(batch=16, z1=z1)["flow.z1"], told(batch=16, z1=z1.flip(0))["flow.z1"])
    pictures = torch.zeros(2, 8, 4)
    pictures[0, 3, 1], pictures[1, 5, 2] = 1.0, 1.0
    assert not alike(told(z1=pictures[0])["flow.z1"], told(z1=pictures[1])["flow.z1"])


def test_what_stays_from_step_to_step_is_not_compared() -> None:
    likeness, fixed = Likeness(), torch.linspace(0, 1, 8)[:, None]
    ranks = [[told(seed=10 * step + rank, t=fixed) for rank in range(3)] for step in range(2)]
    assert likeness.inputs(ranks[0]) == {}
    now = likeness.inputs(ranks[1])
    assert "ranks/same/flow.t" not in now
    assert now["ranks/same/flow.z1"] == 0.0
    # Two of three share, and the names that one of them lacks are left out.
    lacking = {name: value for name, value in told(seed=32).items() if name != "posterior.mu"}
    shared = likeness.inputs([told(seed=31), told(seed=31), lacking])
    assert shared["ranks/same/flow.z1"] == pytest.approx(2 / 3)
    assert "ranks/same/posterior.mu" not in shared
    assert counted([told(seed=31), told(seed=31), lacking])["flow.z1"] == 2


@pytest.mark.parametrize("shapes", [[(3,)], [(16, 7), (5,), (1000, 33)], [(2, 3, 5), ()]])
def test_sketches_tell_the_distance(shapes) -> None:
    ratios = []
    for seed in range(30):
        torch.manual_seed(seed)
        a = [torch.randn(shape) for shape in shapes]
        b = [one + 1e-3 * torch.randn_like(one) for one in a]
        b[0] = a[0]
        exact = sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5
        length = sum(float(x.double().square().sum()) for x in a) ** 0.5
        tables = [sketched(one).numpy() for one in (a, b)]
        assert tables[0].shape == (len(shapes), BUCKETS + 1)
        assert np.sqrt(tables[0][:, -1].sum()) == pytest.approx(length, rel=1e-5)
        assert differing(tables, [str(i) for i in range(len(a))])["count"] == len(shapes) - 1
        if exact:
            ratios.append((distance(tables) / (exact / length)) ** 2)
        else:
            assert distance(tables) == 0.0
    if ratios:
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.25)
        assert min(ratios) > 0.1
        assert max(ratios) < 3.5


def test_weights_without_length_are_not_divided_by_it() -> None:
    zeros = [sketched([torch.zeros(4)]).numpy(), sketched([torch.ones(4)]).numpy()]
    assert distance(zeros) == 0.0
    assert distance([sketched([]).numpy()] * 2) == 0.0
