"""Inner products of gradients in pieces, against one long float64 vector."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdoctor import linalg

SHAPES = [(3,), (4, 5), (), (2, 3, 4), (7,), (0,), (1,), (6, 6)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def long_vector(pieces: list[Tensor | None], shapes: list[tuple[int, ...]]) -> Tensor:
    return torch.cat(
        [
            torch.zeros(math.prod(s)) if p is None else p.reshape(-1).double()
            for p, s in zip(pieces, shapes, strict=True)
        ]
    ).double()


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[Tensor | None]], list[tuple[int, ...]]]:
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=8))
    kinds = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([1.0, 1e-3, 30.0]))
    count = draw(st.integers(1, 4))
    return [
        [
            None
            if draw(st.booleans()) and draw(st.booleans())
            else (scale * torch.randn(s, generator=generator)).to(kind)
            for s, kind in zip(shapes, kinds, strict=True)
        ]
        for _ in range(count)
    ], shapes


@given(rows(), st.sampled_from([1, 4, 16, 10**6]), st.sampled_from([0, 5, 10**6]))
@settings(max_examples=80)
def test_gram_and_products_equal_those_of_one_long_vector(case, limit, small) -> None:
    given_rows, shapes = case
    long = torch.stack([long_vector(row, shapes) for row in given_rows])
    coefficients = [[0.5 * (r + 1) for r in range(len(given_rows))], [(-1.0) ** r for r in range(len(given_rows))]]
    extended = torch.cat([long, torch.tensor(coefficients, dtype=torch.float64) @ long])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "_chunk_size", lambda device: limit)
        patch.setattr(linalg, "_small", lambda device: small)
        found = linalg.gram(given_rows, coefficients)
        along = linalg.products(given_rows, given_rows[0])
        lengths_squared = linalg.squares(given_rows, coefficients)
    lengths = extended.norm(dim=1)
    bound = 1e-5 * lengths.outer(lengths) + 1e-30
    assert found.dtype == torch.float64
    assert ((found - extended @ extended.T).abs() <= bound).all()
    assert torch.equal(found, found.T)
    assert torch.equal(lengths_squared, found.diagonal())
    for copies, row in zip([linalg.Packer()(row) for row in given_rows], given_rows, strict=True):
        for piece, original in zip(copies, row, strict=True):
            assert (piece is None) == (original is None)
            if original is not None:
                assert torch.equal(piece, original.reshape(-1))
                assert piece.data_ptr() != original.data_ptr() or not piece.numel()
    assert ((along - long @ long[0]).abs() <= bound[0, : len(long)]).all()


def test_several_gram_matrices_at_once_and_in_another_order() -> None:
    a, b, c = (torch.randn(5, 4) for _ in range(3))
    problems = [([[a], [b]], [[1.0, -2.0]]), ([[c]], ()), ([[None], [a]], ())]
    orders = [[2, 0], [0], [1, 0]]
    for found, (rows, combinations), order in zip(linalg.grams(problems, orders), problems, orders, strict=True):
        wanted = linalg.gram(rows, combinations)[order][:, order]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert linalg.grams([]) == []


@pytest.mark.parametrize(("change", "error"), [(1e-2, 2e-6), (1e-4, 1e-4), (1e-6, 5e-3)])
def test_products_before_and_after_a_small_change_may_be_subtracted(change: float, error: float) -> None:
    torch.manual_seed(0)
    before, row = torch.randn(2**20) + 0.3, torch.randn(2**20) + 0.1
    row = row + 0.1 * before  # not at right angles, so that both products are large
    after = before + change * (torch.randn(2**20) + 0.1 * row)
    moved = after.double() - before.double()
    found = linalg.products([[row]], [after]) - linalg.products([[row]], [before])
    assert abs(float(found - moved @ row.double())) <= error * float(moved.norm() * row.double().norm())


def test_half_precision_does_not_overflow() -> None:
    big = [torch.full((1000,), 300.0, dtype=torch.float16)]
    assert linalg.gram([big])[0, 0].item() == pytest.approx(9e7)
    assert linalg.norms(big)[0].item() == pytest.approx(300 * 1000**0.5)


def test_combination_cancels_between_vectors_not_between_products() -> None:
    torch.manual_seed(0)
    g = torch.randn(10_000)
    small = 1e-4 * torch.randn(10_000)
    found = linalg.gram([[g], [g + small]], [[-1.0, 1.0]])
    assert found[2, 2].sqrt().item() == pytest.approx(((g + small) - g).double().norm().item(), rel=1e-5)


def test_lower_matmul_precision_changes_nothing() -> None:
    torch.manual_seed(0)
    pieces = [torch.randn(300, 300), torch.randn(77)]
    exact = linalg.gram([pieces])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = linalg.gram([pieces])
    finally:
        torch.set_float32_matmul_precision(before)
    # Another kernel may sum in another order, at 1e-6; bfloat16 products would differ by 1e-3.
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_stays_visible_and_where_it_is(bad: float) -> None:
    found = linalg.gram([[torch.tensor([1.0, bad])], [torch.tensor([1.0, 1.0])]])
    assert not found[0, 0].isfinite()
    assert found[1, 1].item() == 2.0


def test_sparse_complex_and_empty() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert linalg.gram([[table.weight.grad]])[0, 0].item() == 2 * 2**2 + 2
    assert linalg.norms([table.weight.grad])[0].item() == pytest.approx(10**0.5)
    assert linalg.gram([[torch.tensor([3 + 4j])]])[0, 0].item() == 25.0
    assert torch.equal(linalg.gram([[None], [None]]), torch.zeros(2, 2, dtype=torch.float64))
    assert linalg.gram([[], []]).shape == (2, 2)
    assert linalg.products([[None]], [None]).tolist() == [0.0]
    assert linalg.norms([]).shape == (0,)


def test_a_packer_writes_the_same_memory_again() -> None:
    packer = linalg.Packer()
    first = packer([torch.ones(3), None, torch.ones(2, 2)])
    second = packer([torch.zeros(3), None, torch.zeros(2, 2)])
    assert first[0].data_ptr() == second[0].data_ptr()
    assert not second[2].any()
    assert packer([torch.ones(5)])[0].tolist() == [1.0] * 5
    assert packer([]) == []


def test_a_row_of_known_length_puts_its_share_of_every_product_right() -> None:
    """The slow way: split every row into its part along the last one and the rest, stretch the first, multiply."""
    generator = torch.Generator().manual_seed(0)
    last = [torch.randn(7, generator=generator) for _ in range(4)]
    rows = [[torch.randn(7, generator=generator) if p != r else None for p in range(4)] for r in range(2)]
    rows.append([2.0 * piece for piece in last])
    rows.append(last)
    known = torch.tensor([1.0, 4.0, 9.0, 0.25]) * torch.stack([piece.square().sum() for piece in last])
    combination = [0.5, -1.0, 0.0, 2.0]
    found = linalg.gram(rows, [combination]) + linalg.gained(rows, [combination], known)
    wanted = torch.zeros(5, 5, dtype=torch.float64)
    for p, stretch in enumerate([1.0, 2.0, 3.0, 0.5]):
        unit = last[p].double() / last[p].double().norm()
        own = torch.stack([torch.zeros(7) if row[p] is None else row[p] for row in rows]).double()
        own = torch.cat([own, torch.tensor([combination], dtype=torch.float64) @ own])
        along = own @ unit
        right = own + ((stretch - 1.0) * along)[:, None] * unit
        wanted += right @ right.T
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [math.nan, math.inf])
@pytest.mark.parametrize("piece", [0.0, 1.0, math.nan])
def test_nothing_is_put_right_where_nothing_is_known(piece: float, known: float) -> None:
    rows = [[torch.ones(3)], [torch.full((3,), piece)]]
    assert not linalg.gained(rows, [[1.0, 1.0]], torch.tensor([known])).any()
