from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.exchange.naming import obvious, rename
from lossdoctor.keys import KEYS, describe

NAMES = st.lists(st.text("abkl_/*@2", min_size=1, max_size=6), max_size=8)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("loss", "loss/total"),
        ("train_loss", "loss/total"),
        ("train/loss", "loss/total"),
        ("train_loss_step", "loss/total"),
        ("Loss/train", "loss/total"),
        ("training/total_loss", "loss/total"),
        ("kl", "loss/kl"),
        ("kl_loss", "loss/kl"),
        ("loss_kl", "loss/kl"),
        ("train/kl_loss", "loss/kl"),
        ("train_kl_loss_step", "loss/kl"),
        ("losses/kl", "loss/kl"),
        ("Loss/KL", "loss/kl"),
        ("train/loss/dino", "loss/dino"),
        ("flow_matching_loss", "loss/flow_matching"),
        ("losses/kl_z0", "loss/kl_z0"),
        ("grad_norm", "grad/total"),
        ("train/grad_norm", "grad/total"),
        ("flow/endpt_rmse_8", "flow/endpt_rmse@8"),
    ],
)
def test_obvious_names(theirs: str, ours: str) -> None:
    assert obvious(theirs) == ours
    assert describe(ours) is not None


@pytest.mark.parametrize(
    "name",
    [
        "lr", "learning_rate", "val_loss", "eval/loss", "loss/val", "val/kl_loss", "val_kl_loss", "train_kl_loss_epoch",
        "train_loss_epoch", "kl_weight_loss", "loss_weight_kl", "weighted_kl_loss", "reconstruction_loss", "losses/mse",
        "epoch", "approx_kl", "accuracy", "", "loss/kl", "grad/total", "flow/cos", "flow/x_8", "lossy", "model_kl",
    ],
)  # fmt: skip
def test_names_that_stay(name: str) -> None:
    assert obvious(name) is None


def test_names_of_our_own_are_never_touched() -> None:
    for key in KEYS:
        name = key.pattern.replace("<", "").replace(">", "").replace("{0..9}", "3").replace("@K", "@8")
        assert obvious(name) is None


def test_two_that_could_be_one_are_left_to_the_user() -> None:
    found = rename(["loss", "train_loss", "kl_loss"], {}, guess=True)
    assert found.guessed == found.ours == {"kl_loss": "loss/kl"}
    assert found.undecided == {"loss/total": ("loss", "train_loss")}
    decided = rename(["loss", "train_loss"], {"train_loss": "loss/total"}, guess=True)
    assert decided.ours == {"train_loss": "loss/total"}
    assert not decided.guessed
    assert not decided.undecided


def test_a_guess_never_takes_the_name_of_another_metric() -> None:
    assert not rename(["kl_loss", "loss/kl"], {}, guess=True).ours
    assert rename(["kl_loss", "b"], {"b": "loss/kl"}, guess=True).ours == {"b": "loss/kl"}


def test_no_guess_keeps_every_name() -> None:
    found = rename(["loss", "train_loss", "kl_loss"], {"loss": "x"}, guess=False)
    assert found.ours == {"loss": "x"}
    assert not found.guessed
    assert not found.undecided


def test_patterns() -> None:
    mapping = {"train/*": "*", "train/kl": "loss/kl", "*/lr": "lr/*", "nothing*": "x*"}
    found = rename(["train/kl", "train/a\nb", "opt/lr", "other"], mapping, guess=False)
    assert found.ours == {"train/kl": "loss/kl", "train/a\nb": "a\nb", "opt/lr": "lr/opt"}
    assert found.unmatched == ("nothing*",)


@pytest.mark.parametrize(
    ("names", "mapping", "said"),
    [
        (["a", "b"], {"a": "x", "b": "x"}, "same name"),
        (["a", "b"], {"a": "b"}, "same name"),
        (["a", "b"], {"*": "x"}, "same name"),
        (["a"], {"*a*": "x"}, "one star"),
        (["a"], {"a": "x*"}, "one star"),
        (["a"], {"a": ""}, "needs a name"),
    ],
)
def test_what_cannot_be_is_refused(names: list[str], mapping: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rename(names, mapping, guess=True)


def test_names_can_be_exchanged() -> None:
    assert rename(["a", "b"], {"a": "b", "b": "a"}, guess=True).ours == {"a": "b", "b": "a"}


@given(NAMES, st.dictionaries(st.text("abk*/", min_size=1, max_size=4), st.text("xy*", max_size=3), max_size=3))
def test_no_two_metrics_ever_share_a_name(names: list[str], mapping: dict[str, str]) -> None:
    try:
        found = rename(names, mapping, guess=True)
    except UsageError:
        return
    ours = [found.ours.get(name, name) for name in dict.fromkeys(names)]
    assert len(ours) == len(set(ours))
    assert set(found.ours) <= set(names)
