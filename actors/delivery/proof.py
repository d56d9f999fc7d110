"""Proof that this worker's own session lives, right before an email's content goes out."""

import threading
import time
from typing import Final

from actors.liveness.worker_session import WorkerSession

#: Seconds that dialogues wait, before their content, for the worker's own session to be proven.
PROOF_PATIENCE: Final = 10.0


class Proof:
    """Of the worker's own session, right before content: waited for once, however many emails come to that point.

    Any thread may ask.

    Args:
        worker_session: the session.
    """

    def __init__(self, worker_session: WorkerSession) -> None:
        self._worker_session = worker_session
        self._until: float | None = None
        self._lock = threading.Lock()

    def is_there(self) -> bool:
        """Whether there is one. Never waits."""
        return self._worker_session.is_proven()

    def __call__(self) -> bool:
        """Waits for one; says whether it has come."""
        now = time.monotonic()
        with self._lock:
            if self._until is None or now > self._until + PROOF_PATIENCE:
                self._until = now + PROOF_PATIENCE
            patience = max(0.0, self._until - now)
        if not self._worker_session.wait_until_proven(patience):
            return False
        with self._lock:
            self._until = None
        return True
