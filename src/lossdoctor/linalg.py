"""Inner products of very long vectors that lie in pieces: gradients over all parameters of a model.

Everything is accumulated from chunks, so that nothing the size of the model is allocated, with float64 between chunks.
`torch.dot` is used rather than a matrix product because products may run in TF32 or bfloat16 by a global setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Pieces = Sequence["Tensor | None"]
"""One long vector: piece p is a tensor of any shape, or None where it is zero."""


def _chunk_size(device: torch.device) -> int:
    # Small enough for float32 accumulation and for a core's cache to hold all rows, large enough to keep a GPU busy.
    return 2**18 if device.type == "cpu" else 2**24


_EXACT = 2**13


def _short(device: torch.device) -> int:
    # The sums of float32 that are still fine.
    return 2**16 if device.type == "cpu" else 2**22


def _small(device: torch.device) -> int:
    # Below this a call per pair of rows costs more than copying the piece next to others.
    return 2**14 if device.type == "cpu" else 2**18


def flattened(piece: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of any layout as a detached vector of `dtype`; itself where it is one. A complex one in two reals."""
    # Each call costs a microsecond per parameter and row, so only what is needed is called.
    if piece.is_sparse:
        piece = piece.coalesce().to_dense()
    if piece.requires_grad:
        piece = piece.detach()
    if piece.is_complex():
        piece = torch.view_as_real(piece)
    if piece.ndim != 1:
        piece = piece.reshape(-1)
    return piece if piece.dtype == dtype else piece.to(dtype)


def concatenated(pieces: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A copy of one or more tensors of any layout, one after the other, as a detached vector of `dtype`."""
    with torch.no_grad():
        if all(piece.dtype == dtype and piece.layout == torch.strided for piece in pieces):
            return torch.cat([piece if piece.ndim == 1 else piece.reshape(-1) for piece in pieces])
        return torch.cat([flattened(piece, dtype) for piece in pieces])


class Packer:
    """Copies many tensors by one copy per dtype and device, as flat views of a few long vectors.

    On a CPU the vectors are kept and written again the next time, since fresh memory costs more than the copy itself
    (each page is faulted in); copies handed out before are overwritten then. A GPU's allocator keeps memory anyway.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, pieces: Pieces) -> list[Tensor | None]:
        """The copies, in order, (numel,) each, (2 numel,) real ones of a complex piece; None stays None."""
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece is not None:
                kinds.setdefault((piece.dtype.to_real(), piece.device), []).append(index)
        copies: list[Tensor | None] = [None] * len(pieces)
        with torch.no_grad():
            for kind, indices in kinds.items():
                flat = [flattened(piece, kind[0]) for i in indices if (piece := pieces[i]) is not None]
                sizes = [vector.numel() for vector in flat]
                for index, view in zip(indices, torch.split(self._joined(kind, flat, sum(sizes)), sizes), strict=True):
                    copies[index] = view
        return copies

    def _joined(self, kind: tuple[torch.dtype, torch.device], flat: list[Tensor], size: int) -> Tensor:
        if kind[1].type != "cpu":
            return torch.cat(flat)
        kept = self._kept.get(kind)
        if kept is None or kept.numel() != size:
            kept = self._kept[kind] = flat[0].new_empty(size)
        return torch.cat(flat, out=kept)


def _chunks(rows: Sequence[Pieces], length: Callable[[torch.device], int]) -> Iterator[list[Tensor | None]]:
    """Cut all rows at the same places, of this length at most; a row that is zero in a whole chunk is None there."""
    waiting: list[Sequence[Tensor | None]] = []
    kin: tuple[torch.dtype, torch.device] | None = None
    room = limit = small = 0
    for column in zip(*rows, strict=True):
        some = next((piece for piece in column if piece is not None), None)
        if some is None:
            continue
        now = (torch.float64 if any(map(is_wide, column)) else torch.float32, some.device)
        size = _size(some)
        if now != kin or (size <= small and size > room):
            if waiting and kin is not None:
                yield _side_by_side(waiting, kin[0])
            waiting, kin = [], now
            room = limit = length(some.device)
            small = _small(some.device)
        if size <= small:
            waiting.append(column)
            room -= size
            continue
        flat = [None if piece is None else flattened(piece, now[0]) for piece in column]
        if size <= limit:
            yield flat
            continue
        cuts = [itertools.repeat(None) if part is None else torch.split(part, limit) for part in flat]
        for _, *chunk in zip(range(0, size, limit), *cuts, strict=False):
            yield chunk
    if waiting and kin is not None:
        yield _side_by_side(waiting, kin[0])


def is_wide(piece: Tensor | None) -> bool:
    """Whether a piece has the precision of float64."""
    return piece is not None and piece.dtype in (torch.float64, torch.complex128)


def _size(piece: Tensor) -> int:
    return 2 * piece.numel() if piece.is_complex() else piece.numel()


def _side_by_side(columns: Sequence[Sequence[Tensor | None]], dtype: torch.dtype) -> list[Tensor | None]:
    """Small pieces of each row as one vector; None for a row that is zero in all of them."""
    chunk: list[Tensor | None] = []
    for parts in zip(*columns, strict=True):
        there = [part for part in parts if part is not None]
        if there and len(there) < len(parts):
            there = [_zeros(column, dtype) if p is None else p for p, column in zip(parts, columns, strict=True)]
        chunk.append(concatenated(there, dtype) if there else None)
    return chunk


def _zeros(column: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    some = next(piece for piece in column if piece is not None)
    return some.new_zeros(_size(some), dtype=dtype)


def gram(rows: Sequence[Pieces], combinations: Sequence[Sequence[float]] = ()) -> Tensor:
    """Inner products of R vectors, and of linear combinations of them.

    rows: R vectors, each cut into the same pieces. combinations: C lists of R coefficients; combination c stands for
    sum_r c_r row_r and is formed chunk by chunk, so that cancellation happens between vectors, not between products.
    Returns (R + C, R + C), float64, on the device of the pieces (CPU when every piece is None).
    """
    return grams([(rows, combinations)])[0]


def grams(
    problems: Sequence[tuple[Sequence[Pieces], Sequence[Sequence[float]]]], orders: Sequence[Sequence[int]] = ()
) -> list[Tensor]:
    """`gram(rows, combinations)` of each problem; together they cost little more than one.

    orders: per problem which of its vectors are reported, in which order; all of them as they come by default.
    """
    terms: list[list[Tensor]] = []
    places: list[int] = []
    orders = orders or [range(len(rows) + len(combinations)) for rows, combinations in problems]
    for (rows, combinations), order in zip(problems, orders, strict=True):
        pairs = list(itertools.combinations_with_replacement(sorted(order), 2))
        place = {pair: len(terms) + n for n, pair in enumerate(pairs)}
        terms += _terms(rows, pairs, combinations)
        places += [place[min(i, j), max(i, j)] for i in order for j in order]
    every = _added_up(terms, _device(row for rows, _ in problems for row in rows), places)
    parts = torch.split(every, [len(order) ** 2 for order in orders]) if orders else ()
    return [part.view(len(order), len(order)) for part, order in zip(parts, orders, strict=True)]


Problem = tuple[Sequence[Pieces], Sequence[tuple[int, int]], Sequence[Sequence[float]]]
"""Rows, the pairs whose inner products are asked for, and combinations of the rows, numbered on from these."""


def inner(
    rows: Sequence[Pieces], pairs: Sequence[tuple[int, int]], combinations: Sequence[Sequence[float]] = ()
) -> Tensor:
    """The entries `pairs` of `gram(rows, combinations)` alone: (len(pairs),), float64."""
    return inners([(rows, pairs, combinations)])[0]


def inners(problems: Sequence[Problem]) -> list[Tensor]:
    """`inner` of each problem; together they cost little more than one. All on the device of the first."""
    terms = [one for problem in problems for one in _terms(*problem)]
    sums = _added_up(terms, _device(row for rows, _, _ in problems for row in rows))
    return list(torch.split(sums, [len(pairs) for _, pairs, _ in problems])) if problems else []


def _device(rows: Iterable[Pieces]) -> torch.device:
    return next((piece.device for row in rows for piece in row if piece is not None), torch.device("cpu"))


def _terms(
    rows: Sequence[Pieces],
    pairs: Sequence[tuple[int, int]],
    combinations: Sequence[Sequence[float]],
    product: Callable[[Tensor, Tensor], Tensor] = torch.dot,
    length: Callable[[torch.device], int] | None = None,
) -> list[list[Tensor]]:
    """Per pair what the chunks add to it, 0-d each; nothing where one of the two is zero."""
    terms: list[list[Tensor]] = [[] for _ in pairs]
    with torch.no_grad(), torch.autocast(_device(rows).type, enabled=False):
        for chunk in _chunks(rows, length or _chunk_size):
            vectors = [*chunk, *(_combine(chunk, coefficients) for coefficients in combinations)]
            for (i, j), found in zip(pairs, terms, strict=True):
                a, b = vectors[i], vectors[j]
                if a is not None and b is not None:
                    found.append(product(a, b))
    return terms


def _added_up(terms: Sequence[Sequence[Tensor]], device: torch.device, places: Sequence[int] = ()) -> Tensor:
    """The sum of each list of 0-d tensors, (len(terms),), float64, zero for an empty one; or the sums at `places`."""
    every = [term for found in terms for term in found]
    if not every:
        return torch.zeros(len(places or terms), dtype=torch.float64, device=device)
    # Each list becomes a row, filled up with a zero: additions to one place in no order would differ in last bits.
    longest, rows, begin = max(map(len, terms)), [], 0
    for found in terms:
        rows.append([*range(begin, begin + len(found)), *[len(every)] * (longest - len(found))])
        begin += len(found)
    index = torch.tensor([rows[p] for p in places] if places else rows, device=device)
    with torch.no_grad():
        return torch.nn.functional.pad(_stacked(every, device), (0, 1))[index].sum(1)


def _stacked(terms: Sequence[Tensor], device: torch.device) -> Tensor:
    alike = all(term.dtype == terms[0].dtype and term.device == device for term in terms)
    return torch.stack([term if alike else term.double().to(device) for term in terms]).double()


def _combine(chunk: Sequence[Tensor | None], coefficients: Sequence[float]) -> Tensor | None:
    terms = [(p, c) for p, c in zip(chunk, coefficients, strict=True) if p is not None and c != 0.0]
    if not terms:
        return None
    # A term with coefficient 1 first: then no product has to be formed alone.
    (first, factor), *rest = sorted(terms, key=lambda term: term[1] != 1.0)
    combined = first if factor == 1.0 else first * factor
    for n, (part, coefficient) in enumerate(rest):
        fresh = n == 0 and combined is first
        combined = combined.add(part, alpha=coefficient) if fresh else combined.add_(part, alpha=coefficient)
    return combined


def squares(rows: Sequence[Pieces], combinations: Sequence[Sequence[float]] = ()) -> Tensor:
    """Squared lengths of R vectors and C combinations, as `gram` has them on its diagonal: (R + C,), float64."""
    return inner(rows, [(r, r) for r in range(len(rows) + len(combinations))], combinations)


def products(rows: Sequence[Pieces], vector: Pieces) -> Tensor:
    """<row_r, vector> for each of R rows cut into the same pieces as `vector`. Returns (R,), float64."""
    return fine_products([(rows, vector)])[0]


def fine_products(problems: Sequence[tuple[Sequence[Pieces], Pieces]]) -> list[Tensor]:
    """`products(rows, vector)` of each problem; together they cost little more than one.

    Fine enough to be subtracted, with the same rows and the vector before and after a small change, as long sums are in
    float64: in units of |change| |row| the difference is off by 4e-5 at most for a change of a 10,000th of the vector,
    and by 2e-3 for a millionth, where float32 has hardly a digit left for the change itself.
    """
    terms = []
    for rows, vector in problems:
        terms += _terms([*rows, vector], [(r, len(rows)) for r in range(len(rows))], (), _fine_dot, _short)
    sums = _added_up(terms, _device(row for rows, vector in problems for row in (vector, *rows)))
    return list(torch.split(sums, [len(rows) for rows, _ in problems])) if problems else []


def _fine_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, 0-d, float64. On a CPU conversions cost, so there only what is short is multiplied in float64."""
    if a.device.type != "cpu":
        return (a * b).sum(dtype=torch.float64)
    return torch.dot(a.double(), b.double()) if a.numel() <= _EXACT else torch.dot(a, b).double()


def gained(rows: Sequence[Pieces], combinations: Sequence[Sequence[float]], known: Tensor) -> Tensor:
    """What a Gram matrix of estimates gains when the true lengths of one row are known, piece by piece.

    rows: R rows of P pieces, all of P are tensors of one shape in the last row, whose true squared lengths are `known`,
    (P,). combinations: C lists of R coefficients, as in `gram`. In each piece a row is c times the last row and a rest
    at right angles to it; of the inner product of two rows the part c_i c_j |last|^2 is put right, the rest is left.
    Returns (R + C, R + C), float64, to be added to `gram(rows, combinations)`; zero where an estimate is zero or not
    finite.
    """
    with torch.no_grad():
        last = torch.stack([piece.reshape(-1) for piece in rows[-1] if piece is not None]).double()
        products = torch.zeros(len(last), len(rows) + len(combinations), dtype=torch.float64, device=last.device)
        for r, row in enumerate(rows):
            there = [p for p, piece in enumerate(row) if piece is not None]
            if there:
                own = torch.stack([piece.reshape(-1) for piece in row if piece is not None]).double()
                products[there, r] = (own * last[there]).sum(1)
        for c, coefficients in enumerate(combinations, len(rows)):
            for r, coefficient in enumerate(coefficients):
                products[:, c] += coefficient * products[:, r]
        squares = products[:, len(rows) - 1]
        factors = (known.double().to(squares) - squares) / squares.square()
        good = factors.isfinite() & products.isfinite().all(1)
        products, factors = products[good], factors[good]
        return (products * factors[:, None]).t() @ products


def norms(pieces: Sequence[Tensor]) -> Tensor:
    """L2 norm of each piece: (P,), float32 or wider, so that half-precision gradients do not overflow."""
    if not pieces:
        return torch.zeros(0)
    with torch.no_grad():
        wide = any(piece.dtype in (torch.float64, torch.complex128) for piece in pieces)
        dtype = torch.float64 if wide else torch.float32
        if all(piece.device.type == "cpu" for piece in pieces):
            flat = [flattened(piece, dtype) for piece in pieces]
            return torch.stack([torch.dot(vector, vector) for vector in flat]).sqrt()  # in half the time
        dense = [piece.coalesce().to_dense() if piece.is_sparse else piece.detach() for piece in pieces]
        dense = [torch.view_as_real(piece) if piece.is_complex() else piece for piece in dense]
        return torch.stack([n.to(dense[0].device) for n in torch._foreach_norm(dense, 2, dtype=dtype)])


_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sums(pieces: Pieces) -> list[int | None]:
    """The sum of the bit patterns of each piece, None for one that is empty: the same for the same bits, on any rank.

    Sums of integers do not depend on order. Norms would not do: how a product is summed may depend on where in memory
    the vector begins.
    """
    sums: list[Tensor] = []
    places: list[int] = []
    with torch.no_grad():
        for index, piece in enumerate(pieces):
            if piece is not None and piece.numel():
                dense = piece.coalesce().values() if piece.is_sparse else piece.detach()
                dense = torch.view_as_real(dense) if dense.is_complex() else dense
                sums.append(dense.view(_SIGNED[dense.element_size()]).sum(dtype=torch.int64))
                places.append(index)
        found = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
    each: list[int | None] = [None] * len(pieces)
    for place, one in zip(places, found, strict=True):
        each[place] = one
    return each


def fingerprint(pieces: Pieces) -> int:
    """A number that is the same for the same bits, on any rank and device."""
    return joined(bit_sums(pieces))


def joined(sums: Sequence[int | None]) -> int:
    """One number for several bit sums, with an odd factor per place: pieces cannot change places unseen."""
    return sum((2 * place + 1) * (one + 1) for place, one in enumerate(sums) if one is not None) % 2**63
