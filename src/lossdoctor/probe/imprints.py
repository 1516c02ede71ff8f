"""What a rank tells of its data, its noise and its weights in a few numbers, so that ranks can be compared.

Nothing is asked of the model and no random number of the training is drawn. What must be the same bits is told as a sum
of bit patterns; the noise of a posterior, which is found again only up to rounding, as a few of its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lossdoctor import linalg
from lossdoctor.probe.capture import Capture
from lossdoctor.probe.snapshot import PosteriorBatch

Imprint = int | list[float]

VALUES = 8
"""Of the noise. Two standard normal numbers are within `NEAR` of each other once in 60 times, eight never."""
NEAR = 0.02
"""Share of the largest value by which the same noise may differ: z, mu and logvar are rounded."""
BUCKETS = 16
"""Numbers per tensor by which distances are estimated, to about 20 % for one tensor."""
_PIECES = 8
"""Sums per tensor, so that samples in another order are other bits."""
_CHUNK = 2**20


def imprints(capture: Capture) -> dict[str, Imprint]:
    """Of what was handed in last, by "<family>.<argument>"; "posterior.noise" is (z - mu) / sigma.

    Left out: a time that is one for the whole batch, which may be a schedule, and noise that is not there (z = mu).
    """
    handed = dict(_handed(capture))
    pieces = [piece for tensor in handed.values() for piece in tensor.detach().reshape(-1).chunk(_PIECES)]
    sums = iter(linalg.bit_sums(pieces))
    found: dict[str, Imprint] = {
        name: linalg.joined([next(sums) for _ in tensor.reshape(-1).chunk(_PIECES)]) for name, tensor in handed.items()
    }
    noise = [values for batch in capture.posteriors[-1:] for values in _noise(batch)]
    if any(noise):
        found["posterior.noise"] = noise
    return found


def alike(a: Imprint, b: Imprint) -> bool:
    """Whether two imprints are of the same thing."""
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    bar = NEAR * max(map(abs, a))
    return len(a) == len(b) and all(abs(x - y) <= bar for x, y in zip(a, b, strict=True))


def sketched(tensors: Sequence[Tensor]) -> Tensor:
    """(P, BUCKETS + 1), float64 on the host: of each tensor a linear sketch, and its squared length in the last column.

    The squared distance of two sketches estimates that of the tensors without bias. The signs are the same on every
    rank with the same kind of device.
    """
    rows = []
    with torch.no_grad():
        for place, tensor in enumerate(tensors):
            flat = linalg.flattened(tensor, torch.float64 if tensor.dtype == torch.float64 else torch.float32)
            signs = torch.Generator(flat.device).manual_seed(place)
            row = flat.new_zeros(BUCKETS + 1, dtype=torch.float64)
            for part in torch.split(flat, _CHUNK):
                padded = torch.nn.functional.pad(part.double(), (0, -part.numel() % BUCKETS)).view(-1, BUCKETS)
                sign = torch.randint(0, 2, (len(padded), 1), generator=signs, device=flat.device) * 2.0 - 1.0
                row[:-1] += (padded * sign).sum(0)
                row[-1] += padded.square().sum()
            rows.append(row)
        return torch.stack([row.to(rows[0].device) for row in rows]).cpu() if rows else torch.zeros(0, BUCKETS + 1)


def _handed(capture: Capture) -> Iterator[tuple[str, Tensor]]:
    for flow in capture.flows[-1:]:
        for name in ("z0", "z1", "v_target"):
            if isinstance(tensor := getattr(flow, name), Tensor):
                yield f"flow.{name}", tensor
        if len(flow.t) == 1 or (flow.t_like.numel() > 1 and bool((flow.t != flow.t[0]).any())):
            yield "flow.t", flow.t
    for posterior in capture.posteriors[-1:]:
        yield "posterior.mu", posterior.mu
    for distill in capture.distills[-1:]:
        yield "distill.teacher_logits", distill.teacher_logits


def _noise(batch: PosteriorBatch) -> list[float]:
    """A few of the standard normal numbers z was made with; nothing when it was not, or when they cannot be told."""
    if batch.z is None or batch.z.shape != batch.mu.shape or batch.mu.numel() < VALUES:
        return []
    every = batch.mu.numel() // VALUES
    z, mu, logvar = (
        tensor.expand_as(batch.mu).reshape(-1)[::every][:VALUES].double()
        for tensor in (batch.z, batch.mu, batch.logvar)
    )
    noise: list[float] = ((z - mu) * torch.exp(-logvar / 2)).tolist()
    return noise if all(map(math.isfinite, noise)) else []
