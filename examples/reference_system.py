"""The reference system as a script of its own, small: captions to digits with all three losses.

Try what each loss and the condition do for it: lossdoctor ablate -- python examples/reference_system.py
"""

from dataclasses import replace

import lossdoctor as ld
from lossdoctor.config import override
from lossdoctor.reference import ReferenceConfig, Trainer

SMALL = {
    "autoencoder.steps": 300,
    "velocity.width": 256,
    "velocity.blocks": 2,
    "distill.momentum": 0.95,
    "distill.lr_scale": 3.0,
    "train.steps": 300,
    "train.batch": 64,
    "train.lr": 1.5e-3,
    "train.warmup": 40,
}

seed = ld.seed_everything(0)
trainer = Trainer(replace(override(ReferenceConfig(), SMALL), seed=seed))
with ld.Doctor(**trainer.patient(), every=15) as doctor:
    trainer.run(doctor=doctor)
