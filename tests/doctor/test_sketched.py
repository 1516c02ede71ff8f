"""gradients="sketch" through the Doctor: how near it comes, that it says so, and that it leaves no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lossdoctor as ld
from lossdoctor.config import override
from lossdoctor.probe import sketch
from lossdoctor.reference import ReferenceConfig, Trainer

WEIGHTS = {"flow": 1.0, "kl": 0.05, "dino": 0.5}
DRAW = sketch.Sketch._draw
DRAWS = 6
"""Draws of the signs that are averaged, as a curve over six due steps is by the eye."""


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 96))
        self.flow_head, self.dino_head = nn.Linear(96, 32), nn.Linear(96, 80)

    def losses(self) -> dict[str, Tensor]:
        x = torch.randn(64, 32)
        h = self.trunk(x)
        dino = -self.dino_head(h).log_softmax(-1)[:, 0].mean()
        return {"flow": (self.flow_head(h) - x).square().mean(), "kl": h.square().sum(-1).mean() / 2, "dino": dino}


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
        )
        self.up, self.out = nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.Conv2d(32, 3, 3, padding=1)
        self.dino_head = nn.Linear(64, 80)

    def losses(self) -> dict[str, Tensor]:
        x = torch.randn(16, 3, 12, 12)
        h = F.silu(self.body(x))
        dino = -self.dino_head(h.mean((2, 3))).log_softmax(-1)[:, 0].mean()
        return {"flow": (self.out(F.silu(self.up(h))) - x).square().mean(), "kl": h.square().mean(), "dino": dino}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        x = x + self.out(heard.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """The second block is recomputed; the last layer shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 72)
        self.blocks = nn.ModuleList(Block(72) for _ in range(2))
        self.mixer = nn.MultiheadAttention(72, 4, batch_first=True)
        self.flow_head = nn.Linear(72, 16)

    def losses(self) -> dict[str, Tensor]:
        tokens = torch.randint(50, (12, 10))
        h = self.blocks[0](self.embedding(tokens))
        h = h + self.mixer(h, h, h, need_weights=False)[0]
        h = checkpoint(self.blocks[1], h, use_reentrant=False)
        logits = F.linear(h, self.embedding.weight)
        return {
            "flow": (self.flow_head(h) - F.one_hot(tokens % 16, 16)).square().mean(),
            "kl": h.mean(1).square().sum(-1).mean(),
            "dino": F.cross_entropy(logits.flatten(0, 1), tokens.roll(1, 1).flatten()),
        }


class Reference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        small = {"velocity.width": 128, "velocity.blocks": 2, "distill.width": 96, "autoencoder.width": 64}
        self.trainer = Trainer(override(ReferenceConfig(seed=3), {**small, "train.batch": 48}))
        self.system = self.trainer.system

    def losses(self) -> dict[str, Tensor]:
        return self.system.losses(self.trainer.loader.draw())


MODELS: dict[str, Callable[[], Any]] = {
    "mlp": MLP,
    "convolutions": Conv,
    "transformer": Transformer,
    "reference": Reference,
}


def heads(model: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in model.named_children() if name.endswith("head")}


def train(model: Any, mode: str | None, steps: int, lr: float = 1e-3) -> tuple[list[dict[str, float]], list[Any], Any]:
    """Readings and states of some steps. mode None: no doctor."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    doctor = None
    if mode is not None:
        doctor = ld.Doctor(model, optimizer, heads=heads(model), every=1, gradients=mode, strict=True, live=False)
    read, states = [], []
    for _ in range(steps):
        losses = model.losses()
        if doctor is None:
            (losses["flow"] * 1.0 + losses["kl"] * 0.05 + losses["dino"] * 0.5).backward()
        else:
            doctor.backward({name: losses[name] for name in WEIGHTS}, WEIGHTS)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        states.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        states.append([t.detach().clone() for t in (*model.parameters(), *model.buffers(), torch.get_rng_state())])
        read.append({} if doctor is None else dict(doctor.ret))
    if doctor is not None:
        doctor.close(rollout=False)
    return read, states, doctor


def near(values: list[float], wanted: float, tolerance: float) -> bool:
    return abs(sum(values) / len(values) - wanted) <= tolerance


@pytest.mark.parametrize("name", MODELS)
def test_sketched_metrics_are_near_the_exact_ones(name: str) -> None:
    """The same step again and again, each time with other signs: norms to 10 %, cosines and shares to 0.05."""
    torch.manual_seed(0)
    model = MODELS[name]()
    train(model, None, 8)  # away from the start, where many gradients are nearly parallel
    where = copy.deepcopy(model)
    (wanted,), _, _ = train(copy.deepcopy(where), "exact", 1)
    found: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sketch.Sketch, "_draw", lambda s, i, n=seed: DRAW(sketch.Sketch(s.where, n, s.size), i))
            (read,), _, doctor = train(copy.deepcopy(where), "sketch", 1)
        assert doctor.run.meta["gradients"] == "sketch"
        for key, value in read.items():
            found.setdefault(key, []).append(value)
    assert len(set(found["grad/kl"])) == DRAWS, "these are estimates"
    assert found.keys() == wanted.keys(), "the reach matrix is exact: what is unused is absent"
    for key, value in wanted.items():
        family = key.split("/")[0]
        if key in ("grad/total", "grad/clip_ratio") or not family.startswith(("grad", "descent")):
            assert found[key] == pytest.approx([value] * DRAWS, rel=1e-4, abs=1e-7), key
        elif family in ("grad_share", "grad_cos"):
            assert near(found[key], value, 0.05), (key, found[key], value)
        elif family == "descent":
            loss = key.split("/")[1]
            steepest = wanted[f"grad/{loss}"] * 1e-3 * math.sqrt(sum(p.numel() for p in where.parameters()))
            assert near(found[key], value, 0.05 * steepest), (key, found[key], value)
        else:
            assert near(found[key], value, 0.1 * value), (key, found[key], value)
    assert sum(wanted[f"grad_share/{loss}"] for loss in WEIGHTS) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_sketching_leaves_no_trace(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    twin = copy.deepcopy(model)
    _, without, _ = train(model, None, 4)
    _, watched, _ = train(twin, "sketch", 4)
    for number, (a, b) in enumerate(zip(without, watched, strict=True)):
        assert len(a) == len(b)
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True)), f"state {number}"


def test_a_run_says_how_its_gradients_were_measured() -> None:
    torch.manual_seed(0)
    model = Transformer()
    _, _, doctor = train(model, "sketch", 2)
    meta = doctor.run.meta
    assert meta["gradients"] == "sketch"
    assert meta["sketch"] == {"size": sketch.SIZE, "modules": ["blocks", "mixer"]}
    for mode, said in (("auto", "exact"), ("exact", "exact"), ("off", "off")):
        read, _, doctor = train(model, mode, 1)
        assert doctor.run.meta["gradients"] == said
        assert "sketch" not in doctor.run.meta
        assert ("grad/total" in read[0]) == (mode != "off")


def test_auto_sketches_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "EXACT_UP_TO", 1000)
    assert train(MLP(), "auto", 1)[2].run.meta["gradients"] == "sketch"


class Rewritten(MLP):
    """A hook on a node of the graph, which no sketch sees where a pass ends: the first layer has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk[0] = nn.Linear(32, 128, bias=False)

    def losses(self) -> dict[str, Tensor]:
        x = torch.randn(64, 32)
        first = self.trunk[0](x)
        first.grad_fn.register_prehook(lambda grads: (3 * grads[0],))
        h = self.trunk[1:](first)
        return {"flow": (self.flow_head(h) - x).square().mean(), "kl": h.square().mean(), "dino": h.sum()}


def test_a_weight_whose_sketches_do_not_add_up_to_the_gradient_is_measured_exactly() -> None:
    torch.manual_seed(0)
    read, _, doctor = train(Rewritten(), "sketch", 3)
    assert not any(key.startswith("grad") for key in read[0]), "what is known to be wrong is not recorded"
    assert "loss/flow" in read[0]
    assert "grad/flow" in read[1]
    (event,) = [event for event in doctor.run.events if event["kind"] == "not_sketched"]
    assert (event["step"], event["shapes"]) == (0, [[128, 32]])
    assert event["error"] > sketch.DOUBTFUL
    torch.manual_seed(0)
    assert train(Rewritten(), "exact", 3)[0][2]["grad/flow"] == pytest.approx(read[2]["grad/flow"], rel=0.1)


@pytest.mark.parametrize("turns", [False, True])
def test_gradients_that_are_lost_on_the_way_are_no_reason_for_doubt(turns: bool) -> None:
    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=1, gradients="sketch", strict=True, live=False) as doctor:
        for n in range(2):
            losses = model.losses()
            optimizer.zero_grad()
            names = list(WEIGHTS)[: n + 2] if turns else list(WEIGHTS)
            doctor.backward({name: losses[name] for name in names}, {name: WEIGHTS[name] for name in names})
        optimizer.step()
        assert "grad/flow" in doctor.ret
        assert ("grad/accumulation" in doctor.ret) != turns
        assert not [event for event in doctor.run.events if event["kind"] == "not_sketched"]


def test_a_failure_of_the_sketch_never_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no sketch today")

    monkeypatch.setattr(sketch.Passes, "read", fails)
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=1, gradients="sketch") as doctor:
        with pytest.warns(ld.errors.LossDoctorWarning, match="no sketch today"):
            doctor.backward(model.losses(), WEIGHTS)
        assert all(p.grad is not None for p in model.trunk.parameters())
        optimizer.step()
        assert doctor.step == 1


def test_steps_that_are_not_due_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    passes = sketch.Sketch.passes
    monkeypatch.setattr(sketch.Sketch, "passes", lambda *given: made.append(1) or passes(*given))
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=3, gradients="sketch", strict=True, live=False) as doctor:
        for _ in range(6):
            doctor.backward(model.losses(), WEIGHTS)
            optimizer.step()
            optimizer.zero_grad()
    assert len(made) == 2


def test_several_ranks_are_measured_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody adds their sketches up yet."""
    from lossdoctor.doctor import doctor as module

    monkeypatch.setattr(module, "any_sharded", lambda tops: True)
    monkeypatch.setattr(module, "unsupported", lambda parameters: None)
    for asked, events in (("sketch", 1), ("auto", 0)):
        monkeypatch.setattr("lossdoctor.probe.sketch.EXACT_UP_TO", 0)
        model = nn.Linear(4, 4)
        doctor = ld.Doctor(model, torch.optim.SGD(model.parameters(), lr=0.1), gradients=asked)
        assert doctor.run.meta["gradients"] == "exact"
        told = [event for event in doctor.run.events if event["kind"] == "passed_over"]
        assert [event["measurement"] for event in told] == ["sketch"] * events
        doctor.close()
