"""What the run file costs: a record on the training thread and in all, a series to read, a point on disk.

    python benchmarks/store.py [--steps 100000] [--metrics 50]

Writes synthetic runs into a temporary folder and prints a small table. "in all" is the processor time of the whole
process, writing thread included, per record: Python gives one thread the interpreter at a time, so training pays both.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lossdoctor.record import Record
from lossdoctor.store import Run, RunWriter


def write(folder: Path, steps: int, metrics: int, due: int) -> tuple[float, float]:
    """Seconds per step: on the appending thread, and of processor time in all. Every `due`-th step has all metrics."""
    names = [f"grad_module/loss{i % 5}/module{i // 5}" for i in range(metrics)]
    values = [math.sin(i) for i in range(metrics)]
    full, few = dict(zip(names, values, strict=True)), dict(zip(names[:3], values[:3], strict=True))
    appending = 0.0
    cpu = time.process_time()
    with RunWriter(folder, {}) as writer:
        for step in range(steps):
            records = [
                Record(step, dict(full) if step % due == 0 else dict(few), full=step % due == 0, time=1.0 * step)
            ]
            start = time.perf_counter()
            writer.append(records)
            appending += time.perf_counter() - start
            if step % 2000 == 0:
                writer.flush()  # a training loop is never this fast: do not let an unreal queue build up
    return appending / steps, (time.process_time() - cpu) / steps


def seconds(action: Callable[[], object], repeats: int = 15) -> float:
    """Of the quickest of the repeats: the others waited for other programs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--metrics", type=int, default=50)
    asked = parser.parse_args()

    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.iterdir())

    with tempfile.TemporaryDirectory() as temporary:
        dense, sparse, long, short = (Path(temporary) / name for name in ("dense", "sparse", "long", "short"))
        print(f"{asked.steps} steps, {asked.metrics} metrics")
        for folder, due in ((dense, 1), (sparse, 50)):
            append, everything = write(folder, asked.steps, asked.metrics, due)
            points = sum(len(series) for series in Run.open(folder).values())
            print(
                f"  all metrics every {due:3d} steps: append {append * 1e6:5.1f} us, in all {everything * 1e6:5.1f} us"
                f" per step, {size(folder) / points:5.2f} bytes per point, {size(folder) / 1e6:.1f} MB"
            )
        write(short, 1000, asked.metrics, 1)
        write(long, 1_000_000, 3, 1)
        for folder, points in ((short, 1000), (long, 1_000_000)):
            run = Run.open(folder)
            opening, reading, ending = (
                1e3 * seconds(action)
                for action in (
                    partial(Run.open, folder),
                    partial(run.__getitem__, next(iter(run))),
                    partial(getattr, run, "last"),
                )
            )
            print(f"  series of {points:7d} points: {reading:6.2f} ms, last {ending:.2f} ms, open {opening:.2f} ms")
    print(f"  peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
