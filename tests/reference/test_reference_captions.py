from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.reference.captions import MAX_WORDS, TEMPLATES, WORDS, Tokenizer, captions_of, split

EVERY = [(digit, caption) for digit in range(10) for caption in captions_of(digit)]


@pytest.mark.parametrize(("digit", "caption"), EVERY)
def test_a_caption_names_its_digit_and_no_other(digit: int, caption: str) -> None:
    named = [d for d in range(10) if {WORDS[d], str(d)} & set(split(caption))]
    assert named == [digit]


def test_a_digit_is_described_in_many_ways() -> None:
    assert len(TEMPLATES) >= 10
    assert len({caption for _, caption in EVERY}) == len(EVERY)


@pytest.mark.parametrize("digit", [-1, 10])
def test_there_are_ten_digits(digit: int) -> None:
    with pytest.raises(UsageError, match="0 to 9"):
        captions_of(digit)


def test_known_captions_survive_the_round_trip() -> None:
    tokenizer = Tokenizer()
    texts = [caption for _, caption in EVERY]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def test_case_and_punctuation_do_not_matter() -> None:
    tokenizer = Tokenizer()
    assert torch.equal(tokenizer.encode(["A Handwritten SEVEN!"]).ids, tokenizer.encode(["a handwritten seven"]).ids)


@given(
    st.lists(st.lists(st.sampled_from(["seven", "digit", "wombat", "3"]), min_size=1, max_size=MAX_WORDS), min_size=1)
)
def test_tokens_match_a_word_by_word_loop(captions: list[list[str]]) -> None:
    tokenizer = Tokenizer()
    tokens = tokenizer.encode([" ".join(words) for words in captions])
    assert tokens.ids.shape == tokens.mask.shape == (len(captions), max(map(len, captions)))
    for row, words in enumerate(captions):
        for place in range(tokens.ids.shape[1]):
            word = words[place] if place < len(words) else "<pad>"
            expected = word if word in tokenizer.vocabulary else "<unk>"
            assert tokenizer.vocabulary[tokens.ids[row, place]] == expected
            assert bool(tokens.mask[row, place]) == (place < len(words))


@pytest.mark.parametrize("captions", [[], ["seven", ""], ["?!"], ["seven " * (MAX_WORDS + 1)]])
def test_what_is_no_caption_is_refused(captions: list[str]) -> None:
    with pytest.raises(UsageError, match="few words"):
        Tokenizer().encode(captions)


def test_rows_are_picked_together() -> None:
    tokens = Tokenizer().encode(["seven", "the number 3", "digit 9"])
    picked = tokens.rows(torch.tensor([2, 0]))
    assert Tokenizer().decode(picked) == ["digit 9", "seven"]
