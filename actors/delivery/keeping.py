"""Which kinds' content is kept once it was sent."""

import time
from typing import Final

from models import kept_content
from models.database.connections import Database

#: Seconds after which the kinds are read again: so much later a worker follows what an operator has said.
FRESH: Final = 10.0


class Keeping:
    """Knows the kinds whose content is kept. Any thread may call it.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kinds: frozenset[str] = frozenset()
        self._read_at: float | None = None

    def refresh(self) -> None:
        """Reads them, unless that was done lately; may wait for the database.

        Raises:
            DatabaseUnreachable: it is away.
        """
        now = time.monotonic()
        if self._read_at is None or now - self._read_at > FRESH:
            self._kinds = kept_content.kinds(self._database)
            self._read_at = now

    def is_kept(self, kind: str) -> bool:
        """Whether what was sent of this kind is kept, as far as is known. Never waits."""
        return kind in self._kinds
