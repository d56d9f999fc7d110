"""The scheduler: while something is due, lock it and enqueue it."""

import logging
import random
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

import dramatiq
import psycopg2

from actors.alerts import alerts
from actors.delivery.fairness import TokenBuckets
from actors.queue.broker import PostgresBroker
from actors.sender import message_for
from actors.tick import PRIORITY as PRIORITY_OF_PASSES
from actors.tick import QUEUE, SCHEDULER
from models import (
    circuits,
    control,
    emails,
    kept_content,
    operations,
    routes,
    scheduled_messages,
    undeliverable,
    workers,
)
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.emails import LATE_PRIORITY, ON_TIME_PRIORITIES, PRIORITY, DueEmail
from models.items import ENDPOINT_PREFIX
from models.messages import StoredMessage
from models.routes import Way
from models.scheduled_messages import DueMessage
from models.words import Priority

logger = logging.getLogger(__name__)

#: A route, and a priority: what is due there waits in one line.
LineKey: TypeAlias = tuple[str, Priority]

#: Due items of one channel, and the way by which they leave; None: each by its own.
Page: TypeAlias = tuple[Way | None, list[DueEmail] | list[DueMessage]]

#: How many due ids are read at once. Read once in due order, they are not found again as dead index entries.
PAGE = 1000

#: Before each page of a long pass, at most this many emails that have only just fallen due are taken first, some of
#: each kind; and how many are looked at for kinds that a flood of another one hides.
NEWEST = 100
DEPTH = 10_000

#: How long a row may take from its transaction's beginning to its commit, for a pass that goes on from where the last
#: one ended to see it. What takes longer is seen by the next pass from the beginning.
OVERLAP = timedelta(seconds=1)

#: Milliseconds after which a pass comes again that found another one at a long line: it does what that one leaves.
BESIDE_ANOTHER = 2_000


@dataclass(slots=True)
class Line:
    """A route's due emails of one priority, in one pass.

    Attributes:
        way: by which they leave now.
        priority: theirs.
        place: how far the pass has come in due order.
        is_over: there is nothing more for it to do.
        has_failed: something of it could not be enqueued: the next pass comes here again.
    """

    way: Way
    priority: Priority
    place: tuple[datetime, int]
    is_over: bool = False
    has_failed: bool = False


class Scheduler:
    """Passes of one process. They may run side by side, in any threads: each replaces the places it came to, whole.

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
        #: By route and priority, how far this process's passes have come in due order. One that is too early costs time
        #: only.
        self._places: dict[LineKey, tuple[datetime, int]] = {}

    def enqueue_due_emails(self) -> None:
        """One pass: enqueues what is due, each route's oldest first, each email in a transaction of its own.

        Raises:
            dramatiq.Retry: another pass is at a long line, and does it all; two would be in each other's way.
            psycopg2.Error: of the first email, or route, that failed; all the others are done.
        """
        unfinished: list[BaseException] = []
        if not self._disabled:
            # First, or a fallback would have taken each email that could look whether the relay is back.
            self._probe_open_circuits(unfinished)
            # A page of the one, then one of the other: neither channel waits for the end of the other's line.
            for way, page in alternately(self.due_pages(unfinished), self.due_messages(unfinished)):
                with _noted(unfinished):
                    self.enqueue_each(page, way)
        self.keep_house()
        if control.take_check_in(self._database):
            alerts.check_in()
        if unfinished:
            # What failed is told before what is only left to somebody else.
            raise min(unfinished, key=lambda each: isinstance(each, AnotherPass))

    def due_pages(self, unfinished: list[BaseException]) -> Generator[tuple[Way, list[DueEmail]], None, None]:
        """Due emails page by page, by route, until nothing is due or nothing may be sent; between them the newest.

        Each round has a page of each line that is not yet at its end, what is urgent first: no route waits for
        another's. Beside a line of normal priority, one that is bulk comes to an eighth of the way.

        Args:
            unfinished: hears what a route's line has failed of, and that another pass is at long lines.
        """
        is_full_scan = self.full_scan_throttle.is_due
        lines: dict[LineKey, Line] = {}
        is_long = False
        while not lines or any(not line.is_over for line in lines.values()):
            ways = self._ways(lines, is_full_scan=is_full_scan)
            if all(line.is_over for line in lines.values()):
                break
            with self.full_scan_throttle.measured() if is_full_scan else nullcontext():
                pages = self._pages(lines, unfinished)
            is_full_scan = False
            if any(not line.is_over for line, _ in pages):
                if not self._may_be_long(is_long=is_long):
                    unfinished.append(AnotherPass())
                    pages = _short_ones(pages)
                else:
                    is_long = True
            if is_long:
                yield from self._newest(ways, unfinished)
            for line, page in pages:
                failures = len(unfinished)
                yield line.way, page
                self._has_come_to(page[-1], line, has_failed=len(unfinished) > failures)
        if is_long:
            control.end_long_pass(self._database)

    def _pages(
        self, lines: Mapping[LineKey, "Line"], unfinished: list[BaseException]
    ) -> list[tuple["Line", list[DueEmail]]]:
        """The next page of each line, in the order in which they are to leave."""
        pages: list[tuple[Line, list[DueEmail]]] = []
        for key in sorted(lines, key=lambda key: key[1]):
            route, priority = key
            is_beside = priority is Priority.BULK and not lines[route, Priority.NORMAL].is_over
            page = self._page(lines[key], PAGE // 8 if is_beside else PAGE, unfinished)
            if page:
                pages.append((lines[key], page))
        return pages

    def due_messages(self, unfinished: list[BaseException]) -> Iterator[tuple[Way | None, list[DueMessage]]]:
        """Due messages page by page; of each endpoint no more than are to be queued at once."""
        enqueued: set[int] = set()
        while True:
            page: list[DueMessage] = []
            with _noted(unfinished):
                page = scheduled_messages.due_page(self._database, PAGE)
            fresh = [due for due in page if due.id not in enqueued]
            if not fresh:
                # What could not be enqueued, or is held by somebody else, is found by the next pass.
                return
            enqueued.update(due.id for due in fresh)
            yield None, fresh
            if len(page) < PAGE:
                return

    def _may_be_long(self, *, is_long: bool) -> bool:
        """Whether this pass may go through long lines, as it does already, or nobody else does."""
        if is_long:
            control.go_on_with_long_pass(self._database)
            return True
        return control.begin_long_pass(self._database)

    def _newest(self, ways: Sequence[Way], unfinished: list[BaseException]) -> Iterator[tuple[Way, list[DueEmail]]]:
        for way in ways:
            newest: list[DueEmail] = []
            with _noted(unfinished):
                newest = emails.newest_due(self._database, NEWEST, DEPTH, route=way.route)
            if newest:
                yield way, newest

    def _has_come_to(self, last: DueEmail, line: "Line", *, has_failed: bool) -> None:
        line.place = last.due_at, last.id
        line.has_failed = line.has_failed or has_failed
        if not line.has_failed:
            self._places[line.way.route, line.priority] = (line.place[0] - OVERLAP, 0)

    def _ways(self, lines: dict[LineKey, "Line"], *, is_full_scan: bool) -> list[Way]:
        """The routes whose emails may leave now, and for whose senders not enough waits; each gets its lines.

        Not those whose senders claim what is due without messages. What is urgent does not ask how much waits.
        """
        open_ways = [way for way in routes.ways(self._database) if way.way is not None and not way.is_claimed_directly]
        full = {
            name
            for name in {way.way for way in open_ways if way.way is not None}
            if emails.are_enough_waiting(self._database, name)
        }
        found: dict[LineKey, Way] = {
            (way.route, priority): way
            for way in open_ways
            for priority in ([Priority.URGENT] if way.way in full else Priority)
        }
        for key, way in found.items():
            begins_at = emails.BEGINNING if is_full_scan else self._places.get(key, emails.BEGINNING)
            lines.setdefault(key, Line(way, key[1], begins_at)).way = way
        for key in lines.keys() - found.keys():
            lines[key].is_over = True
        return [way for way in open_ways if way.way not in full]

    def _page(self, line: "Line", size: int, unfinished: list[BaseException]) -> list[DueEmail]:
        """The next page of a line; empty where it is at its end, or cannot be read."""
        if line.is_over:
            return []
        page: list[DueEmail] = []
        with _noted(unfinished):
            page = emails.due_page(self._database, size, line.place, route=line.way.route, priority=line.priority)
        line.is_over = len(page) < size
        return page

    def enqueue_each(self, due: Sequence[DueEmail] | Sequence[DueMessage], way: Way | None) -> None:
        """Enqueues items in one statement, or moves what has expired to the ledger; a failure is taken apart.

        Args:
            due: the items.
            way: the way by which emails leave; None for messages, which leave by each one's own.

        Raises:
            psycopg2.Error: of the first that failed; all the others are done.
        """
        name = ENDPOINT_PREFIX if way is None else way.way or way.route
        self._enqueue([each.id for each in due], [self.priority_of(each) for each in due], name)

    def enqueue_ahead(self, due: Sequence[tuple[int, Priority]], route: str) -> None:
        """Enqueues emails that have just fallen due, ahead of what is late. One that cannot be is left to a pass."""
        with suppress(psycopg2.Error):
            self._enqueue([item_id for item_id, _ in due], [ON_TIME_PRIORITIES[each] for _, each in due], route)

    def _enqueue(self, email_ids: Sequence[int], priorities: Sequence[int], name: str) -> None:
        own = None if name == ENDPOINT_PREFIX else name

        def store(messages: Sequence[StoredMessage]) -> Collection[str]:
            return emails.enqueue(self._database, email_ids, messages, priorities, way=own)

        try:
            self._broker.enqueue_through([message_for(email_id, name) for email_id in email_ids], store, priorities)
        except psycopg2.Error:
            # Nothing of it is committed. Each is taken alone, so that one row never blocks another.
            failures = [failure for email_id in email_ids if (failure := self.failure_of(email_id, name))]
            if failures:
                raise failures[0] from None

    def priority_of(self, due: DueEmail | DueMessage) -> int:
        """What is on time goes ahead of what is late, as far as its kind's token bucket goes; bulk is in no hurry."""
        if due.priority != Priority.NORMAL:
            return ON_TIME_PRIORITIES[Priority(due.priority)]
        return PRIORITY if due.is_on_time and self.token_buckets.take(due.kind) else LATE_PRIORITY

    def failure_of(self, email_id: int, way: str) -> psycopg2.Error | None:
        """Enqueues one email; gives what that fails of."""
        try:
            self.enqueue_one(email_id, way)
        except psycopg2.Error as failure:
            return failure
        return None

    def enqueue_one(self, email_id: int, way: str, *, probe: bool = False) -> bool:
        """Enqueues one email, or moves it to the ledger if its time is over; in one transaction.

        Returns:
            whether it was enqueued; not if another transaction holds it, or nothing may be sent any more.
        """
        inserted: Collection[str] = ()

        def store(messages: Sequence[StoredMessage]) -> Collection[str]:
            nonlocal inserted
            own = None if way == ENDPOINT_PREFIX else way
            inserted = emails.enqueue(self._database, [email_id], messages, [PRIORITY], way=own, probe=probe)
            return inserted

        self._broker.enqueue_through([message_for(email_id, way)], store, [PRIORITY])
        return bool(inserted)

    def _probe_open_circuits(self, unfinished: list[BaseException]) -> None:
        """While a route's circuit is open: one due email is enqueued alone on it, once in each pause."""
        for way in routes.ways(self._database):
            if way.is_probe_due:
                with _noted(unfinished):
                    self._probe(way.route)
        with _noted(unfinished):
            for route in scheduled_messages.probes_due(self._database):
                with _noted(unfinished):
                    self._probe(route)

    def _probe(self, route: str) -> None:
        if self._first_due(route, 1) and circuits.take_probe(self._database, route):
            for due in probe_order(self._first_due(route, PAGE)):
                if self.enqueue_one(due.id, route, probe=True):
                    return

    def _first_due(self, route: str, size: int) -> list[DueEmail]:
        """What is due on a route, the urgent line's beginning first: at most `size`."""
        found: list[DueEmail] = []
        for priority in Priority:
            if len(found) < size:
                found += emails.due_page(self._database, size - len(found), route=route, priority=priority)
        return found

    def keep_house(self) -> None:
        """A few times a day: the ledger's partitions, and workers that are long gone."""
        if control.take_maintenance(self._database):
            are_maintained = control.maintain_partitions(self._database, retention_days=self._retention_days)
            while undeliverable.forget(self._database):
                pass
            while kept_content.forget(self._database):
                pass
            # What was parked of a kind whose row somebody has deleted while it was paused.
            operations.unpark(self._database)
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


def _short_ones(pages: Sequence[tuple[Line, list[DueEmail]]]) -> list[tuple[Line, list[DueEmail]]]:
    """Of these pages those that are a line's last; the others' lines are left to another pass."""
    short = [(line, page) for line, page in pages if line.is_over]
    for line, _ in pages:
        line.is_over = True
    return short


def alternately(*given: Iterator[Page]) -> Iterator[Page]:
    """One of each in turn, until all are at their end."""
    left = list(given)
    while left:
        for each in list(left):
            try:
                yield next(each)
            except StopIteration:
                left.remove(each)


@contextmanager
def _noted(unfinished: list[BaseException]) -> Iterator[None]:
    """The boundary at which one route's failure ends: the pass goes on with the others."""
    try:
        yield
    except psycopg2.Error as failure:
        unfinished.append(failure)


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
