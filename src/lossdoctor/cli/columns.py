"""Help texts in languages whose characters take two columns and have no spaces between words.

Click breaks lines at spaces and counts characters. So every wide character gets a mark behind it, which makes it two
long, and is a space where a line may end; after the lines are broken the marks are taken out again.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import click

_NOT_FIRST = "，。；：、？！）》”’…"
"""What no line begins with."""
_NOT_LAST = "（《“‘"
"""What no line ends with."""
_WHOLE = re.compile(r"(?<=\[)\w+(?=：)|\w(?=\w[。]|\w$)")
"""What stays on one line with what follows it: the word of a default, and the last two characters of a sentence."""
_GLUE = "\0"
_MARKED = re.compile(rf"([^\x00-\u2e7f])[ {_GLUE}]?")


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _marked(text: str) -> str:
    """The text with a mark behind every wide character."""
    following = [*text[1:], ""]
    whole = {place for found in _WHOLE.finditer(text) for place in range(*found.span())}
    return "".join(
        character
        if not _wide(character)
        else character + (_GLUE if at in whole or character in _NOT_LAST or (after and after in _NOT_FIRST) else " ")
        for at, (character, after) in enumerate(zip(text, following, strict=True))
    )


class Formatter(click.HelpFormatter):
    """Breaks lines by columns."""

    def write_text(self, text: str) -> None:
        """Paragraphs."""
        with self._room_for_a_mark(text):
            super().write_text(_marked(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """A table of names and what they mean."""
        named = list(rows)
        with self._room_for_a_mark(*(meaning for _, meaning in named)):
            super().write_dl([(name, _marked(meaning)) for name, meaning in named], col_max, col_spacing)

    @contextlib.contextmanager
    def _room_for_a_mark(self, *texts: str) -> Iterator[None]:
        # The mark of a line's last character is dropped where the line ends, and its column with it.
        narrower = any(_wide(character) for text in texts for character in text)
        self.width -= narrower
        try:
            yield
        finally:
            self.width += narrower

    def getvalue(self) -> str:
        """Everything written, without marks."""
        return _MARKED.sub(lambda found: found[1] if _wide(found[1]) else found[0], super().getvalue())


class Context(click.Context):
    """The context of every command of ours."""

    formatter_class = Formatter
