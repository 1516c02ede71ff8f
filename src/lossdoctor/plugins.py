"""Rules, sinks and texts of other packages, found by the entry points these declare.

Nothing of a package is imported before it is asked for. What cannot be used is told once, and never stops what asked.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lossdoctor.errors import LossDoctorWarning, PluginError, mismatch

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

Group = Literal["lossdoctor.rules", "lossdoctor.sinks", "lossdoctor.messages"]

SWITCH = "LOSSDOCTOR_PLUGINS"
"""The variable of the environment that keeps other packages out: `off`, `no`, `false` or `0`."""

_told: set[tuple[str, str]] = set()
_once = threading.Lock()


@dataclass(frozen=True, slots=True)
class Plugged:
    """One entry point: `name` in a group, by a version of a package."""

    name: str
    package: str
    version: str
    entry: EntryPoint

    def load(self) -> Any:
        """Import what it names. Raises PluginError, with the package and the reason, whatever goes wrong."""
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:
            raise self.unusable("something that can be imported", error) from error

    def unusable(self, expected: str, got: object) -> PluginError:
        """The error that says why this one cannot be used."""
        shown = f"{type(got).__name__}: {got}" if isinstance(got, BaseException) else str(got)
        return PluginError(
            mismatch(
                f"{self.name} of the package {self.package} {self.version} cannot be used.",
                expected,
                shown,
                f"repair or uninstall {self.package}, or do without plugins: {SWITCH}=off",
            )
        )


def wanted() -> bool:
    """Whether other packages may take part."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("off", "no", "false", "0")


def plugged(group: Group) -> tuple[Plugged, ...]:
    """What is declared in a group, by package and name; a package that is there twice counts where it is found first.

    Imports nothing. Reads the metadata of everything installed: about a tenth of a second.
    """
    if not wanted():
        return ()
    from importlib.metadata import distributions  # here, since the command line imports this module at once

    found: dict[str, list[Plugged]] = {}
    for installed in distributions():
        try:
            declared = _declared(installed, group)
        except Exception as error:
            tell("a package", [f"the metadata of {_where(installed)} cannot be read: {error}"])
            continue
        if declared:
            # As packages are compared: runs of -, _ and . are one and the same, and so is the case.
            found.setdefault(re.sub(r"[-_.]+", "-", declared[0].package).lower(), declared)
    return tuple(one for _, several in sorted(found.items()) for one in sorted(several, key=lambda one: one.name))


def tell(package: str, troubles: Sequence[str]) -> None:
    """Warn that some of a package is not used. The same is told once in a process."""
    text = "\n  ".join([f"Not everything of {package} can be used; the rest goes on without it.", *troubles])
    with _once:
        news = (package, text) not in _told
        _told.add((package, text))
    if news:
        warnings.warn(text, LossDoctorWarning, stacklevel=3)


def told_of(troubles: Mapping[str, Sequence[PluginError]]) -> None:
    """Warn once per package."""
    for package, errors in troubles.items():
        tell(f"the plugin {package}", list(dict.fromkeys(str(error).replace("\n", "\n  ") for error in errors)))


def _declared(installed: Distribution, group: Group) -> list[Plugged]:
    # Most packages have none, and a file that cannot be parsed is our business only where it is about us.
    if "lossdoctor." not in (installed.read_text("entry_points.txt") or ""):
        return []
    ours = [entry for entry in installed.entry_points if entry.group == group]
    if not ours:
        return []
    known = installed.metadata
    return [Plugged(entry.name, known["Name"] or "?", known["Version"] or "?", entry) for entry in ours]


def _where(installed: Distribution) -> str:
    return str(getattr(installed, "_path", None) or "a package")
