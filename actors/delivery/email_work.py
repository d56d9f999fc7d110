"""How emails are claimed and attempted."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from actors.delivery.attempt import TOGETHER, EmailAttempt, Records
from actors.delivery.composer import Composer, EmailPayload
from actors.delivery.conclude import Conclusions
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.item_work import ItemWork, Shared, Work
from models import emails
from models.emails import ClaimedEmail

#: Delivers emails.
EmailDispatcher: TypeAlias = Dispatcher[Work[ClaimedEmail, EmailPayload], EmailPayload]


class EmailWork(ItemWork[ClaimedEmail, EmailPayload]):
    """What the dispatcher does with emails.

    Args:
        shared: what it shares with others.
        composer: makes copies.
        records: what attempts read and write under way.
        conclusions: writes down what came of them.
        way: the route that they are sent by.
    """

    def __init__(
        self, shared: Shared, composer: Composer, records: Records, conclusions: Conclusions, *, way: str
    ) -> None:
        super().__init__(shared, way)
        self._route = way
        self._composer = composer
        self._records = records
        self._conclusions = conclusions

    def attempt(self, item: ClaimedEmail) -> EmailAttempt:
        """An attempt at a claimed email that is about to begin."""
        return EmailAttempt(item, self._composer, self._records)

    def read(self, works: Sequence[Work[ClaimedEmail, EmailPayload]]) -> None:
        """Reads the users of what was claimed together; where that takes too long, each goes on to be read alone."""
        attempts = [work.attempt for work in works if isinstance(work.attempt, EmailAttempt)]
        with suppress(emails.TooSlow):
            found = self._records.read_all([attempt.item for attempt in attempts], TOGETHER)
            for attempt, email in zip(attempts, found, strict=True):
                attempt.know(email)

    def _claim(self, item_ids: Sequence[int], worker_id: int) -> Sequence[ClaimedEmail]:
        return self._in_flight.claim(
            self._database,
            item_ids,
            partial(emails.claim_unread, self._database, item_ids, worker_id, self._route),
            partial(emails.claimed_unread, self._database, item_ids, worker_id),
        )

    def _conclusions_of(self, item: ClaimedEmail) -> Conclusions:  # noqa: ARG002 - all are sent by one route
        return self._conclusions
