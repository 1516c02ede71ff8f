"""MLflow on a real server, which is then killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.sinks.conftest import FINDING, expected

import lossdoctor as ld
from lossdoctor.errors import LossDoctorWarning, MissingExtraError, UsageError
from lossdoctor.exchange import read
from lossdoctor.sinks import MLflow, Sink


class Server:
    """`mlflow server` on a free port, with its database and artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.database = folder / "mlflow.db"
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(folder / "server.log", "wb") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            assert self.process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """The parent and its worker."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    server = Server(tmp_path)
    yield server
    server.kill()


def test_all_arrives_and_a_dead_server_stops_nothing(
    server: Server,
    given: Callable[[Sink], None],
    trained: Callable[[Sink], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    client = mlflow.MlflowClient(server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    run = mlflow.start_run()
    given(MLflow(run))
    report = trained(MLflow(run.info.run_id, client=client))
    mlflow.log_metric("mine", 1.0)

    found = read(server.database, guess=False).run
    kept = {name: list(found[name])[-len(points) :] for name, points in expected().items()}
    assert repr(kept) == repr(expected())
    assert "grad_cos/a|kl" in found
    theirs = client.get_metric_history(run.info.run_id, "loss/flow")
    assert [(one.step, one.timestamp) for one in theirs] == [(0, 1500), (7, 2500), (2**40, 3500)]
    data = client.get_run(run.info.run_id).data
    assert data.tags["lossdoctor.GRD102.a-u7c-b"] == f"WARN: {FINDING['message']}"
    events, _ = sorted((tmp_path / "artifacts").rglob("events-*.jsonl"))
    assert json.loads(events.read_text("utf-8").splitlines()[0]) == FINDING
    (page,) = (tmp_path / "artifacts").rglob("report.html")
    assert page.read_text("utf-8") == report.read_text("utf-8")
    assert client.get_run(run.info.run_id).info.status == "RUNNING", "the run stays the user's"
    mlflow.end_run()

    # From here on: a training whose server dies in the middle.
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LossDoctorWarning)
        sinks = [MLflow(run, client=client)]
        with ld.Doctor(model, optimizer, run=tmp_path / "dying", every=1, sinks=sinks) as doctor:
            for step in range(40):
                doctor.backward({"a": model(torch.randn(8, 3)).square().mean()})
                optimizer.step()
                optimizer.zero_grad()
                if step == 10:
                    server.kill()
    told = [str(one.message) for one in caught if issubclass(one.category, LossDoctorWarning)]
    assert len(told) == 1, told
    assert "sink MLflow failed and is switched off, training goes on" in told[0]
    run_of = ld.Run.open(tmp_path / "dying")
    assert len(run_of["loss/a"]) == 40
    assert [event["measurement"] for event in run_of.events if event["kind"] == "failure"] == ["sink MLflow"]


def test_only_a_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (None, 3, object()):
        with pytest.raises(UsageError, match=r"mlflow\.start_run returned"):
            MLflow(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[mlflow\]"):
        MLflow(None)
