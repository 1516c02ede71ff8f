"""What `import lossdoctor as ld` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lossdoctor as ld


def test_every_public_name_loads_and_is_listed() -> None:
    for name in ld.__all__:
        assert getattr(ld, name) is not None
        assert name in dir(ld)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'docter'; it has .*Doctor"):
        _ = ld.docter


def test_flow_is_the_mathematics_and_the_call() -> None:
    import torch

    import lossdoctor.flow.paths as paths

    assert ld.flow.Linear is paths.Linear
    assert ld.flow(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)) is None, "no doctor: does nothing"


@pytest.mark.parametrize("code", ["import lossdoctor", "from lossdoctor import Run, Series, Record"])
def test_reading_a_run_never_imports_torch(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{code}; import sys; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0
