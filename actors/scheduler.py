"""The scheduler: while something is due, lock it and enqueue it."""

import logging
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta

import dramatiq
import psycopg2

from actors.alerts import alerts
from actors.delivery.fairness import TokenBuckets
from actors.queue.broker import PostgresBroker
from actors.sender import message_for
from actors.tick import PRIORITY as PRIORITY_OF_PASSES
from actors.tick import QUEUE, SCHEDULER
from models import control, emails, undeliverable, workers
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.emails import LATE_PRIORITY, PRIORITY, DueEmail
from models.messages import StoredMessage

logger = logging.getLogger(__name__)

#: How many due ids are read at once. Read once in due order, they are not found again as dead index entries.
PAGE = 1000

#: Before each page of a long pass, at most this many emails that have only just fallen due are taken first.
NEWEST = 100

#: How long a row may take from its transaction's beginning to its commit, for a pass that goes on from where the last
#: one ended to see it. What takes longer is seen by the next pass from the beginning.
OVERLAP = timedelta(seconds=1)

#: Milliseconds after which a pass comes again that found another one at a long line: it does what that one leaves.
BESIDE_ANOTHER = 2_000


class Scheduler:
    """Passes of one process. They may run side by side, in any threads: each replaces the place it came to, whole.

    Args:
        database: where the emails are.
        broker: where they are enqueued.
        retention_days: for how many days the ledger is kept; None for good.
        disabled: nothing is enqueued.

    Attributes:
        token_buckets: how much of a kind goes ahead.
        full_scan_throttle: when a pass begins at the oldest.
    """

    def __init__(
        self, database: Database, broker: PostgresBroker, *, retention_days: int | None, disabled: bool
    ) -> None:
        self._database = database
        self._broker = broker
        self._retention_days = retention_days
        self._disabled = disabled
        self.token_buckets = TokenBuckets()
        self.full_scan_throttle = FullScanThrottle()
        #: How far this process's passes have come in due order. One that is too early costs time only.
        self._place: tuple[datetime, int] = emails.BEGINNING

    def enqueue_due_emails(self) -> None:
        """One pass: enqueues what is due, the oldest first, each email in a transaction of its own.

        Raises:
            dramatiq.Retry: another pass is at a long line, and does it all; two would be in each other's way.
        """
        beside: AnotherPass | None = None
        if not self._disabled:
            try:
                for page in self.due_pages():
                    self.enqueue_each(page)
            except AnotherPass as another:
                beside = another
            self.probe_an_open_circuit()
        self.keep_house()
        if control.take_check_in(self._database):
            alerts.check_in()
        if beside is not None:
            raise beside

    def due_pages(self) -> Iterator[list[DueEmail]]:
        """Due emails in due order, page by page, until nothing is due or nothing may be sent; between them the newest.

        Raises:
            AnotherPass: many are due, and somebody else goes through them.
        """
        begins_anew, is_long = self.full_scan_throttle.is_due, False
        place = emails.BEGINNING if begins_anew else self._place
        page: list[DueEmail] | None = None
        while (page is None or len(page) == PAGE) and self._may_enqueue():
            with self.full_scan_throttle.measured() if begins_anew else nullcontext():
                page = emails.due_page(self._database, PAGE, place)
            begins_anew = False
            if len(page) == PAGE:
                if is_long:
                    control.go_on_with_long_pass(self._database)
                elif not control.begin_long_pass(self._database):
                    raise AnotherPass
                is_long = True
                if newest := emails.newest_due(self._database, NEWEST):
                    yield newest
            if page:
                yield page
                place = page[-1].due_at, page[-1].id
                self._place = (place[0] - OVERLAP, 0)
        if is_long:
            control.end_long_pass(self._database)

    def _may_enqueue(self) -> bool:
        state = control.read(self._database)
        if state.paused or state.circuit_open or state.route_paused:
            return False
        return not emails.are_enough_waiting(self._database)

    def enqueue_each(self, due: Sequence[DueEmail]) -> None:
        """Enqueues emails in one statement, or moves what has expired to the ledger; a failure is taken apart.

        Raises:
            psycopg2.Error: of the first that failed; all the others are done.
        """
        email_ids = [each.id for each in due]
        priorities = [self.priority_of(each) for each in due]

        def store(messages: Sequence[StoredMessage]) -> Collection[str]:
            return emails.enqueue(self._database, email_ids, messages, priorities)

        try:
            self._broker.enqueue_through([message_for(email_id) for email_id in email_ids], store)
        except psycopg2.Error:
            # Nothing of it is committed. Each is taken alone, so that one row never blocks another.
            failures = [failure for email_id in email_ids if (failure := self.failure_of(email_id))]
            if failures:
                raise failures[0] from None

    def priority_of(self, due: DueEmail) -> int:
        """What is on time goes ahead of what is late, as far as its kind's token bucket goes."""
        return PRIORITY if due.is_on_time and self.token_buckets.take(due.kind) else LATE_PRIORITY

    def failure_of(self, email_id: int) -> psycopg2.Error | None:
        """Enqueues one email; gives what that fails of."""
        try:
            self.enqueue_one(email_id)
        except psycopg2.Error as failure:
            return failure
        return None

    def enqueue_one(self, email_id: int, *, probe: bool = False) -> bool:
        """Enqueues one email, or moves it to the ledger if its time is over; in one transaction.

        Returns:
            whether it was enqueued; not if another transaction holds it, or nothing may be sent any more.
        """
        inserted: Collection[str] = ()

        def store(messages: Sequence[StoredMessage]) -> Collection[str]:
            nonlocal inserted
            inserted = emails.enqueue(self._database, [email_id], messages, [PRIORITY], probe=probe)
            return inserted

        self._broker.enqueue_through([message_for(email_id)], store)
        return bool(inserted)

    def probe_an_open_circuit(self) -> None:
        """While the circuit is open: one due email is enqueued alone, once in each pause."""
        if not (control.read(self._database).probe_is_due and emails.due_page(self._database, 1)):
            return
        if control.take_probe(self._database):
            for due in probe_order(emails.due_page(self._database, PAGE)):
                if self.enqueue_one(due.id, probe=True):
                    return

    def keep_house(self) -> None:
        """A few times a day: the ledger's partitions, and workers that are long gone."""
        if control.take_maintenance(self._database):
            are_maintained = control.maintain_partitions(self._database, retention_days=self._retention_days)
            while undeliverable.forget(self._database):
                pass
            workers.delete_old(self._database)
            if not are_maintained:
                logger.warning(
                    "The ledger's partitions wait for a long reader (`duepost doctor` names it); again in a minute."
                )
                return
            control.note_maintenance(self._database)
            days, is_owner = control.keeping(self._database)
            if (reason := control.why_kept_longer(self._retention_days, days, is_owner=is_owner)) is not None:
                logger.warning(reason)


def declare_scheduler(broker: PostgresBroker, scheduler: Scheduler) -> dramatiq.Actor[[], None]:
    """Declares the actor that enqueues what is due."""

    def enqueue_due_emails() -> None:
        """One pass of the scheduler."""
        scheduler.enqueue_due_emails()

    return dramatiq.actor(
        enqueue_due_emails,
        actor_name=SCHEDULER,
        broker=broker,
        queue_name=QUEUE,
        priority=PRIORITY_OF_PASSES,
        max_retries=None,
        min_backoff=1_000,
        max_backoff=60_000,
    )


class AnotherPass(dramatiq.errors.Retry):
    """Another pass goes through a long line of due emails."""

    def __init__(self) -> None:
        super().__init__("another pass is under way", delay=BESIDE_ANOTHER)  # type: ignore[no-untyped-call]


def probe_order(page: Sequence[DueEmail]) -> list[DueEmail]:
    """The oldest of each kind, the kinds by chance, then the rest: what is refused may be one kind's content alone."""
    oldest: dict[str, DueEmail] = {}
    for due in page:
        oldest.setdefault(due.kind, due)
    first = list(oldest.values())
    random.shuffle(first)
    return first + [due for due in page if oldest[due.kind] is not due]
