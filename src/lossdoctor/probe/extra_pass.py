"""One extra pass: the gradient of one loss, with everything the pass could move put back where it was.

Most passes are `torch.autograd.grad`. Where parameters are reached by an ordinary backward only (sharded ones, those in
a reentrant checkpoint), the pass is one, with `.grad` taken away before and put back after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossdoctor.errors import LossDoctorError, mismatch
from lossdoctor.probe.belongings import Belongings
from lossdoctor.probe.neutrality import same_randomness
from lossdoctor.probe.obstacles import Node
from lossdoctor.probe.sharded import by_backward

Differentiate = Callable[[Tensor, Sequence[Tensor]], "list[Tensor | None]"]


class PassError(LossDoctorError, RuntimeError):
    """An extra pass did something that a pass must not do."""


@dataclass(frozen=True, slots=True)
class ExtraPass:
    """How the passes of one micro-batch are made.

    ordinary: by an ordinary backward. custom: nodes of functions that may use up what they keep; belongings: what is
    known of them.
    """

    parameters: Sequence[nn.Parameter]
    belongings: Belongings
    custom: Sequence[Node] = ()
    ordinary: bool = False

    def gradients(
        self, loss: Tensor, z1: Tensor | None, differentiate: Differentiate, skipped: Collection[int] = ()
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """The gradient in every parameter, None where unused, and in z1 where asked for and an ordinary graph has it.

        skipped: indices of parameters that need none: an ordinary pass goes no further than the others ask.
        Raises PassError when a parameter moved during the pass, or when a function wrote into `.grad` by itself.
        """
        versions = [p._version for p in self.parameters]
        with same_randomness(loss.device), self.belongings.kept(self.custom):
            if self.ordinary:
                found, of_z1 = by_backward(loss, self.parameters), None
            else:
                asked = [i for i in range(len(self.parameters)) if i not in skipped]
                inputs = [*(self.parameters[i] for i in asked), *([] if z1 is None else [z1])]
                got = self._unwritten(loss, inputs, differentiate) if inputs else []
                of_z1 = None if z1 is None else got.pop()
                found = [None] * len(self.parameters)
                for i, gradient in zip(asked, got, strict=True):
                    found[i] = gradient
        if versions != [p._version for p in self.parameters]:
            raise PassError(
                mismatch(
                    "parameters moved during an extra pass",
                    "hooks that leave parameters alone until their gradient is in .grad",
                    "a hook on a tensor or a module that steps an optimizer or writes to a parameter",
                    "step in register_post_accumulate_grad_hook, which no extra pass calls",
                )
            )
        return found, of_z1

    def _unwritten(self, loss: Tensor, inputs: Sequence[Tensor], differentiate: Differentiate) -> list[Tensor | None]:
        """`differentiate`, with `.grad` out of reach of functions that are not known to leave it alone."""
        strange = {type(node).__name__ for node in self.custom if type(node) not in self.belongings.trusted}
        if not strange:
            return differentiate(loss, inputs)
        before = [(p, p.grad) for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        try:
            # Some write only when what arrives is not 1, as it is not in the real backward. A half costs no digit.
            found = [None if g is None else g * 2 for g in differentiate(loss * 0.5, inputs)]
            wrote = any(p.grad is not None for p in self.parameters)
        finally:
            for p, grad in before:
                p.grad = grad
        if wrote:
            raise PassError(
                mismatch(
                    "a function writes into .grad in its own backward, so gradients of single losses cannot be told",
                    "functions that return their gradients",
                    ", ".join(sorted(strange)),
                    'use a non-reentrant checkpoint, or Doctor(..., gradients="off")',
                )
            )
        return found


def exactly(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """`torch.autograd.grad`, None where an input is unused; the graph is kept."""
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True))
