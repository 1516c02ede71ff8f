"""A Hugging Face Trainer with two losses; the five lines marked "added" and the changed sum measure it."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import lossdoctor as ld  # added


class Ring(nn.Module):
    """A label to a point near one of eight on a ring."""

    def __init__(self):
        super().__init__()
        self.text = nn.Embedding(8, 32)
        self.z_head = nn.Linear(32, 4)
        self.flow_net = nn.Sequential(nn.Linear(2 + 1 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.flow_head = nn.Linear(128, 2)

    def velocity(self, x, t, cond):
        return self.flow_head(self.flow_net(torch.cat([x, t, cond], -1)))

    def forward(self, label):
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
        return {"flow": (v_pred - v_target).square().mean(), "kl": kl}


class RingTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        losses, weights = model(inputs["place"]), {"flow": 1.0, "kl": 0.01}
        loss = ld.total(losses, weights)  # was: loss = sum(weights[name] * losses[name] for name in losses)
        return (loss, losses) if return_outputs else loss


torch.manual_seed(0)
model = Ring()
labels = [{"place": label} for label in torch.randint(8, (256 * 150,))]
args = TrainingArguments(
    "runs/ring", max_steps=150, per_device_train_batch_size=128, gradient_accumulation_steps=2, learning_rate=1e-3,
    use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
)  # fmt: skip
trainer = RingTrainer(model=model, args=args, train_dataset=labels)
callback = ld.integrations.transformers.LossDoctorCallback(trainer, heads=["z_head", "flow_head"], every=15)  # added
trainer.add_callback(callback)  # added
trainer.train()
