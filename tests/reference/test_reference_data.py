from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossdoctor.reference import captions
from lossdoctor.reference.captions import WORDS, CaptionBook, Tokenizer
from lossdoctor.reference.config import DataConfig
from lossdoctor.reference.data import Augmentation, Batch, Digits, Loader, load_digits
from lossdoctor.reference.pictures import split, stream


def numbered(count: int) -> Digits:
    """Pictures that carry their own number, so that a batch tells which it holds."""
    pictures = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Digits(pictures, torch.arange(count) % 10)


def loader(digits: Digits, batch: int = 8) -> Loader:
    book = CaptionBook(Tokenizer())
    return Loader(digits, book, DataConfig(), batch=batch, latent=(2, 2, 2), generator=stream(0, "test"), moved=False)


def tensors(batch: Batch) -> list[Tensor]:
    noise = [batch.t, batch.source_noise, batch.target_noise]
    return [batch.pictures, *batch.views, batch.tokens.ids, batch.tokens.mask, *noise]


def test_the_digits_are_the_real_ones() -> None:
    digits = load_digits()
    assert digits.pictures.shape == (1797, 1, 8, 8)
    assert digits.pictures.min() == -1
    assert digits.pictures.max() == 1
    assert set(digits.labels.tolist()) == set(range(10))


def test_a_split_loses_and_shares_nothing() -> None:
    training, held_out = split(numbered(100), 0.2, seed=1)
    numbers = [d.pictures[:, 0, 0, 0].tolist() for d in (training, held_out)]
    assert len(numbers[1]) == 20
    assert sorted(numbers[0] + numbers[1]) == list(range(100))


def test_the_seed_decides_the_split() -> None:
    first, again, other = (split(numbered(100), 0.2, seed)[1].pictures for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_streams_of_other_purposes_are_unrelated() -> None:
    draws = [torch.randn(1000, generator=stream(seed, purpose)) for seed in (0, 1) for purpose in ("a", "b")]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 0.15


def test_no_movement_leaves_a_picture_as_it_is() -> None:
    pictures = load_digits().pictures[:20]
    assert torch.allclose(Augmentation()(pictures, stream(0, "test")), pictures, atol=1e-5)


def center_of_ink(pictures: Tensor) -> Tensor:
    ink = (pictures + 1)[:, 0]
    places = torch.arange(8.0) - 3.5
    total = ink.sum((1, 2))
    return torch.stack([(ink * places).sum((1, 2)) / total, (ink * places[:, None]).sum((1, 2)) / total], 1)


def blob() -> Tensor:
    places = torch.arange(8.0) - 3.5
    return torch.exp(-(places**2 + places[:, None] ** 2) / 2).expand(500, 1, 8, 8) * 2 - 1


def test_pictures_move_by_up_to_the_shift_in_pixels() -> None:
    moved = center_of_ink(Augmentation(shift=1.0)(blob(), stream(0, "test")))
    assert moved.abs().max() == pytest.approx(1.0, abs=0.05)
    assert moved.mean(0).abs().max() < 0.1
    assert moved.std(0) == pytest.approx(torch.full((2,), 3**-0.5), abs=0.05)


def test_a_rotation_turns_about_the_middle_by_up_to_the_angle() -> None:
    bar = torch.full((500, 1, 8, 8), -1.0)
    bar[:, :, 3:5, :] = 1.0
    turned = Augmentation(rotate=20.0)(bar, stream(0, "test")) + 1
    places = torch.arange(8.0) - 3.5
    mixed = (turned[:, 0] * places * places[:, None]).sum((1, 2))
    across = (turned[:, 0] * (places**2 - places[:, None] ** 2)).sum((1, 2))
    angles = torch.rad2deg(torch.atan2(2 * mixed, across) / 2)
    assert 15 < angles.abs().max() < 22
    assert angles.mean().abs() < 2


def test_noise_has_its_standard_deviation() -> None:
    flat = torch.zeros(200, 1, 8, 8)
    assert Augmentation(noise=0.3)(flat, stream(0, "test")).std() == pytest.approx(0.3, rel=0.05)


def test_an_epoch_shows_every_digit_at_most_once() -> None:
    source = loader(numbered(30))
    epochs = [[n for _ in range(3) for n in source.draw().pictures[:, 0, 0, 0].tolist()] for _ in range(2)]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_loader_goes_on_exactly() -> None:
    source = loader(numbered(30))
    for _ in range(5):
        source.draw()
    state = source.state_dict()
    expected = [source.draw() for _ in range(7)]
    again = loader(numbered(30))
    again.load_state_dict(state)
    for batch in expected:
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(again.draw()), strict=True))


def test_a_state_is_not_changed_by_going_on() -> None:
    source = loader(numbered(30))
    source.draw()
    state = source.state_dict()
    before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    for _ in range(10):
        source.draw()
    assert state["next"] == before["next"]
    assert torch.equal(state["order"], before["order"])
    assert torch.equal(state["generator"], before["generator"])


def test_captions_fit_the_pictures_and_change() -> None:
    digits = numbered(40)
    source, tokenizer = loader(digits, batch=40), Tokenizer()
    said: dict[int, set[str]] = {}
    for _ in range(10):
        batch = source.draw()
        for number, caption in zip(
            batch.pictures[:, 0, 0, 0].long().tolist(), tokenizer.decode(batch.tokens), strict=True
        ):
            assert {WORDS[number % 10], str(number % 10)} & set(captions.split(caption))
            said.setdefault(number, set()).add(caption)
    assert min(map(len, said.values())) > 1


def test_training_pictures_are_moved_a_little_and_held_out_ones_are_not() -> None:
    digits = Digits(load_digits().pictures[:40], load_digits().labels[:40])
    drawn = {
        moved: Loader(
            digits,
            CaptionBook(Tokenizer()),
            DataConfig(),
            batch=40,
            latent=(2, 2, 2),
            generator=stream(0, "test"),
            moved=moved,
        ).assemble(digits)
        for moved in (True, False)
    }
    assert torch.allclose(drawn[False].pictures, digits.pictures, atol=1e-5)
    distance = (drawn[True].pictures - digits.pictures).abs().mean()
    assert 0.01 < distance < (drawn[True].views[0] - digits.pictures).abs().mean()


def test_the_two_views_differ() -> None:
    digits = load_digits()
    batch = loader(Digits(digits.pictures[:8], digits.labels[:8])).draw()
    assert (batch.views[0] - batch.views[1]).abs().mean() > 0.05


def test_fewer_digits_than_a_batch_make_a_smaller_batch() -> None:
    assert len(loader(numbered(5)).draw().t) == 5
