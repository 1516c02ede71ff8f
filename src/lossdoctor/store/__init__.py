"""The run file: written while training, read back at any time, without torch.

One folder per run. `run.db` holds the records, `events.jsonl` what happened, `meta.json` what the run is; other ranks
of a distributed run add `run.rank1.db` and `events.rank1.jsonl` and so on.
"""

from __future__ import annotations

from lossdoctor.store.following import Following
from lossdoctor.store.memory import MemoryWriter
from lossdoctor.store.reader import Run, UnknownMetricError
from lossdoctor.store.writer import RunWriter

__all__ = ["Following", "MemoryWriter", "Run", "RunWriter", "UnknownMetricError"]
