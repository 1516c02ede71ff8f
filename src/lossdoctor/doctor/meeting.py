"""Where several ranks train one model: what they tell each other at a due step, and what follows from it.

A meeting is held in the first hook of the step's first optimizer, where all ranks come along in the same order: one
message from each, and, when the messages agree, the averaging of the gradient vectors. Steps that are not due have no
meeting; only the first step has one in any case, to agree which steps are due.

A rank whose measurement fails still comes, and says so; then all stop measuring that. A rank whose connection fails
closes it, so that the others fail at once too instead of waiting. Every rank goes on training whatever happens, and
from then on its file holds the values of its own batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lossdoctor import linalg
from lossdoctor.doctor.examination import Examination
from lossdoctor.doctor.likeness import Likeness, counted, differing, distance
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.metrics.reading import to_host
from lossdoctor.probe.agreement import averaged, layout, reduced
from lossdoctor.probe.imprints import imprints, sketched
from lossdoctor.probe.parameters import names_of
from lossdoctor.probe.pending import Pending, by_step
from lossdoctor.probe.ranks import PATIENCE, Ranks
from lossdoctor.probe.schedule import Together
from lossdoctor.probe.stepping import inside_backward

Message = dict[str, Any]
Losses = dict[str, float]

GLOBAL = "global batch"
"""The measurement that is switched off when this rank has lost the others."""
INPUTS = "inputs of the ranks"
"""The measurement that is switched off when what was handed in cannot be compared."""
FAREWELL = 10.0
"""Seconds a rank that closes its Doctor waits for the others to do so too."""

IN_STEP = ("steps", "probes", "endpoint")
"""What all ranks measure at once, or none, where parameters are sharded; nobody does where it is not known how."""
IN_BACKWARD = "an optimizer steps inside the backward, where the ranks cannot meet; step after the backward"


def whose(size: int, *, sharded: bool, understood: bool = True) -> dict[str, Any]:
    """What meta.json says of several ranks: which values are of the global batch, and which of a rank's own.

    understood: whether the way in which parameters are sharded is one that can be measured.
    """
    found = {
        "losses": "global",
        "gradients": "global",
        "steps": "global",
        "ranks": "global",
        **dict.fromkeys(("velocity", "posterior", "distillation", "probes", "endpoint"), "own"),
    }
    return {"size": size, "sharded": sharded, **found, **({} if understood else dict.fromkeys(IN_STEP, "off"))}


class Meeting:
    """The meetings of one Doctor. Nothing here raises, unless the Outlet is strict."""

    def __init__(self, ranks: Ranks, schedule: Together, patient: Patient, out: Outlet) -> None:
        self.ranks = ranks
        self.schedule, self._patient, self._out = schedule, patient, out
        self._met = False
        self._last = -1
        self._likeness = Likeness()
        self._told: set[str] = set()
        self._facts: dict[str, Any] = {}

    @property
    def alone(self) -> bool:
        """Whether this rank has lost the others."""
        return GLOBAL in self._out.off

    def forget(self) -> None:
        """Agree anew which steps are due, at the next optimizer step."""
        self._met, self._last = False, -1
        self.schedule.forget()

    def hold(self, examination: Examination | None, pending: Pending) -> None:
        """Once per due step, and at the first step; does nothing otherwise."""
        if self.alone or self._last == self._out.step or (self._met and examination is None):
            return
        self._last = self._out.step
        if inside_backward():
            self._out.failed(GLOBAL, IN_BACKWARD)
        else:
            with self._out.guard(GLOBAL):
                self._hold(examination, pending)
        self._leave_if_alone(examination)

    def farewell(self, pending: Pending, *, wish: bool) -> bool:
        """Average the loss values that still wait, if the others close too. Whether all of them have this wish."""
        if not self._met or self.alone:
            return False
        wished = False
        losses = _losses(pending)
        try:
            mine = {"closing": True, "step": self._out.step, "wish": wish}
            messages, each = self._exchange(mine, losses, FAREWELL)
            if not all(one.get("closing") for one in messages):
                raise ConnectionError("another rank has not closed its Doctor")
            losses = _mean(each)
            wished = all(one["wish"] for one in messages)
        except Exception as error:
            # Often as it must be: a rank may stop early. What it trained until then is recorded.
            self._out.event("passed_over", measurement="losses of the last steps", reason=str(error))
        _put_back(pending, losses)
        return wished

    def longest(self, seconds: float) -> float:
        """Of what the ranks measured by their clocks, so that all decide alike. Every rank must call this."""
        return max(map(float, self.ranks.gather(repr(seconds).encode())))

    def _hold(self, examination: Examination | None, pending: Pending) -> None:
        step, ledger = self._out.step, None if examination is None else examination.ledger
        mine = {
            "step": step,
            "due": self.schedule.due(step),
            "ahead": self.schedule.ahead(step),
            "off": sorted(self._out.off),
            "passed_over": None if examination is None else examination.passed_over,
            "gradients": None if ledger is None else layout(ledger),
            "weights": {role: linalg.fingerprint(tensors) for role, tensors in self._weights().items()},
            "inputs": {},
            "wishes": [] if examination is None else examination.wishes(),
        }
        if examination is not None and INPUTS not in self._out.off:
            with self._out.guard(INPUTS):
                mine["inputs"] = imprints(examination.capture)
        losses = _losses(pending)
        try:
            messages, each = self._exchange(mine, losses)
            if any(one.get("closing") for one in messages):
                raise ConnectionError("another rank has closed its Doctor")
            far, differs = self._far(messages)
            apart = self._train_apart(messages, differs)
            losses = losses if apart else _mean(each)
        finally:
            _put_back(pending, losses)
        self._met = True
        if len({one["step"] for one in messages}) > 1 or len({(one["due"], one["ahead"]) for one in messages}) > 1:
            self._differ("schedule", {"step": [m["step"] for m in messages], "next": [m["ahead"] for m in messages]})
        self.schedule.agree(step, messages[0]["due"], messages[0]["ahead"])
        self._switch_off(messages)
        if examination is not None:
            if self._patient.summed is not None:
                examination.agree([one["wishes"] for one in messages])
            self._global(examination, messages, apart)
            for name, value in {**far, **self._likeness.inputs([one["inputs"] for one in messages])}.items():
                pending.add(step, name, value)
        self._compare(messages)

    def _exchange(
        self, mine: Message, losses: Losses, patience: float = PATIENCE
    ) -> tuple[list[Message], list[Losses]]:
        """What every rank tells, and its losses. The names of losses travel only when they are not the same."""
        names = json.dumps(list(losses)).encode()
        head = json.dumps({**mine, "names": _digest(names)}).encode()
        found = self.ranks.gather(b"\n".join((head, np.array(list(losses.values())).tobytes())), patience)
        parts = [text.split(b"\n", 1) for text in found]
        messages = [json.loads(part[0]) for part in parts]
        keys = [names] * len(parts)
        if len({one["names"] for one in messages}) > 1:
            keys = self.ranks.gather(names, patience)
        values = [np.frombuffer(part[1], dtype=np.float64).tolist() for part in parts]
        return messages, [dict(zip(json.loads(k), v, strict=True)) for k, v in zip(keys, values, strict=True)]

    def _train_apart(self, messages: Sequence[Message], differs: Mapping[str, Any]) -> bool:
        """Other gradients, and most weights are others: these processes train a model each."""
        layouts = [one["gradients"] for one in messages]
        if None in layouts or 2 * differs.get("count", 0) <= differs.get("of", 0) or reduced(layouts):
            return False
        self._differ("model", differs)
        return True

    def _weights(self) -> dict[str, Sequence[Tensor]]:
        """Weights that are to be the same on every rank; nobody has the whole of sharded ones."""
        patient = self._patient
        if patient.summed is not None:
            return {}
        teacher = {} if patient.teacher is None else {"teacher": patient.teacher.follower}
        return {"weights": patient.look().parameters, **teacher}

    def _far(self, messages: Sequence[Message]) -> tuple[dict[str, float], dict[str, Any]]:
        """`ranks/weights_apart`, `ranks/teacher_apart`; and which weights differ.

        Where bits differ, a second message tells how far apart they are. Whether it is sent follows from the messages
        alone, so that all ranks send it.
        """
        far: dict[str, float] = {}
        differs: dict[str, Any] = {}
        for role, tensors in self._weights().items():
            told = [one["weights"].get(role) for one in messages]
            if None in told:
                continue
            far[f"ranks/{role}_apart"] = 0.0
            if len(set(told)) > 1:
                table = sketched(tensors).numpy()
                found = self.ranks.gather(table.tobytes())
                tables = [np.frombuffer(text).reshape(-1, table.shape[1]) for text in found]
                if len({len(one) for one in tables}) == 1:
                    far[f"ranks/{role}_apart"] = distance(tables)
                    facts = differing(tables, names_of(tensors, self._patient.tops))
                    differs = facts if role == "weights" else differs
                    self._differ(f"{role} apart", facts)
        return far, differs

    def _switch_off(self, messages: Sequence[Message]) -> None:
        for what in ("gradients", *(IN_STEP if self._patient.summed is not None else ())):
            failed = [r for r, one in enumerate(messages) if what in one["off"]]
            if failed and what not in self._out.off:
                self._out.failed(what, f"switched off on rank {', '.join(map(str, failed))}")

    def _global(self, examination: Examination, messages: Sequence[Message], apart: bool) -> None:
        if "gradients" in self._out.off:
            examination.pass_over("gradients are switched off")
        if apart or "gradients" in self._out.off:
            return
        ledger, layouts = examination.ledger, [one["gradients"] for one in messages]
        why = next((one["passed_over"] for one in messages if one["passed_over"]), None)
        if why is None and (ledger is None or None in layouts):
            why = None if not any(layouts) else "measured"
        elif why is None and ledger is not None:
            found = averaged(ledger, layouts, self.ranks)
            why = None if found is None else found.what
        else:
            self._out.event("passed_over", measurement="gradients", reason=why)
            examination.pass_over(str(why))
            return
        if why is not None:
            told = "losses" if why == "weights" else why
            self._differ(why, {told: [one and one.get(told) for one in layouts]})
            examination.pass_over(f"ranks differ: {why}")

    def _compare(self, messages: Sequence[Message]) -> None:
        """How many different values the ranks have: of weights there should be one, of inputs as many as ranks."""
        weights = {one["weights"].get("weights") for one in messages}
        inputs = counted([one["inputs"] for one in messages])
        facts = {
            "size": len(messages),
            "weights": None if None in weights else len(weights),
            "inputs": inputs or self._facts.get("inputs", {}),
        }
        if facts != self._facts and self.ranks.rank == 0:
            self._facts = facts
            self._out.event("ranks", facts=facts)

    def _differ(self, what: str, each: Mapping[str, Any]) -> None:
        if what not in self._told:
            self._told.add(what)
            self._out.event("ranks_differ", what=what, each=dict(each))

    def _leave_if_alone(self, examination: Examination | None) -> None:
        if self.alone:
            self.schedule.forget()
            self._out.off.update(("gradients", *(IN_STEP if self._patient.summed is not None else ())))
            self._out.describe(ranks_lost_at=self._out.step)
            if examination is not None:
                examination.pass_over("the other ranks are gone")
            try:
                self.ranks.leave()
            except Exception as error:
                self._out.event("failure", measurement="leaving the ranks", error=repr(error))


def _losses(pending: Pending) -> Losses:
    """The loss values that wait, by "step name", micro-batches averaged; they wait no longer."""
    tensors, numbers = pending.take("loss/")
    steps = by_step([*to_host(tensors).items(), *numbers.items()])
    return {f"{step} {name}": value for step, values in steps.items() for name, value in values.items()}


def _put_back(pending: Pending, losses: Losses) -> None:
    for key, value in losses.items():
        step, name = key.split(" ", 1)
        pending.add(int(step), name, value)


def _mean(each: Sequence[Losses]) -> Losses:
    """Of every loss over the ranks that had it."""
    found: dict[str, list[float]] = {}
    for losses in each:
        for key, value in losses.items():
            found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
