"""What is known exactly of a sketched weight: how long the total gradient is. It is in `.grad`, and costs one norm.

It serves twice. Of every loss's sketch, the part along the total is put right: where one loss makes up a weight's
gradient, its norm is then as good as exact, and shares still sum to 1. And sketches that do not add up to the total
tell of a gradient that was rewritten where no sketch sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lossdoctor import linalg


@dataclass(slots=True)
class KnownLengths:
    """norms: of the gradients that lie in `.grad` after the last backward, 0-d, by parameter."""

    norms: dict[int, Tensor] = field(default_factory=dict)

    def take(self, sketched: Sequence[int], grads: Sequence[Tensor | None]) -> None:
        """Look at the gradients of the sketched weights."""
        there = [(i, grad) for i in sketched if (grad := grads[i]) is not None]
        norms = linalg.norms([grad for _, grad in there])
        self.norms = dict(zip((i for i, _ in there), norms, strict=True))

    def of(self, indices: Sequence[int], held: Sequence[Tensor | None]) -> Tensor:
        """Norms of the total gradients of these parameters, (n,), in any order; `held` are those that are exact."""
        exact = linalg.norms([g for i in indices if i not in self.norms and (g := held[i]) is not None])
        sketched = [self.norms[i] for i in indices if i in self.norms]
        return torch.cat([exact.to(sketched[0]), torch.stack(sketched)]) if sketched else exact

    def put_right(
        self,
        gram: Tensor,
        indices: Sequence[int],
        rows: Sequence[linalg.Pieces],
        combinations: Sequence[Sequence[float]],
        *,
        order: Sequence[int],
        before: linalg.Pieces,
    ) -> Tensor:
        """The Gram matrix of some parameters' rows, the total being the last, with all that the lengths say of it.

        gram: as `linalg.grams` reports it in this order. before: what was in `.grad` before the step, as it is held;
        where that was not nothing, the length is not known.
        """
        shapes: dict[torch.Size, list[int]] = {}
        for i in indices:
            if i in self.norms and (total := rows[-1][i]) is not None:
                shapes.setdefault(total.shape, []).append(i)
        for alike in shapes.values():
            pieces = [[row[i] for i in alike] for row in rows]
            squares = torch.stack([self._square(i, before[i]) for i in alike])
            gram = gram + linalg.gained(pieces, combinations, squares)[order][:, order].to(gram)
        return gram

    def _square(self, i: int, before: Tensor | None) -> Tensor:
        square = self.norms[i].double().square()
        return square if before is None else torch.where(before.any(), torch.nan, square)

    def doubts(
        self, rows: Mapping[str, linalg.Pieces], weights: Mapping[str, float], total: linalg.Pieces
    ) -> dict[int, Tensor]:
        """|g - sum w_i g_i| / (|g| + sum |w_i g_i|) of each sketched weight, 0-d, by parameter."""
        found: dict[int, Tensor] = {}
        for i in self.norms:
            shares = [weights[name] * share.reshape(-1) for name, row in rows.items() if (share := row[i]) is not None]
            whole = total[i]
            if whole is not None and shares:
                left = torch.linalg.vector_norm(whole - torch.stack(shares).sum(0))
                found[i] = left / torch.linalg.vector_norm(torch.stack([whole, *shares]), dim=1).sum()
        return found
