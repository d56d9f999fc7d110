"""The claims that this process works on, and those that it may hold without knowing it: their answer never arrived."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from models import emails
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.items import Claimed

C = TypeVar("C", bound=Claimed)
T = TypeVar("T")

#: Seconds that a claim which we hung up on may take longer than an answer to be carried out.
MARGIN = 1.0


class LostClaim(Exception):
    """The row went to another worker while this one was away: nothing may be concluded."""


@dataclass(slots=True)
class Doubt:
    """A claim had no answer: it may have been carried out, or still be.

    Attributes:
        after: the latest claim that was known before. Their numbers only grow.
        until: until when it may still be carried out, by the monotonic clock.
        learnt: claims that were learnt of since, at work or over.
    """

    after: int
    until: float
    learnt: set[int] = field(default_factory=set)


class InFlightClaims:
    """What a worker process has claimed. One thread claims at a time; any may look."""

    def __init__(self) -> None:
        self._claims: set[int] = set()
        #: The latest claim that is known of, and the claim that is in doubt, if any: under `_claiming`.
        self._latest = 0
        self._doubt: Doubt | None = None
        self._lock = threading.Lock()
        self._claiming = threading.Lock()

    def __contains__(self, claim: int) -> bool:
        with self._lock:
            return claim in self._claims

    def claim(
        self,
        database: Database,
        worker_id: int,
        claim: Callable[[], Sequence[C]],
        claimed_unread: Callable[[Sequence[int], Sequence[int]], Sequence[C]],
    ) -> Sequence[C]:
        """Scheduled, queued → sending for items that are still to be sent; each is held until it is dropped.

        Args:
            database: where.
            worker_id: the worker that claims them.
            claim: claims them.
            claimed_unread: of what a claim has taken, whose answer could not be read, each alone: given the items' ids,
                and those claims that it is without.

        Raises:
            DatabaseUnreachable: nobody knows whether they are claimed.
            Exception: they are not.
        """
        with self._claiming:
            try:
                found = self._claimed(database, worker_id, claim, claimed_unread)
            except DatabaseUnreachable:
                self._doubt = self._doubt or Doubt(self._latest, 0.0)
                self._doubt.until = time.monotonic() + database.limits.answer + MARGIN
                raise
            numbers = [item.claim for item in found]
            with self._lock:
                self._claims.update(numbers)
            self._latest = max(numbers, default=self._latest)
            if self._doubt is not None:
                self._doubt.learnt.update(numbers)
            return found

    def _claimed(
        self,
        database: Database,
        worker_id: int,
        claim: Callable[[], Sequence[C]],
        claimed_unread: Callable[[Sequence[int], Sequence[int]], Sequence[C]],
    ) -> Sequence[C]:
        try:
            return claim()
        except DatabaseUnreachable:
            raise
        except Exception:
            # It may be committed, and only its answer not be understood.
            held = self._held()
            item_ids = emails.claimed_since(database, worker_id, self._latest, held)
            if not item_ids:
                raise
            return claimed_unread(item_ids, held)

    def claim_apart(self, database: Database, claim: Callable[[Callable[[int], None]], T]) -> T:
        """Scheduled → sending for one item, in a transaction of its own, beside other claims.

        Args:
            database: where.
            claim: claims it; calls what it is given with the claim's number before it is committed.

        Raises:
            Exception: what `claim` raises; then the claim is not held.
        """
        numbers: list[int] = []

        def hold(number: int) -> None:
            numbers.append(number)
            with self._lock:
                self._claims.add(number)

        try:
            return claim(hold)
        except BaseException as failure:
            if isinstance(failure, DatabaseUnreachable) and numbers:
                with self._claiming:
                    doubt = self._doubt or Doubt(self._latest, 0.0)
                    until = time.monotonic() + database.limits.answer + MARGIN
                    self._doubt = Doubt(min(doubt.after, numbers[0] - 1), until, doubt.learnt)
            for number in numbers:
                self.drop(number)
            raise

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
        if self._doubt is None:
            return 0
        with self._claiming:
            doubt = self._doubt
            try:
                known = [*doubt.learnt, *self._held()]
                item_ids = emails.claimed_since(database, worker_id, doubt.after, known)
                return len(emails.return_orphaned(database, item_ids, worker_id, known)) if item_ids else 0
            finally:
                if time.monotonic() >= doubt.until:
                    self._doubt = None
