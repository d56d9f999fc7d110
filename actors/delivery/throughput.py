"""How much a process has delivered in the last moments."""

import time
from collections.abc import Callable
from typing import Final

#: Seconds that are counted together: the rate is that of the last whole one of them.
WINDOW: Final = 0.25


class Throughput:
    """Counts deliveries. One thread at a time uses it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_at = -float("inf")
        self._count = 0
        self._rate = 0.0

    def note(self) -> None:
        """One more was delivered."""
        self._turn()
        self._count += 1

    @property
    def a_second(self) -> float:
        """How many were delivered in a second; 0 where nothing was for a while."""
        self._turn()
        return self._rate

    def _turn(self) -> None:
        elapsed = (now := self._clock()) - self._begun_at
        if elapsed >= WINDOW:
            self._rate = self._count / elapsed if elapsed < 2 * WINDOW else 0.0
            self._count, self._begun_at = 0, now
