"""Losses hidden in a transport object, as LightningDiT has them: t = 0 is noise, t of shape (B,), lognormal times."""

import torch
import torch.nn.functional as F
from torch import nn

import lossdoctor as ld


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(8, 32)
        self.blocks = nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.final = nn.Linear(128, 2)

    def forward(self, x, t, y):
        return self.final(self.blocks(torch.cat([x, t.view(-1, 1), self.label(y)], -1)))


class Transport:
    """Linear path from noise to data; the losses of one batch as a dictionary."""

    def training_losses(self, model, x1, y):
        x0 = torch.randn_like(x1)
        t = torch.randn(len(x1)).sigmoid()
        shaped = t.view(-1, *[1] * (x1.ndim - 1))
        x_t, u_t = shaped * x1 + (1 - shaped) * x0, x1 - x0
        output = model(x_t, t, y)
        ld.flow(output, u_t, t, x_t=x_t, z0=x0, z1=x1, cond=y, velocity=model)
        cosine = 1 - F.cosine_similarity(output, u_t, dim=1)
        return {"loss": (output - u_t).square().mean(1), "cos_loss": cosine}


torch.manual_seed(0)
model = DiT()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
doctor = ld.Doctor(model, optimizer, heads={"final": model.final}, kinds={"cos": "other"}, every=20)
transport = Transport()
for _ in range(600):
    y = torch.randint(8, (256,))
    angle = y * torch.pi / 4
    x1 = torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(256, 2)
    terms = transport.training_losses(model, x1, y)
    doctor.backward({"flow": terms["loss"], "cos": terms["cos_loss"]}, weights={"cos": 0.2})  # vectors are averaged
    optimizer.step()
    optimizer.zero_grad()
