"""A reading leaves the device whole: every value, in order, whatever its dtype, device and fellows."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.metrics.reading import Maybe, Readings, field_metric, metric, resolved, to_host, widened

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
VALUES = st.sampled_from([0.0, 1.0, -1.0, 2.0, math.nan, math.inf, -math.inf])


@st.composite
def readings(draw: st.DrawFn) -> tuple[dict[object, Tensor | Maybe], dict[object, float]]:
    given_readings: dict[object, Tensor | Maybe] = {}
    expected: dict[object, float] = {}
    for index in range(draw(st.integers(0, 12))):
        key = draw(st.sampled_from([f"name/{index}", (index, "name", 3), (None, f"{index}")]))
        dtype = draw(st.sampled_from(DTYPES))
        value = draw(VALUES if dtype.is_floating_point else st.sampled_from([0.0, 1.0]))
        tensor = torch.tensor(value).to(dtype).requires_grad_(dtype.is_floating_point and draw(st.booleans()))
        defined = draw(st.sampled_from([None, True, False]))
        given_readings[key] = tensor if defined is None else Maybe(tensor, torch.tensor(defined))
        if defined is not False:
            expected[key] = value
    return given_readings, expected


def same(found: dict[object, float], expected: dict[object, float]) -> bool:
    return list(found) == list(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found.values(), expected.values(), strict=True)
    )


@given(readings())
def test_host_gets_every_defined_value_in_order(case: tuple[dict[object, Tensor | Maybe], dict[object, float]]) -> None:
    assert same(to_host(case[0]), case[1])


@given(readings())
def test_resolved_keeps_the_tensors(case: tuple[dict[object, Tensor | Maybe], dict[object, float]]) -> None:
    found = resolved(case[0])  # type: ignore[arg-type]
    assert same({key: float(value.detach()) for key, value in found.items()}, case[1])


def test_nothing_is_nothing() -> None:
    assert to_host({}) == {}
    assert resolved({}) == {}


class Watched(Tensor):
    """Counts what crosses to the host, through the only door there is."""

    crossings = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function in (Tensor.tolist, Tensor.item, Tensor.__float__, Tensor.__bool__, Tensor.__int__):
            Watched.crossings += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_everything_crosses_in_one_copy() -> None:
    watched = {f"{i}": Maybe(torch.tensor(float(i)).as_subclass(Watched), torch.tensor(i % 2 == 0)) for i in range(40)}
    Watched.crossings = 0
    assert to_host(watched) == {f"{i}": float(i) for i in range(0, 40, 2)}
    assert Watched.crossings == 1


def test_values_of_several_devices_are_read() -> None:
    # Without a second device, a meta tensor shows that values are grouped by device: only its own group fails.
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        to_host({"cpu": torch.tensor(1.0), "meta": torch.zeros((), device="meta")})
    if torch.cuda.is_available():
        found = to_host(
            {"a": torch.tensor(1.0, device="cuda"), "b": torch.tensor(2.0), "c": torch.ones((), device="cuda")}
        )
        assert found == {"a": 1.0, "b": 2.0, "c": 1.0}


@metric
def product(a: Tensor, b: Tensor) -> Readings:
    return {"sum": (a @ b).sum(), "grad": torch.tensor(torch.is_grad_enabled())}


@field_metric
def asked(a: Tensor, b: Tensor) -> Readings:
    return {"sum": (a @ b).sum(), "grad": torch.tensor(torch.is_grad_enabled())}


def test_a_metric_has_full_precision_and_no_graph_inside_autocast() -> None:
    a = torch.full((4, 4), 1 + 2**-12, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, ambient = product(a, a), asked(a, a)
        assert torch.is_autocast_enabled("cpu")
    assert inside["sum"].dtype == torch.float32
    assert float(inside["sum"]) == pytest.approx(64 * (1 + 2**-12) ** 2, rel=1e-6)
    assert ambient["sum"].dtype == torch.bfloat16
    for found in (inside, ambient):
        assert not found["grad"]
        assert not found["sum"].requires_grad
    assert torch.is_grad_enabled()


def test_a_metric_warns_of_nothing_on_a_machine_without_accelerator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product(torch.ones(2, 2), torch.ones(2, 2))


def test_a_metric_keeps_its_name_and_page() -> None:
    @metric
    def speed(x: Tensor) -> Readings:
        """How fast."""
        return {"speed": x}

    assert (speed.__name__, speed.__doc__) == ("speed", "How fast.")  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", DTYPES)
def test_widened_is_float32_or_wider_and_detached(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, dtype=dtype).requires_grad_(dtype.is_floating_point)
    wide = widened(tensor)
    assert wide.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not wide.requires_grad
