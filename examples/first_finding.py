"""A small training with a mistake in it that no curve shows. Which one? `lossdoctor check runs/first` says it."""

import torch
from torch import nn

import lossdoctor as ld

torch.manual_seed(0)
model = nn.ModuleDict({
    "text": nn.Embedding(8, 32),
    "z_head": nn.Linear(32, 4),
    "flow_net": nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()),
    "flow_head": nn.Linear(128, 2),
    "dino_head": nn.Linear(2, 16),
})  # fmt: skip
teacher = nn.Linear(2, 16).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
heads = {name: part for name, part in model.items() if "head" in name}
doctor = ld.Doctor(model, optimizer, run="runs/first", heads=heads, every=10)


def velocity(x, t, cond):
    return model["flow_head"](model["flow_net"](torch.cat([x, t, cond], -1)))


for step in range(300):
    label = torch.randint(8, (256,))
    angle = label * torch.pi / 4
    z1 = torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(256, 2)
    cond = model["text"](label)
    mu, logvar = model["z_head"](cond).chunk(2, -1)
    z0 = mu + (logvar / 2).exp() * torch.randn_like(mu)
    t = torch.rand(256, 1)
    x_t, v_target = (1 - t) * z0 + t * z1, z1 - z0
    v_pred = velocity(x_t, t, cond)
    with torch.no_grad():  # the teacher does not learn
        logits = teacher(z1)
        student = model["dino_head"](z0)
    loss_flow = (v_pred - v_target).square().mean()
    loss_kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
    loss_dino = -((logits / 0.07).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=velocity)
    ld.posterior(mu, logvar, z=z0, kl=loss_kl)
    ld.distill(logits, student, teacher_temp=0.07, student_temp=0.1)
    total = doctor.backward(
        {"flow": loss_flow, "kl": loss_kl, "dino": loss_dino}, weights={"flow": 1.0, "kl": 0.05, "dino": 0.03}
    )
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 0 or step == 299:
        print(f"{step:4}  total {total:.2f}  flow {loss_flow:.2f}  kl {loss_kl:.2f}  dino {loss_dino:.2f}")
doctor.close()
