"""TensorBoard's event files: `events.out.tfevents.*`, of TensorFlow, torch.utils.tensorboard or tensorboardX.

Read are scalars, in the old form and as tensors of one number; pictures, histograms and texts are counted. As in
TensorBoard every folder with event files is a run of its own, except those that `add_scalars` makes beside a run: they
belong to it, as `<tag>/<name>`. `add_hparams` makes a folder too, with the last values once more: it is left out. A run
that was resumed with `purge_step` loses the steps that were trained again.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lossdoctor.exchange.events import events, is_event_file
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.record import Record

DEEPEST = 8
"""Levels of folders that are searched for event files."""
_MARK = "tfevents"
_HYPERPARAMETERS = "_hparams_/"


def recognises(path: Path, head: bytes) -> bool:
    """Whether the file begins with a record, or is called as event files are; or the folder has some, at any depth."""
    if path.is_dir():
        return bool(_folders(path))
    return is_event_file(head) or _MARK in path.name


def records(source: Source) -> Iterator[Record]:
    """The scalars of one run, those of one step and moment together."""
    source.own_steps()
    if not source.path.is_dir():
        source.one_run()
        logs = [("", [source.path])]
    else:
        runs = _runs(source.path)
        logs = runs[source.choose(dict.fromkeys(runs, ()))]
    for name, files in logs:
        yield from _Points(files, source.notes).records(name)


def _folders(root: Path) -> dict[str, list[Path]]:
    """Every folder with event files, by its path below the root, and the files in the order they were written."""
    found = {}
    for folder, deeper, files in os.walk(root):
        here = Path(folder)
        if len(here.relative_to(root).parts) >= DEEPEST:
            deeper.clear()
        deeper.sort()
        if mine := sorted(file for file in files if _MARK in file):
            found[here.relative_to(root).as_posix()] = [here / file for file in mine]
    return found


def _runs(root: Path) -> dict[str, list[tuple[str, list[Path]]]]:
    """The runs of a folder. Each has its own log, and those of `add_scalars` with the name of their one scalar."""
    runs: dict[str, list[tuple[str, list[Path]]]] = {}
    for label, files in _folders(root).items():
        above = next((one for one in _above(label) if one in runs), None)
        names = [""] if above is None else _names_in(Path(label).relative_to(above).as_posix(), files)
        if above is None or "" in names:
            runs[label] = [("", files)]
        else:
            runs[above] += [(name, files) for name in names]
    return runs


def _above(label: str) -> list[str]:
    """The folders a folder is in, nearest first."""
    return [] if label == "." else [folder.as_posix() for folder in Path(label).parents]


def _names_in(folder: str, files: list[Path]) -> list[str]:
    """What the metric of a folder beside a run is called: "" for a run of its own, nothing for hyperparameters.

    `add_scalars(tag, {name: ...})` calls the folder `<tag>_<name>` or `<tag>/<name>`, and the one scalar in it `tag`.
    """
    for event in (event for file in files for event in events(file, Notes())):
        if any(tag.startswith(_HYPERPARAMETERS) for tag in event.others):
            return []
        for tag, _ in event.scalars:
            for begin in (tag.replace("/", "_") + "_", tag + "/"):
                if folder.startswith(begin):
                    return [f"{tag}/{folder.removeprefix(begin)}"]
            return [""]
    return [""]


class _Points:
    """All scalars of some event files: 28 bytes each."""

    def __init__(self, files: list[Path], notes: Notes) -> None:
        self._tags: dict[str, int] = {}
        self._tag, self._step, self._time, self._value = array("L"), array("q"), array("d"), array("d")
        self._again: list[tuple[int, int]] = []
        """Where training began again: the place in the points, and the step."""
        for file in files:
            for event in events(file, notes):
                notes.ignored.update(event.others)
                if event.starts:
                    self._again.append((len(self._step), event.step))
                for tag, value in event.scalars:
                    self._tag.append(self._tags.setdefault(tag, len(self._tags)))
                    self._step.append(event.step)
                    self._time.append(event.time)
                    self._value.append(value)
        self._notes = notes

    def records(self, name: str) -> Iterator[Record]:
        """The points in order. name: of the one scalar, instead of its tag."""
        tags = [name or tag for tag in self._tags]
        values: dict[str, float] = {}
        last = (0, 0.0)
        for point in np.flatnonzero(self._kept()).tolist():
            here, tag = (self._step[point], self._time[point]), tags[self._tag[point]]
            if values and (here[0] != last[0] or tag in values):
                yield Record(last[0], values, time=last[1])
                values = {}
            values[tag], last = self._value[point], here
        if values:
            yield Record(last[0], values, time=last[1])

    def _kept(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        steps = np.array(self._step, np.int64)
        kept = np.ones(len(steps), bool)
        for place, step in self._again:
            kept[:place] &= steps[:place] < step
        self._notes.lost["superseded"] += int(len(kept) - kept.sum())
        return kept
