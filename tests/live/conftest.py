"""A server as a user starts it, and runs that grow under it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossdoctor.record import Record
from lossdoctor.store import RunWriter

META = {"kinds": {"flow": "velocity", "dino": "distill"}}


class Training:
    """A run that somebody is writing: a velocity loss and a distillation, healthy until it is told to be sick."""

    def __init__(self, folder: Path, rank: int = 0, **meta: Any) -> None:
        self.writer = RunWriter(folder, META | meta, rank=rank)
        self.noise = np.random.default_rng(0)
        self.step = 0

    def go(self, count: int, *, sick: bool = False, extra: dict[str, float] | None = None) -> None:
        """So many steps, all measured in full, and on disk."""
        records = []
        for _ in range(count):
            a, b, c = np.exp(self.noise.normal(size=3) / 20).tolist()
            dino = (1e-3 if sick else 0.4) * a
            values = {
                "loss/flow": 2 * b * math.exp(-self.step / 300),
                "loss/dino": 3 * c,
                "weight/flow": 1.0,
                "weight/dino": 0.5,
                "grad/flow": b,
                "grad/dino": 2 * dino,
                "grad_weighted/flow": b,
                "grad_weighted/dino": dino,
                "grad/total": math.hypot(b, dino),
                "flow/nmse": b * math.exp(-self.step / 300),
                **(extra or {}),
            }
            records.append(Record(self.step, values, full=True, time=time.time()))
            self.step += 10
        self.writer.append(records)
        assert self.writer.flush()

    def end(self) -> None:
        """The training is over."""
        self.writer.close()


class Server:
    """`lossdoctor serve` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "lossdoctor", "--lang", "en", "serve", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.told = [self.process.stdout.readline() for _ in range(3)]
        self.url = self.told[1].strip()
        self.port = httpx.URL(self.url).port or 0

    def stop(self, signal: int) -> tuple[int, str]:
        """Its exit code and what it wrote to the error stream."""
        self.process.send_signal(signal)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(folder: Path, *arguments: str, port: int = 0) -> Server:
        started.append(Server(folder, *arguments, port=port))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """One server for many tests; each makes runs of its own in the folder."""
    root = tmp_path_factory.mktemp("served")
    server = Server(root)
    yield root, server
    server.end()


class Page:
    """What a page hears: events of the stream, one after the other."""

    def __init__(self, url: str, last: str = "", **query: Any) -> None:
        headers = {"last-event-id": last} if last else {}
        self._client = httpx.Client(timeout=60)
        asked = self._client.build_request("GET", f"{url.rstrip('/')}/stream", params=query, headers=headers)
        self.response = self._client.send(asked, stream=True)
        self._lines = self.response.iter_lines()
        self.last = ""
        self.heard: list[tuple[str, Any]] = []

    def hear(self) -> tuple[str, Any]:
        """The next event, its name and its data; StopIteration when the server ends the stream."""
        event, data = "", []
        while True:
            line = next(self._lines)
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                self.last = value
            elif name == "data":
                data.append(value)
            elif not line and data:
                self.heard.append((event, json.loads("\n".join(data))))
                return self.heard[-1]

    def until(self, event: str, wanted: Callable[[Any], bool] = lambda told: True) -> Any:
        """The next event of this name that is as wanted; others are passed over."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            name, told = self.hear()
            if name == event and wanted(told):
                return told
        raise AssertionError(f"no {event}")

    def close(self) -> None:
        """As when a tab is closed."""
        self.response.close()
        self._client.close()
