"""One trial: a command under one arm with one seed, kept in a folder of its own so that nothing finished is lost.

ablation.json         which command the folder belongs to
without_kl-0/         one trial
    run-1/            the run of its first attempt
    output-1.txt      what that attempt printed
    trial.json        written last: the trial is finished, and by which attempt
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossdoctor.errors import RunError, RunWriteError, UsageError, mismatch
from lossdoctor.store import Run
from lossdoctor.store.whole import replace_with

SCHEMA = "lossdoctor/ablation@1"
_PLAN, _DONE = "ablation.json", "trial.json"
_PLAIN = re.compile(r"[^\w.=-]")


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """arm: its text. seed: of `lossdoctor.seed_everything` in the script."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder, another one for every arm."""
        plain = _PLAIN.sub("_", self.arm)
        mark = "" if plain == self.arm else f"-{zlib.crc32(self.arm.encode()):08x}"
        return f"{plain[:80]}{mark}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What all trials have in common. command: the script's. home: where they are kept. steps: of each.

    every: measured steps. checkpoint: a file or folder of the script's own, from which every training begins.
    """

    command: tuple[str, ...]
    home: Path
    steps: int
    every: int
    checkpoint: Path | None = None

    def claim(self) -> None:
        """Make the folder this plan's.

        Raises UsageError when it holds the trials of another command or length, RunWriteError when it cannot be
        written.
        """
        own = {"schema": SCHEMA, "command": list(self.command), "steps": self.steps, "every": self.every}
        if self.checkpoint is not None:
            # Another training from the same path, half way through, would be another ablation.
            own["checkpoint"] = [str(self.checkpoint.absolute()), _written(self.checkpoint)]
        file = self.home / _PLAN
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                if any(self.home.iterdir()):
                    raise UsageError(_foreign(self.home, "other files", own))
                replace_with(file, _json(own))
            there = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            got = f"{self.home}: {error.strerror or error}"
            rule = "The folder of an ablation cannot be written."
            raise RunWriteError(mismatch(rule, "a folder to write in", got, "name another with --out")) from error
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(_foreign(self.home, "a file that is no JSON", own)) from error
        if there != own:
            raise UsageError(_foreign(self.home, json.dumps(there, ensure_ascii=False), own))

    def environment(self, trial: Trial, run: Path) -> dict[str, str]:
        """What tells the script's Doctor which trial it is in."""
        return {
            "LOSSDOCTOR_ARM": trial.arm,
            "LOSSDOCTOR_SEED": str(trial.seed),
            "LOSSDOCTOR_STEPS": str(self.steps),
            "LOSSDOCTOR_EVERY": str(self.every),
            "LOSSDOCTOR_RUN": str(run.absolute()),
            **({} if self.checkpoint is None else {"LOSSDOCTOR_CHECKPOINT": str(self.checkpoint.absolute())}),
        }

    def folder(self, trial: Trial) -> Path:
        """Of one trial."""
        return self.home / trial.name

    def attempt(self, trial: Trial) -> tuple[Path, Path]:
        """Run folder and output file of a new attempt; what an earlier one left, perhaps still written to, stays."""
        folder = self.folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        n = 1 + max((int(path.stem.partition("-")[2]) for path in folder.glob("output-*.txt")), default=0)
        return folder / f"run-{n}", folder / f"output-{n}.txt"

    def finish(self, trial: Trial, run: Path, seconds: float) -> None:
        """Note that the trial is whole. Raises RunError when there is no run that can be read."""
        Run.open(run)
        replace_with(self.folder(trial) / _DONE, _json({"arm": trial.arm, "run": run.name, "seconds": seconds}))

    def finished(self, trial: Trial) -> Run | None:
        """The run of a finished trial; None when it has yet to be done, or its run can no longer be read."""
        try:
            told = json.loads((self.folder(trial) / _DONE).read_text(encoding="utf-8"))
            run = Run.open(self.folder(trial) / str(told["run"]))
            return run if run.meta and len(run) else None
        except (FileNotFoundError, ValueError, KeyError, RunError):
            return None


def trials(arms: Sequence[str], seeds: int) -> list[Trial]:
    """Every arm with every seed, seed by seed, so that an interrupted ablation has whole pairs."""
    return [Trial(arm, seed) for seed in range(seeds) for arm in arms]


def _written(checkpoint: Path) -> int:
    """When it was last written, in nanoseconds. Raises UsageError when it is not there."""
    try:
        return checkpoint.stat().st_mtime_ns
    except OSError as error:
        got = f"{checkpoint}: {error.strerror or error}"
        todo = "name what the script has saved, with --checkpoint"
        raise UsageError(mismatch("The checkpoint is not there.", "a file or folder", got, todo)) from error


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)


def _foreign(home: Path, got: str, own: dict[str, Any]) -> str:
    return mismatch(
        f"{home} is not the folder of this ablation",
        f"a new or empty folder, or one of {json.dumps(own, ensure_ascii=False)}",
        got,
        "name another folder with --out",
    )
