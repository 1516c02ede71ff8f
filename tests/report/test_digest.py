from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lossdoctor.keys import describe
from lossdoctor.record import Record
from lossdoctor.report.digest import Digest, digest
from lossdoctor.report.wording import trouble
from lossdoctor.store import MemoryWriter, Run, RunWriter


def run_of(values: dict[str, list[float]], meta: dict[str, object] | None = None) -> Run:
    writer = MemoryWriter(meta)
    for name, series in values.items():
        writer.append([Record(step, {name: value}, full=True, time=float(step)) for step, value in enumerate(series)])
    return writer.run()


@pytest.fixture(scope="module")
def whole(whole_run: Run) -> Digest:
    return digest(whole_run)


def test_run_facts(whole: Digest) -> None:
    assert whole.steps == 1200, "the evaluation after the last step is no step"
    assert whole.measured == 60
    assert whole.seconds == pytest.approx(1199 * 0.05)
    assert whole.pace == pytest.approx(0.05)
    assert whole.facts == {
        "model": "CaptionToImage",
        "parameters": "412,345",
        "seed": "0",
        "torch": "2.13.0",
        "git": "0123456789ab",
    }


def test_pauses_do_not_slow_the_pace() -> None:
    writer = MemoryWriter()
    clock = 0.0
    for step in range(0, 100, 10):
        clock += 1.0 if step != 50 else 500.0
        writer.append([Record(step, {"loss/a": 1.0}, full=True, time=clock)])
    assert digest(writer.run()).pace == pytest.approx(0.1)


def test_losses_have_their_kind_given_or_guessed(whole: Digest) -> None:
    assert {loss.name: loss.kind for loss in whole.losses} == {"dino": "distill", "flow": "velocity", "kl": "kl"}
    assert {loss.name: loss.weight for loss in whole.losses} == {"dino": 0.5, "flow": 1.0, "kl": 0.01}


def test_now_is_the_median_of_the_last_tenth(whole: Digest, whole_run: Run) -> None:
    shares = whole_run["grad_share/flow"].values
    flow = next(loss for loss in whole.losses if loss.name == "flow")
    assert flow.share == float(np.median(shares[-6:]))


def test_lines_are_the_headlines_in_the_order_of_the_vocabulary(whole: Digest, whole_run: Run) -> None:
    names = [line.name for line in whole.lines]
    headlines = {name for name in whole_run if (key := describe(name)) and key.headline}
    finest = {name for name in headlines if "@" not in name or name.endswith("@64")}
    assert set(names) == finest
    assert (
        names.index("loss/kl") < names.index("grad/flow") < names.index("flow/nmse") < names.index("flow/endpt_sw@64")
    )
    assert [line.name for line in whole.family("endpoint")] == [
        "flow/endpt_rmse@64",
        "flow/endpt_sw@64",
        "flow/endpt_std_ratio",
    ]


def test_directions_of_the_whole_run(whole: Digest) -> None:
    direction = {line.name: line.trend.direction for line in whole.lines}
    assert direction["flow/nmse"] == "down"
    assert direction["flow/cos"] == "up"
    assert direction["distill/kl"] == "flat"
    assert direction["flow/endpt_rmse@64"] == "unknown"


def test_grids(whole: Digest) -> None:
    grids = {grid.code: grid for grid in whole.grids}
    assert list(grids) == ["reach", "cosines", "times", "endpoint"]
    reach = grids["reach"]
    assert reach.columns == ("dino", "flow", "kl")
    assert dict(zip(reach.rows, reach.values, strict=True))["flow_head"][0] is None, "dino does not reach the flow head"
    assert dict(zip(reach.rows, reach.values, strict=True))["flow_head"][1] is not None
    cosines = grids["cosines"]
    assert (cosines.rows, cosines.columns) == (("dino", "flow"), ("flow", "kl"))
    assert cosines.values[1][0] is None
    assert cosines.values[1][1] == pytest.approx(-0.3, rel=0.1)
    assert grids["times"].rows == ("flow/nmse", "flow/cos", "flow/count")
    assert grids["times"].columns == tuple("0123456789")
    assert grids["endpoint"].columns == ("8", "16", "32", "64", "floor")
    assert grids["endpoint"].rows[0] == "flow/endpt_rmse"
    assert dict(zip(grids["endpoint"].rows, grids["endpoint"].values, strict=True))["flow/endpt_sw"][-1] == 0.041


def test_names_of_losses_may_hold_a_slash() -> None:
    run = run_of({"loss/a": [1.0], "loss/a/b": [1.0], "grad_module/a/b/head": [2.0], "grad_module/a/x": [3.0]})
    (reach,) = digest(run).grids
    cells = {
        (row, column): v
        for row, vs in zip(reach.rows, reach.values, strict=True)
        for column, v in zip(reach.columns, vs, strict=True)
    }
    assert cells["head", "a/b"] == 2.0
    assert cells["x", "a"] == 3.0


def test_absent_is_what_was_never_measured(whole: Digest, empty_run: Run) -> None:
    assert whole.absent == ("teacher", "ema")
    assert "gradients" in digest(empty_run).absent
    assert len(digest(empty_run).absent) == 10


def test_an_empty_run_has_a_digest(empty_run: Run) -> None:
    empty = digest(empty_run)
    assert (empty.steps, empty.measured, empty.seconds, empty.pace) == (0, 0, None, None)
    assert empty.lines == empty.losses == empty.grids == ()


def test_what_became_nan_is_nan(troubled_run: Run) -> None:
    lines = {line.name: line for line in digest(troubled_run).lines}
    assert math.isnan(lines["loss/kl"].end)
    assert lines["loss/kl"].broken == 19
    assert lines["loss/a|b `c`"].end == math.inf
    assert "accuracy" not in lines


def test_troubles_of_all_ranks_are_told_and_what_is_alike_once(tmp_path: Path) -> None:
    for rank in range(3):
        with RunWriter(tmp_path, {}, rank=rank) as writer:
            writer.append([Record(0, {"loss/a": 1.0})])
            writer.event("failure", step=5, measurement="gradients", error="out of memory")
            if rank == 2:
                writer.event("stopped", step=7, error="lost")
    told = digest(Run.open(tmp_path)).troubles
    assert [(event["kind"], event["ranks"]) for event in told] == [("failure", [0, 1, 2]), ("stopped", [2])]
    assert trouble(told[1], "en") == "rank 2, step 7: the training ended early: lost"


def test_troubles_are_told_and_other_events_are_not(troubled_run: Run) -> None:
    assert [event["kind"] for event in digest(troubled_run).troubles] == ["failure", "sink_failure", "stopped"]


@pytest.mark.parametrize(
    "meta", [{"kinds": None}, {"versions": "torch"}, {"parameters": "many"}, {"kinds": {"a": "velocity"}}]
)
def test_strange_meta_is_survived(meta: dict[str, object]) -> None:
    assert digest(run_of({"loss/a": [1.0]}, meta)).steps == 1
