"""The weighted sum of named losses, as a user would write it, with its mistakes refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lossdoctor.errors import UsageError, mismatch


def named_losses(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The losses that are there, 0-d each: None is skipped, a vector averaged, a number taken as a constant."""
    if not isinstance(losses, Mapping):
        raise UsageError(
            mismatch(
                "backward() takes named losses",
                'a mapping such as {"flow": loss_flow, "kl": loss_kl}',
                type(losses).__name__,
                "give each loss a name",
            )
        )
    found: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if isinstance(loss, Tensor):
            found[name] = loss if loss.ndim == 0 else loss.mean()
        elif isinstance(loss, (int, float)):
            found[name] = torch.tensor(float(loss))
        elif loss is not None:
            raise UsageError(
                mismatch(
                    f"loss {name!r} is not a tensor",
                    "a tensor, a number or None",
                    type(loss).__name__,
                    "pass the loss itself",
                )
            )
    if not found:
        raise UsageError(
            mismatch(
                "backward() got no loss", "at least one that is not None", repr(dict(losses)), "skip the step yourself"
            )
        )
    return found


def named_weights(
    losses: Mapping[str, Any], present: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]
) -> dict[str, float | Tensor]:
    """A weight for every loss that is present, 1 where none is given; UsageError for a weight without a loss."""
    unknown = [name for name in weights if name not in losses]
    if unknown:
        raise UsageError(
            mismatch(
                f"weights for unknown losses: {', '.join(map(repr, unknown))}",
                f"names among {', '.join(map(repr, losses))}",
                ", ".join(map(repr, weights)),
                "name the weight as its loss (a loss that is None in this step keeps its weight)",
            )
        )
    return {name: weights.get(name, 1.0) for name in present}


def weighted_total(losses: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """sum_i w_i L_i, added from left to right in the order given."""
    terms = [loss * weights[name] for name, loss in losses.items()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
