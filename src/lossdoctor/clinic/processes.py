"""A function over many items, in processes. A process that dies costs the item it had, not the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from lossdoctor.errors import UsageError, mismatch

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Failed:
    """Instead of an answer: why there is none, on one line."""

    reason: str


def spread(
    work: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    jobs: int,
    group: Callable[[Item], Hashable] = lambda item: None,
    on_done: Callable[[Item, Answer | Failed], None] = lambda item, answer: None,
) -> dict[Item, Answer | Failed]:
    """`work(item)` for every item, at most `jobs` at once. Returns the answers in the order of the items.

    work, items and answers are pickled on their way, and a new process must be able to import what they are made of.
    work comes to a process once, so that what it keeps is there for the next item; an item goes to a process that had
    one of its `group` before, where there is a choice. on_done is told of every item as it comes in, in this process.
    Raises UsageError when a process cannot even begin. Ctrl-C, or an error in on_done, ends all processes.
    """
    answers: dict[Item, Answer | Failed] = {}
    pending: dict[Hashable, list[Item]] = {}
    for item in dict.fromkeys(items):
        pending.setdefault(group(item), []).append(item)
    crew: dict[object, _Process[Item, Answer]] = {}

    def join() -> None:
        process = _Process[Item, Answer]()
        crew[process.pipe] = process  # before anything else can go wrong, so that it is ended in any case
        process.begin(work)

    try:
        for _ in range(min(jobs, len(set(items)))):
            join()
        while crew:
            for pipe in wait([process.pipe for process in crew.values()]):
                process = crew[pipe]
                for item, answer in process.received():
                    answers[item] = answer
                    on_done(item, answer)
                if process.alive and pending:
                    busy = {other.group for other in crew.values()}
                    process.give(*_next(pending, process.group, busy))
                    continue
                crew.pop(pipe).end()
                if pending:
                    join()
    finally:
        for process in crew.values():
            process.end()
    return {item: answers[item] for item in items}


def _next(pending: dict[Hashable, list[Item]], own: Hashable, busy: set[Hashable]) -> tuple[Hashable, Item]:
    """Of the group the process is at, else of the longest that nobody is at, else of the longest."""
    chosen = max(pending, key=lambda key: (key == own, key not in busy, len(pending[key])))
    item = pending[chosen].pop(0)
    if not pending[chosen]:
        del pending[chosen]
    return chosen, item


class _Process(Generic[Item, Answer]):
    """One process and the item it has. It says a first word when it can begin, then one answer for each item."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.group: Hashable = object()
        self.alive = True
        self._ready = False
        self._has: list[Item] = []
        self._process = context.Process(target=_serve, args=(far,))
        with _one_thread(), _deaf_to_ctrl_c():
            self._process.start()
        # Only the process holds the far end now: when it dies, the near end says so.
        far.close()

    def begin(self, work: Callable[[Item], Answer]) -> None:
        """Hand over the work."""
        with _told_when_it_cannot_travel(), contextlib.suppress(BrokenPipeError):
            self.pipe.send(work)

    def give(self, group: Hashable, item: Item) -> None:
        """Hand over the next item."""
        self.group, self._has = group, [item]
        # A process that has died meanwhile is told of by `received`.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(item)

    def received(self) -> Iterator[tuple[Item, Answer | Failed]]:
        """The answer for the item it has; nothing when it only says that it is ready."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            answer = Failed(_how_it_ended(self._process.exitcode))
        if not self._ready and isinstance(answer, Failed):
            raise UsageError(_cannot_begin(answer.reason))
        self._ready = True
        had, self._has = self._has, []
        for item in had:
            yield item, answer

    def end(self) -> None:
        """Whatever it is doing."""
        self._process.terminate()
        self._process.join()
        self._process.close()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    """The life of a process. It ends when the other end of the pipe is closed, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        try:
            work: Callable[[Any], Any] = pipe.recv()
        except (EOFError, OSError):
            raise
        except Exception as error:
            pipe.send(Failed(one_line(error)))
            return
        pipe.send(None)
        while True:
            item = pipe.recv()
            try:
                answer = work(item)
            except Exception as error:  # told to the other end; the other items go on
                answer = Failed(one_line(error))
            pipe.send(answer)


def one_line(error: BaseException) -> str:
    """An error as one line, without a traceback."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was killed by {signal.Signals(-code).name}; out of memory is the usual reason"
    return f"the process ended by itself, with exit code {code}"


def _cannot_begin(reason: str) -> str:
    return mismatch(
        "A process of the clinic cannot begin.",
        "programs in a module that a new process can import, used under if __name__ == '__main__'",
        reason,
        "move the program into a module of its own",
    )


@contextlib.contextmanager
def _told_when_it_cannot_travel() -> Iterator[None]:
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(_cannot_begin(one_line(error))) from error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started here sum in one thread: as fast for small models, and the same on every machine."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here never hear Ctrl-C: who has started them ends them, without a traceback from each."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
