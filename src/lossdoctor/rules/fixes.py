"""The fixes rules propose, as data. An action that an experiment arm can apply names the arm's own words."""

from __future__ import annotations

from typing import Any

from lossdoctor.rules.finding import Fix, say


def scale_weight(loss: str, factor: float) -> Fix:
    """Arm `weight:<loss>*<factor>`."""
    message = say("fix.scale_weight", target=loss, factor=factor)
    return Fix("scale_weight", loss, {"factor": factor}, "retune", message)


def warm_up_weight(loss: str, steps: int) -> Fix:
    """Arm `warmup:<loss>=<steps>`."""
    return Fix("warm_up_weight", loss, {"steps": steps}, "retune", say("fix.warm_up_weight", target=loss, steps=steps))


def scale_rate(head: str, factor: float) -> Fix:
    """Arm `lr:<head>*<factor>`; the head "all" is the whole model."""
    return Fix("scale_rate", head, {"factor": factor}, "retune", say("fix.scale_rate", target=head, factor=factor))


def set_decay(head: str, value: float = 0.0) -> Fix:
    """Arm `wd:<head>=<value>`."""
    return Fix("set_decay", head, {"value": value}, "retune", say("fix.set_decay", target=head, value=value))


def scale_knob(knob: str, factor: float) -> Fix:
    """Arm `knob:<name>*<factor>`: a number the script passes through `lossdoctor.knob`, such as teacher_temp."""
    return Fix("scale_knob", knob, {"factor": factor}, "retune", say("fix.scale_knob", target=knob, factor=factor))


def set_knob(knob: str, value: float) -> Fix:
    """Arm `knob:<name>=<value>`."""
    return Fix("set_knob", knob, {"value": value}, "retune", say("fix.set_knob", target=knob, value=value))


def balance(method: str) -> Fix:
    """Arm `balance:<method>`: ratio, gradnorm, pcgrad, config or cosine."""
    return Fix("balance", method, {}, "retune", say("fix.balance", target=method))


def ablate(arm: str) -> Fix:
    """Run an experiment arm such as `without:kl` beside the baseline; it changes nothing in the run."""
    return Fix("ablate", arm, {}, "observe", say("fix.ablate", target=arm))


def edit(what: str, target: str = "", **params: Any) -> Fix:
    """A change of the program: the sentence is the message `fix.<what>`, whose holes are `target` and params."""
    return Fix("edit", target, {"what": what, **params}, "change", say(f"fix.{what}", target=target, **params))
