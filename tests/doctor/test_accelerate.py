"""A Doctor in a training through accelerate, in one process and in two: global numbers, and the same training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lossdoctor as ld

PROGRAM = Path(__file__).with_name("accelerate_program.py")
KEYS = ("grad", "descent/", "loss/", "step/", "weight/", "lr/", "wd/")
SECONDS = 180

spec = importlib.util.spec_from_file_location("accelerate_program", PROGRAM)
assert spec is not None
assert spec.loader is not None
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def trained(request, tmp_path_factory) -> tuple[Path, int]:
    """Every program, in the processes that torchrun starts."""
    folder = tmp_path_factory.mktemp("accelerate")
    size: int = request.param
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run([*command, str(PROGRAM), str(folder)], timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, size


def of(trained: tuple[Path, int], name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(trained[0] / f"{name}.{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", program.PROGRAMS)
def test_training_is_bit_for_bit_the_same(trained, name) -> None:
    for rank in range(trained[1]):
        found = of(trained, name, rank)
        assert len(found["off"]["states"]) == program.STEPS
        for off, on in zip(found["off"]["states"], found["on"]["states"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(off, on, strict=True))


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_numbers_are_those_of_one_process_on_the_global_batch(trained, name, tmp_path) -> None:
    settings = program.PROGRAMS[name]
    wanted = program.train(tmp_path / "alone", **settings)["rets"]
    for rank in range(trained[1]):
        found = of(trained, name, rank)["on"]["rets"]
        for step in range(program.STEPS):
            keys = {key for key in wanted[step] if key.startswith(KEYS)}
            assert keys >= {"grad/a", "grad/flow", "grad/total", "grad_share/a", "grad_cos/a|flow", "descent/flow"}
            for key in sorted(keys):
                # There the losses were handed in already divided.
                whole = wanted[step][key] * (settings.get("micro", 1) if key.startswith("loss/") else 1)
                assert found[step][key] == pytest.approx(whole, rel=2e-4, abs=2e-6), (step, key)


def test_what_is_prepared_is_clear_and_what_is_not_is_found(trained) -> None:
    folder, size = trained
    found = {name: {f.code for f in ld.diagnose(ld.Run.open(folder / name)).findings} for name in program.PROGRAMS}
    assert not any(code.startswith("RNK") for name in ("plain", "accumulated", "drop") for code in found[name])
    # A loader that was not prepared gives every rank the same batches.
    assert ("RNK001" in found["not_prepared"]) is (size > 1)
