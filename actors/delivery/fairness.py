"""Who goes first: emails that are on time go ahead of late ones, but no kind of email in a flood.

Emails beyond their kind's token bucket go in line with the late ones. So neither a long backlog nor a flood of one kind
delays the few emails of another.
"""

import threading
import time
from collections.abc import Callable

#: Emails of each kind that may go ahead in a second.
AHEAD_A_SECOND = 100.0

#: Kinds that are remembered at most; those that have not been seen for a second need not be.
KINDS = 10_000


class TokenBuckets:
    """How many emails of each kind may go ahead: a number a second, and no more than that at once (a token bucket).

    Any thread may ask: passes of the scheduler run side by side.

    Args:
        rate: in a second, for each kind.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float = AHEAD_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        #: By kind: tokens left, and since when.
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, kind: str) -> bool:
        """Whether an email of this kind may go ahead."""
        with self._lock:
            now = self._clock()
            if len(self._left) >= KINDS:
                self._left = {each: (left, since) for each, (left, since) in self._left.items() if now - since < 1.0}
            left, since = self._left.get(kind, (self._rate, now))
            left = min(self._rate, left + (now - since) * self._rate)
            is_left = left >= 1.0
            self._left[kind] = (left - 1.0 if is_left else left, now)
            return is_left
