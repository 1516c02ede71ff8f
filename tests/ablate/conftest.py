"""Scripts that record a run without training: what an ablation asks of them is in the environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from lossdoctor import arms
from lossdoctor.record import Record
from lossdoctor.store import RunWriter

arm, seed = arms.parse(os.environ["LOSSDOCTOR_ARM"]), int(os.environ["LOSSDOCTOR_SEED"])
steps, every = int(os.environ["LOSSDOCTOR_STEPS"]), int(os.environ["LOSSDOCTOR_EVERY"])
told = json.loads(Path(__file__).with_suffix(".json").read_text())
with open(Path(__file__).with_name("calls.txt"), "a") as calls:
    calls.write(f"{arm} {seed} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
print("a word of the script")
once = Path(__file__).with_name(f"failed-{seed}")
if told.get("fails") == str(arm) or (told.get("fails once") == str(arm) and not once.exists()):
    once.touch()
    print("the reason it broke", file=sys.stderr)
    sys.exit(7)
time.sleep(told.get("seconds", 0.0))
if not told.get("silent"):
    experiment = {"arm": str(arm), "seed": seed, "seeded": told.get("seeded", True), "conditions": True, "knobs": []}
    meta = {"losses": {"flow": "velocity", "kl": "kl"}, "experiment": experiment}
    writer = RunWriter(os.environ["LOSSDOCTOR_RUN"], meta)
    end = {"without:flow": 0.1, "shuffle:cond": 0.3}.get(str(arm), 0.8) + 0.01 * seed
    mu = 1.0 if str(arm) == "without:kl" else 0.2 + 0.01 * seed
    for step in range(0, steps, every):
        share = (step + 1) / steps
        values = {"flow/cos": end * share, "flow/nmse": 1 - end * share, "mu/abs_mean": mu, "std/mean": 0.9}
        writer.append([Record(step, values, full=True)])
    writer.append([Record(steps, {"flow/endpt_sw@8": 1 - end, "flow/endpt_sw@16": 0.9 * (1 - end)})])
    writer.close()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script; its settings go into script.json, its calls are in calls.txt."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "script.json").write_text("{}", encoding="utf-8")
    return tmp_path / "script.py"


@pytest.fixture
def command(script: Path) -> tuple[str, ...]:
    return (sys.executable, str(script))
