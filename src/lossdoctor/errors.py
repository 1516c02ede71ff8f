"""Errors a user can meet. Each message says what was expected, what was got, and what to do."""

from __future__ import annotations


class LossDoctorError(Exception):
    """Base of every error this library raises on purpose."""


class UsageError(LossDoctorError, ValueError):
    """The library was called in a way that cannot be right."""


class ShapeError(UsageError):
    """Two tensors do not have the shapes that belong together."""


class MissingExtraError(LossDoctorError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'lossdoctor[{extra}]'"
        )


class PluginError(LossDoctorError, ImportError):
    """Something of another package, found by its entry point, cannot be used."""


class RunError(LossDoctorError):
    """A run folder cannot be used: not a run, of another version, or torn beyond repair."""


class RunExistsError(RunError):
    """The folder already holds a run, and writing here would mix the two."""


class RunLockedError(RunError):
    """Another process is writing this run at this moment."""


class RunWriteError(RunError):
    """A run folder cannot be written: read-only, full, or not a folder."""


class LossDoctorWarning(UserWarning):
    """Something is not measured or not saved; training goes on."""


def mismatch(rule: str, expected: str, got: str, todo: str) -> str:
    """One shape for every error text: the rule broken, what was expected, what was got, what to do."""
    return f"{rule}\n  expected: {expected}\n  got:      {got}\n  to do:    {todo}"
