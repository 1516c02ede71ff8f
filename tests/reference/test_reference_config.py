from __future__ import annotations

import dataclasses

import pytest

from lossdoctor import config
from lossdoctor.errors import UsageError
from lossdoctor.reference import KINDS, ReferenceConfig


def test_it_survives_toml(tmp_path: object, tiny: ReferenceConfig) -> None:
    import pathlib

    path = pathlib.Path(str(tmp_path)) / "a.toml"
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
