"""Escaped names: only allowed characters, no two alike, and read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lossdoctor.sinks.mlflow import LONGEST, metric_name
from lossdoctor.sinks.naming import unescaped

TEXTS = st.one_of(st.text(max_size=40), st.text(st.sampled_from("-u7c/. |2d"), max_size=12))


@given(TEXTS)
@example("-u7c|u7c-")
@example("grad_cos/a|b")
@example("../..//.")
@example("..0")
@example("...")
def test_a_name_comes_back_and_is_allowed(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert unescaped(metric_name(name)) == name
    _validate_metric_name(metric_name(name))


def test_usual_names_stay() -> None:
    for name in ("loss/flow", "grad_module/flow/z_head", "step/z_head_rms_update", "a.b", "loss - mine", "流"):
        assert metric_name(name) == name
    assert metric_name("grad_cos/a|b") == "grad_cos/a-u7c-b"
    assert metric_name("flow/endpt_rmse@8") == "flow/endpt_rmse-u40-8"


@pytest.mark.parametrize("end", ["a", "b", "|"])
def test_long_names_stay_apart(end: str) -> None:
    names = {metric_name("x" * 400 + other) for other in ("a", "b", "|")}
    assert len(names) == 3
    assert all(len(name) == LONGEST for name in names)
    assert re.fullmatch(r"x+-[0-9a-f]{16}", metric_name("x" * 400 + end))


def test_what_only_looks_escaped_is_left() -> None:
    assert unescaped("a-u110000-b") == "a-u110000-b"
