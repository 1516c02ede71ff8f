"""The diagnosis as JSON, schema `lossdoctor/diagnosis@1`: one object for one run, a list of them for several."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from lossdoctor.diagnose import Diagnosis


def document(diagnoses: Sequence[Diagnosis], lang: str) -> str:
    """The JSON text. NaN and infinity, which JSON does not know, are the strings "nan", "inf" and "-inf"."""
    told = [finite(diagnosis.to_json(lang)) for diagnosis in diagnoses]
    return json.dumps(told[0] if len(told) == 1 else told, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A value as JSON knows it: NaN and infinity, at any depth, as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
