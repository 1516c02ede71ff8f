from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor import config
from lossdoctor.errors import UsageError


@dataclass(frozen=True)
class Head:
    width: int = 64
    name: str = "z"


@dataclass(frozen=True)
class Train:
    steps: int = 1000
    lr: float = 1e-3
    amp: bool = False
    betas: tuple[float, ...] = (0.9, 0.999)
    shape: tuple[int, float] = (8, 0.5)
    weights: dict[str, float] = field(default_factory=dict)
    solver: Literal["euler", "heun"] = "euler"
    clip: float | None = None
    head: Head = Head()


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    out: str = ""
    train: Train = Train()
    names: tuple[str, ...] = ()


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBER = st.floats(allow_nan=False)
SETTINGS = st.builds(
    Settings,
    seed=st.integers(-(2**63), 2**63 - 1),
    out=TEXT,
    names=st.lists(TEXT, max_size=3).map(tuple),
    train=st.builds(
        Train,
        steps=st.integers(0, 10**9),
        lr=NUMBER,
        amp=st.booleans(),
        betas=st.lists(NUMBER, max_size=3).map(tuple),
        shape=st.tuples(st.integers(), NUMBER),
        weights=st.dictionaries(TEXT, NUMBER, max_size=3),
        solver=st.sampled_from(["euler", "heun"]),
        clip=st.none() | NUMBER,
        head=st.builds(Head, width=st.integers(), name=TEXT),
    ),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


@given(SETTINGS)
def test_what_is_dumped_is_read_back(settings: Settings) -> None:
    assert config.build(Settings, tomllib.loads(config.dump(settings))) == settings


def test_dump_is_for_people() -> None:
    settings = Settings(out="runs/a", names=("x", "y"), train=Train(weights={"flow": 1.0, "kl z0": 1e-2}))
    assert config.dump(settings) == (
        "seed = 0\n"
        'out = "runs/a"\n'
        'names = ["x", "y"]\n'
        "\n"
        "[train]\n"
        "steps = 1000\n"
        "lr = 0.001\n"
        "amp = false\n"
        "betas = [0.9, 0.999]\n"
        "shape = [8, 0.5]\n"
        'solver = "euler"\n'
        "\n"
        "[train.weights]\n"
        "flow = 1.0\n"
        '"kl z0" = 0.01\n'
        "\n"
        "[train.head]\n"
        "width = 64\n"
        'name = "z"\n'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-300, -0.0, 1e16])
def test_extreme_numbers_survive(value: float) -> None:
    back = config.build(Train, tomllib.loads(config.dump(Train(lr=value))))
    assert repr(back.lr) == repr(value)


def test_load_keeps_defaults_and_takes_ints_for_floats(tmp_path: Path) -> None:
    loaded = config.load(Settings, written(tmp_path, "seed = 3\n[train]\nlr = 1\n[train.weights]\nkl = 2\n"))
    assert loaded == Settings(seed=3, train=Train(lr=1.0, weights={"kl": 2.0}))
    assert type(loaded.train.lr) is float
    assert type(loaded.train.weights["kl"]) is float


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nstpes = 5", r"unknown key 'train.stpes'.*\n.*steps, lr.*\n.*\n.*did you mean train.steps"),
        ("nonsense = 5", r"(?s)unknown key 'nonsense'.*seed, out, train, names"),
        ("seed = 1.5", r"(?s)seed has the wrong type.*int.*1.5 \(float\)"),
        ("seed = true", r"(?s)int.*True \(bool\)"),
        ("[train]\namp = 1", r"(?s)train.amp.*bool.*1 \(int\)"),
        ("[train]\nsolver = 'rk4'", r"(?s)'euler' \| 'heun'.*'rk4'"),
        ("[train]\nbetas = [0.9, 'x']", r"(?s)train.betas\[1\].*float.*'x'"),
        ("[train]\nbetas = 0.9", r"(?s)train.betas.*0.9"),
        ("[train]\nshape = [8, 1, 1]", r"(?s)train.shape.*2 values.*\[8, 1, 1\]"),
        ("[train]\nshape = [8.5, 1]", r"(?s)train.shape\[0\].*int.*8.5"),
        ("[train]\nclip = 'no'", r"(?s)train.clip.*float.*'no'"),
        ("[train]\nweights = {kl = 'x'}", r"(?s)train.weights.kl.*float"),
        ("train = 5", r"(?s)train has the wrong type.*a table of steps"),
        ("seed = ", r"is not TOML"),
    ],
)
def test_mistakes_in_a_file_are_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        config.load(Settings, written(tmp_path, text))


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)cannot read .*No such file"):
        config.load(Settings, tmp_path / "missing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        config.load(Settings, tmp_path / "bytes.toml")


def test_override_changes_a_copy() -> None:
    before = Settings()
    after = config.override(before, {"train.steps": 5, "train.head.width": 8, "train.lr": 1, "train.weights.kl": 2})
    assert after == replace(before, train=Train(steps=5, lr=1.0, head=Head(width=8), weights={"kl": 2.0}))
    assert before == Settings()
    assert config.override(after, {"train": Train()}) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.stepz": 1}, r"(?s)unknown key 'train.stepz'.*train.steps\?"),
        ({"tarin.steps": 1}, r"(?s)unknown key 'tarin'.*train\?"),
        ({"train.steps": "many"}, r"(?s)train.steps.*int.*'many'"),
        ({"train.steps.more": 1}, r"(?s)train.steps has no parts"),
        ({"train.head": 1}, r"(?s)train.head has the wrong type.*width, name"),
        ({"": 1}, r"unknown key ''"),
    ],
)
def test_mistakes_in_an_override_are_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        config.override(Settings(), changes)


def test_assignments_read_toml_or_text() -> None:
    texts = ["train.steps=100", "train.amp = true", "train.betas=[0.5,0.9]", "train.solver=heun", 'out="a=b"', "out2="]
    assert config.assignments(texts) == {
        "train.steps": 100,
        "train.amp": True,
        "train.betas": [0.5, 0.9],
        "train.solver": "heun",
        "out": "a=b",
        "out2": "",
    }
    for wrong in ("train.steps", "=5"):
        with pytest.raises(UsageError, match="key=value"):
            config.assignments([wrong])
