"""The files a command leaves behind, made one by one: what fails is told, and does not take the others with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from lossdoctor.errors import RunError


class Results:
    """The files made in one folder. `made` are there, whole; `failed` maps the others to what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.failed: dict[str, str] = {}

    def make(self, name: str, write: Callable[[Path], object]) -> None:
        """Call `write` with the path of a draft, which then takes the name; a full disk leaves no half of a file.

        `write` may return False for "there is nothing to write".
        """
        path = self.folder / name
        # Beside its place and with its suffix, by which writers choose a format.
        draft = path.with_name(f".draft-{name}")
        try:
            if write(draft) is not False:
                draft.replace(path)
                self.made.append(name)
        except (OSError, RuntimeError, RunError) as error:
            # RuntimeError is how torch tells of a disk that is full.
            self.failed[name] = _reason(error)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """One line: what the system said, if it began there, or else what the error says itself."""
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, OSError) and origin.strerror:
            return origin.strerror
        origin = origin.__cause__ or origin.__context__
    return (str(error) or type(error).__name__).splitlines()[0]
