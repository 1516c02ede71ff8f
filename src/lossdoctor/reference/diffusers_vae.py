"""diffusers' AutoencoderKL as the picture autoencoder: frozen, from a local folder, its scale in one place.

The flow wants latents of mean 0 and standard deviation 1. An AutoencoderKL gives others, and its config.json says what
to do with them: z = (latent - shift_factor) * scaling_factor. `scaled` does that and `unscaled` undoes it, and nothing
else in this package does either: training and sampling cannot differ. Whether the numbers belong to these weights is
measured before the training, by `reference.checkup`.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.reference.borrowed import Borrowed, borrow, settings_of
from lossdoctor.reference.config import VaeConfig
from lossdoctor.reference.pictures import Pictures, with_channels

_NEEDS: Final = {"latent_channels": int, "block_out_channels": list, "in_channels": int}
_KIND: Final = "diffusers' AutoencoderKL"


def latent_shape(config: VaeConfig, size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents of pictures of `size` pixels, from the folder's config.json alone.

    Raises UsageError for a folder that is none, and for a size that does not come out even.
    """
    assert config.path is not None
    told = settings_of(config.path, _KIND, _NEEDS)
    factor = 2 ** (len(told["block_out_channels"]) - 1)
    if size % factor or size < factor:
        todo = f"set pictures.size={max(1, round(size / factor)) * factor}"
        rule = f"The autoencoder makes one latent of {factor} by {factor} pixels."
        raise UsageError(mismatch(rule, f"pictures.size a multiple of {factor}", str(size), todo))
    return int(told["latent_channels"]), size // factor, size // factor


class LatentAutoencoder(nn.Module):
    """Pictures to scaled latents and back. See `system.Autoencoder`.

    scale, shift: 0-d, as in config.json until `measure` is called. channels: of the pictures outside; where the
    autoencoder has others, grey is copied into them, and they are averaged to grey.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: VaeConfig, latent: tuple[int, int, int], channels: int, *, weights: bool = True) -> None:
        super().__init__()
        assert config.path is not None
        told = settings_of(config.path, _KIND, _NEEDS)
        self.body = _borrowed(config.path, told, weights=weights)
        self.latent, self.channels, self.batch = latent, channels, config.batch
        self.inside = int(told["in_channels"])
        # From the network, which knows the defaults of what the file leaves out; a shift is null in many files.
        known: Any = self.body.network.config
        self.register_buffer("scale", torch.tensor(float(known.scaling_factor)))
        self.register_buffer("shift", torch.tensor(float(known.get("shift_factor") or 0.0)))

    def scaled(self, raw: Tensor) -> Tensor:
        """Latents as the autoencoder gives them to those the flow works on."""
        return (raw - self.shift) * self.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        """Back again."""
        return latents / self.scale + self.shift

    @torch.no_grad()
    def encode(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to scaled latents, sampled with standard normal `noise` of their shape."""
        return self.scaled(self.raw(pictures, noise))

    @torch.no_grad()
    def raw(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """As `encode`, not scaled."""
        inside = with_channels(pictures, self.inside)
        parts = zip(torch.split(inside, self.batch), torch.split(noise, self.batch), strict=True)
        return torch.cat([self._sample(*part) for part in parts])

    def _sample(self, pictures: Tensor, noise: Tensor) -> Tensor:
        posterior = self.body.network.encode(pictures).latent_dist  # type: ignore[operator]
        sampled: Tensor = posterior.mean + posterior.std * noise
        return sampled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, H, W) to pictures in [-1, 1]."""
        parts = torch.split(self.unscaled(latents), self.batch)
        decoded = torch.cat([self.body.network.decode(part).sample for part in parts])  # type: ignore[operator]
        return with_channels(decoded, self.channels).clamp(-1.0, 1.0)

    def measure(self, pictures: Pictures, generator: torch.Generator) -> None:
        """Set scale and shift so that the latents of these pictures have mean 0 and standard deviation 1.

        Raises UsageError when they are all the same.
        """
        noise = torch.randn(len(pictures), *self.latent, generator=generator)
        raw = self.raw(pictures.read().to(self.scale.device), noise.to(self.scale.device))
        std = raw.std()
        if not std > 0:
            todo = "give an autoencoder with trained weights, or other pictures"
            rule = "The scale of latents that are all the same cannot be measured."
            raise UsageError(mismatch(rule, "a standard deviation above 0", f"{float(std)}", todo))
        self.shift.copy_(raw.mean())
        self.scale.copy_(1 / std)


def _borrowed(path: str, told: dict[str, Any], *, weights: bool) -> Borrowed:
    try:
        # Not from the top of the package, which looks for everything it can work with.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    except ImportError as error:
        raise MissingExtraError("diffusers", "encoders", "An autoencoder from a folder (vae.path)") from error
    return borrow(
        path,
        fresh=lambda: AutoencoderKL.from_config(told),
        read=lambda: AutoencoderKL.from_pretrained(path, local_files_only=True, low_cpu_mem_usage=False),
        weights=weights,
    )
