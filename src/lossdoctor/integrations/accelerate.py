"""Accelerate: its trackers. Its backward is `doctor.backward(losses, backward=accelerator.backward)`.

accelerator = Accelerator(log_with="wandb")
accelerator.init_trackers("project")
doctor = ld.Doctor(model, optimizer, sinks=ld.integrations.accelerate.sinks(accelerator))
"""

from __future__ import annotations

from typing import Any

from lossdoctor.integrations.trackers import sink_of
from lossdoctor.sinks import Sink


def sinks(accelerator: Any) -> list[Sink]:
    """Sinks into the runs of the trackers that `accelerator.init_trackers` has begun, where there are sinks for them.

    Close the Doctor before `accelerator.end_training()`. Empty on other processes than the main one.
    """
    if not accelerator.is_main_process:
        return []
    found = (sink_of(tracker.tracker) for tracker in accelerator.trackers)
    return [sink for sink in found if sink is not None]
