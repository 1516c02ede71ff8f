"""Training by Lightning with the callback: the numbers of a plain loop, and bit for bit the same training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lossdoctor as ld
from lossdoctor.errors import UsageError
from lossdoctor.exchange import read
from lossdoctor.integrations.lightning import LossDoctorCallback
from lossdoctor.treat import RatioController

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*:FutureWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
WEIGHTS = {"a": 0.5, "flow": 2.0}
STEPS = 6
KEYS = ("grad", "descent/", "loss/", "step/", "weight/", "lr/", "wd/", "flow/")


class Net(pl.LightningModule):
    def __init__(self, *, drop: float = 0.0, manual: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(drop))
        self.a_head, self.flow_head = nn.Linear(16, 3), nn.Linear(17, 4)
        self.automatic_optimization = not manual
        self.after: list[Tensor] = []

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, t = batch
        h = self.body(x)
        a, v = self.a_head(h), self.flow_head(torch.cat([h, t], -1))
        ld.flow(v, -x, t, z1=x)
        return {"a": a.square().mean(), "flow": (v + x).square().mean()}

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        if self.automatic_optimization:
            return ld.total(self.losses(batch), WEIGHTS)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(ld.total(self.losses(batch), WEIGHTS))
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val", ld.total(self.losses(batch), WEIGHTS))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        kept = [*self.parameters(), *self.buffers()]
        self.after += [one.detach().clone() for one in kept] + [torch.get_rng_state()]

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)
        heads = [*self.a_head.parameters(), *self.flow_head.parameters()]
        return torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.AdamW(heads, lr=1e-2)


def data(micro: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    rows = STEPS * micro * 12
    tensors = torch.randn(rows, 4, generator=generator), torch.rand(rows, 1, generator=generator)
    return DataLoader(TensorDataset(*tensors), batch_size=12)


def fit(
    callback: LossDoctorCallback | None,
    folder: Path,
    *,
    micro: int = 1,
    net: dict[str, Any] | None = None,
    scale: float | None = None,
    **more: Any,
) -> Net:
    """scale: train in half precision, with a GradScaler that begins there."""
    torch.manual_seed(0)
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        more["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    model = Net(**(net or {}))
    more = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **more}
    trainer = pl.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=micro,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[] if callback is None else [callback],
        **more,
    )
    trainer.fit(model, data(micro), data(1))
    return model


PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro": 2},
    "clipped": {"gradient_clip_val": 0.5},
    "manual": {"net": {"manual": True}},
    "all": {"micro": 2, "gradient_clip_val": 0.5, "net": {"drop": 0.3}, "precision": "bf16-mixed"},
    "half": {"micro": 2, "gradient_clip_val": 0.5, "scale": 2.0**10},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_training_is_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    callback = LossDoctorCallback(heads=["a_head"], every=2, strict=True)
    plain, watched = (fit(one, tmp_path, **PROGRAMS[name]) for one in (None, callback))
    assert len(plain.after) == len(watched.after) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.after, watched.after, strict=True))
    assert callback.doctor is not None
    assert callback.doctor.step == STEPS
    assert {"grad/a", "grad_cos/a|flow", "descent/flow", "grad_module/a/a_head"} <= set(callback.doctor.run)
    assert not [event for event in callback.doctor.run.events if event["kind"] in ("failure", "passed_over")]


def loop(*, micro: int = 1, clip: float | None = None) -> ld.Run:
    """The same training without Lightning."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        for place, batch in enumerate(data(micro)):
            doctor.backward(model.losses(batch), {name: weight / micro for name, weight in WEIGHTS.items()})
            if (place + 1) % micro == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        return doctor.run


@pytest.mark.parametrize(("micro", "clip"), [(1, None), (1, 0.5), (2, 0.5)])
def test_numbers_are_those_of_a_plain_loop(micro: int, clip: float | None, tmp_path: Path) -> None:
    callback = LossDoctorCallback(heads=["a_head"], every=1, strict=True)
    fit(callback, tmp_path, micro=micro, gradient_clip_val=clip)
    assert callback.doctor is not None
    found, wanted = callback.doctor.run, loop(micro=micro, clip=clip)
    assert set(found) >= {name for name in wanted if name.startswith(KEYS)} >= {"grad/flow", "step/a_head_grad_norm"}
    assert ("grad/clip_ratio" in found) is (clip is not None)
    scaled = dict.fromkeys(("grad/a", "grad/flow", "loss/total"), micro)
    scaled |= {name: micro for name in wanted if name.startswith(("grad_module/", "descent/"))}
    for name in sorted(wanted):
        # There the weights were divided, here Lightning divides the total.
        times = {"weight/": micro, "grad": 1 / scaled.get(name, 1), "descent/": 1 / micro}
        factor = next((f for begin, f in times.items() if name.startswith(begin)), 1.0)
        factor = micro if name == "loss/total" else factor
        if name.startswith(KEYS):
            assert list(found[name].steps) == list(wanted[name].steps), name
            assert found[name].values == pytest.approx(factor * wanted[name].values, rel=2e-3, abs=1e-6), name


def test_training_from_a_checkpoint_is_that_without_a_break(tmp_path: Path) -> None:
    """Bit for bit, with a balancer that has changed the weights when the checkpoint is written."""
    run, models, doctors = tmp_path / "run", [], []
    for begin in (None, tmp_path / "saved" / "epoch=0-step=6.ckpt"):
        torch.manual_seed(0)
        callback = LossDoctorCallback(
            run=run, every=1, strict=True, kinds={"a": "kl"}, balance=RatioController(warmup=0)
        )
        saving = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_epochs=2, callbacks=[callback, saving], **options)
        model = Net()
        trainer.fit(model, data(1), ckpt_path=begin, weights_only=True)
        assert callback.doctor is not None
        models.append(model.state_dict())
        doctors.append(callback.doctor.state_dict())
    kept = torch.load(tmp_path / "saved" / "epoch=0-step=6.ckpt", weights_only=True)["callbacks"]["LossDoctorCallback"]
    assert kept["step"] == STEPS
    assert kept["balance"]["factors"]["a"] != 1.0
    assert doctors[0] == doctors[1]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert list(ld.Run.open(run)["grad/a"].steps) == list(range(2 * STEPS))


def test_half_precision_gives_the_numbers_of_full_precision(tmp_path: Path) -> None:
    full, half = (LossDoctorCallback(heads=["a_head"], every=1, strict=True) for _ in range(2))
    fit(full, tmp_path, gradient_clip_val=0.5)
    fit(half, tmp_path, gradient_clip_val=0.5, scale=2.0**10)
    assert full.doctor is not None
    assert half.doctor is not None
    found, wanted = half.doctor.run, full.doctor.run
    assert half.doctor.step == STEPS
    for name in sorted(name for name in wanted if name.startswith(("grad", "loss/", "descent/", "step/"))):
        assert found[name].values == pytest.approx(wanted[name].values, rel=0.05, abs=5e-3), name


def test_what_a_validation_computes_is_not_recorded(tmp_path: Path) -> None:
    callback = LossDoctorCallback(every=1, strict=True)
    fit(callback, tmp_path, val_check_interval=1)
    plain = LossDoctorCallback(every=1, strict=True)
    fit(plain, tmp_path, limit_val_batches=0)
    assert callback.doctor is not None
    assert plain.doctor is not None
    assert list(callback.doctor.run["loss/a"]) == list(plain.doctor.run["loss/a"])


def test_an_exception_closes_the_run_and_says_why(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, index: int) -> Tensor | None:
            if index == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, index)

    callback = LossDoctorCallback(run=tmp_path / "run", every=1)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], max_epochs=1,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(Fails(), data(1))
    run = ld.Run.open(tmp_path / "run")
    assert [event["error"] for event in run.events if event["kind"] == "stopped"] == ["RuntimeError('out of luck')"]
    assert list(run["loss/a"].steps) == [0, 1, 2]


def test_loggers_get_the_numbers_too(tmp_path: Path) -> None:
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="tb")
    fit(LossDoctorCallback(every=1, loggers=True), tmp_path, logger=logger)
    logger.experiment.close()
    found = read(tmp_path / "tb").run
    assert {"grad/a", "val"} <= set(found)


def test_a_head_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises((UsageError, AttributeError), match="nothing"):
        fit(LossDoctorCallback(heads=["nothing"]), tmp_path)
