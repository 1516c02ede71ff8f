"""From the gradients of one rank to those of the global batch.

The backward of DistributedDataParallel leaves the mean over ranks in `.grad`, while an extra pass with `autograd.grad`
gives the gradient of the rank's own batch. So the vectors of the extra passes are averaged first, and everything else
follows as on one process: the derived loss, inner products, norms. (Norms averaged over ranks would read too high.)
The ranks must hold the same vectors for that, so first they compare what they have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lossdoctor import linalg
from lossdoctor.probe.ledger import Ledger
from lossdoctor.probe.linearity import CALIBRATE_EVERY
from lossdoctor.probe.ranks import Ranks

Layout = dict[str, Any]
"""What a rank tells of its ledger: plain JSON, a few bytes per loss and a bit per parameter."""
_SAME = 1e-5
"""Two gradients of different batches are not of one length to this precision."""


def layout(ledger: Ledger) -> Layout:
    """What this rank has measured.

    `losses`: name to weight. `derived`: the loss without a pass; `owners`: digest of where else one has none.
    `parameters`: digest of all shapes and dtypes. `rows`, `lost`: which parameters each vector has a piece for.
    `sketched`: the parameters whose pieces are sketches. `total`: fingerprint of the total gradient, and the length of
    what is only known as a sketch of it, since how a product is summed may depend on where in memory it begins.
    `seconds`: of each pass.
    """
    sketched = ledger.sketched
    shapes = [(tuple(p.shape), str(p.dtype)) for p in ledger.where.parameters]
    return {
        "losses": ledger.losses,
        "derived": ledger.derived,
        "owners": _digest(ledger.owners),
        "parameters": _digest(shapes),
        "rows": {name: _bits(row) for name, row in ledger.rows.items()},
        "lost": _bits([ledger.lost.get(i) for i in range(len(shapes))]),
        "sketched": sorted(sketched),
        "total": [
            _bits(ledger.total),
            linalg.fingerprint([_unless(i in sketched, g) for i, g in enumerate(ledger.total)]),
        ],
        "length": float(linalg.norms(list(ledger.known.norms.values())).square().sum().sqrt()),
        "seconds": ledger.seconds,
    }


@dataclass(frozen=True, slots=True)
class Apart:
    """Why gradients of a step cannot be those of the global batch. what: a word for it; the layouts say how."""

    what: str


def averaged(ledger: Ledger, layouts: Sequence[Layout], ranks: Ranks) -> Apart | None:
    """Make the ledger that of the global batch, the same bits on every rank. None when done, else why not.

    layouts: of all ranks, in order. A loss that some ranks do not have counts as zero there. Every rank must call this;
    whether vectors are exchanged follows from the layouts alone.
    """
    if ledger.summed is not None:
        return _of_shards(ledger, layouts)
    first, linearity = layouts[0], ledger.linearity
    losses = _union(layouts)
    if any(one["losses"].keys() != losses.keys() for one in layouts):
        # Each rank would choose the loss to leave out among its own.
        linearity.derives = False
    for what in ("parameters", "derived", "owners", "sketched"):
        if any(one[what] != first[what] for one in layouts):
            linearity.age = CALIBRATE_EVERY  # all losses get a pass next time, on every rank
            return Apart(what)
    if any(weight != losses[name] for one in layouts for name, weight in one["losses"].items()):
        return Apart("weights")
    like = ledger.pieces()
    size = len(like)
    names = [name for name in losses if any(name in one["rows"] for one in layouts)]
    lost = [ledger.lost.get(i) for i in range(size)]
    # The lists themselves: what is averaged is replaced at once, so that there are never two copies of everything.
    rows = [ledger.rows.setdefault(name, [None] * size) for name in names]
    there = [_any([one["rows"].get(name, "0") for one in layouts], size) for name in names]
    if any(one["lost"] != "0" for one in layouts):
        rows.append(lost)
        there.append(_any([one["lost"] for one in layouts], size))
    if not reduced(layouts):
        rows.append(ledger.total)
        there.append(_any([one["total"][0] for one in layouts], size))
        ledger.known.norms.clear()  # of this rank's own
    ranks.average(rows, there, like)
    ledger.losses = losses
    ledger.lost = {i: piece for i, piece in enumerate(lost) if piece is not None}
    ledger.seconds = _mean_seconds(layouts)
    ledger.calibrating = ledger.everywhere and bool(names) and not ledger.foreign_backward
    return None


def reduced(layouts: Sequence[Layout]) -> bool:
    """Whether the ranks had the same total gradient, to the bit: something has averaged it already."""
    first = layouts[0]
    return all(
        one["total"] == first["total"] and math.isclose(one["length"], first["length"], rel_tol=_SAME)
        for one in layouts
    )


def _of_shards(ledger: Ledger, layouts: Sequence[Layout]) -> Apart | None:
    """The ranks hold parts of the same vectors, averaged already; they only have to hold the same ones."""
    for what in ("losses", "derived", "rows", "lost"):
        if any(one[what] != layouts[0][what] for one in layouts):
            ledger.linearity.age = CALIBRATE_EVERY
            return Apart(what)
    ledger.seconds = _mean_seconds(layouts)
    return None


def _unless(hidden: bool, piece: Tensor | None) -> Tensor | None:
    return None if hidden else piece


def _union(layouts: Sequence[Layout]) -> dict[str, float]:
    losses: dict[str, float] = {}
    for one in layouts:
        for name, weight in one["losses"].items():
            losses.setdefault(name, weight)
    return losses


def _mean_seconds(layouts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """So that all ranks find the same loss the most expensive one."""
    each: dict[str, list[float]] = {}
    for one in layouts:
        for name, seconds in one["seconds"].items():
            each.setdefault(name, []).append(seconds)
    return {name: sum(found) / len(found) for name, found in each.items()}


def _digest(facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _bits(pieces: linalg.Pieces) -> str:
    return f"{sum(1 << i for i, piece in enumerate(pieces) if piece is not None):x}"


def _any(masks: Sequence[str], size: int) -> list[bool]:
    joined = 0
    for mask in masks:
        joined |= int(mask, 16)
    return [bool(joined >> i & 1) for i in range(size)]
