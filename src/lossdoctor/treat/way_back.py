"""A loss that was too strong, until it is back in the middle of its band."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.treat.place import Place

ARRIVED = 3
"""Measurements in a row that ask for no further step, as a single one may be anywhere in the band by its noise."""


@dataclass(slots=True)
class WayBack:
    """arrived: measurements in a row at the middle or below it.

    What is held down pulls as hard as what holds it, so a ratio hardly follows a weight that is too large, and a wide
    band is entered long before the weight is right: a KL at three times its weight may be inside. So what was above
    its band is lowered until it has crossed the middle, and left alone afterwards, wherever in its band it is.
    """

    arrived: int = 0

    def goes_on(self, place: Place) -> bool:
        """Whether it is still above the middle, by the mean and by the last measurement."""
        above = min(place.mean, place.last) > place.middle
        self.arrived = 0 if above else self.arrived + 1
        return above

    @property
    def over(self) -> bool:
        """Whether it is there, and not by chance."""
        return self.arrived >= ARRIVED
