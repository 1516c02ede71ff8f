"""Trials as tasks of Ray (extra `ray`), on a running cluster or on a Ray of its own on this machine.

A task trains in a folder of its own on the disk of its node, as a database on a network drive is not safe, and hands
back every file it has made. So the nodes need not see the folder of the ablation; they do need the script, Python with
lossdoctor, and what the script reads.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lossdoctor.ablate.engine import Engine
from lossdoctor.ablate.local import DEVICES, process
from lossdoctor.ablate.trial import Plan, Trial
from lossdoctor.errors import MissingExtraError, UsageError, mismatch

_ADDRESS, _PLACE = "RAY_ADDRESS", "RAY_TMPDIR"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""For a Ray of our own: nothing is told to anybody, devices are left alone, and no cluster is made: only then does Ray
listen on the loopback address alone, whatever the system. The last is read when Ray is imported."""
_STORE = 100 * 1024**2
_TRIES = 3
_OUTPUT = "output.txt"


@dataclass(slots=True)
class Ray(Engine):
    """Tasks of one processor each, and of one GPU each where a running cluster has any.

    A cluster is joined where RAY_ADDRESS names one or `ray start` has begun one on this machine, and left as it was.
    Else a Ray is started here, without dashboard and reachable from this machine alone, and ended with the block.
    jobs: without it, on a cluster as many as it has room for. devices: only with a Ray of our own, a cluster hands out
    its own; raises UsageError. Raises MissingExtraError without Ray.
    """

    joined: bool = False
    _ray: Any = None
    _environment: dict[str, str] | None = None
    _begun: set[Any] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        before = dict(os.environ)
        with contextlib.ExitStack() as exits:
            if not (running := _running()):
                exits.enter_context(_set(_QUIET))
            try:
                import ray
            except ImportError as error:
                raise MissingExtraError("ray", "ray", "The engine ray") from error
            self._ray = ray
            self.joined = running or ray.is_initialized()
            if self.joined:
                self._join(exits)
            else:
                self._start(exits, before)
            self._exits = exits.pop_all()
        if self.joined and self.devices:
            self._exits.close()
            got = f"devices {', '.join(self.devices)}"
            todo = "leave --devices out: every training is given one GPU where the cluster has any"
            raise UsageError(mismatch("A cluster hands out its devices itself.", "no devices", got, todo))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def room(self, trials: int) -> int:
        """On a cluster without `jobs` all of them: Ray begins each when there is room, and more room may come."""
        return max(1, trials) if self.joined and self.jobs is None else super(Ray, self).room(trials)

    def train(self, plan: Plan, trial: Trial, run: Path, output: Path, device: str | None) -> int:
        """A task that trains and hands back its files."""
        environment = None if self._environment is None else dict(self._environment)
        if environment is not None and device is not None:
            environment[DEVICES] = device
        # Of our own retries, with their logs, not of Ray's.
        options = {"num_cpus": 1, "num_gpus": self._gpus(), "max_retries": 0, "name": f"lossdoctor {trial.name}"}
        asked = self._ray.remote(**options)(_train)
        task = asked.remote(plan.command, plan.environment(trial, Path(run.name)), environment, os.getcwd())
        came = self._came(task)
        for name, content in came.files.items():
            path = run.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        output.write_bytes(came.output)
        if came.code is None:
            raise OSError(came.reason)
        return came.code

    def stop(self) -> None:
        """End every task: each ends its own training."""
        super(Ray, self).stop()
        with self._guard:
            begun = list(self._begun)
        for task in begun:
            self._ray.cancel(task)

    def _came(self, task: Any) -> Came:
        from ray.exceptions import RayError, TaskCancelledError

        with self._guard:
            self._begun.add(task)
        try:
            if self.stopped.is_set():
                self._ray.cancel(task)
            came: Came = self._ray.get(task)
            return came
        except TaskCancelledError:
            return Came(None, "stopped", b"", {})
        except RayError as error:  # a node that is gone, or one without lossdoctor
            return Came(None, f"Ray: {error}".strip(), b"", {})
        finally:
            with self._guard:
                self._begun.discard(task)

    def _gpus(self) -> int:
        return int(self.joined and self._ray.cluster_resources().get("GPU", 0) >= 1)

    def _join(self, exits: contextlib.ExitStack) -> None:
        """Become a guest of a cluster. Raises UsageError when it does not let us in."""
        if self._ray.is_initialized():
            return
        own = signal.getsignal(signal.SIGTERM)
        exits.callback(signal.signal, signal.SIGTERM, own)
        exits.callback(self._ray.shutdown)
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR")
            signal.signal(signal.SIGTERM, own)  # Ray's would end the process without ending the trainings first
        except Exception as error:  # Ray raises many kinds, for an address of another form, another version, ...
            raise UsageError(_unreachable(f"{type(error).__name__}: {error}")) from error

    def _start(self, exits: contextlib.ExitStack, environment: dict[str, str]) -> None:
        # What a training sees is what it would see as a process: Ray sets variables of its own in its workers.
        self._environment = environment
        exits.enter_context(_set(_QUIET))
        # Short, since the names of Ray's sockets, which lie in it, may have 107 characters on Linux, 103 elsewhere.
        short = os.environ.get(_PLACE) or ("/tmp" if platform.system() != "Windows" else None)
        home = exits.enter_context(tempfile.TemporaryDirectory(prefix="ld-", dir=short, ignore_cleanup_errors=True))
        own = signal.getsignal(signal.SIGTERM)
        exits.callback(signal.signal, signal.SIGTERM, own)
        exits.callback(self._ray.shutdown)
        reason = ""
        for _ in range(_TRIES):
            try:
                self._ray.init(
                    address="local", num_cpus=self.room(10**6), num_gpus=0, include_dashboard=False,
                    log_to_driver=False, logging_level="ERROR", object_store_memory=_STORE, _temp_dir=home,
                )  # fmt: skip
                signal.signal(signal.SIGTERM, own)  # as when a cluster is joined
                return
            except Exception as error:  # on a busy machine it gives up after half a minute
                reason = f"{type(error).__name__}: {error}"
                self._ray.shutdown()
        todo = "try again when the machine is less busy, or use --engine local"
        raise UsageError(mismatch("Ray could not be started.", "a Ray on this machine", reason, todo))


@dataclass(frozen=True, slots=True)
class Came:
    """What a task hands back. code: of its process, None when it could not be begun: then reason says why.

    files: by their names relative to the folder of the trial.
    """

    code: int | None
    reason: str
    output: bytes
    files: dict[str, bytes]


def _train(command: Sequence[str], told: dict[str, str], environment: dict[str, str] | None, folder: str) -> Came:
    """On a node: one training. told: what the arm needs, its run relative to the folder of the trial."""
    import ray

    if not os.path.isdir(folder):
        if not ray.get_runtime_context().runtime_env.get("working_dir"):
            return Came(None, _no_folder(folder), b"", {})
        folder = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="lossdoctor-", ignore_cleanup_errors=True) as made:
        home = Path(made) / "trial"
        home.mkdir()
        output = Path(made) / _OUTPUT
        own = {**(dict(os.environ) if environment is None else environment), **told}
        own["LOSSDOCTOR_RUN"] = str(home / Path(told["LOSSDOCTOR_RUN"]).name)
        try:
            code, reason = process(command, own, output, folder=folder), ""
        except OSError as error:
            code, reason = None, f"{error} (on {platform.node()})"
        files = {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}
        return Came(code, reason, output.read_bytes(), files)


def _no_folder(folder: str) -> str:
    return mismatch(
        f"the node {platform.node()} cannot run the script",
        f"the folder {folder} there, as this command was called in it",
        "no such folder",
        "call it in a folder that all nodes see, or send it along: ray job submit --working-dir . -- lossdoctor ablate",
    )


def _running() -> bool:
    """Whether there is a cluster to join, as Ray itself decides it: one that RAY_ADDRESS names, or one that `ray start`
    has begun here. Raises UsageError when the one that is named does not answer: Ray would wait for minutes."""
    named = os.environ.get(_ADDRESS, "")
    if named:
        if not _answers(named):
            raise UsageError(_unreachable("no answer"))
        return named != "local"
    try:
        noted = Path(os.environ.get(_PLACE, "/tmp")) / "ray" / "ray_current_cluster"
        return _answers(noted.read_text(encoding="utf-8").strip())
    except OSError:
        return False


def _answers(address: str) -> bool:
    """Whether somebody listens at host:port; an address of another form is left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0):
            return True
    except OSError:
        return False


def _unreachable(got: str) -> str:
    named = os.environ.get(_ADDRESS, "")
    expected = f"one at {named}" if named else "the one that `ray start` has begun on this machine"
    todo = f"start the cluster, or set {_ADDRESS}=local for a Ray of its own on this machine"
    return mismatch("The Ray cluster cannot be joined.", expected, got, todo)


@contextlib.contextmanager
def _set(wanted: dict[str, str]) -> Any:
    """Variables of the environment that are not set yet, for the length of a block."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
