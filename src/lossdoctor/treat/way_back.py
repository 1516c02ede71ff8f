"""A loss that has left its band, until it is back in the middle of it."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.treat.place import Place

ARRIVED = 3
"""Measurements in a row that ask for no further step, as a single one may be anywhere in the band by its noise."""


@dataclass(slots=True)
class WayBack:
    """down: whether it was too strong. arrived: measurements in a row at the middle or beyond it.

    Where a ratio hardly follows its weight, a wide band is entered long before the weight is right: that of a KL at
    three times its weight may be inside. So what was outside is moved on in the same direction until it has crossed
    the middle, and left alone afterwards, wherever in its band it is.
    """

    down: bool
    arrived: int = 0

    def goes_on(self, place: Place) -> bool:
        """Whether both ratios are still on the side of the middle that it comes from."""
        sides = (place.mean, place.last)
        ahead = min(sides) > place.middle if self.down else max(sides) < place.middle
        self.arrived = 0 if ahead else self.arrived + 1
        return ahead

    @property
    def over(self) -> bool:
        """Whether it is there, and not by chance."""
        return self.arrived >= ARRIVED
