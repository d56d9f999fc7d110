"""The permit to start content: this worker's session was alive a moment ago."""

import threading
import time
from typing import Final

from actors.liveness.worker_session import WorkerSession

#: Seconds for which content waits for the worker's session to be proven: for one such time all that come to that point.
PATIENCE: Final = 10.0


class SessionPermit:
    """Given while the worker's session is proven: a worker that cannot prove it starts no content. Any thread may ask.

    Args:
        worker_session: the session.
    """

    def __init__(self, worker_session: WorkerSession) -> None:
        self._worker_session = worker_session
        #: Until when it is worth while to wait, by the monotonic clock; None while the session is proven.
        self._until: float | None = None
        self._lock = threading.Lock()

    def is_given(self) -> bool:
        """Whether the session was alive a moment ago. Never waits."""
        if not self._worker_session.is_proven():
            return False
        self._until = None
        return True

    def may_come(self) -> bool:
        """Whether to ask again soon: not once the time for that is over, until as much time has passed again."""
        now = time.monotonic()
        with self._lock:
            if self._until is None or now > self._until + PATIENCE:
                self._until = now + PATIENCE
            return now < self._until
