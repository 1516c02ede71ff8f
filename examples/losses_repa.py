"""Losses in a function, as SiT and REPA have them: t = 0 is data, t of shape (B, 1, 1, 1), pictures of 2 x 1 x 1."""

import torch
import torch.nn.functional as F
from torch import nn

import lossdoctor as ld


class Transformer(nn.Module):
    """Predicts the velocity, and from a middle layer the features of a frozen encoder."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(8, 32)
        self.blocks = nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.projector, self.final = (
            nn.Linear(128, 16),
            nn.Sequential(nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)),
        )

    def forward(self, x, t, y):
        h = self.blocks(torch.cat([x.flatten(1), t.view(-1, 1), self.label(y)], -1))
        return self.final(h).view_as(x), self.projector(h)


class SILoss:
    """Stochastic interpolant: x_t = (1 - t) x + t noise, the velocity goes from data to noise."""

    def __call__(self, model, images, y, features):
        t = torch.rand(len(images), 1, 1, 1)
        noise = torch.randn_like(images)
        x_t, target = (1 - t) * images + t * noise, noise - images
        prediction, projected = model(x_t, t.flatten(), y)
        ld.flow(
            prediction, target, t, x_t=x_t, z0=noise, z1=images, cond=y, t_source=1.0,
            velocity=lambda x, t, y: model(x, t.flatten(), y)[0],
        )  # fmt: skip
        alignment = -F.cosine_similarity(projected, features, dim=-1).mean()
        return (prediction - target).square().mean(), alignment


torch.manual_seed(0)
model, encoder = Transformer(), nn.Linear(2, 16).requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
doctor = ld.Doctor(model, optimizer, heads={"final": model.final}, kinds={"repa": "other"}, every=20)
criterion = SILoss()
for _ in range(600):
    y = torch.randint(8, (256,))
    angle = y * torch.pi / 4
    images = (torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(256, 2)).view(-1, 2, 1, 1)
    denoising, alignment = criterion(model, images, y, encoder(images.flatten(1)))
    doctor.backward({"flow": denoising, "repa": alignment}, weights={"repa": 0.5})
    optimizer.step()
    optimizer.zero_grad()
