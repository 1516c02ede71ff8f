"""gradients="finite-difference": shares from two forwards against exact ones, and what shows that they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.errors import LossDoctorWarning

WEIGHTS = {"flow": 1.0, "kl": 0.05, "dino": 0.5}


class Joint(nn.Module):
    """A posterior whose sample feeds a velocity and a student, with dropout; every loss draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Dropout(0.2), nn.Linear(32, 16))
        self.velocity_net = nn.Sequential(nn.Linear(15, 48), nn.SiLU(), nn.Linear(48, 8))
        self.dino_head = nn.Linear(8, 9)

    def losses(self, x: Tensor) -> dict[str, Tensor | None]:
        mu, logvar = self.encoder(x).chunk(2, -1)
        z0, t = mu + (logvar / 2).exp() * torch.randn_like(mu), torch.rand(len(x), 1)
        z1 = torch.randn_like(z0) + 1.0
        v = self.velocity_net(torch.cat([(1 - t) * z0 + t * z1, t, x], -1))
        ld.log(seen=v.mean())
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        dino = -self.dino_head(z0).log_softmax(-1)[:, 0]
        return {"flow": (v - (z1 - z0)).square().mean(), "kl": kl, "dino": dino, "later": None}


class Convolutions(nn.Module):
    """BatchNorm in training mode; a loss that has not started; complex numbers on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 8, 3))
        self.phase = nn.Parameter(torch.randn(8, 1, 1, dtype=torch.complex64))
        self.dino_head = nn.Linear(8, 9)
        self.to(memory_format=torch.channels_last)

    def losses(self, x: Tensor) -> dict[str, Tensor | None]:
        h = self.body(F.pad(x[:, None, :, None].expand(-1, 1, 6, 6), (0, 0, 0, 0)))
        turned = torch.view_as_real(h * self.phase)[..., 0]
        dino = F.cross_entropy(self.dino_head(h.mean((2, 3))), torch.arange(len(x)) % 9)
        return {"flow": (turned - 1.0).square().mean(), "kl": turned.square().mean(), "dino": dino}


MODELS: dict[str, Callable[[], Any]] = {"joint": Joint, "convolutions": Convolutions}


def train(
    make: Callable[[], Any],
    mode: str | None,
    *,
    micro: int = 1,
    told: bool = True,
    scale: float | None = None,
    **how: Any,
) -> tuple[list[Any], list[dict[str, float]], Any]:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    doctor = None
    if mode is not None:
        doctor = ld.Doctor(model, optimizer, every=1, gradients=mode, live=False, **{"strict": True, **how})
    states, read = [], []
    for _ in range(4):
        for _ in range(micro):
            x = torch.randn(24, 6)
            if doctor is None:
                losses = model.losses(x)
                total = losses["flow"] * 1.0 + losses["kl"] * 0.05 + losses["dino"].mean() * 0.5
                (total if scaler is None else scaler.scale(total)).backward()
            else:
                compute = (lambda x=x: model.losses(x)) if told else model.losses(x)
                doctor.backward(compute, WEIGHTS, scaler=scaler)
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        optimizer.zero_grad()
        states.append([*grads, *(t.detach().clone() for t in (*model.parameters(), *model.buffers()))])
        states[-1].append(torch.get_rng_state())
        read.append({} if doctor is None else dict(doctor.ret))
    if doctor is not None:
        doctor.close(rollout=False)
    return states, read, None if doctor is None else doctor.run


SETUPS = [("joint", 1, None), ("joint", 3, None), ("joint", 1, 2.0**12), ("convolutions", 1, None)]


@pytest.mark.parametrize(("name", "micro", "scale"), SETUPS)
def test_shares_are_those_of_exact_gradients_and_no_trace_is_left(name: str, micro: int, scale: float | None) -> None:
    without, _, _ = train(MODELS[name], None, micro=micro, scale=scale)
    _, exact, _ = train(MODELS[name], "exact", micro=micro, scale=scale)
    watched, found, run = train(MODELS[name], "finite-difference", micro=micro, scale=scale)
    for a, b in zip(without, watched, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    assert run.meta["gradients"] == "finite-difference"
    for wanted, read in zip(exact, found, strict=True):
        for loss in WEIGHTS:
            assert read[f"grad_share/{loss}"] == pytest.approx(wanted[f"grad_share/{loss}"], abs=3e-4), loss
        for key in ("grad/total", "grad/clip_ratio", "loss/flow", "weight/kl"):
            assert read[key] == pytest.approx(wanted[key], rel=1e-5), key
        unknown = ("grad/flow", "grad_cos/flow|kl", "descent/flow", "grad_weighted/flow")
        assert not set(unknown) & set(read), "values alone do not tell them"
        assert read.get("seen") == wanted.get("seen"), "what is handed in on the way is handed in once"


def test_the_function_is_called_once_more_for_each_side_and_only_at_due_steps() -> None:
    calls: list[bool] = []
    model = Joint()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def compute() -> dict[str, Tensor | None]:
        calls.append(torch.is_grad_enabled())
        return model.losses(torch.ones(4, 6))

    with ld.Doctor(model, optimizer, every=3, gradients="finite-difference", strict=True, live=False) as doctor:
        for _ in range(4):
            doctor.backward(compute, WEIGHTS)
            optimizer.step()
            optimizer.zero_grad()
    assert calls == [True, False, False, True, True, True, False, False]


def test_any_mode_takes_the_function() -> None:
    _, told, _ = train(Joint, "exact")
    _, given, _ = train(Joint, "exact", told=False)
    for one, other in zip(told, given, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


class Moody(Joint):
    """Computes something else each time it is asked."""

    asked = 0

    def losses(self, x: Tensor) -> dict[str, Tensor | None]:
        self.asked += 1
        found = super().losses(x)
        return {**found, "flow": found["flow"] * self.asked}  # type: ignore[operator]


class HalfPrecision(Joint):
    def losses(self, x: Tensor) -> dict[str, Tensor | None]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().losses(x)


@pytest.mark.parametrize("make", [Moody, HalfPrecision])
def test_shares_that_do_not_add_up_are_not_recorded(make: Callable[[], Any]) -> None:
    with pytest.warns(LossDoctorWarning, match='do not add up to 1.*gradients="exact"'):
        _, read, run = train(make, "finite-difference", strict=False)
    assert not any(key.startswith("grad_share") for found in read for key in found)
    assert all({"grad/total", "loss/flow"} <= set(found) for found in read)
    assert len([event for event in run.events if event["kind"] == "passed_over"]) == 1


def test_losses_without_their_function_are_refused_with_one_sentence() -> None:
    with pytest.warns(LossDoctorWarning, match=r"doctor\.backward\(lambda: losses\(batch\), weights\)") as said:
        _, read, run = train(Joint, "finite-difference", told=False)
    assert len(said) == 1
    assert [event["step"] for event in run.events if event["kind"] == "passed_over"] == [0]
    assert all("loss/flow" in found and not any(key.startswith("grad") for key in found) for found in read)


def test_an_optimizer_in_the_backward_is_refused() -> None:
    model = Joint()
    each = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}
    for p, optimizer in each.items():
        p.register_post_accumulate_grad_hook(lambda p, o=optimizer: o.step())
    doctor = ld.Doctor(model, list(each.values()), every=1, gradients="finite-difference", strict=True, live=False)
    with doctor, pytest.warns(LossDoctorWarning, match="optimizer in the backward"):
        doctor.backward(lambda: model.losses(torch.randn(8, 6)), WEIGHTS)
    assert "grad_share/flow" not in doctor.ret
