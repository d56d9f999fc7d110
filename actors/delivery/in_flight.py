"""The claims that this process works on, and those that it may hold without knowing it: their answer never arrived."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from models import emails
from models.database.connections import Database
from models.emails import HeldItem
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
    """

    after: int
    until: float


class InFlightClaims:
    """What a worker process has claimed. One thread claims at a time, but for claims made apart; any may look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Under the lock: claims that are worked on; all that are known since the latest that was known as the last
        #: claim began, or as a doubt began, whatever became of them; and claims made apart whose commit had no answer,
        #: and until when they may still be committed, by the monotonic clock.
        self._claims: set[int] = set()
        self._learnt: set[int] = set()
        self._unanswered: dict[int, float] = {}
        #: Under `_claiming`: the latest claim that was known as the last one began, and one that is in doubt, if any.
        self._claiming = threading.Lock()
        self._latest = 0
        self._doubt: Doubt | None = None

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
            latest = self._begin()
            try:
                found = self._claimed(database, worker_id, latest, claim, claimed_unread)
            except DatabaseUnreachable:
                self._doubt = self._doubt or Doubt(self._latest, 0.0)
                self._doubt.until = _end_of_doubt(database)
                raise
            for item in found:
                self._hold(item.claim)
            return found

    def _begin(self) -> int:
        """Gives the latest known claim: those to come have higher numbers. Forgets all, unless one is in doubt."""
        with self._lock:
            latest = max(self._latest, *self._learnt) if self._learnt else self._latest
            if self._doubt is None:
                self._latest = latest
                self._learnt.clear()
            return latest

    def _hold(self, claim: int) -> None:
        with self._lock:
            self._claims.add(claim)
            self._learnt.add(claim)

    def _claimed(
        self,
        database: Database,
        worker_id: int,
        latest: int,
        claim: Callable[[], Sequence[C]],
        claimed_unread: Callable[[Sequence[int], Sequence[int]], Sequence[C]],
    ) -> Sequence[C]:
        try:
            return claim()
        except DatabaseUnreachable:
            raise
        except Exception:
            # It may be committed, and only its answer not be understood.
            unread = self._unknown(database, worker_id, latest)
            if not unread:
                raise
            claims = {each.claim for each in unread}
            found = claimed_unread([each.id for each in unread], self._known())
            return [item for item in found if item.claim in claims]

    def _known(self) -> list[int]:
        with self._lock:
            return [*(self._claims | self._learnt)]

    def _unknown(self, database: Database, worker_id: int, after: int) -> list[HeldItem]:
        """What this worker holds by a later claim than that, without knowing it."""
        found = emails.claimed_since(database, worker_id, after, self._known())
        # A claim that is made apart is known before it is committed: where it was seen it is known by now.
        known = set(self._known())
        return [each for each in found if each.claim not in known]

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
            self._hold(number)

        try:
            return claim(hold)
        except BaseException as failure:
            with self._lock:
                self._claims.difference_update(numbers)
                if isinstance(failure, DatabaseUnreachable):
                    self._unanswered.update(dict.fromkeys(numbers, _end_of_doubt(database)))
            raise

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
        if self._doubt is None and not self._unanswered:
            return 0
        with self._claiming:
            now, doubt = time.monotonic(), self._doubt
            with self._lock:
                unanswered = dict(self._unanswered)
            try:
                orphans = self._unknown(database, worker_id, doubt.after) if doubt is not None else []
                if unanswered:
                    held = emails.claimed_since(database, worker_id, min(unanswered) - 1, ())
                    orphans += [each for each in held if each.claim in unanswered]
                return len(emails.return_unstarted(database, orphans)) if orphans else 0
            finally:
                if doubt is not None and now >= doubt.until:
                    self._doubt = None
                with self._lock:
                    for number in [each for each, until in unanswered.items() if now >= until]:
                        del self._unanswered[number]


def _end_of_doubt(database: Database) -> float:
    return time.monotonic() + database.limits.answer + MARGIN
