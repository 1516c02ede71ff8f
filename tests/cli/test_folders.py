from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lossdoctor.cli.folders import chosen, next_free
from lossdoctor.errors import RunExistsError, RunWriteError


def test_numbers_go_on_and_nothing_is_touched(tmp_path: Path) -> None:
    base = tmp_path / "runs" / "demo"
    first = next_free(base)
    (first / "run.db").write_text("precious")
    assert (first, next_free(base), next_free(base)) == (base, base.with_name("demo-2"), base.with_name("demo-3"))
    assert (first / "run.db").read_text() == "precious"
    base.with_name("demo-2").rmdir()
    assert next_free(base) == base.with_name("demo-2")


def test_many_at_once_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(next_free, [tmp_path / "demo"] * 64))
    assert len(set(folders)) == 64
    assert all(folder.is_dir() for folder in folders)


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    assert next_free(tmp_path / "demo") == tmp_path / "demo-2"
    assert (tmp_path / "demo").read_text() == "mine"


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for make in (next_free, chosen):
        with pytest.raises(RunWriteError, match=r"(?s)cannot be written.*--out"):
            make(tmp_path / "runs" / "demo")


def test_a_named_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert chosen(folder) == chosen(folder) == folder
    assert list(folder.iterdir()) == [], "nothing is left of the attempt to write"
    (folder / "meta.json").write_text("{}")
    with pytest.raises(RunExistsError, match=r"(?s)holds meta\.json"):
        chosen(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for make in (next_free, chosen):
        with pytest.raises(RunWriteError, match="Permission denied"):
            make(tmp_path / "demo")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_file_system_that_takes_no_folders() -> None:
    for make in (next_free, chosen):
        with pytest.raises(RunWriteError, match="cannot be written"):
            make(Path("/proc/lossdoctor/demo"))
