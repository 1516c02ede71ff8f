"""One case: a program, a fault or none, a seed. It is trained once, kept as a run, and judged from there."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.program import Program
from lossdoctor.clinic.recorded import Recorded
from lossdoctor.diagnose import Diagnosis, configured, diagnose
from lossdoctor.errors import RunError, RunWriteError, mismatch
from lossdoctor.rules import Rule, RunView
from lossdoctor.store import Run, UnknownMetricError
from lossdoctor.store.alone import alone
from lossdoctor.store.whole import replace_with

HEALTHY = "healthy"
PREFIXES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of a run after which it is judged as well, to see when a fault is found."""

LOCKS = ".locks"
"""Folder of the locks, beside the cases."""
_DONE, _OUTPUT = "clinic.json", "output.txt"


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """What to train. fault: the name of a fault, or HEALTHY."""

    program: str
    fault: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.program}-{self.fault}-{self.seed}"

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that stand for its fault."""
        return () if self.fault == HEALTHY else BY_NAME[self.fault].rules


@dataclass(frozen=True, slots=True)
class Told:
    """A finding as far as the score needs it."""

    code: str
    severity: str
    causes: tuple[str, ...]
    leads: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What the rules said of a case.

    told: the findings as a reader meets them. clear, skipped: codes. after: for the rules that stand for the fault and
    raised an alarm, the steps the run had when each did first. steps: of the run. harm: of the trained program,
    infinite when it is no number. seconds: the training took.
    """

    case: Case
    told: tuple[Told, ...]
    clear: tuple[str, ...]
    skipped: tuple[str, ...]
    after: Mapping[str, int]
    steps: int
    harm: float
    seconds: float

    @property
    def alarms(self) -> tuple[str, ...]:
        """Codes of the warnings and errors."""
        return tuple(dict.fromkeys(one.code for one in self.told if one.severity != "info"))

    @property
    def found(self) -> bool:
        """Whether a rule that stands for the fault raised an alarm."""
        return any(code in self.case.rules for code in self.alarms)

    @property
    def detected(self) -> int | None:
        """The steps the run had when the fault was found; None when it was not, or when that was not asked."""
        return min(self.after.values(), default=None)

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes as a reader meets them: the first one of each group, then the second ones.

        Those of a group are those of its first alarm; a group of hints has none.
        """
        groups: list[list[Told]] = []
        for one in self.told:
            if one.leads or not groups:
                groups.append([])
            groups[-1].append(one)
        first = [next((one.causes for one in group if one.severity != "info"), ()) for group in groups]
        depth = max(map(len, first), default=0)
        return tuple(dict.fromkeys(causes[i] for i in range(depth) for causes in first if i < len(causes)))

    def named(self, within: int) -> bool:
        """Whether the fault was found, and a right cause is among the first so many."""
        return self.found and any(cause in BY_NAME[self.case.fault].causes for cause in self.causes[:within])


# Training


def trained(case: Case, home: Path) -> bool:
    """Whether the case has been trained to its end."""
    return (home / case.name / _DONE).exists()


def train(case: Case, program: Program, home: Path) -> None:
    """Train a case into its folder, unless that was done before. What an interrupted training left is removed.

    What the program prints, and the traceback when it fails, goes to `output.txt` in the folder. Two processes never
    train the same case at once: the second waits. Raises whatever the program raises, and RunWriteError when the run is
    not in the folder as the program returned it.
    """
    folder = home / case.name
    with alone(home / LOCKS / case.name):
        if trained(case, home):
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        started = time.perf_counter()
        with _output_to(folder / _OUTPUT):
            run = program.train(None if case.fault == HEALTHY else case.fault, case.seed, folder)
            _check_kept(run, folder)
            harm = _harm(case, program, run)
        facts = {"harm": harm if math.isfinite(harm) else None, "seconds": time.perf_counter() - started}
        # Last: the file says that the case is whole.
        replace_with(folder / _DONE, json.dumps(facts, allow_nan=False))


def _harm(case: Case, program: Program, run: Run) -> float:
    try:
        return float(program.harm(run))
    except UnknownMetricError:
        # A metric that was never defined: of a sick program nothing came. A healthy one has a mistake in `harm`.
        if case.fault == HEALTHY:
            raise
        return math.inf


def _check_kept(run: Run, folder: Path) -> None:
    try:
        kept = len(Run.open(folder).times)
    except RunError as error:
        raise RunWriteError(_not_kept(str(error))) from error
    if kept != len(run.times):
        raise RunWriteError(_not_kept(f"{kept} records there, {len(run.times)} in the run returned"))


def _not_kept(got: str) -> str:
    return mismatch(
        "A program records its run in the folder it is given.",
        "the run that train() returns, on disk",
        got,
        "pass run to the Doctor, and see that the disk has space",
    )


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    with (
        open(path, "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


# Judging


def judge(case: Case, home: Path, rules: Sequence[Rule] | None = None, *, early: bool = True) -> Result:
    """What the rules say of a trained case. early: also ask when they would have said it first.

    Raises RunError when the run, or what was kept with it, cannot be read.
    """
    harm, seconds = _facts(home / case.name / _DONE)
    asked = configured() if rules is None else tuple(rules)
    run = Recorded.of(Run.open(home / case.name))
    diagnosis = diagnose(run, rules=asked)
    expected = _alarms(diagnosis) & set(case.rules)
    return Result(
        case=case,
        told=tuple(
            Told(f.code, f.severity, tuple(cause.code for cause in f.causes), leads=f.explained_by is None)
            for f in diagnosis.findings
        ),
        clear=diagnosis.clear,
        skipped=tuple(code for code, _ in diagnosis.skipped),
        after=_first_alarms(run, diagnosis.steps, expected, asked) if early else {},
        steps=diagnosis.steps,
        harm=harm,
        seconds=seconds,
    )


def _first_alarms(run: Recorded, steps: int, expected: Collection[str], rules: Sequence[Rule]) -> dict[str, int]:
    """After how many steps each of these rules raised its first alarm. All raised one at the end."""
    found: dict[str, int] = {}
    few = [rule for rule in rules if rule.code in expected]
    for share in PREFIXES:
        if len(found) == len(expected):
            break
        view = RunView(run.until(round(share * steps)))
        # All rules together correct for more tests than a few do. They are asked only where the few have something new.
        if (_alarms(diagnose(view, rules=few)) & set(expected)) - found.keys():
            for code in sorted((_alarms(diagnose(view, rules=rules)) & set(expected)) - found.keys()):
                found[code] = round(share * steps)
    return {code: found.get(code, steps) for code in sorted(expected)}


def _alarms(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity != "info"}


def _facts(path: Path) -> tuple[float, float]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        harm = math.inf if facts["harm"] is None else float(facts["harm"])
        return harm if math.isfinite(harm) else math.inf, float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            mismatch(
                "What the clinic keeps beside a run cannot be read.",
                'a file {"harm": a number or null, "seconds": a number}',
                f"{path}: {type(error).__name__}: {error}",
                f"remove the folder {path.parent}; the next clinic trains the case again",
            )
        ) from error
