"""What the user handed in, and how it is asked: without a trace, and with every failure told in words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossdoctor.doctor.examination import owner_of
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.flow.paths import source_time
from lossdoctor.probe import neutrality
from lossdoctor.rules.finding import Message, say

Target = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Velocity = Callable[[Tensor, Any, Any], Tensor]
Sampler = Callable[[Velocity, Tensor, Any, int], Tensor]

SIGNATURES = {
    "target": "target(z0, z1, t) -> (x_t, v_target), t of shape (B, 1, ...)",
    "sampler": "sampler(velocity, z0, cond, steps) -> z1_hat",
    "velocity": "velocity(x, t, cond) -> v, t of shape (B, 1, ...)",
    "kl": "kl(mu, logvar) -> scalar",
    "losses": "losses() -> mapping of names to scalar losses",
}


class Failed(Exception):
    """A function of the user cannot be used. `function` names it, `message` says why."""

    def __init__(self, function: str, message: Message) -> None:
        super().__init__(str(message))
        self.function, self.message = function, message


@dataclass(frozen=True)
class Given:
    """The arguments of `preflight.check`. Tensors are detached copies in float32 or wider, so that no sampler that
    writes into its input, and no half precision, gets in the way."""

    model: nn.Module | None = None
    optimizers: tuple[Optimizer, ...] = ()
    losses: Callable[[], Mapping[str, Tensor]] | None = None
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    teacher: nn.Module | None = None
    target: Target | None = None
    sampler: Sampler | None = None
    velocity: Velocity | None = None
    kl: Callable[[Tensor, Tensor], Tensor] | None = None
    mu: Tensor | None = None
    logvar: Tensor | None = None
    z0: Tensor | None = None
    z1: Tensor | None = None
    cond: Any = None
    null_cond: Any = None
    t_source: float = 0.0
    latent_scale: float | None = None

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """Everything whose state must not change, each once: the modules named, and those that functions belong to."""
        named = [self.model, *self.heads.values(), self.teacher]
        functions = (self.losses, self.target, self.sampler, self.velocity, self.kl)
        owners = [module for function in functions for module in owner_of(function)]
        return tuple({id(m): m for m in (*named, *owners) if m is not None}.values())

    def missing(self, *names: str) -> list[str]:
        """Those of the arguments that were not given."""
        return [name for name in names if getattr(self, name) is None]

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Random streams, modes, buffers and gradients are put back at the end."""
        every = neutrality.every_module(self.modules)
        tensors = [one for one in (self.z0, self.z1, self.mu, self.logvar) if one is not None]
        found = [p.device for m in self.modules for p in m.parameters()] + [one.device for one in tensors]
        device = next((d for d in found if d.type == "cuda"), torch.device("cpu"))
        with (
            neutrality.same_randomness(device),
            neutrality.same_buffers(every),
            neutrality.same_modes(self.modules),
            neutrality.same_gradients(self.modules),
        ):
            yield


def gathered(
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    heads: Mapping[str, nn.Module] | None,
    z0: Any,
    z1: Any,
    mu: Any,
    logvar: Any,
    t_source: float,
    **others: Any,
) -> Given:
    """The arguments, checked as far as no function has to be called. Raises UsageError for what cannot be right."""
    source_time(torch.zeros(()), t_source)
    for name, signature in SIGNATURES.items():
        if others.get(name) is not None and not callable(others[name]):
            got = type(others[name]).__name__
            raise UsageError(mismatch(f"{name} is a function.", signature, got, "pass the function itself"))
    tensors: dict[str, Any] = {
        name: _wide(name, tensor) for name, tensor in (("z0", z0), ("z1", z1), ("mu", mu), ("logvar", logvar))
    }
    for one, other in (("z0", "z1"), ("mu", "logvar")):
        a, b = tensors[one], tensors[other]
        if a is not None and b is not None and a.shape != b.shape:
            rule, expected = f"{one} and {other} have one shape.", f"{tuple(a.shape)}, as {one}"
            got = f"{other} of shape {tuple(b.shape)}"
            raise UsageError(mismatch(rule, expected, got, "pass both for the same batch"))
    optimizers = () if optimizer is None else (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
    return Given(optimizers=optimizers, heads=dict(heads or {}), t_source=t_source, **tensors, **others)


def _wide(name: str, tensor: Any) -> Tensor | None:
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor) or tensor.ndim == 0 or not tensor.numel():
        got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UsageError(mismatch(f"{name} is a batch.", "a tensor (B, ...) that is not empty", got, "pass one batch"))
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(wide, copy=True)


def asked(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the user answers, without gradients. Raises Failed when it raises."""
    try:
        with torch.no_grad():
            return function(*arguments)
    except Failed:
        raise
    except Exception as error:
        raise Failed(name, raised(name, error)) from error


def raised(name: str, error: BaseException) -> Message:
    """What to say of an error that a function of the user raised."""
    told = " ".join(str(error).split())[:500] or "no message"
    return say(
        "preflight.PRE001.raised", function=name, signature=SIGNATURES[name], error=type(error).__name__, told=told
    )


def like(name: str, value: Any, wanted: Tensor, *, what: str = "its result") -> Tensor:
    """The value, if it is a finite tensor of the shape wanted. Raises Failed otherwise."""
    if not isinstance(value, Tensor) or value.shape != wanted.shape:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
        raise Failed(name, unlike(name, what, f"a tensor of shape {tuple(wanted.shape)}", got))
    return finite(name, value, what=what)


def finite(name: str, value: Tensor, *, what: str = "its result") -> Tensor:
    """The value, detached and on the host's floats, if it is finite. Raises Failed otherwise."""
    if not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise Failed(
            name, say("preflight.PRE001.nonfinite", function=name, what=what, count=count, total=value.numel())
        )
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def unlike(name: str, what: str, expected: str, got: str) -> Message:
    """What to say of a result of another type or shape."""
    return say(
        "preflight.PRE001.unlike", function=name, signature=SIGNATURES[name], what=what, expected=expected, got=got
    )


def draw(like: Tensor, seed: int = 0) -> Tensor:
    """Standard normal numbers of a shape, the same every time, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
