"""Tables as other programs write them; their shapes are those of real files, the numbers are made up."""

from __future__ import annotations

import csv as standard
import math
from pathlib import Path

import numpy as np
import pytest

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read
from lossdoctor.record import Record
from lossdoctor.sinks import CSV

LIGHTNING = """epoch,step,train_loss_epoch,train_loss_step,val_loss
0,49,,2.5,
0,99,,1.5,
0,99,,,3.0
0,99,2.0,,
1,149,,nan,
"""


def made(path: Path, content: str, name: str = "log.csv") -> Path:
    (path / name).write_bytes(content.encode())
    return path / name


def points(imported: Imported, name: str) -> list[tuple[int, float]]:
    return list(imported.run[name])


def test_lightning_has_several_rows_per_step_and_empty_cells(tmp_path: Path) -> None:
    imported = read(made(tmp_path, LIGHTNING, "metrics.csv"))
    assert points(imported, "train_loss_step")[:2] == [(49, 2.5), (99, 1.5)]
    assert math.isnan(imported.run["train_loss_step"].values[-1])
    assert points(imported, "val_loss") == [(99, 3.0)]
    assert points(imported, "epoch") == [(49, 0.0), (99, 0.0), (149, 1.0)]
    assert imported.notes.step == "step"
    assert imported.names["train_loss_step"] == "loss/total"
    assert not imported.notes.lost.total()


def test_lightning_by_its_folder(tmp_path: Path) -> None:
    for version in ("version_0", "version_1"):
        (tmp_path / version).mkdir()
        made(tmp_path / version, LIGHTNING, "metrics.csv")
    assert read(tmp_path / "version_0").format == "csv"
    assert points(read(tmp_path, run="version_1"), "val_loss") == [(99, 3.0)]
    with pytest.raises(UsageError, match=r"(?s)several runs.*version_0.*version_1"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"(?s)no such run.*version_1.*--run version_2"):
        read(tmp_path, run="version_2")


CHART = """"Step","calm-sun-5 - train/kl","calm-sun-5 - train/kl__MIN","calm-sun-5 - train/kl__MAX"
"0","3","2","4"
"10","1","0","2"
"""
CHART_OF_TWO = (
    '"Step","a-1 - kl","a-1 - kl__MIN","a-1 - kl__MAX","b-2 - kl","b-2 - kl__MIN","b-2 - kl__MAX"\n1,1,1,1,2,2,2\n'
)


def test_a_chart_of_wandb(tmp_path: Path) -> None:
    imported = read(made(tmp_path, CHART))
    assert list(imported.run) == ["train/kl"]
    assert points(imported, "train/kl") == [(0, 3.0), (10, 1.0)]


def test_a_chart_of_several_runs(tmp_path: Path) -> None:
    path = made(tmp_path, CHART_OF_TWO)
    with pytest.raises(UsageError, match=r"(?s)several runs.*'a-1', 'b-2'"):
        read(path)
    imported = read(path, run="b-2")
    assert {name: points(imported, name) for name in imported.run} == {"kl": [(1, 2.0)]}
    assert imported.names == {"kl": "loss/kl"}


def test_the_history_of_wandb(tmp_path: Path) -> None:
    header = ",_step,_timestamp,_runtime,trainer/global_step,loss"
    imported = read(made(tmp_path, f"{header}\n0,0,1700000000.5,1.0,50,0.25\n1,1,1700000001.5,2.0,100,0.125\n"))
    assert imported.notes.step == "trainer/global_step"
    assert points(imported, "loss") == [(50, 0.25), (100, 0.125)]
    assert imported.run.times.values.tolist() == [1700000000.5, 1700000001.5]
    assert "" not in imported.run
    chosen = read(tmp_path / "log.csv", step="_step")
    assert points(chosen, "loss") == [(0, 0.25), (1, 0.125)]


def test_one_tag_of_tensorboard(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "Wall time,Step,Value\n1700000000.25,7,0.5\n"))
    assert points(imported, "Value") == [(7, 0.5)]
    assert imported.run.times.values.tolist() == [1700000000.25]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_byte_order_marks(tmp_path: Path, separator: str, end: str, mark: str) -> None:
    rows = (["iteration", " flow, loss "], ["1", "0.5"], ["2", "0.25"])
    with open(tmp_path / "log", "w", newline="", encoding="utf-8") as file:
        file.write(mark)
        standard.writer(file, delimiter=separator, lineterminator=end).writerows(rows)
    assert points(read(tmp_path / "log"), "flow, loss") == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    "header", ["step,name,value", "value,metric,step", "Step,Tag,Value", "step,wall_time,key,value"]
)
def test_one_metric_per_row(tmp_path: Path, header: str) -> None:
    cells = {"step": "3", "value": "0.5", "wall_time": "12.5"}
    names = header.lower().split(",")
    row = ",".join(cells.get(name, "step") for name in names)
    imported = read(made(tmp_path, f"{header}\n{row}\n"))
    assert {name: points(imported, name) for name in imported.run} == {"step": [(3, 0.5)]}, "a metric called step"
    if "wall_time" in names:
        assert imported.run.times.values.tolist() == [12.5]


def test_a_table_with_other_columns_is_not_taken_for_one_metric_per_row(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "step,name,value,policy_loss\n1,ppo,0.5,2\n"))
    assert sorted(imported.run) == ["policy_loss", "value"]
    assert dict(imported.notes.ignored) == {"name": 1}


def test_a_column_of_runs(tmp_path: Path) -> None:
    path = made(tmp_path, "run,tag,step,value,wall_time\na,loss,0,1,1700000000\nb,loss,0,2,1700000000\n")
    with pytest.raises(UsageError, match=r"(?s)several runs.*'a', 'b'"):
        read(path)
    assert points(read(path, run="b"), "loss") == [(0, 2.0)]
    with pytest.raises(UsageError, match="only one run"):
        read(made(tmp_path, "step,loss\n1,2\n", "one.csv"), run="b")


def test_the_step_is_the_column_that_is_filled(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "step,iteration,epoch,x\n,1,0,1\n,2,0,2\n5,3,0,3\n"))
    assert imported.notes.step == "iteration"
    by_epoch = read(made(tmp_path, "epoch,x\n0,1\n1,2\n", "epochs.csv"))
    assert points(by_epoch, "x") == [(0, 1.0), (1, 2.0)]


def test_rows_without_a_step_are_counted(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "step,x\n1,1\n,2\n2.5,3\nnan,4\n,\n4,5\n"))
    assert points(imported, "x") == [(1, 1.0), (4, 5.0)]
    assert imported.notes.lost["no_step"] == 3


def test_damage_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = ["step,x,y", "1,1,1", "2,2", "3,3,3,3", "step,x,y", "", "4," + "9" * 200_000 + ",4", "5,5,5"]
    imported = read(made(tmp_path, "\n".join(rows) + "\n"))
    assert points(imported, "y") == [(1, 1.0), (5, 5.0)]
    assert imported.notes.lost["damaged"] == 3


def test_columns_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "step,x,x,x\n1,2,3,4\n"))
    assert [(name, points(imported, name)) for name in imported.run] == [
        ("x", [(1, 2.0)]),
        ("x.1", [(1, 3.0)]),
        ("x.2", [(1, 4.0)]),
    ]


def test_seconds_since_the_start_are_a_metric_and_no_clock(tmp_path: Path) -> None:
    imported = read(made(tmp_path, "step,time,x\n1,0.5,1\n2,1.5,2\n"))
    assert points(imported, "time") == [(1, 0.5), (2, 1.5)]
    assert np.ptp(imported.run.times.values) == 0


@pytest.mark.parametrize("cut", range(len(LIGHTNING)))
def test_cut_anywhere_no_number_is_wrong(tmp_path: Path, cut: int) -> None:
    whole = read(made(tmp_path, LIGHTNING, "whole.csv"))
    try:
        imported = read(made(tmp_path, LIGHTNING[:cut], "cut.csv"))
    except UsageError:
        return
    for name in imported.run:
        found = dict(points(imported, name))
        assert repr(found) == repr({step: dict(points(whole, name))[step] for step in found})


def test_our_own_file_cut_anywhere(tmp_path: Path) -> None:
    records = [Record(step, {'a "b"\nc,': 0.125, "loss/kl": 12.5}, time=1.5) for step in (8, 9)]
    sink = CSV(tmp_path / "own.csv")
    sink.open({})
    sink.write(records)
    sink.close()
    whole = (tmp_path / "own.csv").read_bytes()
    counts = []
    for cut in range(len(whole) + 1):
        (tmp_path / "cut.csv").write_bytes(whole[:cut])
        try:
            imported = read(tmp_path / "cut.csv")
        except UsageError:
            counts.append(0)
            continue
        for name in imported.run:
            assert set(imported.run[name]) <= {(record.step, record.values[name]) for record in records}
        counts.append(sum(len(imported.run[name]) for name in imported.run))
    assert counts == sorted(counts)
    assert counts[-1] == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", r"(?s)which step.*'a', 'b'.*--step NAME"),
        ("0,1.5\n1,1.25\n", "no header"),
        ("step,x\n", "no numbers"),
        ("step,x\n1,abc\n2,def\n", r"(?s)no numbers.*'x'"),
        ("step,x\n1,", "no numbers"),
        ("step,x\n0.5,1\n", r"(?s)which step"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(made(tmp_path, content))


def test_a_step_column_that_is_none(tmp_path: Path) -> None:
    path = made(tmp_path, "step,note,x\n1,a,2\n")
    with pytest.raises(UsageError, match=r"(?s)no such column.*'step'.*--step stp"):
        read(path, step="stp")
    with pytest.raises(UsageError, match="holds no steps"):
        read(path, step="note")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("step,\u00b5\n1,2\n".encode("latin-1"))
    with pytest.raises(UsageError, match="no log that can be read"):
        read(tmp_path / "log.csv")
    assert [len(series) for series in read(tmp_path / "log.csv", format="csv").run.values()] == [1]
