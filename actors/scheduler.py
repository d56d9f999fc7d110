"""The scheduler: while something is due, lock it and enqueue it."""

import logging
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import dramatiq
import psycopg2

from actors import reporting
from actors.promptness import Allowance
from actors.ration import Ration
from actors.runtime import broker, database
from actors.sender import LATE_PRIORITY, PRIORITY, SCHEDULER, send_email, tick_message
from actors.settings import settings
from models import control, emails, undeliverable, workers
from models.emails import DueEmail
from models.messages import StoredMessage

logger = logging.getLogger(__name__)

#: How many due ids are read at once. Read once in due order, they are not found again as dead index entries.
PAGE = 1000

#: Before each page of a long pass, so many of those that have only just fallen due are looked for.
NEWEST = 100

#: How long a row may take from its transaction's beginning to its commit, for a pass that goes on from where the last
#: one ended to see it. What takes longer is seen by the next pass from the beginning.
OVERLAP = timedelta(seconds=1)

#: Milliseconds after which a pass comes again that found another one at a long line: it does what that one leaves.
BESIDE_ANOTHER = 2_000


@dataclass
class Passed:
    """How far this process's passes have come in due order.

    Passes may run side by side: each replaces the place whole, and a place that is too early costs time only.
    """

    place: tuple[datetime, int] = emails.BEGINNING


passed = Passed()
ration = Ration()
allowance = Allowance()


@dramatiq.actor(
    broker=broker,
    actor_name=SCHEDULER,
    queue_name="duepost_scheduler",
    priority=0,
    max_retries=None,
    min_backoff=1_000,
    max_backoff=60_000,
)
def enqueue_due_emails() -> None:
    """One pass: enqueues what is due, the oldest first, each email in a transaction of its own.

    Raises:
        dramatiq.Retry: another pass is at a long line, and does it all; two would be in each other's way.
    """
    beside: AnotherPass | None = None
    if not settings().disabled:
        bring_back_lost_messages()
        try:
            for page in due_pages():
                enqueue_each(page)
        except AnotherPass as another:
            beside = another
        probe_an_open_circuit()
    keep_house()
    if control.take_check_in(database):
        reporting.check_in()
    if beside is not None:
        raise beside


class AnotherPass(dramatiq.errors.Retry):
    """Another pass goes through a long line of due emails."""

    def __init__(self) -> None:
        super().__init__("another pass is under way", delay=BESIDE_ANOTHER)  # type: ignore[no-untyped-call]


def due_pages() -> Iterator[list[DueEmail]]:
    """Due emails in due order, page by page, until nothing is due or nothing may be sent; between them the newest.

    Raises:
        AnotherPass: many are due, and somebody else goes through them.
    """
    begins_anew, is_long = ration.is_due, False
    place = emails.BEGINNING if begins_anew else passed.place
    while True:
        state = control.read(database)
        if state.paused or state.circuit_open or state.route_paused:
            return
        with ration.measured() if begins_anew else nullcontext():
            page = emails.due_page(database, PAGE, place)
        begins_anew = False
        if len(page) == PAGE:
            if is_long:
                control.go_on_with_long_pass(database)
            elif not control.begin_long_pass(database):
                raise AnotherPass
            is_long = True
            if newest := emails.newest_due(database, NEWEST):
                yield newest
        if page:
            yield page
            place = page[-1].due_at, page[-1].id
            passed.place = (place[0] - OVERLAP, 0)
        if len(page) < PAGE:
            if is_long:
                control.end_long_pass(database)
            return


def enqueue_each(due: Sequence[DueEmail]) -> None:
    """Enqueues emails, each in a transaction of its own, or moves it to the ledger if its time is over.

    Raises:
        psycopg2.Error: of the first that failed; all the others are done.
    """
    email_ids = [each.id for each in due]
    priorities = [priority_of(each) for each in due]

    def store(messages: Sequence[StoredMessage]) -> Collection[str]:
        return emails.enqueue_each(database, email_ids, messages, priorities)

    try:
        broker.enqueue_through([send_email.message(email_id) for email_id in email_ids], store)
    except psycopg2.Error:
        # What came before it is committed. The rest is taken one by one, so that one row never blocks another.
        failures = [failure for email_id in email_ids if (failure := failure_of(email_id))]
        if failures:
            raise failures[0] from None


def priority_of(due: DueEmail) -> int:
    """What is on time goes ahead of what is late, as far as its kind's allowance goes."""
    return PRIORITY if due.is_on_time and allowance.take(due.kind) else LATE_PRIORITY


def failure_of(email_id: int) -> psycopg2.Error | None:
    """Enqueues one email; gives what that fails of."""
    try:
        enqueue_or_expire(email_id)
    except psycopg2.Error as failure:
        return failure
    return None


def enqueue_or_expire(email_id: int, *, probe: bool = False) -> bool:
    """Enqueues one email, or moves it to the ledger if its time is over; in one transaction.

    Returns:
        whether it was enqueued; not if another transaction holds it, or nothing may be sent any more.
    """
    message = send_email.message(email_id)
    with database.transaction() as cursor:
        if emails.enqueue(cursor, email_id, UUID(message.message_id), probe=probe):
            broker.enqueue(message)
            return True
        emails.expire(cursor, email_id)
        return False


def probe_an_open_circuit() -> None:
    """While the circuit is open: one due email is enqueued alone, once in each pause."""
    if not (control.read(database).probe_is_due and emails.due_page(database, 1)):
        return
    if control.take_probe(database):
        for due in probe_order(emails.due_page(database, PAGE)):
            if enqueue_or_expire(due.id, probe=True):
                return


def probe_order(page: Sequence[DueEmail]) -> list[DueEmail]:
    """The oldest of each kind, the kinds by chance, then the rest: what is refused may be one kind's content alone."""
    oldest: dict[str, DueEmail] = {}
    for due in page:
        oldest.setdefault(due.kind, due)
    first = list(oldest.values())
    random.shuffle(first)
    return first + [due for due in page if oldest[due.kind] is not due]


def bring_back_lost_messages() -> None:
    """Emails that are queued but have no message any more are scheduled again."""
    if control.take_sweep(database):
        with database.transaction() as cursor:
            lost = emails.release_without_message(cursor)
        if lost:
            logger.warning("%d queued emails had lost their message; they are scheduled again.", len(lost))


def keep_house() -> None:
    """A few times a day: the ledger's partitions, and workers that are long gone."""
    if control.take_maintenance(database):
        are_maintained = control.maintain_partitions(database, retention_days=settings().retention_days)
        while undeliverable.forget(database):
            pass
        workers.forget_the_long_gone(database)
        if not are_maintained:
            logger.warning(
                "The ledger's partitions wait for a long reader (`duepost doctor` names it); again in a minute."
            )
            return
        control.note_maintenance(database)
        days, is_owner = control.keeping(database)
        if (reason := control.why_kept_longer(settings().retention_days, days, is_owner=is_owner)) is not None:
            logger.warning(reason)


def tick() -> bool:
    """Asks for a pass of the scheduler, unless that is asked for already.

    Returns:
        whether a message was enqueued.

    Raises:
        BrokerUnreachable: the database is away.
    """
    return broker.enqueue_unless_one_waits(tick_message())
