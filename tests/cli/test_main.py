"""The door itself: help, languages, errors, and that nothing heavy is behind it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from syrupy.assertion import SnapshotAssertion

import lossdoctor
from lossdoctor import cli
from lossdoctor.cli import COMMANDS, main
from lossdoctor.messages import languages


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80", **environment}).invoke(
        main, arguments, prog_name="lossdoctor"
    )


@pytest.mark.parametrize("lang", languages())
@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help(arguments: list[str], lang: str, snapshot: SnapshotAssertion) -> None:
    result = call("--lang", lang, *arguments)
    assert result.exit_code == 0
    assert result.output == snapshot


@pytest.mark.parametrize("lang", languages())
@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_fits_into_80_columns(arguments: list[str], lang: str) -> None:
    lines = call("--lang", lang, *arguments).output.splitlines()
    assert [line for line in lines if cell_len(line) > 80] == []
    assert [line for line in lines if line.strip()[:1] in tuple("，。；：、）")] == [], "a line begins with these"
    assert [line for line in lines if line.endswith("[默") or re.fullmatch(r"\s+\w[。]?", line)] == [], "a torn word"
    assert [line for line in lines if re.search(r"(code|退出码|\d[:：])$", line)] == [], "a code without its meaning"
    if arguments == ["--help"]:
        assert [line for line in lines[1:] if line.endswith("...")] == [], "a first sentence that is cut off"


def test_the_catalogue_is_the_folder() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__"}
    commands = {
        name.removesuffix("_")
        for name in files
        if hasattr(importlib.import_module(f"lossdoctor.cli.{name}"), "command")
    }
    assert commands == set(COMMANDS), "list every module with a `command` in COMMANDS of cli/__init__.py"
    assert list(COMMANDS) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["demo", "--help"], ["--lang", "zh-CN", "-h"]], ids=" ".join
)
def test_help_needs_neither_torch_nor_numpy(arguments: list[str]) -> None:
    code = (
        "import sys; from lossdoctor.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'rich', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr


def test_python_m_is_the_same_door() -> None:
    done = subprocess.run([sys.executable, "-m", "lossdoctor", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"lossdoctor {lossdoctor.__version__}"


def test_language_before_or_after_the_command_or_from_the_locale() -> None:
    expected = call("--lang", "zh-CN", "demo", "--help").output
    assert call("demo", "--lang", "zh-CN", "--help").output == expected
    assert call("demo", "--help", LC_ALL="zh_CN.UTF-8").output == expected
    assert call("--lang", "en", "demo", "--help", LC_ALL="zh_CN.UTF-8").output == call("demo", "--help").output


def test_a_terminal_that_cannot_show_chinese_gets_english() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lossdoctor", "--lang", "zh-CN", "--help"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"Show this text and exit." in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--lang", "fr", "--help"],
        ["demo", "--steps", "0"],
        ["demo", "--seed", "-1"],
        ["demo", "--device", "abacus"],
        ["demo", "--set", "train.steps"],
        ["demo", "--set", "train.stepz=5"],
        ["demo", "--set", "device=abacus"],
        ["demo", "--set", "device=cuda:99"],
        ["demo", "--set", "train.steps=0"],
        ["demo", "--config", "missing.toml"],
        ["demo", "surplus"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_told_and_ends_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Error: " in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [], "nothing is made before the arguments are known to be right"


def test_every_option_has_help_in_every_language() -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert all(option.help for option in command.params if isinstance(option, click.Option))
