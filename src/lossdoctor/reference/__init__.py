"""The reference system: captions to pictures on real digits, trained by three losses at once.

    trainer = Trainer(ReferenceConfig())
    trainer.run()
    pictures = trainer.sampler()(["a handwritten seven"], randomness=torch.Generator().manual_seed(0))

It is what the rest of this library is tried on, so it is meant to be healthy: see docs/log.md for the measurements.
"""

from __future__ import annotations

from lossdoctor.reference.captions import Tokenizer, captions_of
from lossdoctor.reference.config import ReferenceConfig
from lossdoctor.reference.data import Digits, load_digits
from lossdoctor.reference.judge import Judge, Verdict
from lossdoctor.reference.sample import Sampler
from lossdoctor.reference.system import KINDS, System
from lossdoctor.reference.trainer import Progress, Summary, Trainer

__all__ = [
    "KINDS",
    "Digits",
    "Judge",
    "Progress",
    "ReferenceConfig",
    "Sampler",
    "Summary",
    "System",
    "Tokenizer",
    "Trainer",
    "Verdict",
    "captions_of",
    "load_digits",
]
