"""One thread per test process: the suite runs in parallel, and sums do not depend on the machine."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _no_settings_of_another_test() -> None:
    """What a test hands in without a doctor is not for the doctor of the next one."""
    if (observe := sys.modules.get("lossdoctor.probe.observe")) is not None:
        observe._early.clear()
