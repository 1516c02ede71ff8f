"""What the live page costs: many runs that grow, all of them looked at, on one core.

    python benchmarks/live.py [--runs 50] [--metrics 50] [--seconds 60] [--hertz 1]

A process writes the runs, one record of every metric at each beat; `lossdoctor serve` runs in another, held to one
core, with a page open on every run and one on the list; this process plays the pages. Told are the share of the core
that the server used, and the latency from the moment a record was handed to its writer until a page had it: up to half
a second of it is the writer's commit, up to a second the time between two looks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WRITE = """
import math, sys, time
from pathlib import Path
from lossdoctor.record import Record
from lossdoctor.store import RunWriter
root, runs, metrics, hertz = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
kinds = {"flow": "velocity", "dino": "distill", "kl": "kl"}
writers = [RunWriter(root / f"run{i:03}", {"kinds": kinds}) for i in range(runs)]
names = [*(f"loss/{n}" for n in kinds), *(f"grad_weighted/{n}" for n in kinds), "grad/total", "clock"]
names += [f"mine/{i}" for i in range(metrics - len(names))]
step, begin = 0, time.monotonic()
while True:
    now = time.time()
    for writer in writers:
        values = {name: 1 + 0.1 * math.sin(step + len(name)) for name in names}
        values["clock"] = now % 1000  # a page gets seven digits
        writer.append([Record(step, values, full=True, time=now)])
    step += 1
    time.sleep(max(0.0, begin + step / hertz - time.monotonic()))
"""


def used(process: int) -> float:
    """Seconds of processor a process has used; Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> float:
    """Megabytes a process has in memory."""
    told = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", told)
    return int(found[1]) / 1e3 if found else float("nan")


async def page(port: int, query: str, late: list[float], events: list[int], since: float) -> None:
    """One page: it takes what comes and notes how old the newest point is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    writer.write(f"GET /stream{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    event = b""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            event = line[7:].strip()
        elif line.startswith(b"data: ") and time.time() > since:
            events[0] += 1
            events[1] += len(line)
            if event == b"points":
                points = json.loads(line[6:])["points"]
                late.append((time.time() - points["clock"][1][-1]) % 1000)


async def measure(port: int, server: int, runs: int, seconds: float) -> dict[str, float]:
    """Warm up, then measure."""
    since, late, events = time.time() + 15, list[float](), [0, 0]
    queries = ["", *(f"?run=run{i:03}" for i in range(runs))]
    pages = [asyncio.create_task(page(port, query, late, events, since)) for query in queries]
    await asyncio.sleep(since - time.time())
    before = used(server)
    await asyncio.sleep(seconds)
    share = (used(server) - before) / seconds
    for one in pages:
        one.cancel()
    await asyncio.gather(*pages, return_exceptions=True)
    late.sort()
    return {
        "share of one core, %": 100 * share,
        "messages per second": events[0] / seconds,
        "kB per second": events[1] / seconds / 1e3,
        "point updates": len(late),
        "latency, median, s": statistics.median(late) if late else float("nan"),
        "latency, 95 %, s": late[int(0.95 * len(late))] if late else float("nan"),
        "latency, worst, s": late[-1] if late else float("nan"),
        "memory of the server, MB": memory(server),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the live page costs.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--hertz", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        told = (str(asked.runs), str(asked.metrics), str(asked.hertz))
        writer = subprocess.Popen([sys.executable, "-c", WRITE, root, *told])
        command = [sys.executable, "-m", "lossdoctor", "--lang", "en", "serve", root, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            os.sched_setaffinity(server.pid, {min(os.sched_getaffinity(0))})
            assert server.stdout is not None
            server.stdout.readline()
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            found = asyncio.run(measure(port, server.pid, asked.runs, asked.seconds))
        finally:
            for process in (server, writer):
                process.kill()
                process.wait()
    print(f"{asked.runs} runs x {asked.metrics} metrics at {asked.hertz:g} Hz, a page on each and one on the list")
    for name, value in found.items():
        print(f"  {name:28} {value:10.3g}")


if __name__ == "__main__":
    main()
