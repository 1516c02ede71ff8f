"""Forwards of a sharded model beyond the training's own: all ranks take them at once, and they leave no trace.

A forward under `fully_shard` gathers whole parameters from all ranks, so one that asked its model alone would wait for
ever. Before every such forward the ranks tell each other that they are about to take it. One that is not, since its
sampler took fewer steps or its measurement failed, says so, and then nobody asks any more.

FSDP leaves a trace of a forward: parameters of the root stay whole, and the next training forward would take them for
current ones; the order of forwards, by which it prefetches, grows. So everything is put back as it was found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lossdoctor.errors import LossDoctorError, mismatch
from lossdoctor.probe.ranks import Ranks, RanksError
from lossdoctor.probe.sharded import groups_of, state_of

_ASKING, _DONE, _FAILED = b"turn: asking", b"turn: done", b"turn: failed"


class OutOfStepError(LossDoctorError):
    """The ranks did not take the same forwards."""


@dataclass(slots=True)
class InStep:
    """The extra forwards of one rank. ranks: those who take them together, None for a job of one process."""

    ranks: Ranks | None = None
    _over: bool = True

    @contextlib.contextmanager
    def forwards(self) -> Iterator[None]:
        """Forwards of sharded modules inside are taken by all ranks at once or by none, and leave no trace.

        Every rank must enter this, whether it has something to ask or not. Raises OutOfStepError on every rank when
        they did not ask equally often, or when one of them failed; RanksError when one does not come.
        """
        traces: dict[int, _Trace] = {}

        def before(module: nn.Module, _: Any) -> None:
            state = state_of(module)
            if state is None or state._state_ctx.iter_forward_root is not None:
                return  # a part of a forward that all are in
            for part in module.modules():
                if (one := state_of(part)) is not None and id(one) not in traces:
                    traces[id(one)] = _Trace.of(one)
            self._tell(_ASKING)

        self._over = False
        hook = register_module_forward_pre_hook(before)
        last = _FAILED
        try:
            yield
            last = _DONE
        finally:
            hook.remove()
            for trace in traces.values():
                trace.put_back()
            if not self._over:
                self._end(last)

    def _tell(self, word: bytes) -> None:
        words = self._said(word)
        if set(words) != {word}:
            self._over = True
            raise OutOfStepError(
                mismatch(
                    "On sharded parameters every rank has to ask the model at once.",
                    "as many forwards on every rank, whatever its data",
                    ", ".join(f"rank {rank}: {said.decode()[6:]}" for rank, said in enumerate(words)),
                    "let velocity and sampler call the model equally often on all ranks, and call "
                    "doctor.endpoint(...) on each of them",
                )
            )

    def _end(self, word: bytes) -> None:
        """The last word of this rank. One that failed has an error of its own to raise."""
        self._over = True
        if word == _DONE:
            self._tell(word)
        else:
            self._said(word)

    def _said(self, word: bytes) -> list[bytes]:
        if self.ranks is None:
            return [word]
        try:
            words = self.ranks.gather(word)
        except RanksError:
            self._over = True
            raise
        if any(said not in (_ASKING, _DONE, _FAILED) for said in words):
            self._over = True
            raise RanksError("another rank is at its optimizer step, or has closed its Doctor")
        return words


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a forward changes in the state that FSDP keeps of a module, as it was before.

    These are attributes of its own that nothing public tells. shared: of the context that all states of a root have.
    order: how many forwards it remembers. running: modules of a group whose forward is still to come. groups: each with
    its training state, the forwards it remembers, and whether its parameters are in shards, and whole.
    """

    state: Any
    training: Any
    shared: dict[str, Any]
    order: int
    running: frozenset[nn.Module]
    groups: tuple[tuple[Any, Any, int, bool, bool], ...]

    @classmethod
    def of(cls, state: Any) -> _Trace:
        """How things are now."""
        context = state._state_ctx
        return cls(
            state,
            state._training_state,
            {name: getattr(context, name) for name in _SHARED if hasattr(context, name)},
            len(_order(state)),
            frozenset(_running(state)),
            tuple(
                (g, g._training_state, len(g._post_forward_indices), g.is_sharded, g.is_unsharded)
                for g in groups_of(state)
            ),
        )

    def put_back(self) -> None:
        """Make it so again; parameters that were in shards, or whole, are so again."""
        self.state._training_state = self.training
        for name, value in self.shared.items():
            setattr(self.state._state_ctx, name, value)
        del _order(self.state)[self.order :]
        running = _running(self.state)
        running.clear()
        running.update(self.running)
        for group, training, forwards, sharded, whole in self.groups:
            group._training_state = training
            del group._post_forward_indices[forwards:]
            group.wait_for_unshard()  # what was fetched ahead for a forward that did not come
            if sharded and not group.is_sharded:
                group.reshard()
            elif whole and not group.is_unsharded:
                group.unshard()
                group.wait_for_unshard()


_SHARED = ("iter_forward_root", "post_optim_event")


def _order(state: Any) -> list[Any]:
    found: list[Any] = getattr(state._comm_ctx, "post_forward_order", [])  # there is none before the first forward
    return found


def _running(state: Any) -> set[nn.Module]:
    found: set[nn.Module] = getattr(state, "_modules_to_run_forward", set())
    return found
