"""In which precision a run computes, as far as its audit tells."""

from __future__ import annotations

from lossdoctor.rules.view import RunView

_HALF = "float16"


def stored_in_float16(run: RunView) -> bool:
    """Whether parameters are kept in float16, so that nothing is computed wider unless it is asked for."""
    return _HALF in (run.facts.get("dtypes") or {})


def uses_float16(run: RunView) -> bool:
    """Whether float16 is used at all. bfloat16 has the range of float32 and is no matter of range."""
    return stored_in_float16(run) or run.facts.get("autocast") == _HALF
