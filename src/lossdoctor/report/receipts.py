"""The receipts of a balancer in words, the same in every form of a report."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.messages import text
from lossdoctor.messages.numbers import readable
from lossdoctor.report.wording import number
from lossdoctor.rules.receipts import Receipt, Treated, words

COLUMNS = ("step", "loss", "factor", "predicted", "measured", "verdict", "why")


@dataclass(frozen=True, slots=True)
class Row:
    """One loss of one change; its fields are COLUMNS. What is not known is empty."""

    step: str
    loss: str
    factor: str
    predicted: str
    measured: str
    verdict: str
    why: str


def headline(treated: Treated, lang: str) -> str:
    """Who balanced, and how often what came of it."""
    if not treated.receipts:
        return text("receipts.none", lang, balancer=treated.balancer)
    told = {"changes": len(treated.receipts), "kept": treated.count("kept"), "back": treated.count("rolled back")}
    return text("receipts.title", lang, balancer=treated.balancer, **told)


def rows(receipts: tuple[Receipt, ...], lang: str) -> list[Row]:
    """A line for every loss whose factor moved, in the order of the changes."""
    return [_row(receipt, loss, lang) for receipt in receipts for loss in receipt.factors]


def standing(treated: Treated, lang: str) -> list[str]:
    """What holds at the end: when and why nothing is changed any more, or which losses are waited for, since when."""
    if treated.stopped is not None:
        step, why = treated.stopped
        return [text("receipts.stopped", lang, step=step, reason=words(why, lang))]
    return [text("receipts.waits", lang, step=step, reason=words(why, lang)) for step, why in treated.waits.values()]


def _row(receipt: Receipt, loss: str, lang: str) -> Row:
    verdict = "open" if receipt.verdict is None else receipt.verdict.replace(" ", "_")
    pace = receipt.predicted.get(loss)
    return Row(
        step=f"{receipt.step:,}",
        loss=loss,
        factor=" -> ".join(readable(factor, 3) for factor in receipt.factors[loss]),
        predicted="" if pace is None else f"x{number(pace)}",
        measured=_pair(receipt.measured.get(loss)),
        verdict=text(f"receipts.{verdict}", lang),
        why=words(receipt.reasons.get(loss, ""), lang),
    )


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{number(values[0])} -> {number(values[1])}"
