"""One thread per test process: the suite runs in parallel, and sums do not depend on the machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
