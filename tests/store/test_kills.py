"""A few of the kills of `benchmarks/kills.py`, which looks at what each of them left."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def test_killed_at_any_moment_a_run_keeps_all_that_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kills

    # Whatever is not as it must be after a kill raises there.
    found = list(kills.kill_often(tmp_path, 10, 5, seed=1))
    assert len(found) == 10
    assert {kill.by for kill in found} == {"itself", "outside"}
    assert sum(kill.handed_over for kill in found) > 0
