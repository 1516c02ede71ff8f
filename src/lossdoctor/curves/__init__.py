"""Questions about curves: do they rise, stay below, come to rest, jump, and is that more than noise?

The answers are robust (medians, ranks) because curves of a training run have spikes, heavy tails and gaps.
Consecutive points of such a curve resemble each other, and a test that takes them for independent finds a trend in
everything; so tests are made on the medians of a few long blocks (see `trend`).
NaN and infinity are left out everywhere: that they happened is another question, asked of the raw series.
"""

from __future__ import annotations

from lossdoctor.curves.blocks import BLOCKS, block_medians, ends
from lossdoctor.curves.breaks import ChangePoint, change_point, spikes
from lossdoctor.curves.levels import Plateau, Share, plateau, share_above, share_below, spread
from lossdoctor.curves.several import adjusted, correlation
from lossdoctor.curves.trends import LEAST_BLOCKS, Direction, MannKendall, Trend, mann_kendall, theil_sen, trend

__all__ = [
    "BLOCKS",
    "LEAST_BLOCKS",
    "ChangePoint",
    "Direction",
    "MannKendall",
    "Plateau",
    "Share",
    "Trend",
    "adjusted",
    "block_medians",
    "change_point",
    "correlation",
    "ends",
    "mann_kendall",
    "plateau",
    "share_above",
    "share_below",
    "spikes",
    "spread",
    "theil_sen",
    "trend",
]
