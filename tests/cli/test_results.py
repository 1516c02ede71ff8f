from __future__ import annotations

from pathlib import Path

import pytest

from lossdoctor.cli.results import Results
from lossdoctor.errors import RunError


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.make("a.txt", lambda path: path.write_text("whole"))
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == results.made == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail] writing file failed\nframe 1"), "[enforce fail] writing file failed"),
        (RunError("not a run"), "not a run"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_fails_is_told_and_leaves_no_half(error: Exception, told: str, tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("ha")
        raise error

    results = Results(tmp_path)
    results.make("a.txt", half)
    results.make("b.txt", lambda path: path.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == results.made == ["b.txt"]
    assert results.failed == {"a.txt": told}


def test_the_system_is_quoted_where_it_began(tmp_path: Path) -> None:
    def wrapped(path: Path) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 784896 vs 784784")

    results = Results(tmp_path)
    results.make("a.pt", wrapped)
    assert results.failed == {"a.pt": "No space left on device"}


def test_nothing_to_write_is_no_failure(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.make("a.txt", lambda path: False)
    assert (results.made, results.failed, list(tmp_path.iterdir())) == ([], {}, [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_mistakes_and_ctrl_c_are_not_swallowed(error: type[BaseException], tmp_path: Path) -> None:
    def stopped(path: Path) -> None:
        path.write_text("ha")
        raise error

    with pytest.raises(error):
        Results(tmp_path).make("a.txt", stopped)
    assert list(tmp_path.iterdir()) == []
