"""`lossdoctor serve` as a process: what pages hear while runs come, grow, are judged and go."""

from __future__ import annotations

import builtins
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from lossdoctor.cli import main
from lossdoctor.live.channel import QUEUE, REMEMBERED
from lossdoctor.live.folder import Runs
from lossdoctor.live.hub import Hub

from .conftest import Page, Server, Training

Serve = Callable[..., Server]
Shared = tuple[Path, Server]


def test_a_page_hears_everything_and_then_what_is_new(shared: Shared) -> None:
    root, server = shared
    training = Training(root / "exp" / "a")
    training.go(50)
    page = Page(server.url, run="exp/a")
    whole = page.until("whole")
    assert whole["state"] == "growing"
    assert whole["measured"] == 50
    assert "flow/nmse" in whole["names"]
    assert "Velocity" in whole["parts"]["overview"]
    curves = curves_of(server, whole, ["flow/nmse", "weight/dino"])
    assert curves["flow/nmse"][0].tolist() == list(range(0, 500, 10))
    assert set(curves["weight/dino"][1].tolist()) == {0.5}
    training.go(2, extra={"new <b>": float("nan")})
    told = page.until("points")["points"]
    assert told["loss/flow"][0] == [500, 510]
    assert told["new <b>"] == [[500, 510], [None, None]]
    assert set(told) == {*whole["names"], "new <b>"}
    training.end()
    assert page.until("state", lambda told: told["state"] == "ended")["steps"] == 511
    page.close()


def curves_of(server: Server, whole: Any, names: list[str]) -> dict[str, Any]:
    """Steps and values, as a page asks for them and takes them apart."""
    query = {"run": whole["run"], "opened": whole["opened"], "at": [whole["names"].index(name) for name in names]}
    told = httpx.get(f"{server.url}curves", params=query).raise_for_status().content
    counts = np.frombuffer(told, "<f8", len(names)).astype(int)
    steps = np.frombuffer(told, "<f8", counts.sum(), 8 * len(names))
    values = np.frombuffer(told, "<f4", counts.sum(), 8 * (len(names) + counts.sum()))
    ends = np.cumsum(counts)[:-1]
    parts = zip(names, np.split(steps, ends), np.split(values, ends), strict=True)
    return {name: (np.cumsum(each), value) for name, each, value in parts}


def test_curves_of_another_run_are_not_given(shared: Shared) -> None:
    root, server = shared
    Training(root / "curved").go(20)
    page = Page(server.url, run="curved")
    whole = page.until("whole")
    right = {"run": "curved", "opened": whole["opened"], "at": 0}
    assert httpx.get(f"{server.url}curves", params=right).status_code == 200
    for wrong in ({"run": "nobody"}, {"run": ""}, {"opened": "x"}, {"opened": ""}, {"at": len(whole["names"])}):
        assert httpx.get(f"{server.url}curves", params=right | wrong).status_code == 404
    for odd in (["-1"], ["x"], ["9" * 400], []):
        assert httpx.get(f"{server.url}curves", params=right | {"at": odd}).content == b""
    page.close()


def test_a_finding_is_heard_when_it_appears(shared: Shared) -> None:
    root, server = shared
    training = Training(root / "turns sick")
    training.go(30)
    page = Page(server.url, run="turns sick")
    assert "GRD102" not in page.until("whole")["parts"]["findings"]
    fresh: list[str] = []
    while "GRD103 dominant-gradient" not in fresh:
        assert training.step < 100_000
        training.go(training.step // 40, sick=True)  # a quarter more: enough to be judged anew
        page.until("points")
        fresh = [code for name, told in page.heard if name == "parts" for code in told["fresh"]]
    page.close()


def test_a_page_that_comes_back_gets_what_it_missed(shared: Shared) -> None:
    root, server = shared
    training, url, name = Training(root / "comes back"), server.url, "comes back"
    training.go(20)
    page = Page(url, run=name)
    page.until("whole")
    training.go(1)
    page.until("points")
    page.close()
    training.go(1)
    again = Page(url, run=name, last=page.last)
    first, told = again.hear()
    while first == "state":
        first, told = again.hear()
    assert first == "points", "not everything once more"
    assert told["points"]["loss/flow"][0] == [210]
    again.close()
    for last in ("other-1", "", "x", f"{page.last}999999999999999999999", page.last.split("-")[0] + "-99999"):
        stranger = Page(url, run=name, last=last)
        assert stranger.hear()[0] == "whole"
        stranger.close()


def test_a_run_that_is_awaited_deleted_and_begun_anew(shared: Shared) -> None:
    root, server = shared
    page = Page(server.url, run="late")
    assert page.hear()[1]["state"] == "absent"
    training = Training(root / "late")
    training.go(15)
    assert page.until("whole")["measured"] == 15
    shutil.rmtree(root / "late")
    assert page.until("state", lambda told: told["state"] != "growing")["state"] == "deleted"
    another = Training(root / "late")
    another.go(3)
    assert page.until("whole")["measured"] == 3
    page.close()


def test_the_list(tmp_path: Path, serve: Serve) -> None:
    healthy, sick = Training(tmp_path / "group" / "healthy"), Training(tmp_path / "sick")
    healthy.go(60)
    sick.go(60, sick=True)
    page = Page(serve(tmp_path).url)
    rows = {row["run"]: row for row in page.until("rows")["rows"]}
    assert set(rows) == {"group/healthy", "sick"}
    assert rows["sick"]["steps"] == 591
    assert set(rows["sick"]["losses"]) == {"flow", "dino"}
    judged = page.until("rows", lambda told: any(row["run"] == "sick" and row["findings"] for row in told["rows"]))
    assert any("GRD103" in row["codes"] for row in judged["rows"])
    healthy.go(1)
    changed = page.until("rows", lambda told: any(row["steps"] == 601 for row in told["rows"]))
    assert "sick" not in {row["run"] for row in changed["rows"] if row["steps"] == 601}
    shutil.rmtree(tmp_path / "sick")
    assert page.until("rows", lambda told: told["gone"])["gone"] == ["sick"]
    page.close()


def test_several_runs_on_one_page(shared: Shared) -> None:
    root, server = shared
    trainings = {name: Training(root / name) for name in ("a", "b")}
    for training in trainings.values():
        training.go(20)
    page = Page(server.url, run=["a", "b"])
    assert [page.until("whole")["run"], page.until("whole")["run"]] == ["a", "b"]
    trainings["b"].go(1)
    assert page.until("points")["run"] == "b"
    page.close()


def test_the_other_ranks_of_a_run(shared: Shared) -> None:
    root, server = shared
    zero, one = Training(root / "ranked"), Training(root / "ranked", rank=1)
    zero.go(20)
    one.go(30)
    page, other = Page(server.url, run="ranked"), Page(server.url, run="ranked/run.rank1.db")
    whole = page.until("whole")
    assert "run?run=ranked%2Frun.rank1.db" in whole["parts"]["ranks"]
    assert "compare?run=ranked&amp;run=ranked%2Frun.rank1.db" in whole["parts"]["ranks"]
    assert (whole["measured"], other.until("whole")["measured"]) == (20, 30)
    one.go(1)
    assert other.until("points")["points"]["loss/flow"][0] == [300]
    one.writer.event("failure", step=300, measurement="gradients", error="out of memory <b>")
    told = page.until("parts", lambda told: "troubles" in told["parts"])["parts"]["troubles"]
    assert "rank 1, step 300: gradients could not be measured" in told
    assert "<b>" not in told
    listed = Page(server.url)
    assert "ranked/run.rank1.db" not in {row["run"] for row in listed.until("rows")["rows"]}
    for each in (page, other, listed):
        each.close()


def test_nothing_outside_is_read(shared: Shared) -> None:
    root, server = shared
    secret = Training(root.parent / f"{root.name}-secret")
    secret.go(20)
    secret.end()
    outside = root.parent / f"{root.name}-secret"
    (root / "link").symlink_to(outside)
    names = [f"../{outside.name}", "..", "/etc", str(outside), f"a/../../{outside.name}", "link", "\x00", "a" * 3000]
    for run in names:
        page = Page(server.url, run=run)
        event, told = page.hear()
        assert (event, told["state"], told["steps"]) == ("state", "absent", 0)
        page.close()


def test_ctrl_c_ends_it_with_pages_open(tmp_path: Path, serve: Serve) -> None:
    training = Training(tmp_path / "a")
    training.go(20)
    server = serve(tmp_path)
    pages = [Page(server.url, run="a"), Page(server.url)]
    for page in pages:
        page.hear()
    code, errors = server.stop(signal.SIGINT)
    assert (code, errors) == (0, "Stopped.\n")
    with pytest.raises(StopIteration):
        while True:
            pages[0].hear()


def test_a_page_that_does_not_listen_holds_nothing_up(tmp_path: Path, serve: Serve) -> None:
    """It reads nothing while a lot is told; others hear everything, and the server still ends."""
    training = Training(tmp_path / "a")
    training.go(20)
    server = serve(tmp_path)
    deaf = socket.create_connection(("127.0.0.1", server.port))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b"GET /stream?run=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    page = Page(server.url, run="a")
    page.until("whole")
    for _ in range(3):
        training.go(3000)
        page.until("points")
    assert server.stop(signal.SIGINT)[0] == 0
    deaf.close()
    page.close()


def test_a_slow_page_is_dropped_to_the_latest(tmp_path: Path) -> None:
    hub = Hub(Runs(tmp_path))
    slow, quick = hub.subscribe(["a"]), hub.subscribe(["a"])
    for one in (slow, quick):
        assert one.stale, "a new page gets everything"
        one.stale = False
    for number in range(10 * QUEUE):
        hub.publish("a", "points", {"n": number})
        assert len(slow.queue) <= QUEUE
        quick.queue.clear()
    assert slow.stale
    assert not quick.stale
    known = f"{hub.epoch}-{10 * QUEUE - 3}"
    back = hub.subscribe(["a"], known)
    assert not back.stale
    assert [message.seq for message in back.queue] == [10 * QUEUE - 2, 10 * QUEUE - 1, 10 * QUEUE]
    forgotten = hub.subscribe(["a"], f"{hub.epoch}-{10 * QUEUE - REMEMBERED - 1}")
    assert forgotten.stale


def test_beyond_this_machine_a_token_is_asked_for(tmp_path: Path, serve: Serve) -> None:
    for arguments in (("--host", "0.0.0.0"), ("--token",)):
        server = serve(tmp_path, *arguments)
        token = httpx.URL(server.url).params["token"]
        assert len(token) >= 32
        here = f"http://127.0.0.1:{server.port}/"
        assert httpx.get(here).status_code == 403
        with httpx.Client(follow_redirects=True) as client:
            answer = client.get(here, params={"token": token})
            assert answer.status_code == 200
            assert "token" not in str(answer.url)
            assert client.get(here + "assets/live.js").status_code == 200
        assert httpx.get(here, headers={"host": "evil.example"}).status_code == 421
    open_server = serve(tmp_path, "--allow-host", "proxy.example")
    assert "token" not in open_server.url
    assert httpx.get(open_server.url, headers={"host": "proxy.example"}).status_code == 200


def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = CliRunner().invoke(main, ["serve", str(tmp_path), "--port", str(taken.getsockname()[1])])
    assert told.exit_code == 2
    assert "choose another with --port" in told.output
    for arguments in (
        [str(tmp_path / "none")],
        [str(tmp_path), "--host", "no such host"],
        [str(tmp_path), "--port", "-1"],
    ):
        told = CliRunner().invoke(main, ["serve", *arguments])
        assert told.exit_code == 2
        assert "Traceback" not in told.output


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] in ("uvicorn", "starlette"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return genuine(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    told = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert told.exit_code == 2
    assert "pip install 'lossdoctor[serve]'" in told.output
