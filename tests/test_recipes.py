"""The recipes of docs/trackers.md, run as they stand in a process of their own, without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lossdoctor as ld
from lossdoctor.exchange import read

PAGE = Path(__file__).parent.parent / "docs" / "trackers.md"
BEFORE = """
import torch
import lossdoctor as ld
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train(doctor):
    for _ in range(4):
        doctor.backward({"a": model(torch.randn(8, 3)).square().mean()})
        optimizer.step()
        optimizer.zero_grad()
"""


def test_every_recipe_of_the_trackers_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    assert all(block.count("doctor.close()") == 1 for block in blocks)
    offline = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SWANLAB_SAVE_DIR": str(tmp_path / "swanlab"),
    }
    code = BEFORE + "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "is switched off" not in done.stderr
    for name in ("wandb", "mlflow", "trackio", "swanlab", "files"):
        run = ld.Run.open(tmp_path / "runs" / name)
        assert not [event for event in run.events if event["kind"] == "failure"]
        assert (tmp_path / "runs" / name / "report.html").exists() is (name != "files")
    written = ["wandb", "mlflow.db", "trackio/ring.db", "runs/tb", "runs/log.csv", "runs/log.jsonl", "swanlog"]
    for log in written:
        assert len(read(tmp_path / log, guess=False).run["loss/a"]) == 4, log
    assert done.stdout.count("{'loss/a'") == 4
