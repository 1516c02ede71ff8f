"""Event files read back record by record, without the tensorboard package."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossdoctor.errors import MissingExtraError, UsageError
from lossdoctor.record import Record
from lossdoctor.sinks import Background, TensorBoard

pytest.importorskip("tensorboardX")


def events(folder: Path) -> Iterator[Any]:
    """The TFRecord format: length (8 bytes), its checksum (4), the message, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size


def scalars(folder: Path) -> list[tuple[str, int, float, float]]:
    return [
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


RECORDS = [
    Record(0, {"loss/flow": 0.25, "flow/endpt_rmse@8": -1e30}, time=1.5),
    Record(2**40, {"loss/flow": math.nan, "grad_cos/a|b": math.inf, "\ud800": 1.0}, time=2.5, full=True),
]
SENT = [
    ("loss/flow", 0, 1.5, 0.25),
    ("flow/endpt_rmse@8", 0, 1.5, -1e30),
    ("loss/flow", 2**40, 2.5, math.nan),
    ("grad_cos/a|b", 2**40, 2.5, math.inf),
    ("\\ud800", 2**40, 2.5, 1.0),
]


def check(found: list[tuple[str, int, float, float]], tag: Mapping[int, int]) -> None:
    assert [(name, step, clock) for name, step, clock, _ in found] == [(n.translate(tag), s, c) for n, s, c, _ in SENT]
    np.testing.assert_array_equal([v for *_, v in found], np.array([v for *_, v in SENT], np.float32))


@pytest.mark.parametrize("as_text", [True, False])
def test_a_folder_gets_an_event_file(tmp_path: Path, as_text: bool) -> None:
    folder = tmp_path / "deep" / "tb"
    background = Background(TensorBoard(str(folder) if as_text else folder))
    background.open({})
    background.write(RECORDS)
    background.event({"kind": "failure", "step": 7, "time": 3.5, "why": "<b>"})
    assert background.close(timeout=60)
    assert background.failure is None
    check(scalars(folder), str.maketrans("@|\\", "___"))
    (event,) = (one for one in events(folder) if any("failure" in value.tag for value in one.summary.value))
    assert (event.step, event.wall_time) == (7, 3.5)
    (value,) = event.summary.value
    assert value.tag.startswith("lossdoctor/failure")
    assert b'"why": "<b>"' in value.tensor.string_val[0]


def test_a_writer_of_the_user_stays_open(tmp_path: Path) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        sink = TensorBoard(writer)
        sink.open({})
        sink.write(RECORDS)
        sink.close()
        writer.add_scalar("mine", 1.0, 5, walltime=9.0)
    check(scalars(tmp_path)[:-1], str.maketrans("@|\\", "___"))
    assert scalars(tmp_path)[-1] == ("mine", 5, 9.0, 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_writer_of_torch_works_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoard(writer)
    sink.open({})
    sink.write(RECORDS)
    sink.event({"kind": "arm", "time": 1.0})
    sink.close()
    writer.close()
    check(scalars(tmp_path), {})


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[tensorboard\]"):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())

    class Mine:
        def add_scalar(self) -> None: ...
        def add_text(self) -> None: ...
        def flush(self) -> None: ...

    TensorBoard(Mine())  # needs no extra


@pytest.mark.parametrize("target", [None, 3, object(), []])
def test_anything_else_is_refused_at_once(target: Any) -> None:
    with pytest.raises(UsageError, match="SummaryWriter"):
        TensorBoard(target)


def test_a_folder_that_cannot_be_made_switches_the_sink_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    background = Background(TensorBoard(tmp_path / "file" / "tb"))
    background.open({})
    background.write(RECORDS)
    assert background.close(timeout=60)
    assert isinstance(background.failure, OSError)
