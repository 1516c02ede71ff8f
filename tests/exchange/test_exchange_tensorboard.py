"""Event files, compared with the two programs that write them and with the protocol buffers of TensorBoard itself."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read
from lossdoctor.exchange.events import checksum, events
from lossdoctor.exchange.source import Notes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def framed(*messages: bytes) -> bytes:
    parts = []
    for message in messages:
        size = struct.pack("<Q", len(message))
        parts += [size, struct.pack("<I", checksum(size)), message, struct.pack("<I", checksum(message))]
    return b"".join(parts)


def points(imported: Imported) -> dict[str, list[tuple[int, float]]]:
    return {name: list(imported.run[name]) for name in imported.run}


def test_the_checksum_is_the_known_one() -> None:
    """CRC-32C of "123456789" is 0xe3069283; rotated by 15 bits, plus the constant."""
    crc = 0xE3069283
    assert checksum(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# The programs that write them

VALUES = [0.1, -3.5, math.nan, math.inf, 0.0, 1e-42, 2.0**100]


def writers() -> list[Any]:
    return [
        pytest.param("torch.utils.tensorboard", {}, id="torch"),
        pytest.param("torch.utils.tensorboard", {"new_style": True}, id="torch tensors"),
        pytest.param("tensorboardX", {}, id="tensorboardX"),
    ]


def writer_of(module: str, folder: Path, **arguments: Any) -> Any:
    if module.startswith("torch"):
        pytest.importorskip("tensorboard")
    return pytest.importorskip(module).SummaryWriter(str(folder), **arguments)


@pytest.mark.parametrize(("module", "style"), writers())
def test_scalars_of(module: str, style: dict[str, Any], tmp_path: Path) -> None:
    writer = writer_of(module, tmp_path)
    for step, value in enumerate(VALUES):
        writer.add_scalar("train/loss", value, 2**40 + step, walltime=1700000000.25 + step, **style)
        writer.add_scalar("other", -value, 2**40 + step, walltime=1700000000.25 + step, **style)
    writer.add_text("words", "hello", 1)
    writer.add_histogram("weights", np.arange(9.0), 1)
    writer.close()
    for path in (tmp_path, *tmp_path.iterdir()):
        imported = read(path)
        assert imported.format == "tensorboard"
        assert sorted(imported.run) == ["other", "train/loss"]
        np.testing.assert_array_equal(imported.run["train/loss"].values, np.array(VALUES, np.float32).astype(float))
        assert imported.run["other"].steps.tolist() == [2**40 + step for step in range(len(VALUES))]
        assert imported.run.times.values.tolist() == [1700000000.25 + step for step in range(len(VALUES))]
        assert sorted(imported.notes.ignored) == ["weights", "words/text_summary"]
        assert not imported.notes.lost.total()
        assert imported.names == {"train/loss": "loss/total", "other": "other"}


def test_double_precision_is_kept(tmp_path: Path) -> None:
    writer = writer_of("torch.utils.tensorboard", tmp_path)
    writer.add_scalar("x", 0.1, 3, new_style=True, double_precision=True)
    writer.close()
    assert points(read(tmp_path)) == {"x": [(3, 0.1)]}


@pytest.mark.parametrize(("module", "style"), writers()[::2])
def test_losses_given_together(module: str, style: dict[str, Any], tmp_path: Path) -> None:
    """add_scalars makes a folder per name, with the same tag in each."""
    writer = writer_of(module, tmp_path / "run")
    for step in range(3):
        writer.add_scalar("lr", 0.5, step)
        writer.add_scalars("train/losses", {"kl": step, "flow": 2 * step}, step)
    writer.close()
    imported = read(tmp_path)
    assert sorted(imported.run) == ["lr", "train/losses/flow", "train/losses/kl"]
    assert points(imported)["train/losses/flow"] == [(0, 0.0), (1, 2.0), (2, 4.0)]
    assert imported.renaming.guessed == {"train/losses/flow": "loss/flow", "train/losses/kl": "loss/kl"}


def test_hyperparameters_are_no_run(tmp_path: Path) -> None:
    writer = writer_of("torch.utils.tensorboard", tmp_path)
    writer.add_scalar("accuracy", 0.25, 5)
    writer.add_hparams({"lr": 0.1}, {"accuracy": 0.75})
    writer.close()
    assert points(read(tmp_path)) == {"accuracy": [(5, 0.25)]}


def test_several_runs_have_to_be_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b/deep", "c"):
        writer = writer_of("tensorboardX", tmp_path / name)
        writer.add_scalar("x", float(len(name)), 0)
        writer.close()
    with pytest.raises(UsageError, match=r"(?s)several runs.*'a', 'b/deep', 'c'.*--run NAME"):
        read(tmp_path)
    assert points(read(tmp_path, run="b/deep")) == {"x": [(0, 6.0)]}
    with pytest.raises(UsageError, match=r"(?s)no such run.*'b/deep'"):
        read(tmp_path, run="b")
    with pytest.raises(UsageError, match="leave --step out"):
        read(tmp_path / "a", step="step")
    (file,) = (tmp_path / "a").iterdir()
    with pytest.raises(UsageError, match="only one run"):
        read(file, run="a")


def test_steps_that_were_trained_again_count_once(tmp_path: Path) -> None:
    writer = writer_of("torch.utils.tensorboard", tmp_path, filename_suffix=".1")
    for step in range(10):
        writer.add_scalar("x", 1.0, step)
    writer.close()
    again = writer_of("torch.utils.tensorboard", tmp_path, filename_suffix=".2", purge_step=6)
    for step in range(6, 8):
        again.add_scalar("x", 2.0, step)
    again.close()
    files = sorted(tmp_path.iterdir(), key=lambda path: path.name[-2:])
    for number, file in enumerate(files):  # written within one second: the name must say which was first
        file.rename(tmp_path / f"events.out.tfevents.{number}")
    imported = read(tmp_path)
    assert points(imported)["x"] == [*((step, 1.0) for step in range(6)), (6, 2.0), (7, 2.0)]
    assert imported.notes.lost == {"superseded": 4}


# The messages

NUMBERS = {
    "DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_HALF": np.float16, "DT_INT8": np.int8, "DT_INT16": np.int16,
    "DT_INT32": np.int32, "DT_INT64": np.int64, "DT_UINT8": np.uint8, "DT_UINT16": np.uint16, "DT_UINT32": np.uint32,
    "DT_UINT64": np.uint64, "DT_BOOL": np.bool_,
}  # fmt: skip
FIELDS = {
    "DT_FLOAT": "float_val", "DT_DOUBLE": "double_val", "DT_HALF": "half_val", "DT_INT8": "int_val",
    "DT_INT16": "int_val", "DT_INT32": "int_val", "DT_INT64": "int64_val", "DT_UINT8": "int_val",
    "DT_UINT16": "int_val", "DT_UINT32": "uint32_val", "DT_UINT64": "uint64_val", "DT_BOOL": "bool_val",
}  # fmt: skip


def proto() -> Any:
    return pytest.importorskip("tensorboard.compat.proto.event_pb2")


def only(path: Path, *messages: bytes) -> tuple[list[tuple[str, float]], list[str], Notes]:
    (path / "events").write_bytes(framed(*messages))
    notes = Notes()
    found = list(events(path / "events", notes))
    return [one for event in found for one in event.scalars], [tag for event in found for tag in event.others], notes


@pytest.mark.parametrize("dtype", list(NUMBERS))
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("packed", [True, False])
def test_a_tensor_of_one_number(dtype: str, shape: tuple[int, ...], packed: bool, tmp_path: Path) -> None:
    value = NUMBERS[dtype](1 if dtype == "DT_BOOL" else 100 if "UINT" in dtype else -100)
    event = proto().Event(wall_time=1.0, step=2)
    tensor = event.summary.value.add(tag="x").tensor
    tensor.dtype = dtype
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    if packed:
        tensor.tensor_content = np.asarray(value).tobytes()
    else:
        bits = int(np.asarray(value).view(np.uint16)) if dtype == "DT_HALF" else value.item()
        getattr(tensor, FIELDS[dtype]).append(bits)
    scalars, others, _ = only(tmp_path, event.SerializeToString())
    assert scalars == [("x", float(value))]
    assert others == []


def test_bfloat16(tmp_path: Path) -> None:
    for field, content in (("tensor_content", b"\x40\xc0"), ("half_val", [0xC040])):
        event = proto().Event()
        tensor = event.summary.value.add(tag="x").tensor
        tensor.dtype = "DT_BFLOAT16"
        if field == "half_val":
            tensor.half_val.extend(content)
        else:
            tensor.tensor_content = content
        assert only(tmp_path, event.SerializeToString())[0] == [("x", -3.0)]


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_a_tensor_of_more_numbers_is_no_scalar(shape: tuple[int, ...], tmp_path: Path) -> None:
    event = proto().Event()
    tensor = event.summary.value.add(tag="x").tensor
    tensor.dtype = "DT_FLOAT"
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([0.5] * math.prod(shape))
    assert only(tmp_path, event.SerializeToString())[:2] == ([], ["x"])


@given(
    wall=st.floats(allow_nan=False),
    step=st.integers(-(2**63), 2**63 - 1),
    values=st.lists(st.tuples(st.text(max_size=9), st.floats(width=32)), max_size=4),
)
def test_any_event_is_read_as_tensorboard_reads_it(
    tmp_path_factory: pytest.TempPathFactory, wall: float, step: int, values: list[tuple[str, float]]
) -> None:
    message = proto().Event(wall_time=wall, step=step)
    for tag, value in values:
        message.summary.value.add(tag=tag, simple_value=value, node_name="n")
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(framed(message.SerializeToString()))
    (event,) = events(path, Notes())
    assert (event.time, event.step) == (wall, step)
    assert repr(event.scalars) == repr([(one.tag, one.simple_value) for one in message.summary.value])


# Damage


def small(folder: Path) -> bytes:
    writer = writer_of("tensorboardX", folder)
    for step in range(4):
        writer.add_scalar("loss", 12.5 * step, step, walltime=1.0 + step)
    writer.close()
    (path,) = folder.iterdir()
    return path.read_bytes()


def test_cut_at_every_byte(tmp_path: Path) -> None:
    """What is whole is read; the rest is counted to the byte."""
    whole = small(tmp_path / "whole")
    ends, at = [0], 0
    while at < len(whole):
        at += 16 + int.from_bytes(whole[at : at + 8], "little")
        ends.append(at)
    cut = tmp_path / "events.out.tfevents.1"
    seen = 0
    for size in range(1, len(whole) + 1):
        cut.write_bytes(whole[:size])
        records = sum(end <= size for end in ends) - 1
        scalars = [(step, 12.5 * step) for step in range(4)][: max(0, records - (len(ends) - 5))]
        if not scalars:
            with pytest.raises(UsageError, match="no numbers"):
                read(cut)
            continue
        imported = read(cut)
        assert points(imported) == {"loss": scalars}
        assert imported.notes.lost["bytes"] == size - max(end for end in ends if end <= size)
        seen += 1
    assert seen > 100


def test_a_damaged_byte_never_gives_a_wrong_number(tmp_path: Path) -> None:
    whole = small(tmp_path / "whole")
    path = tmp_path / "events.out.tfevents.1"
    right = {(step, 12.5 * step) for step in range(4)}
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            imported = read(path)
        except UsageError:
            continue
        assert set(imported.run) == {"loss"}
        assert set(imported.run["loss"]) <= right
        if set(imported.run["loss"]) != right:
            assert imported.notes.lost.total()


def test_a_damaged_record_does_not_take_the_next_ones_with_it(tmp_path: Path) -> None:
    messages = [proto().Event(step=step) for step in range(3)]
    for message in messages:
        message.summary.value.add(tag="x", simple_value=1.0)
    data = bytearray(framed(*(message.SerializeToString() for message in messages)))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "events.out.tfevents.1").write_bytes(data)
    imported = read(tmp_path)
    assert points(imported) == {"x": [(0, 1.0), (2, 1.0)]}
    assert +imported.notes.lost == {"damaged": 1}


def test_pictures_are_skipped_and_counted(tmp_path: Path) -> None:
    event = proto().Event(step=1)
    event.summary.value.add(tag="picture").image.encoded_image_string = bytes(1 << 20)
    scalar = proto().Event(step=1)
    scalar.summary.value.add(tag="x", simple_value=1.0)
    scalars, others, notes = only(tmp_path, event.SerializeToString(), scalar.SerializeToString())
    assert (scalars, others, notes.lost.total()) == ([("x", 1.0)], ["picture"], 0)
