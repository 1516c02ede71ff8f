"""How long a page with a million points takes until it answers: the report, and the live page of the same run.

    python benchmarks/opening.py [--metrics 100] [--points 10000] [--times 5] [--run RUN]

In headless Chromium, from the beginning of the navigation until the page says that it is ready and every chart in
view is drawn. If tasks of the script longer than 50 ms follow, each within a second of the one before, the end of
the last of them counts. Cold is a browser that was never there, and for the live page a server that has just said its
address; warm is each time after.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from lossdoctor.diagnose import diagnose
from lossdoctor.record import Record
from lossdoctor.report.page import page
from lossdoctor.store import Run, RunWriter

LOSSES = {"flow": "velocity", "dino": "distill", "kl": "kl"}
NAMES = (
    *(f"{family}/{loss}" for loss in LOSSES for family in ("loss", "weight", "grad", "grad_weighted", "grad_share")),
    *("loss/total", "grad/total", "flow/nmse", "flow/cos", "flow/speed_ratio", "std/min", "std/mean", "std/max"),
    *("mu/abs_mean", "z_init/var", "kl/per_dim", "ent/teacher", "ent/teacher_norm", "ent/student", "distill/kl"),
    *(f"flow/nmse_t{place}" for place in range(10)),
)

WATCH = """
(() => {
  const seen = window.opening = { ready: 0, busy: 0 };
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) seen.busy = Math.max(seen.busy, task.startTime + task.duration);
  }).observe({ type: "longtask", buffered: true });
  const charts = "figure.chart:not(details:not([open]) *)"; // to ask where the others are would lay them out
  const drawn = (figure) => figure.querySelector("canvas, .empty");
  const inView = (figure) => {
    const { top, bottom, width } = figure.getBoundingClientRect();
    return width && top < window.innerHeight && bottom > 0;
  };
  const look = () => {
    const done = document.documentElement?.dataset.ready
      && [...document.querySelectorAll(charts)].filter(inView).every(drawn);
    if (done) seen.ready = performance.now(); else requestAnimationFrame(look);
  };
  look();
})();
"""
QUIET = "const { ready, busy } = opening; return ready && performance.now() > Math.max(ready, busy) + 1000"


def write(folder: Path, metrics: int, points: int) -> None:
    """A run whose names the page knows, as far as there are enough."""
    names = [*NAMES, *(f"mine/{place}" for place in range(metrics - len(NAMES)))][:metrics]
    writer = RunWriter(folder, {"kinds": LOSSES})
    noise = np.random.default_rng(0)
    began = time.time() - points
    for start in range(0, points, 2000):
        values = np.exp(noise.normal(size=(min(2000, points - start), len(names))) / 10)
        records = [
            Record(step, dict(zip(names, row.tolist(), strict=True)), full=True, time=began + step)
            for step, row in enumerate(values, start)
        ]
        writer.append(records)
        writer.flush(timeout=60)
    writer.close()


def browser() -> webdriver.Chrome:
    """One that was never anywhere."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--no-first-run"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    one = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    one.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    return one


def opened(one: webdriver.Chrome, url: str) -> float:
    """Seconds until the page answers."""
    one.get(url)
    WebDriverWait(one, 120, poll_frequency=0.2).until(lambda b: b.execute_script(QUIET))
    assert one.execute_script("return document.querySelectorAll('canvas').length") > 0, "nothing was drawn"
    return float(one.execute_script("return Math.max(opening.ready, opening.busy) / 1000"))


def several(url: str, times: int) -> tuple[float, list[float]]:
    """Cold, and then warm so many times."""
    one = browser()
    try:
        one.get("data:,")
        return opened(one, url), [opened(one, url) for _ in range(times)]
    finally:
        one.quit()


def served(run: Path, times: int) -> tuple[float, list[float]]:
    """The live page of the run."""
    command = [sys.executable, "-m", "lossdoctor", "--lang", "en", "serve", str(run.parent), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        return several(f"{server.stdout.readline().strip()}run?run={run.name}", times)
    finally:
        server.kill()
        server.wait()


def tell(name: str, cold: float, warm: list[float]) -> None:
    """One line."""
    print(
        f"  {name:28} cold {cold:5.2f} s   warm {statistics.median(warm):5.2f} s ({min(warm):.2f} to {max(warm):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a page takes until it answers.")
    parser.add_argument("--metrics", type=int, default=100)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--run", type=Path, help="a run that is there already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = asked.run.resolve() if asked.run else Path(home) / "runs" / "run"
        if not asked.run:
            write(run, asked.metrics, asked.points)
        opened_run = Run.open(run)
        print(f"{len(opened_run)} metrics, {sum(opened_run.thinned(name).count for name in opened_run):,} points")
        report = Path(home) / "report.html"
        started = time.perf_counter()
        report.write_text(page(opened_run, diagnose(opened_run)), encoding="utf-8")
        print(f"  report.html: {report.stat().st_size / 1e6:.2f} MB, made in {time.perf_counter() - started:.2f} s")
        tell("report", *several(report.as_uri(), asked.times))
        tell("live page", *served(run, asked.times))


if __name__ == "__main__":
    main()
