"""Two processes under Lightning and under the Hugging Face Trainer: one run, with the numbers of the global batch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lossdoctor as ld

PROGRAM = Path(__file__).with_name("ranks_program.py")
KEYS = ("grad", "descent/", "loss/", "step/", "weight/", "lr/", "wd/")
SECONDS = 180

spec = importlib.util.spec_from_file_location("frameworks_ranks_program", PROGRAM)
assert spec is not None
assert spec.loader is not None
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes that torchrun starts leave behind."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(PROGRAM), str(folder)], timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("framework", program.FRAMEWORKS)
def test_one_run_of_the_global_batch_and_the_same_training(framework: str, trained: Path, tmp_path: Path) -> None:
    ends = [torch.load(trained / f"{framework}.{rank}.pt", weights_only=True) for rank in range(2)]
    for name, weight in ends[0]["off"].items():
        assert all(torch.equal(weight, end[side][name]) for end in ends for side in ("off", "on")), name
    alone = program.FRAMEWORKS[framework](tmp_path / "alone", tmp_path, 1)
    assert all(torch.allclose(weight, ends[0]["on"][name], rtol=1e-4, atol=1e-6) for name, weight in alone.items())

    found, wanted = ld.Run.open(trained / framework), ld.Run.open(tmp_path / "alone")
    keys = {name for name in wanted if name.startswith(KEYS)}
    assert keys >= {"grad/a", "grad_cos/a|flow", "grad_share/flow", "grad/clip_ratio", "descent/flow"}
    for name in sorted(keys):
        assert list(found[name].steps) == list(range(program.STEPS)), name
        assert found[name].values == pytest.approx(wanted[name].values, rel=2e-3, abs=2e-6), name
    assert not [event for event in found.events if event["kind"] in ("failure", "passed_over", "ranks_differ")]
    assert not [one.code for one in ld.diagnose(found).findings if one.code.startswith("RNK")]
