"""Which runs are served: those under the folder, reached without a link."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lossdoctor.errors import RunError
from lossdoctor.live import folder
from lossdoctor.live.folder import DEEP, Runs, of_other_rank
from lossdoctor.store import RunWriter


def made(path: Path) -> Path:
    RunWriter(path).close()
    return path


def test_runs_are_found_by_where_they_are(tmp_path: Path) -> None:
    for name in ("b", "a/x", "a/y z?#%", "a/x/inner", "日本"):
        made(tmp_path / name)
    made(tmp_path / ".hidden" / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("run.db")
    runs = Runs(tmp_path)
    assert sorted(runs.found()) == sorted(["b", "a/x", "a/y z?#%", "a/x/inner", "日本"])
    assert all(runs.sound(path) for path in runs.found().values())


def test_the_folder_may_be_a_run_itself(tmp_path: Path) -> None:
    assert list(Runs(made(tmp_path / "run")).found()) == ["."]


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret, root = made(tmp_path / "secret"), tmp_path / "root"
    made(root / "good")
    (root / "linked").symlink_to(secret)
    (root / "loop").symlink_to(root)
    RunWriter(secret, rank=1).close()
    for name in ("run.db", "meta.json", "events.jsonl", "effects.json", "run.rank1.db", "events.rank1.jsonl"):
        made(root / f"with {name}")
        (root / f"with {name}" / name).unlink(missing_ok=True)
        (root / f"with {name}" / name).symlink_to(secret / name)
    runs = Runs(root)
    assert list(runs.found()) == ["good"]
    shutil.rmtree(root / "good")
    (root / "good").symlink_to(secret)
    assert not runs.sound(root / "good"), "it was replaced by a link meanwhile"
    assert not runs.sound(secret)
    assert not runs.sound(root / ".." / "secret")


def test_other_ranks_are_found_beside_their_run(tmp_path: Path) -> None:
    for name in (".", "a/b"):
        made(tmp_path / name)
        RunWriter(tmp_path / name, rank=2).close()
    runs = Runs(tmp_path)
    assert list(runs.found()) == [".", "run.rank2.db", "a/b", "a/b/run.rank2.db"]
    assert all(runs.sound(path) for path in runs.found().values())
    assert [name for name, path in runs.found().items() if of_other_rank(path)] == ["run.rank2.db", "a/b/run.rank2.db"]


def test_a_link_as_the_root_is_what_the_user_named(tmp_path: Path) -> None:
    made(tmp_path / "root" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    runs = Runs(tmp_path / "link")
    assert all(runs.sound(path) for path in runs.found().values())
    assert list(runs.found()) == ["a"]


def test_there_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path.joinpath(*"abcdefgh"[: DEEP + 1]))
    assert Runs(tmp_path).found() == {}
    monkeypatch.setattr(folder, "MOST", 3)
    for name in "klmno":
        made(tmp_path / name)
    assert len(Runs(tmp_path).found()) == 3


@pytest.mark.parametrize("make", ["nothing", "a file"])
def test_no_folder_is_told(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x"
    if make == "a file":
        path.write_text("")
    with pytest.raises(RunError, match="no folder to serve"):
        Runs(path)
