"""What a loss means. The kind decides which metrics belong to it and how rules judge it."""

from __future__ import annotations

from collections.abc import Mapping

from lossdoctor.errors import UsageError, mismatch

KINDS = ("distill", "kl", "velocity", "other")
_SIGNS = {
    "distill": ("dino", "distill", "teacher", "ibot"),
    "kl": ("kl", "prior"),
    "velocity": ("flow", "velocity", "fm", "cfm"),
}


def guess_kind(name: str) -> str:
    """The kind of a loss by the words in its name: "kl_z0" is a kl, "dino" a distill, "flow_loss" a velocity."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    for kind, signs in _SIGNS.items():
        if any(word == sign or (len(sign) > 2 and word.startswith(sign)) for word in words for sign in signs):
            return kind
    return "other"


def checked_kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """The mapping itself; UsageError when it names an unknown kind."""
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise UsageError(
                mismatch(f"kinds[{name!r}] is not a kind of loss", " | ".join(KINDS), repr(kind), "use one of these")
            )
    return dict(kinds)
