"""`lossdoctor check`, `explain`, `compare` and `report` from outside: forms, exit codes, errors, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main
from lossdoctor.record import Record
from lossdoctor.rules import RULES
from lossdoctor.store import Run, RunWriter

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/diagnosis.schema.json").read_text(encoding="utf-8"))


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80", **environment}).invoke(
        main, arguments, prog_name="lossdoctor"
    )


def record(folder: Path, *, sick: bool = False, nasty: bool = False, steps: int = 400, seed: int = 0) -> Path:
    """A run of a velocity loss and a distillation, whose gradient hardly takes part if it is sick."""
    generator = np.random.default_rng(seed)
    with RunWriter(folder, {"kinds": {"flow": "velocity", "dino": "distill"}, "heads": ["head"]}) as writer:
        for step in range(0, steps, 10):
            noise = np.exp(generator.normal(size=4) / 10).tolist()
            dino = (0.001 if sick else 0.4) * noise[0]
            values = {
                "loss/flow": 0.5 * noise[1],
                "loss/dino": 3.0 * noise[2],
                "weight/flow": 1.0,
                "weight/dino": 0.5,
                "grad/flow": noise[3],
                "grad/dino": 2 * dino,
                "grad_weighted/flow": noise[3],
                "grad_weighted/dino": dino,
                "grad/total": (noise[3] ** 2 + dino**2) ** 0.5,
                "ent/teacher": 1.5 * noise[0],
                "ent/teacher_norm": 0.4 * noise[0],
                "ent/teacher_mi": 1.0 * noise[1],
                "distill/kl": 0.8 * noise[2],
            }
            if nasty:
                values |= {"<script>alert(1)</script>": noise[0], "\x1b[31mred": noise[1], "": noise[2]}
            writer.append([Record(step, values, full=True, time=1e9 + step)])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("runs")
    return {
        "healthy": str(record(home / "healthy")),
        "sick": str(record(home / "sick", sick=True)),
        "nasty": str(record(home / "nasty", nasty=True)),
        "short": str(record(home / "short", steps=20)),
    }


def test_exit_codes(runs: dict[str, str]) -> None:
    assert call("check", runs["healthy"]).exit_code == 0, call("check", runs["healthy"], "--verbose").output
    sick = call("check", runs["sick"])
    assert sick.exit_code == 1
    assert "GRD102 weak-gradient" in sick.output
    assert call("check", runs["sick"], "--fail-on", "never").exit_code == 0
    assert call("check", runs["sick"], "--ignore", "GRD,BAL,VEL,DST").exit_code == 0
    assert call("check", runs["healthy"], runs["sick"]).exit_code == 1
    assert call("check", runs["sick"], "--set", "GRD102.distill=1e-9", "--select", "GRD102").exit_code == 0


@pytest.mark.parametrize("form", ["text", "json", "markdown", "sarif", "github", "html"])
@pytest.mark.parametrize("run", ["healthy", "sick", "nasty", "short"])
@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_every_form_of_every_run(runs: dict[str, str], run: str, form: str, lang: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("--lang", lang, "check", runs[run], "--format", form, "-o", str(out))
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    told = out.read_text(encoding="utf-8")
    if form == "json":
        jsonschema.validate(json.loads(told), SCHEMA)
    if form not in ("json", "sarif"):
        assert "\x1b[31m" not in told
    assert "<script>alert" not in told or form in ("json", "sarif", "text", "github")


def test_json_on_the_terminal_is_nothing_but_json(runs: dict[str, str]) -> None:
    told = json.loads(call("check", runs["sick"], "--format", "json").stdout)
    assert told["run"] == runs["sick"]
    several = json.loads(call("check", runs["sick"], runs["healthy"], "--format", "json").stdout)
    assert [one["run"] for one in several] == [runs["sick"], runs["healthy"]]


def break_it(folder: Path, how: str) -> Path:
    database = folder / "run.db"
    match how:
        case "missing":
            return folder / "nowhere"
        case "empty":
            database.write_bytes(b"")
        case "garbage":
            database.write_bytes(b"\x00\xff" * 4000)
        case "cut":
            for extra in folder.glob("run.db-*"):
                extra.unlink()
            database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
        case "file":
            (folder / "note.txt").write_text("not a run")
            return folder / "note.txt"
        case "other version":
            import sqlite3

            with sqlite3.connect(database) as db:
                db.execute("PRAGMA user_version = 99")
            db.close()
    return folder


@pytest.mark.parametrize("command", [["check"], ["report"], ["compare", "."]], ids=lambda c: c[0])
@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "cut", "file", "other version"])
def test_broken_runs_are_told_and_end_with_2(tmp_path: Path, how: str, command: list[str]) -> None:
    path = break_it(record(tmp_path / "run"), how)
    first = [command[0], str(path)] if command[0] != "compare" else ["compare", str(path), str(path)]
    result = call(*first)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "to do:" in result.output


def test_one_broken_run_does_not_hide_the_others(runs: dict[str, str], tmp_path: Path) -> None:
    result = call("check", runs["sick"], str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "GRD102" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["check", "x", "--format", "xml"],
        ["check", "x", "--select", "NOPE"],
        ["check", "x", "--set", "GRD102"],
        ["check", "x", "--set", "GRD102.nope=1"],
        ["check", "x", "--set", "GRD102.distill=much"],
        ["check", "x", "y", "--format", "html", "-o", "z"],
        ["explain", "GRD999"],
    ],
    ids=" ".join,
)
def test_wrong_use(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_a_place_that_cannot_be_written_is_told(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("check", runs["healthy"], "--format", "json", "-o", str(tmp_path / "file" / "x.json"))
    assert result.exit_code == 2
    assert "cannot be written" in result.output


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_every_rule_explains_itself(rule: type, lang: str) -> None:
    result = call("--lang", lang, "explain", rule.code)  # type: ignore[attr-defined]
    assert result.exit_code == 0
    assert rule.code in result.output  # type: ignore[attr-defined]
    assert all(name in result.output for name in rule.thresholds())  # type: ignore[attr-defined]
    if lang == "en":
        assert max(map(len, result.output.splitlines())) <= 80
        assert [line for line in result.output.splitlines() if line.startswith("Ignore when: ")]


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_the_list_of_rules(lang: str) -> None:
    told = call("--lang", lang, "explain").output
    assert all(rule.code in told for rule in RULES)


def test_report_lies_beside_the_run(tmp_path: Path) -> None:
    run = record(tmp_path / "run", sick=True)
    assert call("report", str(run)).exit_code == 0
    assert "GRD102" in (run / "report.html").read_text(encoding="utf-8")


def test_compare_tells_what_differs(runs: dict[str, str]) -> None:
    result = call("compare", runs["healthy"], runs["sick"])
    assert result.exit_code == 0
    assert "GRD102" in result.output
    assert "grad_weighted/dino" in result.output
    told = json.loads(call("compare", runs["healthy"], runs["sick"], "--format", "json").stdout)
    differing = {one["name"] for one in told["curves"] if one["differs"]}
    assert {"grad/dino", "grad_weighted/dino"} <= differing
    assert "loss/flow" not in differing
    of_check = json.loads(call("check", runs["sick"], "--format", "json").stdout)["findings"]
    assert told["only_b"] == [one for one in of_check if one["code"] in {other["code"] for other in told["only_b"]}]
    assert "GRD102" in {one["code"] for one in told["only_b"]}, "and it is a finding as check tells it"
    one_finding = SCHEMA["properties"]["findings"]["items"]
    for finding in (*told["only_a"], *told["only_b"], *told["both"]):
        jsonschema.validate(finding, one_finding)


def test_a_run_does_not_differ_from_itself_or_from_its_twin(tmp_path: Path) -> None:
    for other, seed in (("same", 0), ("twin", 1)):
        first, second = record(tmp_path / f"{other}-a"), record(tmp_path / f"{other}-b", seed=seed)
        told = json.loads(call("compare", str(first), str(second), "--format", "json").stdout)
        assert [one["name"] for one in told["curves"] if one["differs"]] == []


@pytest.mark.parametrize(
    "arguments", [["check", "{sick}"], ["check", "{sick}", "--format", "html", "-o", "{out}"], ["explain", "GRD102"],
                  ["report", "{sick}", "-o", "{out}"], ["compare", "{sick}", "{healthy}"]],
    ids=lambda a: " ".join(a[:4]),
)  # fmt: skip
def test_torch_is_never_imported(runs: dict[str, str], arguments: list[str], tmp_path: Path) -> None:
    filled = [argument.format(out=tmp_path / "out.html", **runs) for argument in arguments]
    code = (
        "import sys; from lossdoctor.cli import main\n"
        f"try: main({filled!r})\n"
        "except SystemExit as end: assert end.code in (0, 1, None), end.code\n"
        "sys.exit('torch' in sys.modules and 'torch was imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr


def test_of_many_runs_one_is_open_at_a_time(runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a file; a system gives about a thousand to a process."""
    before, seen, alive = Run.open, [], []

    def noted(path: Path, **more: int) -> Run:
        run = before(path, **more)
        seen.append(weakref.ref(run))
        alive.append(sum(one() is not None for one in seen))
        return run

    monkeypatch.setattr(Run, "open", noted)
    result = call("check", *[next(iter(runs.values()))] * 8, "--fail-on", "never")
    assert result.exit_code == 0, result.output
    assert len(alive) == 8
    assert max(alive) <= 2, "the next one is opened before the last is let go"
