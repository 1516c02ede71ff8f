"""The catalogue is the folder: nothing forgotten, nothing loaded before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lossdoctor.sinks
from lossdoctor.sinks import CATALOGUE, Sink

MACHINERY = {"__init__", "sink", "background", "appending", "alerts", "naming"}


def test_every_file_is_a_sink_of_the_catalogue() -> None:
    found = {path.stem for path in Path(lossdoctor.sinks.__file__).parent.glob("*.py")} - MACHINERY
    missing = sorted(found - set(CATALOGUE.values()))
    assert not missing, f"add to CATALOGUE in sinks/__init__.py: {', '.join(f'... : {stem!r}' for stem in missing)}"
    assert not set(CATALOGUE.values()) - found
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert {*CATALOGUE, "Background", "Sink"} == set(lossdoctor.sinks.__all__)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_sink_is_documented_and_derives_from_sink(name: str) -> None:
    sink = getattr(lossdoctor.sinks, name)
    assert issubclass(sink, Sink)
    assert sink.__name__ == name
    assert sink.__doc__
    assert sink.write is not Sink.write


def test_an_unknown_sink_names_the_known() -> None:
    with pytest.raises(AttributeError, match="JSONL"):
        _ = lossdoctor.sinks.Nothing


def test_a_sink_loads_neither_torch_nor_what_it_does_not_need(tmp_path: Path) -> None:
    code = f"""
import sys, lossdoctor
sinks = lossdoctor.sinks
assert not [name for name in sys.modules if name.startswith('lossdoctor.sinks.')]
from lossdoctor.sinks import CSV, JSONL, Background, Sink
assert 'tensorboardX' not in sys.modules and 'lossdoctor.sinks.tensorboard' not in sys.modules
from lossdoctor.record import Record
for sink in (CSV({str(tmp_path / "a.csv")!r}), JSONL({str(tmp_path / "a.jsonl")!r})):
    sink.open({{}}); sink.write([Record(0, {{'x': 1.0}})]); sink.close()
import lossdoctor.sinks.tensorboard
assert 'torch' not in sys.modules and 'tensorboardX' not in sys.modules
assert 'lossdoctor.store' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
