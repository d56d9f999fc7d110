"""A route's lines of due emails, as one process claims them without messages: how far it has come, when it looks."""

import time
from collections.abc import Callable
from typing import Final

from models.database.full_scan_throttle import FullScanThrottle
from models.emails import FIRST_PLACES, DueClaim, Places

#: Seconds between two looks while nothing more was due than was found.
LOOK_INTERVAL: Final = 0.25

#: Seconds for which a line that could not be claimed together is left to the scheduler, which takes it apart.
LEFT_TO_THE_SCHEDULER: Final = 10.0

#: Seconds after which a claim goes back from where the last one ended, and by how much, for what became visible late.
OVERLAP: Final = 1.0


class DueLine:
    """How far claims have come in the line of each priority. One thread at a time claims; any may ask if one is due.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._throttle = FullScanThrottle(clock)
        self._places = FIRST_PLACES
        self._goes_back_at = -float("inf")
        self._looks_at = -float("inf")
        #: Whether the last claim found as many as it asked for.
        self.is_long = False

    @property
    def is_look_due(self) -> bool:
        """Whether a claim may find something. Never waits."""
        return self._clock() >= self._looks_at

    def look_soon(self) -> None:
        """Something has fallen due. Any thread may say so."""
        self._looks_at = min(self._looks_at, self._clock())

    def claim(self, size: int, claim: Callable[[Places, float], DueClaim]) -> DueClaim:
        """Claims due emails, from the beginning where that is cheap, else from where the last claim ended.

        Args:
            size: how many are asked for.
            claim: claims from places on, or from as many seconds before them.

        Raises:
            Exception: what `claim` raises; then the line is left to the scheduler for a while.
        """
        self._looks_at = self._clock() + LEFT_TO_THE_SCHEDULER
        self.is_long = False
        if self._throttle.is_due:
            with self._throttle.measured():
                found = claim(FIRST_PLACES, 0.0)
        else:
            found = claim(self._places, self._overlap())
        self._places = Places(*(new or old for new, old in zip(found.places, self._places, strict=True)))
        self.is_long = found.found >= size
        self._looks_at = self._clock() + (0.0 if self.is_long else LOOK_INTERVAL)
        return found

    def _overlap(self) -> float:
        now = self._clock()
        if now < self._goes_back_at:
            return 0.0
        self._goes_back_at = now + OVERLAP
        return OVERLAP
