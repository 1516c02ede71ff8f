"""Conditions taken apart and put together; permutations that do what they promise, against brute force."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor.metrics import condition


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=24)
TEXTS = ["a one", "a two", "a one", "a three"]
NESTS: list[Any] = [
    torch.arange(4),
    torch.randn(4, 3, 2),
    TEXTS,
    {"text": TEXTS, "embedding": torch.randn(4, 5), "scale": 2.0, "mask": None, "mode": "fast"},
    [torch.arange(4), (torch.randn(4, 2), torch.ones(4, dtype=torch.bool))],
    (torch.arange(4), TEXTS),
]


def rows(cond: Any, i: int) -> Any:
    """Row i as something that can be compared."""
    if isinstance(cond, Tensor):
        return cond[i].tolist()
    if isinstance(cond, list) and isinstance(cond[0], str):
        return cond[i]
    if isinstance(cond, dict):
        return {key: rows(item, i) for key, item in cond.items()}
    return [rows(item, i) for item in cond] if isinstance(cond, (list, tuple)) else cond


@pytest.mark.parametrize("cond", NESTS, ids=lambda cond: type(cond).__name__)
def test_rows_are_taken_and_joined_in_place(cond: Any) -> None:
    assert condition.splittable(cond, 4)
    index = torch.tensor([3, 0, 0])
    taken = condition.take(cond, index)
    assert type(taken) is type(cond)
    assert [rows(taken, i) for i in range(3)] == [rows(cond, i) for i in (3, 0, 0)]
    joined = condition.join([taken, cond])
    assert type(joined) is type(cond)
    assert [rows(joined, i) for i in range(7)] == [rows(cond, i) for i in (3, 0, 0, 0, 1, 2, 3)]


@pytest.mark.parametrize(
    "cond",
    [
        torch.tensor(1.0),
        torch.zeros(3),
        ["a"] * 3,
        "four",
        pytest.param(object(), id="object"),
        4,
        {"x": torch.zeros(4), "y": torch.zeros(3)},
        pytest.param({"x": object()}, id="object inside"),
    ],
    ids=str,
)
def test_what_has_not_one_row_per_sample_is_opaque(cond: Any) -> None:
    assert not condition.splittable(cond, 4)


def test_no_condition_is_splittable_into_none() -> None:
    assert condition.splittable(None, 4)
    assert condition.take(None, torch.tensor([0])) is None
    assert condition.join([None, None]) is None
    assert condition.keys(None, generator()) is None
    assert condition.keys({"scale": 1.0}, generator()) is None


DTYPES = [
    torch.uint8,
    torch.bool,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (7, 2)])
def test_keys_are_equal_where_rows_are_equal(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    distinct = torch.randint(0, 2, (6, *shape), generator=generator()).to(dtype)
    cond = distinct[torch.randint(0, 6, (40,), generator=generator())]
    keys = condition.keys(cond, generator())
    assert keys is not None
    for i in range(40):
        for j in range(40):
            assert bool(keys[i] == keys[j]) == bool((cond[i] == cond[j]).all())


def test_keys_look_at_every_leaf_and_at_strided_views() -> None:
    strided = torch.arange(12).reshape(3, 4).T  # rows are columns in memory
    keys = condition.keys({"a": torch.zeros(4), "b": TEXTS, "c": [strided[:, :1] * 0, 5]}, generator())
    assert keys is not None
    assert (keys[0] == keys[2], len(set(keys.tolist()))) == (True, 3)
    assert len(set(condition.keys(strided, generator()).tolist())) == 4  # type: ignore[union-attr]


def test_ten_thousand_different_rows_get_different_keys() -> None:
    for rows_ in (torch.arange(10_000), torch.linspace(0, 1, 10_000), torch.randn(10_000, 3, generator=generator())):
        assert len(set(condition.keys(rows_, generator()).tolist())) == 10_000  # type: ignore[union-attr]


@given(LABELS)
def test_a_derangement_leaves_only_the_unavoidable(labels: list[int]) -> None:
    keys = torch.tensor(labels)
    partner, differs = condition.derangement(keys)
    assert sorted(partner.tolist()) == list(range(len(labels)))
    kept = sum(labels[i] == labels[j] for i, j in enumerate(partner.tolist()))
    largest = max(Counter(labels).values())
    assert kept == max(0, 2 * largest - len(labels))
    assert bool(differs) == (len(set(labels)) > 1)


@given(LABELS)
def test_an_exchange_stays_within_its_group_and_moves_whom_it_can(labels: list[int]) -> None:
    partner, moved = condition.exchange(torch.tensor(labels))
    assert sorted(partner.tolist()) == list(range(len(labels)))
    count = Counter(labels)
    for i, j in enumerate(partner.tolist()):
        assert labels[i] == labels[j]
        assert bool(moved[i]) == (i != j) == (count[labels[i]] > 1)


def test_permuted_labels_meet_in_random_order() -> None:
    labels = torch.arange(8).repeat(8)
    met = set()
    for seed in range(6):
        keys = condition.keys(labels, torch.Generator().manual_seed(seed))
        assert keys is not None
        met.add(tuple(labels[condition.derangement(keys)[0]].tolist()))
    assert len(met) > 3
