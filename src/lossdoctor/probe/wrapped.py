"""DistributedDataParallel around the user's model: found wherever it is, and kept from noticing the doctor."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wrappers_of(parameters: Sequence[nn.Parameter]) -> tuple[DistributedDataParallel, ...]:
    """Every wrapper that averages gradients of one of these parameters.

    The user may have given the inner module, which does not know its wrapper, and may call the wrapper inside a
    closure; so all living objects are looked through: 0.1 s for half a million, to be asked once. By type, each type
    once: `isinstance` wakes up lazy modules, and for a class with an abstract base it takes seconds.
    """
    ids = set(map(id, parameters))
    living = gc.get_objects()
    kinds = {kind for kind in set(map(type, living)) if DistributedDataParallel in kind.__mro__}
    found = [one for one in living if type(one) in kinds]
    return tuple(one for one in found if any(id(p) in ids for p in one.parameters()))


def must_wait(wrappers: Iterable[DistributedDataParallel]) -> bool:
    """Whether an extra pass would break a wrapper: with `static_graph` before the end of its first backward.

    That backward tells the wrapper which gradients to wait for; an extra pass would be taken for it, and the ranks
    would be out of step for ever, silently.
    """
    return any(one.static_graph and not one._static_graph_delay_allreduce_enqueued for one in wrappers)


@contextlib.contextmanager
def quiet(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Extra forwards inside talk to no other rank, and leave no trace in the wrappers among the modules.

    A forward of a wrapper sends rank 0's buffers to all, which would wait for ranks that do not ask their model now;
    and one without gradients makes the wrapper leave that out before the next training forward.
    """
    found = [one for one in modules if isinstance(one, DistributedDataParallel)]
    before = [one.require_forward_param_sync for one in found]
    for one in found:
        one.require_forward_param_sync = False
    try:
        yield
    finally:
        for one, wanted in zip(found, before, strict=True):
            one.require_forward_param_sync = wanted
