from __future__ import annotations

import math

import pytest
import torch

from lossdoctor.reference.captions import Tokenizer
from lossdoctor.reference.config import TextConfig
from lossdoctor.reference.text import TextEncoder, VariationalHead

CAPTIONS = ["seven", "a handwritten seven", "the figure 7 written by hand", "digit 3", "wombat 3"]


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(len(Tokenizer()), TextConfig())


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    tokenizer = Tokenizer()
    together = encoder(tokenizer.encode(CAPTIONS))
    alone = torch.cat([encoder(tokenizer.encode([caption])) for caption in CAPTIONS])
    assert torch.allclose(together, alone, atol=1e-5)


def test_features_are_normalised_and_tell_captions_apart(encoder: TextEncoder) -> None:
    features = encoder(Tokenizer().encode(CAPTIONS))
    assert torch.allclose(features.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(features.var(1, unbiased=False), torch.ones(5), atol=1e-3)
    assert torch.pdist(features).min() > 0.1


def test_the_order_of_words_is_seen(encoder: TextEncoder) -> None:
    features = encoder(Tokenizer().encode(["digit the 3", "3 the digit"]))
    assert not torch.allclose(features[0], features[1], atol=1e-4)


def test_the_posterior_begins_where_it_is_told() -> None:
    torch.manual_seed(0)
    head = VariationalHead(TextConfig(logvar_start=-1.4), (8, 2, 2))
    mu, logvar = head(torch.randn(50, 64))
    assert mu.shape == logvar.shape == (50, 8, 2, 2)
    assert float((logvar.detach() / 2).exp().mean()) == pytest.approx(math.exp(-0.7), rel=0.02)


@pytest.mark.parametrize("size", [1e4, 1e15])
def test_the_log_variance_never_leaves_its_bounds(size: float) -> None:
    torch.manual_seed(0)
    head = VariationalHead(TextConfig(), (8, 2, 2))
    mu, logvar = head(torch.randn(50, 64) * size)
    low, high = VariationalHead.CLAMP
    assert logvar.min() >= low
    assert logvar.max() <= high
    assert mu.isfinite().all()
