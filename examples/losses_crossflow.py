"""Losses hidden in a model's forward, as CrossFlow has them: the source is a posterior of the caption, t is a list."""

import torch
from torch import nn

import lossdoctor as ld


class CrossFlow(nn.Module):
    """A text variational encoder and a velocity from its sample to the picture; the caption is its only condition."""

    def __init__(self):
        super().__init__()
        self.text = nn.Embedding(8, 64)
        self.mu, self.logvar = nn.Linear(64, 2), nn.Linear(64, 2)
        self.net = nn.Sequential(nn.Linear(2 + 1, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.out = nn.Linear(256, 2)
        nn.init.constant_(self.logvar.bias, -1.0)

    def velocity(self, x, t, cond=None):
        return self.out(self.net(torch.cat([x, t.reshape(-1, 1)], -1)))

    def forward(self, caption, picture):
        h = self.text(caption)
        mu, logvar = self.mu(h), self.logvar(h)
        source = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1).mean()
        ld.posterior(mu, logvar, z=source, kl=kl)
        t = torch.rand(len(picture), 1)
        x_t, target = (1 - t) * source + t * picture, picture - source
        prediction = self.velocity(x_t, t)
        ld.flow(prediction, target, t, x_t=x_t, z0=source, z1=picture, velocity=self.velocity)
        return (prediction - target).square().mean(), kl


torch.manual_seed(0)
model = CrossFlow()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
doctor = ld.Doctor(model, optimizer, heads={"mu": model.mu, "logvar": model.logvar, "out": model.out}, every=20)
for _ in range(600):
    caption = torch.randint(8, (256,))
    angle = caption * torch.pi / 4
    picture = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.2 * torch.randn(256, 2)
    flow, kl = model(caption, picture)
    doctor.backward({"flow": flow, "kl": kl}, weights={"kl": 0.03})
    optimizer.step()
    optimizer.zero_grad()
