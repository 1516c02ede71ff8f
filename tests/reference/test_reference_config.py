from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor import config
from lossdoctor.errors import UsageError
from lossdoctor.reference import KINDS, Digits, Judge, ReferenceConfig, Trainer
from lossdoctor.reference.config import RANGES, numbers, validate


def test_it_survives_toml(tmp_path: Path, tiny: ReferenceConfig) -> None:
    path = tmp_path / "a.toml"
    for one in (ReferenceConfig(), tiny):
        path.write_text(config.dump(one), encoding="utf-8")
        assert config.load(ReferenceConfig, path) == one


def test_dotted_keys_change_one_value() -> None:
    changed = config.override(ReferenceConfig(), {"train.steps": 7})
    assert dataclasses.replace(changed, train=ReferenceConfig().train) == ReferenceConfig()
    assert changed.train.steps == 7
    with pytest.raises(UsageError):
        config.override(ReferenceConfig(), {"train.step": 7})


def test_every_loss_has_a_weight_and_a_kind() -> None:
    assert {field.name for field in dataclasses.fields(ReferenceConfig().weights)} == set(KINDS)


USUAL: dict[str, Any] = {}
for key, number in numbers(ReferenceConfig()):
    USUAL[key] = (*USUAL.get(key, ()), number)


def changed(base: ReferenceConfig, name: str, value: float) -> ReferenceConfig:
    return config.override(base, {name: (value,) * 3 if name == "autoencoder.latent" else value})


def kind(name: str) -> type:
    return type(USUAL[name][0])


def test_every_number_has_a_range_that_holds_its_usual_value() -> None:
    assert set(RANGES) == set(USUAL)
    validate(ReferenceConfig())


@pytest.mark.parametrize("name", sorted(RANGES))
def test_what_is_out_of_range_is_refused_by_name(name: str) -> None:
    low, high = RANGES[name].low, RANGES[name].high
    hostile: list[float] = [low - 1, -(10**30)]
    hostile += [int(high) + 1, 10**30] if math.isfinite(high) else [math.inf]
    if kind(name) is float:
        hostile += [math.nan, -math.inf, math.nextafter(low, -math.inf), *([low] if RANGES[name].above else [])]
    for value in hostile:
        one = changed(ReferenceConfig(), name, kind(name)(value))
        with pytest.raises(UsageError, match=rf"{name} is out of range[\s\S]*expected: [\s\S]*to do: "):
            validate(one)
        with pytest.raises(UsageError, match=name):
            Trainer(one)


@given(st.sampled_from(sorted(RANGES)), st.integers() | st.floats())
def test_any_number_is_taken_or_refused_in_words(name: str, value: float) -> None:
    if kind(name) is int and not isinstance(value, int):
        return
    one = changed(ReferenceConfig(), name, float(value) if kind(name) is float and abs(value) < 1e300 else value)
    divided = name not in ("text.width", "text.heads") or (value > 0 and 64 % value == 0)
    if value in RANGES[name] and divided:
        validate(one)
    else:
        with pytest.raises(UsageError, match=r"text\.heads|" + name):
            validate(one)


def test_heads_share_the_width_evenly_whatever_is_set_first() -> None:
    with pytest.raises(UsageError, match=r"text\.heads=2 would do"):
        validate(config.override(ReferenceConfig(), {"text.width": 30}))
    for changes in ({"text.width": 30, "text.heads": 5}, {"text.heads": 5, "text.width": 30}):
        validate(config.override(ReferenceConfig(), changes))


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_smallest_of_everything_still_trains_and_draws(name: str, tiny: ReferenceConfig, digits: Digits) -> None:
    low = RANGES[name].low
    smallest = kind(name)(low if not RANGES[name].above else 1e-30)
    changes = {"text.heads": 1} if name == "text.width" else {}
    few = config.override(tiny, {"autoencoder.steps": 3, "train.steps": 3, **changes})
    trainer = Trainer(changed(few, name, smallest), digits)
    trainer.run(2)
    pictures = trainer.sampler()(["seven", "digit 7"], randomness=torch.Generator().manual_seed(0), steps=2)
    assert pictures.shape == (2, 1, 8, 8)
    Judge(trainer.training_set).judge(Digits(pictures, torch.tensor([7, 7])))
