"""What `import lossdoctor as ld` offers."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest
from syrupy.assertion import SnapshotAssertion

import lossdoctor as ld


def test_every_public_name_loads_and_is_listed() -> None:
    for name in ld.__all__:
        assert getattr(ld, name) is not None
        assert name in dir(ld)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'docter'; it has .*Doctor"):
        _ = ld.docter


def test_flow_is_the_mathematics_and_the_call() -> None:
    import torch

    import lossdoctor.flow.paths as paths

    assert ld.flow.Linear is paths.Linear
    assert ld.flow(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)) is None, "no doctor: does nothing"


@pytest.mark.parametrize("code", ["import lossdoctor", "from lossdoctor import Run, Series, Record"])
def test_reading_a_run_never_imports_torch(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{code}; import sys; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


PARTS = ("errors", "rules", "rules.fixes", "rules.view")
"""What is public beside `lossdoctor.__all__`: errors to catch, and what a plugin is written with."""


def described(name: str, found: object) -> Iterator[str]:
    """A line for a name with its signature, and one for each public thing a class has itself.

    What it has from a base that its package does not offer under a name of its own is told as its own.
    """
    if not isinstance(found, type):
        yield f"{name}{signature(found)}" if callable(found) else f"{name}: {type(found).__name__}"
        return
    package = found.__module__.rpartition(".")[0]
    hidden = [
        base
        for base in found.__mro__[1:]
        if base.__module__ != found.__module__
        and base.__module__.rpartition(".")[0] == package
        and not hasattr(sys.modules[package], base.__name__)
    ]
    bases = ", ".join(base.__name__ for base in found.__bases__ if base is not object and base not in hidden)
    yield f"class {name}({bases}){signature(found) if '__init__' in vars(found) else ''}"
    members = {own: value for base in (*reversed(hidden), found) for own, value in vars(base).items()}
    for own, value in sorted(members.items()):
        if own.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"  {name}.{own}: property"
        elif callable(getattr(found, own)) and not isinstance(getattr(found, own), type):
            yield f"  {name}.{own}{signature(getattr(found, own))}"


def signature(function: object) -> str:
    """Names, kinds and defaults of the parameters; what types they have is for mypy."""
    assert callable(function)
    function = getattr(function, "__dict__", {}).get("_function", function)  # a part that is also a function
    try:
        given = inspect.signature(function)
    except ValueError:
        return "(...)"
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in given.parameters.values()]
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.Signature(bare)))


def public(part: types.ModuleType) -> Iterator[str]:
    """Every public name of a module: those it lists, or those that are made in it."""
    listed = getattr(part, "__all__", None)
    names = listed or [n for n, found in vars(part).items() if getattr(found, "__module__", None) == part.__name__]
    for name in sorted(name for name in names if not name.startswith("_")):
        found = getattr(part, name)
        if isinstance(found, types.ModuleType):
            yield from public(found)
        else:
            yield from described(f"{part.__name__}.{name}", found)


def test_every_name_and_signature_is_what_it_was(snapshot: SnapshotAssertion) -> None:
    """A difference here is one that users see: on purpose, with a line in CHANGELOG.md, or not at all."""
    called = [name for name in ld.__all__ if name not in ld._PARTS or name in ld._CALLABLE]
    told = [line for name in sorted(called) for line in described(f"lossdoctor.{name}", getattr(ld, name))]
    for name in (*ld._PARTS, *PARTS):
        told += public(importlib.import_module(f"lossdoctor.{name}"))
    assert "\n".join(told) == snapshot
