"""What a training will take, told before it is started: its parts built without memory, one step without numbers.

Everything is built on torch's `meta` device. One step of the size of the real one is then run on fake tensors, which
have a device, a shape and a life but no memory, and whose bytes are counted as they come and go: the peak is that of
the real step, operation for operation, without what kernels take and give back inside. Nothing is measured in time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.sketch import checked_mode
from lossdoctor.reference.captions import Tokens
from lossdoctor.reference.captions import split as words_of
from lossdoctor.reference.config import ReferenceConfig
from lossdoctor.reference.data import Batch
from lossdoctor.reference.optim import parameter_groups
from lossdoctor.reference.parts import (
    autoencoder_of,
    pictures_of,
    resolved,
    teaching_of,
    tokenizer_of,
    without_weights,
)
from lossdoctor.reference.pictures import split
from lossdoctor.reference.system import System

_ADAM: Final = 2
"""Numbers that AdamW keeps for each that it trains, beside its count of steps for each tensor."""
_STEP_COUNT: Final = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the system. parameters: how many numbers; trained: how many of them the optimizer moves."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process. weights: parameters and buffers. working: what else lives at the peak of a step, the batch
    and the activations; due: what a step measured in full has at its peak over that, None where the doctor sketches.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    exchange: int
    working: int
    due: int | None

    @property
    def peak(self) -> int:
        """Of a step that is not measured."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.exchange + self.working


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of one step over all processes, of products and convolutions alone.

    frozen: those of autoencoder and teacher in it. due: what a step measured in full has over a step, None as above.
    """

    step: int
    frozen: int
    due: int | None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """pictures: how many are trained on, None where the folder is not there. untrained: parts without weights."""

    config: ReferenceConfig
    shape: tuple[int, int, int]
    pictures: int | None
    vocabulary: int
    processes: int
    parts: tuple[Part, ...]
    memory: Memory
    work: Work
    untrained: tuple[str, ...]

    @property
    def epoch(self) -> int | None:
        """Steps of one epoch."""
        return None if self.pictures is None else max(1, self.pictures // min(self.pictures, self.config.train.batch))

    @property
    def samples(self) -> int:
        """Pictures seen in the whole training, again and again."""
        return self.config.train.steps * self.config.train.batch


def rehearse(config: ReferenceConfig, processes: int = 1) -> Rehearsal:
    """Build and rehearse the training of these settings as one of `processes` would do it.

    A picture folder that is not there is no mistake here: its captions are then taken to have all the words that
    `text.vocabulary` and `text.words` allow. Raises UsageError for settings and folders that no training can have.
    """
    config = resolved(config)
    if config.train.batch % processes:
        rule, got = "Every process takes the same number of samples.", f"{config.train.batch} for {processes}"
        todo = f"set train.batch={max(1, config.train.batch // processes) * processes}"
        raise UsageError(mismatch(rule, f"train.batch a multiple of {processes}", got, todo))
    shape, pictures, vocabulary, longest = _counted(config)
    with torch.device("meta"):
        autoencoder = autoencoder_of(config, shape, weights=False)
        teaching = teaching_of(config, shape, 0.0, 1.0, weights=False)
        system = System(config, vocabulary, teaching.student, autoencoder, teaching.teacher)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        system.to_empty(device="cpu")
    trained = [p for group in parameter_groups(system, config) for p in group["params"]]
    step = _Step(config, shape, config.train.batch // processes, longest, fake)
    mode = checked_mode("auto", trained)
    plain = step.rehearsed(system, trained, due=False)
    due = step.rehearsed(system, trained, due=True) if mode == "exact" else None
    gradients = _bytes(trained)
    memory = Memory(
        weights=_bytes([*system.parameters(), *system.buffers()]),
        gradients=gradients,
        optimizer=_ADAM * gradients + _STEP_COUNT * len(trained),
        ema=_bytes([*system.generator.parameters(), *system.generator.buffers()]),
        # DistributedDataParallel keeps a second copy of the gradients to send.
        exchange=gradients if processes > 1 else 0,
        working=max(0, plain.peak - gradients),
        due=None if due is None else max(0, due.peak - plain.peak),
    )
    frozen = step.frozen(system)
    extra = None if due is None else processes * (due.work - plain.work)
    return Rehearsal(
        config=config,
        shape=shape,
        pictures=pictures,
        vocabulary=vocabulary,
        processes=processes,
        parts=tuple(_parts(system)),
        memory=memory,
        work=Work(processes * plain.work, processes * frozen, extra),
        untrained=without_weights(config),
    )


def _counted(config: ReferenceConfig) -> tuple[tuple[int, int, int], int | None, int, int]:
    """Shape and number of the training pictures, words known, words of the longest caption."""
    path, most = config.pictures.path, config.text.words
    if path is not None and not Path(path).exists():
        return config.pictures.shape, None, config.text.vocabulary, most
    training, _ = split(pictures_of(config), config.data.held_out, config.seed)
    longest = max(len(words_of(text)) for way in training.ways for text in way)
    return training.shape, len(training), len(tokenizer_of(training, config.text)), min(longest, most)


@dataclass(frozen=True, slots=True)
class _Found:
    """peak: bytes over those of the system. work: floating-point operations."""

    peak: int
    work: int


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of a process, on `rows` pictures with captions of `words` words."""

    config: ReferenceConfig
    shape: tuple[int, int, int]
    rows: int
    words: int
    fake: FakeTensorMode

    def rehearsed(self, system: System, trained: list[Tensor], *, due: bool) -> _Found:
        """Forward and backward. due: with a pass for each loss but the flow before, as a doctor has on a due step."""
        system.zero_grad(set_to_none=True)
        with self.fake, Living() as living, FlopCounterMode(display=False) as work:
            losses = system.losses(self._batch())
            kept = [
                torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
                for name, loss in losses.items()
                if due and name != "flow"
            ]
            torch.autograd.backward(sum(losses.values(), torch.zeros(())))
            del kept
        return _Found(living.peak, work.get_total_flops())

    def frozen(self, system: System) -> int:
        """What of the work is the autoencoder's and the teacher's."""
        with self.fake, FlopCounterMode(display=False) as work, torch.no_grad():
            batch = self._batch()
            system.encode(batch)
            system.teacher(torch.cat(batch.views))
        return int(work.get_total_flops())

    def _batch(self) -> Batch:
        config = self.config
        pictures = torch.zeros(self.rows, *self.shape)
        views = (pictures,) if config.teacher.path is not None else tuple(torch.zeros(2, *pictures.shape))
        words = torch.zeros(self.rows, self.words, dtype=torch.int64)
        noise = (torch.zeros(self.rows, *config.autoencoder.latent) for _ in range(2))
        return Batch(pictures, views, Tokens(words, words == 0), torch.zeros(self.rows), *noise)


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made inside, for as long as they live. peak: the most at any time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._counted: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the storages of what the operation gives."""
        given = tree_leaves((args, kwargs))
        known = {id(one.untyped_storage()) for one in given if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in known:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._counted:
            return

        def gone(_: object) -> None:
            del self._counted[key]
            self.now -= size

        self._counted[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _parts(system: System) -> Iterator[Part]:
    generator = system.generator
    named: dict[str, Any] = {
        "text": generator.text,
        "z_head": generator.z_head,
        "velocity": generator.velocity,
        "dino_head": system.dino_head,
        "student": system.student,
        "teacher": system.teacher,
        "autoencoder": system.autoencoder,
    }
    for name, part in named.items():
        if part is not None:
            numbers = [(p.numel(), p.requires_grad) for p in part.parameters()]
            yield Part(name, sum(n for n, _ in numbers), sum(n for n, moves in numbers if moves))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
