"""Decides when a queue is read from its beginning again.

A snapshot that is held open keeps PostgreSQL from removing rows that are done, and each scan from the beginning reads
all of them. So a scan goes on from where the last one ended. A full scan, from the beginning, is made only if it is
cheap, or if it was last made a thousand times its duration ago.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: A full scan that takes fewer seconds than this is made each time.
CHEAP = 0.005

#: The shortest of this many full scans counts: any single one may be slow for another reason.
SEVERAL = 3

#: After an expensive full scan, wait this many times its duration.
REST = 1000


class FullScanThrottle:
    """Says when the next full scan may be made.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -float("inf")
        self._latest: deque[float] = deque(maxlen=SEVERAL)

    @property
    def is_due(self) -> bool:
        """Whether the next scan may be a full one."""
        return self._clock() >= self._next

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measures a full scan, which is made inside of it."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._latest.append(ended - begun)
        if len(self._latest) == SEVERAL and min(self._latest) > CHEAP:
            self._next = ended + REST * min(self._latest)
