"""A LightningModule with two losses; the five lines marked "added" and the changed return measure it."""

import lightning.pytorch as pl
import torch
from torch import nn

import lossdoctor as ld  # added


class Ring(pl.LightningModule):
    """A label to a point near one of eight on a ring."""

    def __init__(self):
        super().__init__()
        self.text = nn.Embedding(8, 32)
        self.z_head = nn.Linear(32, 4)
        self.flow_net = nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.flow_head = nn.Linear(128, 2)

    def velocity(self, x, t, cond):
        return self.flow_head(self.flow_net(torch.cat([x, t, cond], -1)))

    def training_step(self, label, _):
        angle = label * torch.pi / 4
        z1 = torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(len(label), 2)
        cond = self.text(label)
        mu, logvar = self.z_head(cond).chunk(2, -1)
        z0 = mu + (logvar / 2).exp() * torch.randn_like(mu)
        t = torch.rand(len(label), 1)
        x_t, v_target = (1 - t) * z0 + t * z1, z1 - z0
        v_pred = self.velocity(x_t, t, cond)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        ld.flow(v_pred, v_target, t, x_t=x_t, z0=z0, z1=z1, cond=cond, velocity=self.velocity)  # added
        ld.posterior(mu, logvar, z=z0, kl=kl)  # added
        losses, weights = {"flow": (v_pred - v_target).square().mean(), "kl": kl}, {"flow": 1.0, "kl": 0.01}
        return ld.total(losses, weights)  # was: return sum(weights[name] * losses[name] for name in losses)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


torch.manual_seed(0)
model = Ring()
labels = torch.utils.data.DataLoader(torch.randint(8, (256 * 150,)), batch_size=256)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=1.0)
callback = ld.integrations.lightning.LossDoctorCallback(heads=["z_head", "flow_head"], every=15)  # added
trainer.callbacks.append(callback)  # added
trainer.fit(model, labels)
