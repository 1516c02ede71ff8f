"""A file is replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossdoctor.store.whole import replace_with


def test_it_is_replaced(tmp_path: Path) -> None:
    for told in ("one", "", "二\nthree"):
        replace_with(tmp_path / "a.json", told)
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == told
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    replace_with(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_with(tmp_path / "a.json", "half \ud800")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_with(tmp_path / "folder", "x")
    with pytest.raises(OSError, match=r"a\.json"):
        replace_with(tmp_path / "a.json" / "below", "x")
    assert (tmp_path / "a.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]
