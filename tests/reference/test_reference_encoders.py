"""Autoencoder, teacher and velocity network as others train them, made small: the same code, some steps for real."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lossdoctor as ld
from lossdoctor.config import load, override
from lossdoctor.doctor import Doctor
from lossdoctor.errors import MissingExtraError, RunError, UsageError
from lossdoctor.reference import ReferenceConfig, Trainer
from lossdoctor.reference.borrowed import Borrowed, settings_of
from lossdoctor.reference.checkup import checkup
from lossdoctor.reference.class_judge import ClassJudge
from lossdoctor.reference.config import VaeConfig, VelocityConfig, rooted
from lossdoctor.reference.diffusers_vae import LatentAutoencoder, latent_shape
from lossdoctor.reference.dinov2 import FrozenTeacher
from lossdoctor.reference.faults import sick
from lossdoctor.reference.parts import without_weights
from lossdoctor.reference.pictures import stream
from lossdoctor.reference.team import Team
from lossdoctor.reference.transformer import VelocityTransformer, places_of

PRODUCTION = Path(__file__).parents[2] / "examples" / "production" / "captions_256.toml"


@dataclasses.dataclass
class Made:
    """The folders, the trainer half-way, the doctor's run and the checkpoint."""

    config: ReferenceConfig
    trainer: Trainer
    run: ld.Run
    saved: Path


@pytest.fixture(scope="module")
def made(twin: ReferenceConfig, tmp_path_factory: pytest.TempPathFactory) -> Made:
    trainer = Trainer(twin)
    with Doctor(**trainer.patient(), every=1, strict=True, live=False) as doctor:
        trainer.run(3, doctor=doctor)
    saved = tmp_path_factory.mktemp("saved") / "half.pt"
    trainer.save(saved)
    return Made(twin, trainer, doctor.run, saved)


# The whole


def test_three_losses_are_measured_and_nothing_is_called_a_frozen_teachers_fault(made: Made) -> None:
    assert {"grad/flow", "grad/kl", "grad/dino", "flow/cond_ratio", "ent/teacher_mi"} <= set(made.run)
    assert not [event for event in made.run.events if event["kind"] == "failure"]
    assert set(made.run["teacher/moved"].values.tolist()) == {0.0}
    codes = {finding.code for finding in ld.diagnose(made.run).findings}
    assert not codes & {"DST205", "DST206", "DST207", "OPT702", "GRD105", "VEL407", "VEL411", "SMP506"}


def test_a_checkpoint_goes_on_bit_for_bit_and_holds_no_borrowed_weights(made: Made) -> None:
    again = Trainer.resume(made.saved)
    assert (again.step, again.config) == (3, made.trainer.config)
    for trainer in (made.trainer, again):
        trainer.run(3)
    ours, theirs = made.trainer.system.state_dict(), again.system.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    state = torch.load(made.saved, weights_only=True)
    assert not [name for name in state["system"] if ".network." in name]
    assert {"teacher.prototypes", "autoencoder.scale"} <= set(state["system"])


def test_a_checkpoint_notices_other_pictures_and_other_weights(made: Made) -> None:
    folder = Path(str(made.config.pictures.path))
    hidden = next(path for path in folder.rglob("*.png"))
    hidden.rename(hidden.with_suffix(".hidden"))
    try:
        with pytest.raises(RunError, match="The pictures have changed"):
            Trainer.resume(made.saved)
    finally:
        hidden.with_suffix(".hidden").rename(hidden)
    weight = next(made.trainer.autoencoder.body.network.parameters())
    kept = {name: part.digest() for name, part in made.trainer.system.named_modules() if isinstance(part, Borrowed)}
    assert set(kept) == {"autoencoder.body", "teacher.body"}
    before = weight.clone()
    weight.data.flatten()[0] += 1
    assert made.trainer.autoencoder.body.digest() != kept["autoencoder.body"]
    weight.data.copy_(before)


def test_pictures_are_drawn_for_captions_and_judged_by_their_classes(made: Made) -> None:
    drawn = made.trainer.sampler()(["a picture of a seven", "three"] * 4, randomness=stream(0, "x"), steps=2)
    assert drawn.shape == (8, 3, 8, 8)
    assert drawn.isfinite().all()
    judge = ClassJudge(made.trainer.training_set, made.trainer.held_out)
    names = made.trainer.training_set.names
    real = made.trainer.held_out
    verdict = judge.judge(real.read(), real.labels)
    assert verdict.accuracy == pytest.approx(verdict.real)
    assert verdict.real > 3 / len(names), "it knows real pictures better than chance"
    assert judge.judge(drawn, torch.tensor([7, 3] * 4)).accuracy <= 1
    assert judge.judge(torch.full_like(drawn, math.nan), torch.zeros(8)).accuracy == 0


def test_the_shares_of_two_processes_have_the_losses_of_the_batch(made: Made) -> None:
    trainer = made.trainer
    rows = [None, *(Team(torch.device("cpu"), rank, 2).rows(trainer.loader.batch) for rank in range(2))]
    batches = [trainer._loader(trainer.training_set, "shares").draw(own) for own in rows]
    assert [len(batch.t) for batch in batches] == [16, 8, 8]
    with torch.no_grad():
        whole, *parts = (trainer.system.losses(batch) for batch in batches)
    for name, loss in whole.items():
        assert float(torch.stack([part[name] for part in parts]).mean()) == pytest.approx(float(loss), rel=1e-4), name


# The autoencoder


def test_scale_and_shift_are_read_from_the_folder_and_undone_exactly(
    autoencoder_settings: dict[str, Any], tmp_path: Path
) -> None:
    told = {**autoencoder_settings, "scaling_factor": 1.5, "shift_factor": 0.25}
    (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    settings = VaeConfig(path=str(tmp_path), batch=3)
    autoencoder = LatentAutoencoder(settings, latent_shape(settings, 8), channels=3)
    assert (autoencoder.latent, float(autoencoder.scale), float(autoencoder.shift)) == ((4, 4, 4), 1.5, 0.25)
    pictures, noise = torch.rand(7, 3, 8, 8) * 2 - 1, torch.randn(7, 4, 4, 4)
    network: Any = autoencoder.body.network
    with torch.no_grad():
        posterior = network.encode(pictures).latent_dist
        raw = posterior.mean + posterior.std * noise
        latents = autoencoder.encode(pictures, noise)
        assert torch.allclose(latents, (raw - 0.25) * 1.5, atol=1e-5), "in parts of 3 as at once"
        assert torch.allclose(autoencoder.unscaled(latents), raw, atol=1e-5)
        assert torch.allclose(autoencoder.decode(latents), network.decode(raw).sample.clamp(-1, 1), atol=1e-4)


def test_grey_pictures_go_through_an_autoencoder_of_colours(made: Made) -> None:
    settings = made.config.vae
    autoencoder = LatentAutoencoder(settings, latent_shape(settings, 8), channels=1)
    grey = torch.rand(2, 1, 8, 8)
    latents = autoencoder.encode(grey, torch.zeros(2, 4, 4, 4))
    assert torch.equal(latents, autoencoder.encode(grey.expand(-1, 3, -1, -1), torch.zeros(2, 4, 4, 4)))
    assert autoencoder.decode(latents).shape == grey.shape


def test_a_measured_scale_makes_latents_standard(made: Made) -> None:
    batch = made.trainer._loader(made.trainer.training_set, "test").assemble(made.trainer.training_set)
    latents = made.trainer.system.encode(batch)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.1)


def test_preflight_is_content_with_a_right_scale_and_names_a_wrong_one(made: Made) -> None:
    before = made.trainer.loader.state_dict()["generator"].clone()
    assert [f.code for f in checkup(made.trainer).findings if f.code not in ("CND601", "PST307")] == []
    assert torch.equal(made.trainer.loader.state_dict()["generator"], before)
    right = made.trainer.autoencoder.scale.clone()
    try:
        made.trainer.autoencoder.scale.mul_(0.18215 / 0.13025)
        found = checkup(made.trainer).findings
        assert not [f for f in found if f.code == "VEL407"], "without a known factor 1.4 is a matter of the pictures"
        made.trainer.autoencoder.scale.copy_(right * 0.02)
        [finding] = [f for f in checkup(made.trainer).findings if f.code == "VEL407"]
        assert "(latent_scale)" in str(finding.message), "raw latents of std 1 look as if they were scaled twice"
    finally:
        made.trainer.autoencoder.scale.copy_(right)


# The teacher


def test_the_teacher_says_how_like_a_picture_is_to_its_prototypes(made: Made) -> None:
    teacher = made.trainer.system.teacher
    assert isinstance(teacher, FrozenTeacher)
    pictures = made.trainer.held_out.read()
    features = teacher.features(pictures)
    own = F.cosine_similarity((features - teacher.common)[:, None], teacher.prototypes[None], dim=2)
    assert torch.allclose(teacher(pictures), own, atol=1e-5)
    assert not teacher(pictures).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    made.trainer.system.train()
    assert not any(module.training for module in teacher.modules())
    logits = teacher(pictures)
    assert float(logits.mean().abs()) < 0.2, "centred: not all cosines are near 1"
    assert logits.argmax(1).unique().numel() > 3


def test_prototypes_are_training_pictures_and_too_few_are_refused(made: Made) -> None:
    few = override(made.config, {"distill.prototypes": 2000})
    with pytest.raises(UsageError, match=r"set distill\.prototypes=96 or less"):
        Trainer(few).prepare()


# What does not fit, and what is not there


def test_folders_without_weights_are_told_of(made: Made) -> None:
    assert without_weights(made.config) == ("vae.path", "teacher.path")
    assert without_weights(ReferenceConfig()) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures.size": 7}, r"set pictures\.size=8"),
        ({"teacher.size": 9}, r"set teacher\.size=8"),
        ({"velocity.patch": 3}, r"velocity\.patch=1"),
        ({"velocity.heads": 5}, r"velocity\.heads=1 would do"),
        ({"vae.path": "nowhere"}, "the settings of diffusers' AutoencoderKL"),
        ({"teacher.path": "nowhere"}, "the settings of transformers' Dinov2Model"),
        ({"pictures.templates": ("a cat",)}, r"a picture of a \{name\}"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(made: Made, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Trainer(override(made.config, changes))


def test_a_folder_of_something_else_is_refused(made: Made, tmp_path: Path) -> None:
    swapped = override(made.config, {"vae.path": made.config.teacher.path})
    with pytest.raises(UsageError, match="is not of diffusers' AutoencoderKL"):
        Trainer(swapped)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UsageError, match="is not of a thing"):
        settings_of(tmp_path, "a thing", {"size": int})


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_without_the_extra_it_is_one_sentence(made: Made, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refused(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(MissingExtraError, match=rf"{package}.*lossdoctor\[encoders\]"):
        Trainer(made.config)


def test_the_mistakes_of_the_demo_are_for_our_own_parts(made: Made) -> None:
    with pytest.raises(UsageError, match=r"pictures\.path"):
        sick(made.config, "weak-kl")
    with pytest.raises(UsageError, match=r"velocity\.kind=transformer"):
        sick(override(ReferenceConfig(), {"velocity.kind": "transformer"}), "weak-kl")


# The velocity network


def test_the_transformer_begins_at_rest_and_is_moved_by_all_it_is_told() -> None:
    torch.manual_seed(0)
    settings = VelocityConfig(kind="transformer", width=32, heads=4, blocks=2, embedding=16, patch=2)
    network = VelocityTransformer(settings, (3, 4, 6), condition=5)
    x, t, cond = torch.randn(4, 3, 4, 6), torch.rand(4), torch.randn(4, 5)
    assert network(x, t, cond).shape == x.shape
    assert network(x, t, cond).abs().max() == 0
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    moved = network(x, t, cond)
    assert torch.allclose(network(x, t[:, None, None, None], cond), moved)
    for other in (network(x.roll(1, -1), t, cond), network(x, 1 - t, cond), network(x, t, cond.roll(1, 0))):
        assert (other - moved).abs().max() > 1e-3
    each = torch.cat([network(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(4)])
    assert torch.allclose(each, moved, atol=1e-5), "samples do not see each other"


def test_patches_are_put_back_where_they_were() -> None:
    network = VelocityTransformer(VelocityConfig(kind="transformer", width=8, heads=1, blocks=0), (2, 4, 6), 3)
    x = torch.randn(2, 2, 4, 6)
    patches = network._patches(x)
    assert patches.shape == (2, 6, 8)
    assert torch.equal(patches[0, 1].reshape(2, 2, 2), x[0, :, 0:2, 2:4])
    assert torch.equal(network._picture(patches), x)


def test_every_place_has_its_own_code() -> None:
    codes = places_of((5, 7), 18)
    assert codes.shape == (35, 18)
    assert torch.pdist(codes).min() > 0.05


# The configuration of production size


def test_the_example_is_read_and_its_small_twin_trained(made: Made) -> None:
    config = rooted(load(ReferenceConfig, PRODUCTION), PRODUCTION.parent)
    told = tomllib.loads(PRODUCTION.read_text(encoding="utf-8"))
    small = {name: value for name, value in dataclasses.asdict(made.config.pictures).items() if name != "path"}
    assert set(told) - {"device"} <= {field.name for field in dataclasses.fields(ReferenceConfig)}
    assert (config.velocity.kind, made.config.velocity.kind) == ("transformer", "transformer")
    assert latent_shape(config.vae, config.pictures.size) == (4, 32, 32)
    assert small["mode"] == config.pictures.mode
