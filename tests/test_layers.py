"""Imports point down only. The list is the architecture; change it on purpose."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lossdoctor

LAYERS = [
    "errors",
    "record config keys kinds arms messages plugins",
    "curves linalg flow losses",
    "probe",
    "metrics treat",
    "store sinks rules",
    "diagnose rounds",
    "report",
    "doctor",
    "preflight ablate exchange",
    "reference live",
    "clinic",
    "integrations cli",
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts.split()}
WITHOUT_TORCH = (
    "record config keys kinds arms messages plugins curves store rules diagnose rounds report exchange live cli"
)
ROOT = Path(lossdoctor.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("__"))


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "lossdoctor"}
    return {name for name in found if name.split(".")[0] == "lossdoctor"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} is not in LAYERS: give it a place there, on purpose"
    for module in imports(path):
        other = part_of(module)
        if other in ("", own, "__version__"):
            continue
        if other in LEVEL:
            assert LEVEL[other] < LEVEL[own], (
                f"{path.relative_to(ROOT)} (level {LEVEL[own]}) imports {module} (level {LEVEL[other]})"
            )
        else:
            # A public name of the package itself, such as lossdoctor.Doctor, reaches everything.
            assert own in ("reference", "clinic", "integrations", "cli"), f"{path.relative_to(ROOT)} imports {module}"


def test_every_folder_is_a_package() -> None:
    for folder in {path.parent for path in FILES}:
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"


@pytest.mark.parametrize("part", WITHOUT_TORCH.split())
def test_reading_needs_no_torch(part: str) -> None:
    code = (
        f"import sys, importlib, pkgutil; package = importlib.import_module('lossdoctor.{part}');"
        "names = [m.name for m in pkgutil.walk_packages(getattr(package, '__path__', []), package.__name__ + '.')];"
        f"[importlib.import_module(n) for n in names if '{part}' != 'cli'];"
        "sys.exit('torch' in sys.modules and 'torch was imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
