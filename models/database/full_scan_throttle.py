"""Looks at a queue from its very beginning, rationed.

A snapshot that is held open keeps PostgreSQL from removing what is done, and each look from the beginning wades through
all of it. So a look goes on from where the last one ended, and begins anew only where that costs next to nothing, or
has not been done for a thousand times as long as it takes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds that a look from the beginning may take without being rationed.
CHEAP = 0.005

#: Of so many looks the shortest counts: any may be slow for another reason.
SEVERAL = 3

#: How many times as long as it takes a dear look is not repeated for.
REST = 1000


class FullScanThrottle:
    """When to begin anew.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -float("inf")
        self._latest: deque[float] = deque(maxlen=SEVERAL)

    @property
    def is_due(self) -> bool:
        """Whether the next look may begin anew."""
        return self._clock() >= self._next

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around a look from the beginning."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._latest.append(ended - begun)
        if len(self._latest) == SEVERAL and min(self._latest) > CHEAP:
            self._next = ended + REST * min(self._latest)
