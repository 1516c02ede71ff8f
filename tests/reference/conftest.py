"""A reference system small enough to train in a second, and one with the encoders of others as small as they get."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lossdoctor.config import override
from lossdoctor.reference import Digits, ReferenceConfig, Trainer, load_digits
from lossdoctor.reference.captions import WORDS

TINY = {
    "text.width": 16,
    "text.heads": 2,
    "autoencoder.latent": (2, 2, 2),
    "autoencoder.width": 32,
    "autoencoder.steps": 30,
    "autoencoder.warmup": 5,
    "velocity.width": 32,
    "velocity.blocks": 1,
    "velocity.embedding": 16,
    "distill.width": 32,
    "distill.features": 16,
    "distill.bottleneck": 8,
    "distill.prototypes": 12,
    "train.steps": 60,
    "train.batch": 32,
    "train.warmup": 5,
    "train.evaluate_every": 25,
}

AUTOENCODER: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}
TEACHER: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 4,
    "image_size": 8,
    "num_channels": 3,
}
TWIN: dict[str, Any] = {
    "pictures.size": 8,
    "vae.scale": "measured",
    "vae.measured_on": 32,
    "vae.batch": 16,
    "teacher.size": 8,
    "data.held_out": 0.2,
    "text.words": 16,
    "text.width": 16,
    "text.heads": 2,
    "text.blocks": 1,
    "velocity.kind": "transformer",
    "velocity.width": 32,
    "velocity.blocks": 2,
    "velocity.heads": 4,
    "velocity.embedding": 16,
    "velocity.frequencies": 8,
    "distill.warmup": 0.0,
    "distill.prototypes": 24,
    "distill.features": 16,
    "distill.bottleneck": 8,
    "train.steps": 6,
    "train.batch": 16,
    "train.warmup": 2,
    "train.evaluate_every": 100,
    "train.evaluate_rows": 16,
    "train.progress_every": 1,
}
"""What makes a small twin of the configuration of production size."""


@pytest.fixture(scope="session")
def tiny() -> ReferenceConfig:
    return override(ReferenceConfig(seed=3), TINY)


@pytest.fixture(scope="session")
def digits() -> Digits:
    every = load_digits()
    return Digits(every.pictures[:300], every.labels[:300])


@pytest.fixture
def trainer(tiny: ReferenceConfig, digits: Digits) -> Trainer:
    return Trainer(tiny, digits)


@pytest.fixture(scope="session")
def twin(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> ReferenceConfig:
    """The configuration of production size made small: digits as pictures in folders, networks with random weights."""
    root = tmp_path_factory.mktemp("encoders")
    for place, label in enumerate(digits.labels[:120].tolist()):
        own = root / "pictures" / WORDS[label]
        own.mkdir(parents=True, exist_ok=True)
        grey = ((digits.pictures[place, 0].numpy() + 1) * 127.5).round().astype(np.uint8)
        Image.fromarray(grey).save(own / f"{place:03}.png")
    for name, settings in (("vae", AUTOENCODER), ("dino", TEACHER)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    paths = {"pictures.path": root / "pictures", "vae.path": root / "vae", "teacher.path": root / "dino"}
    return override(ReferenceConfig(seed=1), {**TWIN, **{key: str(path) for key, path in paths.items()}})


@pytest.fixture(scope="session")
def autoencoder_settings() -> dict[str, Any]:
    """What the config.json of a small AutoencoderKL says."""
    return dict(AUTOENCODER)
