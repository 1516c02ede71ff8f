"""A loss with a distribution object inside, as training AutoencoderKL has it: sums over the latent and the picture."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import lossdoctor as ld


class DiagonalGaussian:
    def __init__(self, moments):
        self.mean, logvar = moments.chunk(2, -1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self):
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)

    def kl(self):
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(-1)


class LPIPSLikeLoss(nn.Module):
    """Sum over the picture, as the original: then the weight of the KL is per picture too."""

    def forward(self, pictures, reconstructions, posterior, sample):
        kl = posterior.kl().mean()
        ld.posterior(posterior.mean, posterior.logvar, z=sample, kl=kl)
        return {"rec": (pictures - reconstructions).square().sum(-1).mean(), "kl": kl}


torch.manual_seed(0)
pictures = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 8 - 1
encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 16))
decoder = nn.Sequential(nn.Linear(8, 128), nn.SiLU(), nn.Linear(128, 64))
model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
criterion = LPIPSLikeLoss()
doctor = ld.Doctor(model, optimizer, heads={"moments": encoder[2]}, every=20)
for _ in range(600):
    batch = pictures[torch.randint(len(pictures), (128,))]
    posterior = DiagonalGaussian(encoder(batch))
    sample = posterior.sample()
    doctor.backward(criterion(batch, decoder(sample), posterior, sample), weights={"kl": 0.5})
    optimizer.step()
    optimizer.zero_grad()
