"""A loop of your own with three losses; the five lines marked "added" and the changed backward measure it."""

import torch
from torch import nn

import lossdoctor as ld  # added

torch.manual_seed(0)
model = nn.ModuleDict({
    "text": nn.Embedding(8, 32),
    "z_head": nn.Linear(32, 4),
    "flow_net": nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()),
    "flow_head": nn.Linear(128, 2),
    "dino_head": nn.Linear(2, 16),
})  # fmt: skip
teacher = nn.Linear(2, 16).requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
doctor = ld.Doctor(model, optimizer, heads={k: m for k, m in model.items() if "head" in k}, every=20)  # added


def velocity(x, t, cond):
    return model["flow_head"](model["flow_net"](torch.cat([x, t, cond], -1)))


for _ in range(200):
    label = torch.randint(8, (256,))
    angle = label * torch.pi / 4
    z1 = torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(256, 2)
    cond = model["text"](label)
    mu, logvar = model["z_head"](cond).chunk(2, -1)
    z0 = mu + (logvar / 2).exp() * torch.randn_like(mu)
    t = torch.rand(256, 1)
    x_t, v_target = (1 - t) * z0 + t * z1, z1 - z0
    v_pred = velocity(x_t, t, cond)
    logits, student = teacher(z1), model["dino_head"](z0)
    loss_kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
    loss_dino = -((logits / 0.07).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=velocity)  # added
    ld.posterior(mu, logvar, z=z0, kl=loss_kl)  # added
    ld.distill(logits, student, teacher_temp=0.07, student_temp=0.1)  # added
    losses = {"flow": (v_pred - v_target).square().mean(), "kl": loss_kl, "dino": loss_dino}
    doctor.backward(losses, weights={"flow": 1.0, "kl": 0.01, "dino": 0.1})  # was: total.backward()
    optimizer.step()
    optimizer.zero_grad()
