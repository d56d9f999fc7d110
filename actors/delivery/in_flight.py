"""The claims that this process works on, and those that it may hold without knowing it: their answer never arrived."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from models import emails
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.items import Claimed

C = TypeVar("C", bound=Claimed)

#: Seconds that a claim which we hung up on may take longer than an answer to be carried out.
MARGIN = 1.0


class LostClaim(Exception):
    """The row went to another worker while this one was away: nothing may be concluded."""


class InFlightClaims:
    """What a worker process has claimed. One thread claims at a time; any may look."""

    def __init__(self) -> None:
        self._claims: set[int] = set()
        #: Emails whose claim had no answer, and until when it may still be carried out, by the monotonic clock.
        self._doubtful: dict[int, float] = {}
        self._lock = threading.Lock()
        self._claiming = threading.Lock()

    def __contains__(self, claim: int) -> bool:
        with self._lock:
            return claim in self._claims

    def claim(
        self,
        database: Database,
        item_ids: Sequence[int],
        claim: Callable[[], Sequence[C]],
        claimed_unread: Callable[[Sequence[int]], Sequence[C]],
    ) -> Sequence[C]:
        """Queued → sending for those that are still to be sent; each is held until it is dropped.

        Args:
            database: where.
            item_ids: which.
            claim: claims them.
            claimed_unread: of what a claim has taken, whose answer could not be read, each alone; without those claims
                that it is given.

        Raises:
            DatabaseUnreachable: nobody knows whether they are claimed.
            Exception: they are not.
        """
        with self._claiming:
            try:
                found = self._claimed(claim, claimed_unread)
            except DatabaseUnreachable:
                until = time.monotonic() + database.limits.answer + MARGIN
                self._doubtful.update(dict.fromkeys(item_ids, until))
                raise
            with self._lock:
                self._claims.update(item.claim for item in found)
            for item in found:
                self._doubtful.pop(item.id, None)
            return found

    def _claimed(
        self, claim: Callable[[], Sequence[C]], claimed_unread: Callable[[Sequence[int]], Sequence[C]]
    ) -> Sequence[C]:
        try:
            return claim()
        except DatabaseUnreachable:
            raise
        except Exception:
            # It may be committed, and only its answer not be understood.
            found = claimed_unread(self._held())
            if not found:
                raise
            return found

    def _held(self) -> list[int]:
        with self._lock:
            return list(self._claims)

    def drop(self, claim: int) -> None:
        """A claim is concluded, or given up."""
        with self._lock:
            self._claims.discard(claim)

    def return_orphaned(self, database: Database, worker_id: int) -> int:
        """Sending → scheduled for what was claimed in an answer that never arrived: nothing of it was sent.

        Returns:
            how many there were.

        Raises:
            DatabaseUnreachable: they stay in doubt, for as long as their claims may still be carried out.
        """
        if not self._doubtful:
            return 0
        with self._claiming:
            try:
                return len(emails.return_orphaned(database, list(self._doubtful), worker_id, self._held()))
            finally:
                now = time.monotonic()
                self._doubtful = {email_id: until for email_id, until in self._doubtful.items() if until > now}
