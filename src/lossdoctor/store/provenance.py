"""Where a run comes from: versions, machine kind, git commit. Never a path, a user name or an environment variable."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib import metadata


def provenance() -> dict[str, object]:
    """Facts for meta.json; a fact that cannot be had is None."""
    return {
        "created": time.time(),
        "versions": {name: _version(name) for name in ("lossdoctor", "torch", "numpy")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the working folder, with "+" when there are uncommitted changes."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, timeout=2, check=True, stdin=subprocess.DEVNULL
    ).stdout.strip()
