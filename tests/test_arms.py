"""The texts of arms, and what they do to weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossdoctor import arms
from lossdoctor.arms import Arm, parse
from lossdoctor.errors import UsageError

TEXTS = [
    "baseline",
    "only:flow",
    "without:kl",
    "shuffle:cond",
    "weight:dino*2",
    "weight:dino=0.5",
    "lr:z_head*3",
    "lr:all*0.1",
    "wd:z_head=0",
    "knob:teacher_temp=0.07",
    "warmup:kl=1000",
    "balance:pcgrad",
    "lr:all*0.3+without:kl",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


@given(factor=st.floats(1e-6, 1e6), loss=st.text("abcXYZ_/.0:-", min_size=1).filter(lambda s: s.strip() == s))
def test_names_of_losses_and_numbers_survive(factor: float, loss: str) -> None:
    (change,) = parse(f"weight:{loss}*{factor!r}").changes
    assert (change.verb, change.target, change.sign, change.value) == ("weight", loss, "*", factor)


@pytest.mark.parametrize(
    "text",
    [
        "", "flow", "only", "only:", "drop:kl", "weight:kl", "weight:kl*", "weight:*2", "weight:kl*two",
        "weight:kl*inf", "weight:kl=nan", "shuffle:labels", "warmup:kl*3", "warmup:kl=0", "without:kl+", "+",
        "without:kl++only:flow", "lr:a*b*2*",
    ],
)  # fmt: skip
def test_other_texts_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)is no arm.*expected:.*got:.*to do:.*without:kl"):
        parse(text)


def weights(text: str, step: int = 0) -> list[float]:
    return [parse(text).weight(loss, own, step) for loss, own in (("flow", 1.0), ("dino", 0.5), ("kl", 0.01))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("baseline", [1.0, 0.5, 0.01]),
        ("only:flow", [1.0, 0.0, 0.0]),
        ("without:kl", [1.0, 0.5, 0.0]),
        ("weight:dino*2", [1.0, 1.0, 0.01]),
        ("weight:dino=2", [1.0, 2.0, 0.01]),
        ("weight:dino*2+without:flow", [0.0, 1.0, 0.01]),
        ("weight:kl=3+weight:kl*2", [1.0, 0.5, 6.0]),
        ("shuffle:cond+lr:all*3", [1.0, 0.5, 0.01]),
    ],
)
def test_weights(text: str, expected: list[float]) -> None:
    assert weights(text) == pytest.approx(expected)


def test_a_warm_up_rises_to_the_own_weight_and_stays_there() -> None:
    rising = [weights("warmup:dino=4", step)[1] for step in range(6)]
    assert rising == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])


def test_the_baseline_changes_nothing() -> None:
    assert parse("baseline") == Arm()
    assert str(Arm()) == arms.BASELINE


def test_a_balancer_of_another_name_is_refused_with_those_there_are() -> None:
    from lossdoctor.treat import BALANCERS

    assert tuple(BALANCERS) == arms.BALANCERS
    with pytest.raises(UsageError, match="config, cosine, gradnorm, pcgrad, ratio"):
        parse("balance:magic")
