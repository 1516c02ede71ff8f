"""Does the field use its condition and its time, and is it the field that inference calls?

The model is asked a few questions about the points of the batch: with permuted conditions, with permuted times, at
1 - t, and as it is. All answers are on the same samples and, where the model draws random numbers, under the same
ones, so that a model that ignores what was changed scores exactly 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lossdoctor.metrics import condition
from lossdoctor.metrics.asking import Field, Question
from lossdoctor.metrics.reading import Maybe, Readings, metric
from lossdoctor.metrics.rows import Fit, fit, flat
from lossdoctor.probe.snapshot import FlowBatch

_AT_LEAST = 32


def sub_batch(samples: int) -> int:
    """How many of the samples are asked about: a quarter, at least 32, all if fewer."""
    return min(samples, max(_AT_LEAST, -(-samples // 4)))


def measure(
    batch: FlowBatch,
    *,
    generator: torch.Generator,
    batch_coupled: bool = False,
    stochastic: bool = False,
) -> Readings:
    """All probes that the batch allows; nothing without `velocity` and `x_t`. Keys: see `answers`.

    generator: private randomness for the sub-batch and the permutations. batch_coupled: a sample's answer depends on
    the others (BatchNorm in training mode), so the whole batch is asked, once per question; likewise when the condition
    cannot be split. stochastic: the model is known to draw random numbers (dropout in training mode), which saves
    finding out.
    One forward over four sub-batches where possible, otherwise one per question and one more for a stochastic model,
    after the first attempt if it was not known to be stochastic. The caller sets the autocast state of the training
    forward, and keeps modes, buffers and the global random streams that the model uses.
    Synchronises only for conditions that hold strings beside tensors.
    Raises ShapeError when the velocity has not the shape of x_t.
    """
    if batch.velocity is None or batch.x_t is None or batch.x_t.numel() == 0:
        return {}
    whole = batch_coupled or not condition.splittable(batch.cond, len(batch.x_t))
    index = None if whole else _chosen(len(batch.x_t), generator)
    part = batch if index is None else _rows(batch, index)
    x_t = batch.x_t if index is None else batch.x_t[index.to(batch.x_t.device)]
    questions = _questions(part, generator)
    field = Field(batch.velocity, x_t)
    with torch.no_grad():
        together = not (whole or stochastic) and _one_per_sample(part)
        found, again = field.ask_together(questions) if together else field.ask_in_turn(questions)
    differs = {name: question.differs for name, question in questions.items() if question.differs is not None}
    return answers.deferred(part.v_pred, part.v_target, found, differs, again=again)


@metric
def answers(
    v_pred: Tensor,
    v_target: Tensor,
    found: Mapping[str, Tensor],
    differs: Mapping[str, Tensor],
    *,
    again: Tensor | None = None,
) -> Readings:
    """Compare the answers, each of the shape of v_pred and v_target (n, ...).

    found: the answers to the questions "true", "cond", "time", "reversed", where asked. differs: 0-d, whether a
    question differed from the true one for any sample; where not, its keys are absent. again: the answer to "true"
    under other random numbers, for a stochastic model. Keys, with loss = mean |velocity - v_target|^2:
    `flow/cond_gain_cos` = cos with the true condition - cos with permuted ones, in [-2, 2], 0 = ignored.
    `flow/cond_ratio` = loss(permuted conditions) / loss, >= 0, 1 = ignored. `flow/time_ratio`: with permuted times.
    `flow/time_reversal` = loss(at 1 - t) / loss, >= 0, below 1 = time is reversed. Ratios are absent for a zero loss.
    `flow/field_mismatch` = |velocity(x_t, t, cond) - v_pred| / |v_pred|, >= 0, 0 = inference calls the trained field;
    absent for v_pred = 0. Of a stochastic model v_pred, a and b are three draws: (|a - v_pred|^2 + |b - v_pred|^2) / 2
    - |a - b|^2 is 0 on average when they are draws of one field, and is used, not below 0, as the square; if inference
    is noisier than training, that hides as much of the mismatch.
    What explains a mismatch, likewise absent for v_pred = 0:
    `flow/field_scale`: the least-squares factor s in velocity = s v_pred, 1 = the same, -1 = the sign is flipped; of a
    stochastic model <a, b> / <(a + b) / 2, v_pred>, which noise does not shrink.
    `flow/field_reversed`, `flow/field_other_cond`: the mismatch of the answers at 1 - t and with permuted conditions
    instead, absent where the question did not differ. Small = inference runs time the other way; as large as
    `flow/field_mismatch` with permuted conditions = the field that inference calls does not use them.
    """
    target = flat(v_target)
    fits = {name: fit(flat(answer), target) for name, answer in found.items()}
    true = fits["true"]
    loss = true.error.sum()
    readings: dict[str, Tensor | Maybe] = {}
    for name, key in (("cond", "cond_ratio"), ("time", "time_ratio"), ("reversed", "time_reversal")):
        if name in fits:
            readings[f"flow/{key}"] = Maybe(fits[name].error.sum() / loss, differs[name] & (loss != 0))
    if "cond" in fits:
        readings["flow/cond_gain_cos"] = _gain(true, fits["cond"], differs["cond"])
    return {**readings, **_field(flat(v_pred), {name: flat(a) for name, a in found.items()}, differs, again)}


def _gain(true: Fit, permuted: Fit, differs: Tensor) -> Maybe:
    both = true.has_cos & permuted.has_cos
    count = both.sum()
    return Maybe(torch.where(both, true.cos - permuted.cos, 0).sum() / count, differs & (count > 0))


def _field(
    v_pred: Tensor, found: Mapping[str, Tensor], differs: Mapping[str, Tensor], again: Tensor | None
) -> dict[str, Tensor | Maybe]:
    """Is the field that was asked the one that was trained, and if not, which one is it? All answers (n, D)."""
    power, a = v_pred.square().sum(), found["true"]
    square, along, over = (a - v_pred).square().sum(), (a * v_pred).sum(), power
    noise: Tensor | float = 0.0
    if again is not None:
        b = flat(again)
        noise = (a - b).square().sum()
        square = (square + (b - v_pred).square().sum()) / 2
        along, over = (a * b).sum(), ((a + b) * v_pred).sum() / 2

    def mismatch(square: Tensor) -> Tensor:
        return ((square - noise).clamp(min=0) / power).sqrt()

    readings: dict[str, Tensor | Maybe] = {
        "flow/field_mismatch": Maybe(mismatch(square), power != 0),
        "flow/field_scale": Maybe(along / over, (power != 0) & (over != 0)),
    }
    for name, key in (("reversed", "field_reversed"), ("cond", "field_other_cond")):
        if name in found:
            value = mismatch((found[name] - v_pred).square().sum())
            readings[f"flow/{key}"] = Maybe(value, differs[name] & (power != 0))
    return readings


def _one_per_sample(batch: FlowBatch) -> bool:
    return batch.t_like.ndim > 0 and len(batch.t_like) == len(batch.v_pred)


def _chosen(samples: int, generator: torch.Generator) -> Tensor | None:
    """The random sub-batch, on the generator's device; None when all samples are asked about."""
    n = sub_batch(samples)
    return torch.randperm(samples, generator=generator, device=generator.device)[:n] if n < samples else None


def _rows(batch: FlowBatch, index: Tensor) -> FlowBatch:
    """What the questions and answers need of the chosen samples."""
    here = index.to(batch.v_pred.device)
    return replace(
        batch,
        v_pred=batch.v_pred[here],
        v_target=batch.v_target[here],
        t_like=batch.t_like[here] if _one_per_sample(batch) else batch.t_like,
        cond=condition.take(batch.cond, index),
    )


def _questions(batch: FlowBatch, generator: torch.Generator) -> dict[str, Question]:
    t, cond = batch.t_like, batch.cond
    reversed_t = 1 - t
    questions = {"true": Question(t, cond), "reversed": Question(reversed_t, cond, (reversed_t != t).any())}
    if _one_per_sample(batch):
        times = condition.keys(t, generator)
        if times is not None:
            index, differs = condition.derangement(times)
            questions["time"] = Question(t[index], cond, differs)
    if cond is not None and condition.splittable(cond, len(batch.v_pred)):
        equal = condition.keys(cond, generator)
        if equal is not None:
            index, differs = condition.derangement(equal)
            questions["cond"] = Question(t, condition.take(cond, index), differs)
    return questions
