"""The fake programs, in a module that new processes can import too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fakes() -> Iterator[ModuleType]:
    """`clinic_fakes`, on the path as long as it is needed."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield importlib.import_module("clinic_fakes")
    finally:
        sys.path.remove(str(Path(__file__).parent))
