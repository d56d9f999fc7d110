"""What the first page shows of the database itself: looked at seldom, however many tabs ask."""

import threading
import time
from collections.abc import Sequence

from duepost.commands import findings
from duepost.commands.health import Finding
from models.database.connections import Database

#: Seconds for which the database is not looked at again.
FRESH = 20.0


class ServerFindings:
    """How the database itself stands, read once for all who ask at about the same time. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._found: Sequence[Finding] = ()

    def read(self, database: Database) -> Sequence[Finding]:
        """As it was at most `FRESH` seconds ago; the lock is held meanwhile, so that one thread looks."""
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > FRESH:
                self._found = tuple(findings.of_server(database))
                self._read_at = time.monotonic()
            return self._found
