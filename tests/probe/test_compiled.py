"""Settings of the compiler, in versions of torch that have them and in those that have not."""

from __future__ import annotations

import sys

import pytest
import torch._functorch.config

from lossdoctor.probe.compiled import as_written, keep_activations

try:
    import torch.compiler.config as compiler
except ImportError:  # torch 2.5
    compiler = None
tagged = pytest.mark.skipif(not hasattr(compiler, "cache_key_tag"), reason="this torch has no tag for its cache")


def settings() -> tuple[object, object]:
    return torch._functorch.config.donated_buffer, getattr(compiler, "cache_key_tag", None)


@tagged
def test_activations_are_kept_until_it_ends() -> None:
    before = settings()
    undo = keep_activations()
    assert settings() == (False, f"{before[1]}+activations kept")
    undo()
    assert settings() == before


@tagged
@pytest.mark.parametrize("missing", ["torch.compiler.config", "torch._functorch.config"])
def test_without_one_of_the_modules_the_other_is_set(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    monkeypatch.setitem(sys.modules, missing, None)  # as if this torch had none
    undo = keep_activations()
    changed = [now != then for now, then in zip(settings(), before, strict=True)]
    assert changed == ([before[0] is not False, False] if "compiler" in missing else [False, True])
    undo()
    assert settings() == before


def test_whatever_this_torch_has_is_set_back() -> None:
    before = settings()
    undo = keep_activations()
    assert settings()[0] is False
    undo()
    assert settings() == before


def test_a_torch_without_stances_runs_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with as_written():
        ran = True
    assert ran
