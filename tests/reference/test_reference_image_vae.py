from __future__ import annotations

import torch
from torch import Tensor

from lossdoctor.reference import Digits, ReferenceConfig
from lossdoctor.reference.data import Augmentation
from lossdoctor.reference.image_vae import PictureVAE, train_autoencoder
from lossdoctor.reference.pictures import stream


def trained(
    tiny: ReferenceConfig, digits: Digits, stop_after: int | None = None
) -> tuple[PictureVAE, list[float], bool]:
    torch.manual_seed(0)
    vae = PictureVAE(tiny.autoencoder)
    losses: list[float] = []

    def each_step(step: int, loss: Tensor) -> bool:
        losses.append(float(loss))
        return step != stop_after

    still = Augmentation()
    done = train_autoencoder(vae, digits.pictures, tiny.autoencoder, still, stream(0, "test"), each_step=each_step)
    return vae, losses, done


def test_it_learns_and_is_frozen(tiny: ReferenceConfig, digits: Digits) -> None:
    vae, losses, done = trained(tiny, digits)
    assert done
    assert len(losses) == tiny.autoencoder.steps
    assert losses[-1] < 0.85 * losses[0]
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert not vae.training


def test_scaled_latents_have_unit_standard_deviation(tiny: ReferenceConfig, digits: Digits) -> None:
    vae, _, _ = trained(tiny, digits)
    latents = vae.encode(digits.pictures, torch.randn(len(digits), *tiny.autoencoder.latent))
    assert latents.shape == (len(digits), 2, 2, 2)
    assert abs(float(latents.std()) - 1) < 0.1


def test_decoding_undoes_the_scale(tiny: ReferenceConfig, digits: Digits) -> None:
    vae, _, _ = trained(tiny, digits)
    latents = vae.encode(digits.pictures, torch.zeros(len(digits), *tiny.autoencoder.latent))
    pictures = vae.decode(latents)
    vae.scale.mul_(7.0)
    assert torch.allclose(vae.decode(latents * 7.0), pictures, atol=1e-5)


def test_pictures_stay_in_range(tiny: ReferenceConfig) -> None:
    pictures = PictureVAE(tiny.autoencoder).decode(torch.randn(9, *tiny.autoencoder.latent) * 1e6)
    assert pictures.shape == (9, 1, 8, 8)
    assert pictures.abs().max() <= 1


def test_it_stops_when_asked(tiny: ReferenceConfig, digits: Digits) -> None:
    _, losses, done = trained(tiny, digits, stop_after=4)
    assert not done
    assert len(losses) == 4


def test_the_same_stream_gives_the_same_autoencoder(tiny: ReferenceConfig, digits: Digits) -> None:
    states = [trained(tiny, digits)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
