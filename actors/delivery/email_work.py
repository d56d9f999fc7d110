"""How emails are claimed and attempted."""

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from actors.delivery.attempt import TOGETHER, EmailAttempt, Records
from actors.delivery.composer import Composer, EmailPayload
from actors.delivery.conclude import Conclusions
from actors.delivery.dispatcher import Dispatcher, Ready
from actors.delivery.due_line import DueLine
from actors.delivery.item_work import ItemWork, Shared, Work, name_of
from actors.delivery.job import DirectJob
from actors.delivery.keeping import Keeping
from actors.delivery.rates import Facts, Rates, domains_of
from actors.delivery.room import Room
from actors.delivery.seals import Seals
from actors.queue.waiting import BrokerUnreachable
from actors.tick import tick
from models import emails, routes
from models.database.connections import Cursor
from models.emails import ClaimedEmail, DueClaim, Places, queue_of
from models.errors import DatabaseUnreachable
from models.items import Kept
from models.rates import WAITS
from models.words import Priority

logger = logging.getLogger(__name__)

#: Delivers emails.
EmailDispatcher: TypeAlias = Dispatcher[Work[ClaimedEmail, EmailPayload], EmailPayload]

#: What of a relay is limited, and which emails wait for that.
EmailRates: TypeAlias = Rates[Ready[Work[ClaimedEmail, EmailPayload], EmailPayload]]


class EmailWork(ItemWork[ClaimedEmail, EmailPayload]):
    """What the dispatcher does with emails.

    Args:
        shared: what it shares with others.
        composer: makes copies.
        seals: what makes the links in emails.
        records: what attempts read and write under way.
        conclusions: writes down what came of them.
        way: the route that they are sent by.
        line: of its due emails.
        keeping: knows the kinds whose content is kept.
        rates: what of the route is limited.
        tell_failed: told what an email failed of that was claimed without a message.
    """

    def __init__(
        self,
        shared: Shared,
        composer: Composer,
        seals: Seals,
        records: Records,
        conclusions: Conclusions,
        *,
        way: str,
        line: DueLine,
        keeping: Keeping,
        rates: EmailRates,
        tell_failed: Callable[[int, BaseException], None],
    ) -> None:
        super().__init__(shared, way)
        self._route = way
        self._composer = composer
        self._seals = seals
        self._records = records
        self._conclusions = conclusions
        self._tell_failed = tell_failed
        self._line = line
        self._room = Room()
        self._keeping = keeping
        self._rates = rates

    def attempt(self, item: ClaimedEmail) -> EmailAttempt:
        """An attempt at a claimed email that is about to begin."""
        is_kept = self._keeping.is_kept(item.kind)
        return EmailAttempt(item, self._composer, self._records, self._room, is_kept=is_kept)

    def read(self, works: Sequence[Work[ClaimedEmail, EmailPayload]]) -> None:
        """Reads the users of what was claimed together; where that takes too long, each goes on to be read alone."""
        attempts = [work.attempt for work in works if isinstance(work.attempt, EmailAttempt)]
        with suppress(emails.TooSlow):
            found = self._records.read_all([attempt.item for attempt in attempts], TOGETHER)
            for attempt, email in zip(attempts, found, strict=True):
                attempt.know(email)

    @property
    def may_claim_due(self) -> bool:
        """Whether something may be due that is not enqueued, nor is to be. Never waits."""
        if self._disabled or not self._line.is_look_due:
            return False
        queue = queue_of(self._route)
        return self._broker.is_reading(queue) and not self._broker.is_carried(queue)

    def claim_due(self, room: int) -> list[Work[ClaimedEmail, EmailPayload]]:
        """Claims the route's due emails without messages: at most `room`. A failure leaves it to the scheduler."""
        worker_id = self._broker.worker_session.worker_id
        kept: list[Kept] = []
        try:
            self._journal.begin(worker_id)
            self._seals.read()
            self._keeping.refresh()
            self._rates.refresh()
            claimed = self._in_flight.claim(
                self._database,
                worker_id,
                lambda: self._claim_line(room, worker_id, kept),
                lambda claimed, known: emails.claimed_unread(self._database, claimed, worker_id, known),
            )
        except Exception as failure:  # noqa: BLE001 - the scheduler takes it apart
            logger.warning("Due emails could not be claimed together: %s; a pass enqueues them.", name_of(failure))
            self._leave_to_the_scheduler()
            return []
        works = [Work(self.attempt(item), self._direct_job(item.id), None, self._traces.begin()) for item in claimed]
        return works + self._works_of_kept([(each, self._direct_job(each.id)) for each in kept])

    def _claim_line(self, room: int, worker_id: int, kept: list[Kept]) -> list[ClaimedEmail]:
        found = self._line.claim(room, partial(self._claim_from, room, worker_id))
        kept += found.kept
        return found.emails

    def _leave_to_the_scheduler(self) -> None:
        # Where the database is away, it comes with the next tick.
        with suppress(DatabaseUnreachable, BrokerUnreachable):
            routes.end_direct_claims(self._database, self._route)
            tick(self._broker)

    def _claim_from(self, room: int, worker_id: int, places: Places, overlap: float) -> DueClaim:
        return emails.claim_due(self._database, room, worker_id, self._route, places, overlap=overlap)

    def _direct_job(self, email_id: int) -> DirectJob:
        return DirectJob(self._broker.progress.moved, partial(self._tell_failed, email_id))

    def _claim(
        self, item_ids: Sequence[int], worker_id: int, keep: Callable[[Kept], None] = lambda _: None
    ) -> Sequence[ClaimedEmail]:
        self._seals.read()
        self._keeping.refresh()
        self._rates.refresh()
        return self._in_flight.claim(
            self._database,
            worker_id,
            partial(emails.claim_unread, self._database, item_ids, worker_id, self._route, keep),
            lambda claimed, known: emails.claimed_unread(
                self._database, [each for each in claimed if each in item_ids], worker_id, known
            ),
        )

    def _claim_apart(self, cursor: Cursor, item_id: int, worker_id: int) -> ClaimedEmail | None:
        return emails.claim_apart(cursor, item_id, worker_id, self._route)

    def _unclaimed(self, kept: Kept) -> ClaimedEmail:
        return emails.unclaimed(kept)

    @property
    def rates(self) -> EmailRates:
        """What of the route is limited."""
        return self._rates

    def facts(self, work: Work[ClaimedEmail, EmailPayload]) -> Facts:
        """An email, as far as it is known before it is rendered."""
        attempt = work.attempt
        addresses = attempt.next_addresses if isinstance(attempt, EmailAttempt) else ()
        item = attempt.item
        goes_first = item.probe or item.priority == Priority.URGENT
        return Facts(domains_of(addresses), (item.last_error or "").startswith(WAITS), goes_first)

    def destinations(self, work: Work[ClaimedEmail, EmailPayload], payload: EmailPayload) -> Collection[str]:  # noqa: ARG002
        """The domains of a payload's recipients."""
        return domains_of(payload.recipients)

    def give_turns(self, works: Sequence[Work[ClaimedEmail, EmailPayload]], domains: tuple[str, ...]) -> None:
        """Sending → scheduled until their turn comes, where the rate is limited; no attempt is counted."""
        self._wait_as_scheduled(works, lambda items: self._rates.give_turns(items, domains))

    def _conclusions_of(self, item: ClaimedEmail) -> Conclusions:  # noqa: ARG002 - all are sent by one route
        return self._conclusions
