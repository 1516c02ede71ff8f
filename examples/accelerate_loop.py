"""A loop with Accelerate, accumulation and a tracker; the five lines marked "added" and the changed one measure it."""

import torch
from accelerate import Accelerator
from torch import nn

import lossdoctor as ld  # added

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with="tensorboard", project_dir="runs")
accelerator.init_trackers("ring")
model = nn.ModuleDict({
    "text": nn.Embedding(8, 32),
    "z_head": nn.Linear(32, 4),
    "flow_net": nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()),
    "flow_head": nn.Linear(128, 2),
})  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
labels = torch.utils.data.DataLoader(torch.randint(8, (128 * 300,)), batch_size=128)
model, optimizer, labels = accelerator.prepare(model, optimizer, labels)
doctor = ld.Doctor(model, optimizer, every=15, sinks=ld.integrations.accelerate.sinks(accelerator))  # added


def velocity(x, t, cond):
    return model["flow_head"](model["flow_net"](torch.cat([x, t, cond], -1)))


for label in labels:
    with accelerator.accumulate(model):
        angle = label * torch.pi / 4
        z1 = torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(len(label), 2)
        cond = model["text"](label)
        mu, logvar = model["z_head"](cond).chunk(2, -1)
        z0 = mu + (logvar / 2).exp() * torch.randn_like(mu)
        t = torch.rand(len(label), 1)
        x_t, v_target = (1 - t) * z0 + t * z1, z1 - z0
        v_pred = velocity(x_t, t, cond)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        flow = (v_pred - v_target).square().mean()
        ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=velocity)  # added
        ld.posterior(mu, logvar, z=z0, kl=kl)  # added
        losses, weights = {"flow": flow, "kl": kl}, {"kl": 0.01}
        doctor.backward(losses, weights, backward=accelerator.backward)  # was: accelerator.backward(flow + 0.01 * kl)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
doctor.close()  # added
accelerator.end_training()
