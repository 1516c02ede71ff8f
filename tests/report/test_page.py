"""The page as text: whole, closed to the outside, and safe whatever things are called."""

from __future__ import annotations

import base64
import gzip
import html
import html.parser
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record, Series
from lossdoctor.report.page import page
from lossdoctor.report.page.encoding import BUDGET, packed, thinned
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message
from lossdoctor.store import MemoryWriter, Run

NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x00b\ud800", "</title>", "${x}", "</script>"]


def run_with(*names: str, steps: int = 60) -> Run:
    writer = MemoryWriter({"heads": ["head"], "model": NASTY[1]})
    generator = np.random.default_rng(0)
    for step in range(steps):
        values = {name: float(generator.normal(1.0 + step / steps, 0.1)) for name in names}
        writer.append([Record(step, values, full=True, time=float(step))])
    return writer.run()


def finding(metric: str, loss: str | None = None, explained_by: str | None = None) -> Finding:
    return Finding(
        code="GRD101",
        name="loss-without-gradient",
        severity="error",
        certainty="likely",
        depth="root",
        message=Message("skip.missing", {"metrics": metric}),
        evidence=(Evidence(metric, 1.2, 1.5, 10, 40),),
        causes=(Cause("detached-branch"),),
        loss=loss,
        explained_by=explained_by,
    )


def diagnosis(*findings: Finding) -> Diagnosis:
    return Diagnosis("run", 60, 60, findings, ("VEL401",), ())


class Tags(html.parser.HTMLParser):
    """Balanced tags, and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "input", "img", "rect", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def nasty() -> str:
    names = [f"loss/{name}" for name in NASTY] + NASTY
    return page(run_with(*names), diagnosis(finding(NASTY[0], loss=NASTY[1])), title=NASTY[3])


def test_nothing_is_loaded_and_nothing_gets_in(nasty: str) -> None:
    tags = Tags()
    tags.feed(nasty)
    assert tags.open == []
    assert tags.handlers == []
    assert all(load.startswith(("#", "data:")) for load in tags.loads)
    assert nasty.count("<script") == 3, "data, curves and the one script"
    assert "<img src=x" not in nasty
    assert "default-src 'none'" in nasty


def test_the_policy_names_the_script_that_is_there(nasty: str) -> None:
    import hashlib

    told = re.search(r"script-src 'sha256-([^']+)'", nasty)
    script = nasty[nasty.rindex("<script>") + len("<script>") : nasty.rindex("</script>")]
    assert told is not None
    assert told[1] == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_every_sentence_is_there_in_both_languages() -> None:
    told = page(run_with("loss/flow"), diagnosis(finding("loss/flow")))
    assert told.count('lang="en">') == told.count('lang="zh-CN">') + 1, "the document itself has one more"


def test_an_empty_run_has_a_page() -> None:
    run = MemoryWriter({}).run()
    told = page(run, diagnose(run))
    assert "Nothing could be judged" in told


def curves_of(told: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    places = json.loads(told[told.index('id="data">') + 10 : told.index("</script>", told.index('id="data">'))])[
        "places"
    ]
    packed_text = re.search(r'id="curves">([^<]*)<', told)
    assert packed_text is not None
    raw = gzip.decompress(base64.b64decode(packed_text[1]))
    total = sum(n for _, n in places.values())
    steps, values = np.frombuffer(raw[: 8 * total], "<f8"), np.frombuffer(raw[8 * total :], "<f4")
    for name, (start, n) in places.items():
        yield name, np.cumsum(steps[start : start + n]), values[start : start + n]


def test_curves_arrive_as_they_were() -> None:
    run = run_with("loss/flow", "a<b")
    found = {name: (steps, values) for name, steps, values in curves_of(page(run, diagnose(run)))}
    assert set(found) == {"loss/flow", "a<b"}
    np.testing.assert_array_equal(found["loss/flow"][0], run["loss/flow"].steps)
    np.testing.assert_array_equal(found["loss/flow"][1], run["loss/flow"].values.astype(np.float32))


@pytest.mark.parametrize(("kl", "logarithmic"), [(60.0, True), (2.0, False), (-60.0, False)])
def test_losses_of_unlike_size_are_drawn_on_a_logarithmic_axis(kl: float, logarithmic: bool) -> None:
    writer = MemoryWriter({"losses": {"flow": "velocity", "kl": "kl"}})
    for step in range(20):
        writer.append([Record(step, {"loss/flow": 0.7, "loss/kl": kl, "loss/total": 1.3}, full=True)])
    run = writer.run()
    (figure,) = re.findall(r"<figure [^>]*loss/total[^>]*>", page(run, diagnose(run)).split('id="metrics"')[0])
    assert ("data-log" in figure) == logarithmic


@pytest.mark.parametrize("n", [0, 1, 2, 1999, 2001, 100_003])
def test_thinning_keeps_ends_and_spikes(n: int) -> None:
    values = np.sin(np.arange(n) / 50)
    if n > 10:
        values[n // 3], values[n // 2] = 1e6, -1e6
        values[5] = math.nan
    series = Series(np.arange(n, dtype=np.int64) * 7, values)
    few = thinned(series)
    assert len(few) <= 2002
    assert np.all(np.diff(few.steps) > 0)
    if n > 10:
        assert np.nanmax(few.values) == 1e6
        assert np.nanmin(few.values) == -1e6
        assert (few.steps[0], few.steps[-1]) == (series.steps[0], series.steps[-1])


def test_many_curves_share_the_room() -> None:
    long = Series(np.arange(5000, dtype=np.int64), np.random.default_rng(0).normal(size=5000))
    places, told = packed(((str(i), long) for i in range(400)), 400)
    assert sum(n for _, n in places.values()) <= 1.1 * BUDGET
    assert len(told) < 5_000_000


def test_a_million_points_make_less_than_5_mb() -> None:
    generator = np.random.default_rng(0)
    long = Series(np.arange(100_000, dtype=np.int64), generator.normal(size=100_000))
    _, told = packed(((str(i), long) for i in range(10)), 10)
    assert len(told) + 200_000 < 5_000_000


def test_pictures_of_the_run_are_inside_and_nothing_else_is(tmp_path: Path) -> None:
    from lossdoctor.store import RunWriter

    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append([Record(0, {"loss/a": 1.0})])
    (tmp_path / "run" / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 10)
    run = Run.open(tmp_path / "run")
    assert "data:image/png;base64," in page(run, diagnose(run))
    (tmp_path / "run" / "samples.png").write_bytes(b"<svg onload=alert(1)>")
    assert "data:image" not in page(run, diagnose(run))


def balanced_run() -> Run:
    writer = MemoryWriter({"losses": {"flow": "velocity", NASTY[0]: "distill"}, "balance": "ratio"})
    for step in range(0, 400, 10):
        factor = 0.25 if step > 100 else 1.0
        values = {"weight/flow": 1.0, f"weight/{NASTY[0]}": 30 * factor, "balance/age": float(step)}
        values |= {"loss/flow": 1.0, f"loss/{NASTY[0]}": 2.0}
        writer.append([Record(step, values, full=True)])
    after = {"flow": 1.0, NASTY[0]: 0.25}
    change = {"kind": "balance", "step": 100, "balancer": "ratio", "before": dict.fromkeys(after, 1.0), "after": after}
    writer.event(**change, predicted=dict.fromkeys(after, 0.5), reasons={NASTY[0]: NASTY[1]})
    writer.event("balance_outcome", step=300, balancer="ratio", verdict="kept", losses_before=after, losses_after=after)
    return writer.run()


def test_the_receipts_of_a_balancer_are_told_with_the_weights() -> None:
    run = balanced_run()
    told = page(run, diagnose(run))
    tags = Tags()
    tags.feed(told)
    assert tags.open == []
    section = re.search(r'<section id="treatment">.*?</section>', told, re.DOTALL)
    assert section is not None
    shown = html.unescape(section[0])
    assert "Balanced by ratio. Changes: 1, kept: 1, rolled back: 0" in shown
    assert "由 ratio 平衡。调整 1 次，保留 1 次，撤回 0 次" in shown
    assert 'data-marks="[100]"' in shown
    assert all(f'"weight/{loss}"' in shown for loss in ("flow", NASTY[0]))
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", section[0])]
    assert cells[:5] == ["100", NASTY[0], "1 -> 0.25", "x0.500", "0.250 -> 0.250"]
    assert cells[-1] == NASTY[1], "a reason of a balancer's own"
    assert NASTY[0] not in section[0]
    assert 'id="treatment"' not in page(run_with("loss/flow"), diagnosis())
