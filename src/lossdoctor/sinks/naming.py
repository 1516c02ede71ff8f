"""Names of metrics for trackers that do not allow every text: escaped, and read back exactly."""

from __future__ import annotations

import hashlib
import re

_ESCAPED = re.compile(r"-u([0-9a-f]{2,6})-")
_LOOKS_ESCAPED = re.compile(r"-(?=u)")
EMPTY = "-u-"


def escaped(name: str, refused: re.Pattern[str], longest: int) -> str:
    """The name with every refused character as `-u<hexadecimal code>-`: `a|b` is `a-u7c-b`.

    refused: matches single characters. A dash before a "u" is escaped too, so that `unescaped` gives the name back.
    What is longer than `longest` then is cut and ends with a digest: apart from others, but not to be read back.
    """
    found = _LOOKS_ESCAPED.sub("-u2d-", name)
    found = refused.sub(lambda match: f"-u{ord(match[0]):02x}-", found) or EMPTY
    if len(found) > longest:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        found = f"{found[: longest - 17]}-{digest[:16]}"
    return found


def unescaped(name: str) -> str:
    """The name that was escaped."""
    if name == EMPTY:
        return ""
    return _ESCAPED.sub(lambda match: chr(code) if (code := int(match[1], 16)) <= 0x10FFFF else match[0], name)
