"""The pictures that `lossdoctor demo` draws at its end, and what can be said of them: a classifier names digits and
classes; what a caption of its own should show, nobody here can judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lossdoctor.messages import text

# Everything heavy is imported where it is used: `lossdoctor demo --help` must not wait for torch.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from lossdoctor.cli.results import Results
    from lossdoctor.reference import Digits, Trainer

PER_DIGIT, SHOWN_PER_DIGIT = 24, 6
DRAWN, SHOWN = 120, 60
"""Of other pictures, in all."""


def drawn(trainer: Trainer, evaluation: Mapping[str, float], results: Results, lang: str) -> Iterator[str]:
    """Draw with what was trained, keep the pictures, and say in sentences what is to be thought of them."""
    from lossdoctor.reference import Digits

    if isinstance(trainer.training_set, Digits):
        yield _digits(trainer, trainer.training_set, results, lang)
    else:
        yield from _others(trainer, evaluation, results, lang)


def _digits(trainer: Trainer, real: Digits, results: Results, lang: str) -> str:
    import numpy as np

    from lossdoctor.reference import Judge
    from lossdoctor.report.pictures import draw_samples
    from lossdoctor.report.wording import percent

    captions, digits = draw_digits(trainer)
    images = ((digits.pictures[:, 0] + 1) / 2).clamp(0, 1).numpy().astype(np.float32)
    results.make("samples.npz", lambda path: np.savez_compressed(path, images=images, labels=digits.labels.numpy()))
    shown = SHOWN_PER_DIGIT * 10
    results.make("samples.png", lambda path: draw_samples(images[:shown], captions[:shown], path))
    verdict = Judge(real).judge(digits)
    return text("demo.judged", lang, accuracy=percent(verdict.accuracy), spread=percent(verdict.spread))


def draw_digits(trainer: Trainer) -> tuple[list[str], Digits]:
    """PER_DIGIT pictures of each digit, ten digits to a row, in all the ways there are to ask for them."""
    import torch

    from lossdoctor.reference import Digits, captions_of
    from lossdoctor.reference.pictures import stream

    labels = [digit for _ in range(PER_DIGIT) for digit in range(10)]
    ways = [captions_of(digit) for digit in range(10)]
    captions = [ways[digit][place // 10 % len(ways[digit])] for place, digit in enumerate(labels)]
    pictures = trainer.sampler()(captions, randomness=stream(trainer.config.seed, "samples"))
    return captions, Digits(pictures, torch.tensor(labels))


def _others(trainer: Trainer, evaluation: Mapping[str, float], results: Results, lang: str) -> Iterator[str]:
    import numpy as np
    import torch

    from lossdoctor.reference.class_judge import ClassJudge
    from lossdoctor.reference.dinov2 import FrozenTeacher
    from lossdoctor.reference.pictures import stream
    from lossdoctor.report.pictures import draw_samples
    from lossdoctor.report.wording import number, percent

    known, held_out = trainer.training_set, trainer.held_out
    classes = known.names is not None
    # Classes in turn; captions as they were given to held-out pictures.
    places = range(len(known.ways)) if classes else held_out.labels.tolist()
    asked = [places[n % len(places)] for n in range(DRAWN if classes else min(DRAWN, len(places)))]
    captions = [known.ways[label][n // len(places) % len(known.ways[label])] for n, label in enumerate(asked)]
    pictures = trainer.sampler()(captions, randomness=stream(trainer.config.seed, "samples"))
    images, labels = _as_bytes(pictures), np.array(asked)
    results.make("samples.npz", lambda path: np.savez_compressed(path, images=images, labels=labels))
    shown = images[:SHOWN].astype(np.float32) / np.float32(255)
    results.make("samples.png", lambda path: draw_samples(shown, captions[:SHOWN], path))
    if not classes:
        last = "64"
        told = {name: evaluation.get(f"flow/endpt_{name}@{last}") for name in ("sw", "energy")}
        floors = {name: evaluation.get(f"flow/endpt_{name}_floor") for name in ("sw", "energy")}
        yield text(
            "demo.not_judged",
            lang,
            **{name: number(value, "?") for name, value in told.items()},
            **{f"{name}_floor": number(value, "?") for name, value in floors.items()},
        )
        return
    teacher = trainer.system.teacher
    look = (lambda seen: teacher.features(seen.to(trainer.device))) if isinstance(teacher, FrozenTeacher) else None
    verdict = ClassJudge(known, held_out, look, trainer.config.seed).judge(pictures, torch.tensor(asked))
    values = {"accuracy": verdict.accuracy, "real": verdict.real, "spread": verdict.spread}
    yield text("demo.judged.classes", lang, **{name: percent(value) for name, value in values.items()})


def _as_bytes(pictures: Tensor) -> npt.NDArray[np.uint8]:
    """(B, C, H, W) in [-1, 1] to (B, H, W, 3); grey is told by three equal numbers, or matplotlib would colour it."""
    import numpy as np

    from lossdoctor.reference.pictures import with_channels

    pixels = (with_channels(pictures, 3).nan_to_num(0.0) + 1) * 127.5
    return pixels.clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
