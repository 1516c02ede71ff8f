"""Rules and sinks of other packages: the example, installed and used from outside, and packages broken in every way."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from syrupy.assertion import SnapshotAssertion

from lossdoctor.record import Record
from lossdoctor.rules import RULES
from lossdoctor.store import RunWriter

ROOT = Path(__file__).parent.parent
SOURCE = str(ROOT / "src")
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def python(*arguments: str, path: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that finds the packages in a folder."""
    lines = {"PYTHONPATH": os.pathsep.join([str(path), SOURCE]), "PYTHONUTF8": "1", "LC_ALL": "C", "COLUMNS": "80"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **lines, **environment})


def lossdoctor(*arguments: str, path: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "lossdoctor", *arguments, path=path, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one level and one falling loss."""
    folder = tmp_path_factory.mktemp("place")
    noise = np.random.default_rng(0).normal(size=(2, 200)) / 1000
    values = [{"loss/level": 1 + noise[0, n], "loss/falling": 3 - 0.01 * n + noise[1, n]} for n in range(200)]
    with RunWriter(folder / "runs/exp1", {"kinds": {"level": "other", "falling": "other"}}) as writer:
        writer.append([Record(step, each, full=True) for step, each in enumerate(values)])
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example package is installed, as pip does it."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(ROOT / "examples" / "plugin")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def test_the_example_passes_its_own_tests(example: Path, tmp_path: Path) -> None:
    tests = str(ROOT / "examples/plugin/tests")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, path=example, cwd=tmp_path)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_its_page(example: Path, place: Path, lang: str, snapshot: SnapshotAssertion) -> None:
    done = lossdoctor("--lang", lang, "explain", "LAB001", path=example, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == snapshot


def test_its_rule_is_asked_and_told_in_every_form(example: Path, place: Path, snapshot: SnapshotAssertion) -> None:
    asked = ("check", "runs/exp1", "--select", "LAB", "--fail-on", "info")
    told = {lang: lossdoctor("--lang", lang, *asked, "--verbose", path=example, cwd=place) for lang in ("en", "zh-CN")}
    assert [done.returncode for done in told.values()] == [1, 1]
    assert {lang: done.stdout for lang, done in told.items()} == snapshot
    sarif = json.loads(lossdoctor(*asked, "--format", "sarif", path=example, cwd=place).stdout)
    assert [one["ruleId"] for one in sarif["runs"][0]["results"]] == ["LAB001"]
    page = lossdoctor("report", "runs/exp1", "-o", "page.html", path=example, cwd=place)
    assert page.returncode == 0, page.stderr
    html = (place / "page.html").read_text(encoding="utf-8")
    assert "Nothing is learned from this loss." in html
    assert "模型没有从这个损失学到东西。" in html


def test_the_list_has_it_behind_ours_and_the_switches_leave_it_out(example: Path, place: Path) -> None:
    with_it = lossdoctor("explain", path=example, cwd=place).stdout
    assert re.findall(r"^[A-Z]{3}\d{3}", with_it, re.MULTILINE) == [*(rule.code for rule in RULES), "LAB001"]
    for arguments, switch in ((["--no-plugins", "explain"], ""), (["explain"], "off")):
        told = lossdoctor(*arguments, path=example, cwd=place, LOSSDOCTOR_PLUGINS=switch)
        assert told.returncode == 0
        assert "LAB001" not in told.stdout


def test_every_command_and_line_of_the_page_runs(example: Path, place: Path) -> None:
    commands = re.findall(r"^\$ lossdoctor (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        done = lossdoctor(*shlex.split(command), path=example, cwd=place)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stderr == ""
    assert (place / "exp1.md").read_text(encoding="utf-8").splitlines()[0] == "| step | metric | value |"
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = python("-c", f"{code}\nassert isinstance(sink, ld.sinks.Sink)", path=example, cwd=place)
    assert done.returncode == 0, done.stderr


def test_nothing_of_it_is_imported_before_it_is_asked_for(example: Path, place: Path) -> None:
    code = """
import sys
import lossdoctor
from lossdoctor import rules, sinks, diagnose
from lossdoctor.cli import main
try: main(["--help"])
except SystemExit: pass
early = [name for name in sys.modules if name.startswith("lossdoctor_lab")]
rules.every_rule()
assert early == [] and "lossdoctor_lab.flat_loss" in sys.modules, early
"""
    done = python("-c", code, path=example, cwd=place)
    assert done.returncode == 0, done.stderr


RULE = """
from dataclasses import dataclass
from lossdoctor.rules import Clear, Evidence, Fired, Message, Rule
@dataclass(frozen=True)
class One(Rule):
    "A page."
    code, name = "{code}", "{name}"
    def check(self, run):
        {check}
"""
FIRE = "return Fired((self.finding(Message('check.clear'){more}),))"
UNUSABLE = {
    # Codes of a place among the skipped, with what is wrong with the module.
    "AAA001": "import no_such_module",
    "AAB001": "import sys; sys.exit('gone')",
    "AAC001": "One = 7",
    "AAD001": RULE.format(code="AAD002", name="other-code", check="return Clear()"),
    "AAE001": RULE.format(code="AAE001", name="weak-gradient", check="return Clear()"),
    "AAF001": RULE.format(code="AAF001", name="no-page", check="return Clear()").replace('"A page."', '" "'),
    "AAG001": RULE.format(code="AAG001", name="no-defaults", check="return Clear()").replace('"A page."', "x: int"),
    "AAH001": RULE.format(code="AAH001", name="odd-needs", check="return Clear()") + "    needs = 'loss/<loss>'\n",
}
FAILING = {
    # Rules that load, and fail when they are asked.
    "BBA001": "raise RuntimeError('broken')",
    "BBB001": "raise SystemExit(3)",
    "BBC001": "return None",
    "BBD001": "return Fired((self.finding(Message('no.such.key')),))",
    "BBE001": FIRE.format(more=", severity='terrible'"),
    "BBF001": FIRE.format(more=", evidence=[Evidence('x', 'much')]"),
    "BBG001": FIRE.format(more=", loss={1}"),
    "BBH001": "return Clear((float('nan'),))",
    "BBI001": "return Fired((self.finding(Message('check.clear')),), p=('no',))",
}
REFUSED = {
    # Codes without a place of their own.
    "GRD102": RULE.format(code="GRD102", name="ours", check="return Clear()"),
    "GRD199": RULE.format(code="GRD199", name="our-family", check="return Clear()"),
    "lab": RULE.format(code="lab", name="no-code", check="return Clear()"),
}


def package(folder: Path, name: str, entries: str, **modules: str) -> None:
    """An installed package, as an installer leaves it."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(entries, encoding="utf-8")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source, encoding="utf-8")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    rules = {code: RULE.format(code=code, name=code.lower(), check=check) for code, check in FAILING.items()}
    for code, source in {**UNUSABLE, **rules, **REFUSED}.items():
        module = f"mod_{code.lower()}"
        package(folder, f"bad-{code.lower()}", f"[lossdoctor.rules]\n{code} = {module}:One\n", **{module: source})
    package(folder, "bad-zwei", "[lossdoctor.rules]\nBBA001 = mod_bba001:One\n")
    package(folder, "bad-sink", "[lossdoctor.sinks]\nGone = no_such_module:Gone\nCSV = no_such_module:CSV\n")
    package(folder, "bad-texts", "[lossdoctor.messages]\nx = bad_texts\n")
    (folder / "bad_texts").mkdir()
    (folder / "bad_texts/__init__.py").touch()
    (folder / "bad_texts/en.json").write_text('{"check.clear": "all is well"}', encoding="utf-8")
    return folder


def test_broken_packages_are_told_once_and_change_nothing_else(broken: Path, place: Path, tmp_path: Path) -> None:
    # In a folder of its own: with such a file not even torch can be imported.
    package(tmp_path, "bad-file", "[lossdoctor.rules]\nthis is no entry point\n")
    both = Path(os.pathsep.join([str(broken), str(tmp_path)]))
    asked = ("check", "runs/exp1", "--format", "json")
    told, without = (lossdoctor(*more, *asked, path=both, cwd=place) for more in ((), ("--no-plugins",)))
    assert told.returncode == without.returncode, told.stderr
    assert without.stderr == ""
    found, expected = json.loads(told.stdout), json.loads(without.stdout)
    reasons = {one["code"]: one["reason"] for one in found["skipped"]}
    ours = [one for one in found["skipped"] if one["code"] not in UNUSABLE | FAILING]
    assert {**found, "skipped": ours} == expected, "our rules answer as they would alone"
    assert reasons.keys() >= UNUSABLE.keys() | FAILING.keys()
    for code in UNUSABLE:
        assert f"bad-{code.lower()}" in reasons[code]
    for said, code in {"No module named 'no_such_module'": "AAA001", "SystemExit: gone": "AAB001"}.items():
        assert said in reasons[code]
    assert "RuntimeError: broken" in reasons["BBA001"]
    assert "no.such.key" in reasons["BBD001"]
    loading = [f"bad-{code.lower()}" for code in UNUSABLE | REFUSED]
    for name in [*loading, "bad-zwei", "bad-texts"]:
        assert told.stderr.count(f"Warning: Not everything of the plugin {name} can be used") == 1, told.stderr
    assert told.stderr.count("the metadata of") == 1
    assert "bad_file-1.0.dist-info cannot be read" in told.stderr
    assert told.stderr.count("Warning:") == len(loading) + 3, told.stderr
    assert "Traceback" not in told.stderr
    assert "bad-sink" not in told.stderr, "a sink that nobody names is not looked at"


def test_what_could_not_be_loaded_is_explained(broken: Path, place: Path) -> None:
    told = lossdoctor("explain", "AAA001", path=broken, cwd=place)
    assert told.returncode == 0
    assert "No module named 'no_such_module'" in " ".join(told.stdout.split())
    assert lossdoctor("explain", path=broken, cwd=place).returncode == 0


def test_a_training_goes_on(broken: Path, tmp_path: Path) -> None:
    code = """
import torch, lossdoctor as ld
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
told = []
with ld.Doctor(model, optimizer, run="run", every=1, on_finding=told.append) as doctor:
    for step in range(30):
        doctor.backward({"a": model(torch.randn(8, 4)).square().mean()})
        optimizer.step()
        optimizer.zero_grad()
    skipped = dict(doctor.diagnose().skipped)
assert {"AAA001", "BBA001"} <= skipped.keys()
assert isinstance(ld.sinks.CSV("a.csv"), ld.sinks.Sink), "ours, whoever else has the name"
try: ld.sinks.Gone
except ImportError as error: assert "bad-sink" in str(error)
else: raise AssertionError
try: from lossdoctor.sinks import Gone
except ImportError as error: assert "bad-sink" in str(error)
"""
    done = python("-c", code, path=broken, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_format_that_fails_is_told(broken: Path, place: Path) -> None:
    for name, said in (("Gone", "bad-sink"), ("Nothing", "no such format")):
        done = lossdoctor("export", "runs/exp1", "-o", "gone.txt", "--format", name, path=broken, cwd=place)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (place / "gone.txt").exists()
