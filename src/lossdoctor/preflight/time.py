"""Does the velocity change when the time does, within the range that is used?"""

from __future__ import annotations

import torch

from lossdoctor.preflight.answers import Answers, all_skipped, fired
from lossdoctor.preflight.given import Given
from lossdoctor.preflight.network import UNCHANGED, change, network
from lossdoctor.rules.finding import Cause, Evidence, Finding, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.vel405_time_ignored import TimeIgnored

RULES = (TimeIgnored,)
NEEDS = ("velocity", "z0", "z1")

HARDLY = 2e-3
"""Relative change of the velocity over the whole range of time under which the time hardly matters. Fresh networks had
0.29 and 0.63, one whose embedding was made for 0 to 1000 had 1.2e-4."""
MORE = 20.0
"""Times as much that it must change over [0, 1000] to say that the embedding was made for that."""


def ask(given: Given) -> Answers:
    """Answers for `RULES`. Raises Failed when the velocity fails."""
    with network(given) as net:
        early, late = net(torch.full_like(net.t, 0.1), given.cond), net(torch.full_like(net.t, 0.9), given.cond)
        if change(early, net(torch.full_like(net.t, 0.1), given.cond, net.x + net.x.std() + 1)) <= UNCHANGED:
            return all_skipped(RULES, say("preflight.network.dead"))
        by = change(early, late)
        far = change(net(torch.full_like(net.t, 100.0), given.cond), net(torch.full_like(net.t, 900.0), given.cond))
    if by <= UNCHANGED and far <= UNCHANGED:
        return fired(RULES, [_finding("preflight.time.ignored", by, UNCHANGED)])
    if by <= HARDLY and far >= MORE * max(by, UNCHANGED):
        return fired(RULES, [_finding("preflight.time.range", by, HARDLY, far=100 * far)])
    return fired(RULES, [])


def _finding(sentence: str, by: float, threshold: float, **params: float) -> Finding:
    ignored = sentence.endswith("ignored")
    return TimeIgnored().finding(
        say(sentence, change=100 * by, **params),
        evidence=(Evidence("preflight/velocity_change/time", by, threshold),),
        causes=(Cause("time-not-connected"),),
        fixes=(edit("connect_time" if ignored else "scale_time"),),
        subject="velocity",
        severity="error" if ignored else "warning",
        certainty="confirmed" if ignored else "likely",
        confirm="lossdoctor preflight",
    )
