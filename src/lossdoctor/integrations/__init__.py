"""Doors to other people's training frameworks, each in a module of its own that imports its framework.

`integrations.lightning`, `integrations.transformers`, `integrations.accelerate`: loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_PARTS = ("accelerate", "lightning", "transformers")
__all__ = list(_PARTS)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_PARTS)}")
