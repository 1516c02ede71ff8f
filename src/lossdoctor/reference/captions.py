"""What is said about a digit, in many ways, and the tokenizer that reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossdoctor.errors import UsageError, mismatch

WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES: Final = (
    "{word}",
    "{figure}",
    "digit {figure}",
    "the number {word}",
    "a handwritten {word}",
    "the handwritten digit {word}",
    "a scanned {word}",
    "a small picture of a {word}",
    "a picture of the digit {figure}",
    "an image of the number {figure}",
    "the figure {figure} written by hand",
    "someone wrote a {figure}",
)

MAX_WORDS: Final = 16
_WORD = re.compile(r"[a-z]+|\d")
_PAD, _UNKNOWN = "<pad>", "<unk>"


def captions_of(digit: int) -> tuple[str, ...]:
    """Every caption of a digit, one per template. Raises UsageError unless 0 <= digit <= 9."""
    if not 0 <= digit < len(WORDS):
        raise UsageError(mismatch("There are ten digits.", "0 to 9", f"{digit}", "Ask for one of them."))
    return tuple(template.format(word=WORDS[digit], figure=digit) for template in TEMPLATES)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Captions as numbers. ids: (B, L) int64. mask: (B, L) bool, True where there is a word."""

    ids: Tensor
    mask: Tensor

    def rows(self, index: Tensor) -> Tokens:
        """The captions at `index` (n,), int64."""
        return Tokens(self.ids[index], self.mask[index])

    def to(self, device: torch.device | str) -> Tokens:
        """The same captions on another device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class Tokenizer:
    """Lower-case words and single figures, each with a number; a word it never saw is <unk>."""

    def __init__(self) -> None:
        known = sorted({word for digit in range(len(WORDS)) for text in captions_of(digit) for word in split(text)})
        self.vocabulary: tuple[str, ...] = (_PAD, _UNKNOWN, *known)
        self._number = {word: number for number, word in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, captions: Sequence[str]) -> Tokens:
        """Padded to the longest. Raises UsageError for no caption at all, an empty one, or one over MAX_WORDS words."""
        rows = [[self._number.get(word, self._number[_UNKNOWN]) for word in split(text)] for text in captions]
        if not rows or not all(0 < len(row) <= MAX_WORDS for row in rows):
            got = "no caption" if not rows else repr(max(captions, key=lambda text: len(split(text)) or MAX_WORDS + 1))
            todo = 'Write, for example, "a handwritten seven".'
            raise UsageError(mismatch("A caption is a few words.", f"1 to {MAX_WORDS} words each", got, todo))
        ids = torch.full((len(rows), max(map(len, rows))), self._number[_PAD])
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        return Tokens(ids, ids != self._number[_PAD])

    def decode(self, tokens: Tokens) -> list[str]:
        """The captions as words with single spaces, padding left out."""
        pairs = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
        return [" ".join(self.vocabulary[i] for i, kept in zip(*pair, strict=True) if kept) for pair in pairs]


def split(caption: str) -> list[str]:
    """The words and single figures of a caption, in lower case."""
    return _WORD.findall(caption.lower())
