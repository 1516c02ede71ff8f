"""Doors open when they are used, name what is missing, and find the sinks of other people's trackers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import lossdoctor as ld
from lossdoctor.exchange import read
from lossdoctor.integrations.trackers import sink_of


@pytest.mark.parametrize(
    ("part", "packages"), [("lightning", ["lightning", "pytorch_lightning"]), ("transformers", ["transformers"])]
)
def test_without_the_extra_the_error_names_it(part: str, packages: list[str]) -> None:
    code = f"""
import sys
import lossdoctor as ld
assert not [name for name in sys.modules if name.startswith("lossdoctor.integrations")]
sys.modules.update(dict.fromkeys({packages!r}))
try:
    ld.integrations.{part}
except ImportError as error:
    assert "lossdoctor[{part}]" in str(error), error
    assert isinstance(error, ld.errors.MissingExtraError)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_door_names_the_known() -> None:
    with pytest.raises(AttributeError, match="accelerate, lightning, transformers"):
        _ = ld.integrations.fabric


def test_the_trackers_of_accelerate(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    try:
        accelerator.init_trackers("tb")
        (sink,) = ld.integrations.accelerate.sinks(accelerator)
        assert isinstance(sink, ld.sinks.TensorBoard)
        sink.open({})
        sink.write([ld.Record(3, {"loss/a": 0.5})])
        sink.close()
        accelerator.log({"mine": 1.0}, step=0)
        accelerator.end_training()
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    found = read(tmp_path / "tb").run
    assert (list(found["loss/a"]), list(found["mine"])) == ([(3, 0.5)], [(0, 1.0)])


def test_a_tracker_without_a_sink_has_none() -> None:
    for tracker in (None, object(), "run", ld.Run):
        assert sink_of(tracker) is None
