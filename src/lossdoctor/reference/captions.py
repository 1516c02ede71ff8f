"""What is said about a picture, in many ways, and the tokenizer that reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"\d|[{_IDEOGRAPHS}]|[^\W\d_{_IDEOGRAPHS}]+")
_PAD, _UNKNOWN = "<pad>", "<unk>"
_TOKENISED_ONCE: Final = 4096
"""Captions up to which all of them are kept as numbers."""


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
    """Lower-case words and single figures, each with a number; a word it never saw is <unk>.

    captions: whose words it knows, those of the digits by default. vocabulary: of more, the most frequent. words: the
    longest caption.
    """

    def __init__(
        self, captions: Iterable[str] | None = None, *, vocabulary: int = 10**6, words: int = MAX_WORDS
    ) -> None:
        texts = captions or (text for digit in range(len(WORDS)) for text in captions_of(digit))
        counts = Counter(word for text in texts for word in split(text))
        # Ties by the alphabet, so that the numbers depend on the captions alone.
        known = sorted(sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary])
        self.vocabulary: tuple[str, ...] = (_PAD, _UNKNOWN, *known)
        self.words = words
        self._number = {word: number for number, word in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, captions: Sequence[str], *, cut: bool = False) -> Tokens:
        """Padded to the longest. Raises UsageError for no caption at all, an empty one, or one over `words` words.

        cut: what is over is left away instead.
        """
        said = [split(text)[: self.words] if cut else split(text) for text in captions]
        if not said or not all(0 < len(row) <= self.words for row in said):
            got = "no caption" if not said else repr(max(captions, key=lambda text: len(split(text)) or 10**9))
            todo = 'Write, for example, "a handwritten seven".'
            raise UsageError(mismatch("A caption is a few words.", f"1 to {self.words} words each", got, todo))
        rows = [[self._number.get(word, self._number[_UNKNOWN]) for word in row] for row in said]
        ids = torch.full((len(rows), max(map(len, rows))), self._number[_PAD])
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        return Tokens(ids, ids != self._number[_PAD])

    def decode(self, tokens: Tokens) -> list[str]:
        """The captions as words with single spaces, padding left out."""
        pairs = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
        return [" ".join(self.vocabulary[i] for i, kept in zip(*pair, strict=True) if kept) for pair in pairs]


def split(caption: str) -> list[str]:
    """The words and single figures of a caption, in lower case; of Chinese, every sign is a word."""
    return _WORD.findall(caption.lower())


class CaptionBook:
    """Everything that may be said of each label. ways: for each label its captions, those of the digits by default."""

    def __init__(self, tokenizer: Tokenizer, ways: Sequence[tuple[str, ...]] | None = None) -> None:
        self.tokenizer = tokenizer
        self.ways = ways or [captions_of(digit) for digit in range(len(WORDS))]
        self.counts = torch.tensor([len(texts) for texts in self.ways])
        self._begins = self.counts.cumsum(0) - self.counts
        self._even = bool((self.counts == self.counts[0]).all())
        few = int(self.counts.sum()) <= _TOKENISED_ONCE
        self._tokens = tokenizer.encode([text for texts in self.ways for text in texts], cut=True) if few else None

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tokens:
        """One of the captions of each label (B,), drawn anew at every call."""
        if self._even:
            which = torch.randint(int(self.counts[0]), (len(labels),), generator=generator)
        else:
            which = (torch.rand(len(labels), generator=generator) * self.counts[labels]).long()
        if self._tokens is not None:
            return self._tokens.rows(self._begins[labels] + which)
        pairs = zip(labels.tolist(), which.tolist(), strict=True)
        return self.tokenizer.encode([self.ways[label][n] for label, n in pairs], cut=True)
