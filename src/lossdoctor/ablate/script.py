"""What a script has for arms to change, as its baselines noted it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from lossdoctor.ablate.expectations import Runs
from lossdoctor.arms import ALL, Change, parse
from lossdoctor.errors import UsageError, mismatch

_PLACES = {
    **dict.fromkeys(("only", "without", "weight", "warmup"), "losses"),
    **dict.fromkeys(("lr", "wd"), "heads"),
    "knob": "knobs",
}


@dataclass(frozen=True, slots=True)
class Script:
    """Names, sorted. conditioned: whether it passes a condition through `lossdoctor.condition`."""

    losses: tuple[str, ...]
    heads: tuple[str, ...]
    knobs: tuple[str, ...]
    conditioned: bool

    @classmethod
    def of(cls, baseline: Runs) -> Self:
        """Of the runs of its baseline by seed."""
        losses = {name for run in baseline.values() for name in run.meta.get("losses") or {}}
        losses |= {name.partition("/")[2] for run in baseline.values() for name in run if name.startswith("loss/")}
        heads = {name for run in baseline.values() for name in run.meta.get("heads") or ()}
        told = [run.meta.get("experiment") or {} for run in baseline.values()]
        knobs = {name for one in told for name in one.get("knobs") or ()}
        conditioned = any(bool(one.get("conditions")) for one in told)
        return cls(tuple(sorted(losses - {"total"})), tuple(sorted(heads)), tuple(sorted(knobs)), conditioned)

    def has(self, change: Change) -> bool:
        """Whether there is what a change is about. The head `all` always is; a balancer is nothing of the script."""
        if change.verb == "shuffle":
            return self.conditioned
        place = _PLACES.get(change.verb)
        return place is None or change.target in self._names(place)

    def check(self, arms: Iterable[str]) -> None:
        """Raises UsageError for arms that cannot be applied, with all that there is."""
        if lacking := list(dict.fromkeys(self._lacking(arms))):
            there = "; ".join(
                f"{place}: {', '.join(self._names(place)) or 'none'}" for place in ("losses", "heads", "knobs")
            )
            condition = "" if self.conditioned else "; no condition: it does not call lossdoctor.condition"
            raise UsageError(
                mismatch(
                    "The script does not have what these arms change.",
                    f"{there}{condition}",
                    ", ".join(lacking),
                    "name what there is; the baselines are kept, so that the next try begins with the arms",
                )
            )

    def _lacking(self, arms: Iterable[str]) -> Iterator[str]:
        for arm in arms:
            changes = parse(arm).changes
            missing = [change for change in changes if not self.has(change)]
            yield from (f"{change} (in {arm})" if len(changes) > 1 else str(change) for change in missing)

    def _names(self, place: str) -> tuple[str, ...]:
        return (ALL, *self.heads) if place == "heads" else self.losses if place == "losses" else self.knobs
