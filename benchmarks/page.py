"""A page of results that several benchmarks write, each its own part."""

from __future__ import annotations

import re
from pathlib import Path


def write_part(page: Path, name: str, text: str) -> None:
    """Replace the part of the page between its marks. Raises ValueError when the page has no such part."""
    begin, end = f"% part: {name}\n", f"% end: {name}\n"
    found = re.search(re.escape(begin) + "(.*?)" + re.escape(end), page.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no part {name!r}: it begins with the line {begin!r} and ends with {end!r}")
    whole = found.string
    page.write_text(f"{whole[: found.start()]}{begin}{text}{end}{whole[found.end() :]}", encoding="utf-8")
