"""Runs of other programs, read into a run; and a run, written for other programs.

    imported = exchange.read("lightning_logs/version_0/metrics.csv")
    exchange.write_run(imported, "runs/version_0")
    exchange.export(Run.open("runs/exp1"), "exp1.csv")

One file per format; `formats.FORMATS` lists them. Nothing here needs torch or the program that wrote the log.
"""

from __future__ import annotations

from lossdoctor.exchange.exporting import export
from lossdoctor.exchange.formats import FORMATS, Format, recognise
from lossdoctor.exchange.reading import Imported, read
from lossdoctor.exchange.writing import Written, as_run, write_run

__all__ = ["FORMATS", "Format", "Imported", "Written", "as_run", "export", "read", "recognise", "write_run"]
