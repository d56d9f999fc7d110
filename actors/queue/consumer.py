"""Reads one queue for one worker process: claims in batches, acknowledges in batches. Knows nothing of email."""

import contextvars
import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import psycopg2
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import DecodeError, Retry

from actors.liveness.worker_session import WorkerSession
from actors.queue.encoding import Message, as_its_row_says, decoded
from actors.queue.waiting import AWAY_PAUSE, BrokerUnreachable
from models import messages
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.errors import DatabaseUnreachable
from models.messages import Claim, ClaimedContent

logger = logging.getLogger(__name__)

#: Seconds between two looks at an empty queue: the first after work, and the longest.
SHORTEST_POLL = 0.01
LONGEST_POLL = 0.1

#: Seconds that acknowledgements and free places are collected for, so that one statement serves many.
LINGER = 0.003

#: One in this many reads of a fair queue begins with the least urgent messages.
LEAST_URGENT_TURN = 4

#: How long a message may take from its transaction's beginning to its commit, for a look that goes on from where the
#: last one ended to see it. What takes longer is seen by the next look from the beginning.
OVERLAP = timedelta(seconds=1)

#: The longest delay, in seconds, of which a consumer remembers when it ends; later it finds out by looking.
LONGEST_REMEMBERED = 60.0
#: Seconds that the moments at which delays end are rounded up to, so that there are few of them.
MOMENTS_APART = 0.01

#: The number of a claim of what is not in the table: no claim there has it.
NOT_STORED = 0

#: Seconds between two looks for messages that were claimed in an answer that never arrived.
ORPHANS_INTERVAL = 1.0


class LeftToOthers(Retry):
    """Raised by an actor whose message is worked on by another thread: the one that it was called by goes on.

    Nothing is requeued: the message is not at its end. It is one of Dramatiq's retries, so that Dramatiq logs nothing.
    """


def _nobody_hears() -> None:
    """Of the end of a message that nobody has carried here."""


class ClaimedMessage(MessageProxy):
    """A message in hand, and the worker's right to it.

    Attributes:
        claim: the right.
        priority: what it is stored with, its own or its actor's.
        worker_id: of the worker that has the right.
        stopping: set when the consumer that it is from begins nothing new.
        has_begun: whether the middleware was asked about it.
        has_ended: whether all middleware was told of its end.
        has_lost: whether something that was sent while it was worked on could not be stored.
        context: what middleware keeps of it, where the thread that it came with may go on before its end; else None.
        is_detached: the thread that it came with has gone on: nothing that this thread does is its end.
        at_end: called once it is at its end, by any thread: whoever has carried it here hears of it. Never blocks.
    """

    def __init__(
        self, message: Message, claimed: ClaimedContent, worker_id: int, stopping: threading.Event | None = None
    ) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]
        self.claim = claimed.claim
        self.priority = claimed.priority
        self.worker_id = worker_id
        self.stopping = stopping or threading.Event()
        self.has_begun = False
        self.has_ended = False
        self.has_lost = False
        self.context: contextvars.Context | None = None
        self.is_detached = False
        self.at_end: Callable[[], None] = _nobody_hears
        #: Whether the table has nothing to learn any more.
        self.is_done = False
        self._place: tuple[int, datetime] = (claimed.priority, claimed.eta)

    @property
    def is_stored(self) -> bool:
        """Whether it is, or was, in the table."""
        return self.claim.number != NOT_STORED

    def attached(self) -> "ClaimedMessage":
        """The message as it is to be acknowledged at its end: itself, unless its thread has gone on."""
        if not self.is_detached:
            return self
        twin: ClaimedMessage = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, is_detached=False)
        return twin

    def stuff_exception(self, exception: BaseException) -> None:
        """Keeps what it failed of; not that its thread has gone on."""
        if not (self.is_detached and isinstance(exception, LeftToOthers)):
            super().stuff_exception(exception)  # type: ignore[no-untyped-call]

    def clear_exception(self) -> None:
        """Forgets what it failed of; not as its thread goes on: it may have ended meanwhile, or not yet."""
        if not self.is_detached:
            super().clear_exception()  # type: ignore[no-untyped-call]

    def mark_done(self) -> None:
        """The table has nothing more to learn: the message is acknowledged, or waits in it again, or is another's."""
        self.is_done = True

    def __lt__(self, other: object) -> bool:
        """Orders the messages in hand of one actor priority."""
        return isinstance(other, ClaimedMessage) and self._place < other._place


@dataclass
class Poll:
    """When to look at a queue again, in seconds; knows no clock of its own."""

    longest: float = LONGEST_POLL
    pause: float = SHORTEST_POLL
    due_at: float = 0.0

    def found(self, now: float, *, all_of_it: bool) -> None:
        """There was something: look again at once, or soon if that was all."""
        self.pause = SHORTEST_POLL
        self.due_at = now + (self.pause if all_of_it else 0.0)

    def empty(self, now: float) -> None:
        """There was nothing: wait, and longer each time."""
        self.due_at = now + self.pause
        self.pause = min(self.pause * 2, self.longest)


class PostgresConsumer(Consumer):
    """Reads one queue for one worker process.

    Iterated by Dramatiq's consumer thread, which does all the reading and acknowledging; other threads only leave
    notes of what they have done.

    Args:
        database: where the messages are.
        worker_session: the worker process's presence.
        all_stopping: set when nobody in this process is to begin anything new.
        queue_name: the queue.
        prefetch: how many messages may be in hand.
        predecessor: the queue's consumer before this one, if there was one: what it has in hand counts.
        timeout: seconds after which the thread wants to look whether it is to stop.
        priorities: of the queue's actors.
        is_fair: whether what is urgent may delay the rest, but not for ever.
        longest_poll: seconds between two looks while the queue stays empty.
    """

    def __init__(
        self,
        database: Database,
        worker_session: WorkerSession,
        all_stopping: threading.Event,
        *,
        queue_name: str,
        prefetch: int,
        timeout: float,
        priorities: Iterable[int] = (0,),
        is_fair: bool = False,
        longest_poll: float = LONGEST_POLL,
        predecessor: "PostgresConsumer | None" = None,
    ) -> None:
        self.queue_name = queue_name
        self.closed = False
        #: When the queue was last read with success, by the monotonic clock; nothing is amiss while there is no room.
        self.looked_at = time.monotonic()
        self._database = database
        self._worker_session = worker_session
        self._all_stopping = all_stopping
        #: Set when nothing new is to be begun, as the consumer's own worker stops.
        self.stopping = threading.Event()
        self._prefetch = prefetch
        #: More is claimed once no more than this many are in hand. Dramatiq prefetches two for each thread, so that all
        #: have work meanwhile.
        self._low = prefetch * 5 // 8
        self._timeout = timeout
        self._claimed: deque[ClaimedMessage] = deque()
        #: The claims of what was read and has not ended.
        self.in_hand: set[Claim] = predecessor.in_hand if predecessor else set()
        self._done: list[Claim] = []
        self._changed = threading.Condition()
        self._poll = Poll(longest_poll)
        #: Whether something has been stored since the last read began.
        self._has_news = False
        #: When delays end that this process knows of, by the monotonic clock: a heap.
        self._moments: list[float] = []
        self._full_scan_throttle = FullScanThrottle()
        self._is_fair = is_fair
        self._reads = count(1)
        self._priorities = tuple(priorities)
        #: Where the next claim of each known priority goes on.
        self._places: dict[int, datetime] = dict.fromkeys(self._priorities, messages.BEGINNING)
        self._away = False
        #: Until when a claim may be carried out whose answer never arrives, by the monotonic clock.
        self._orphans_until = -float("inf")
        self._orphans_due_at = 0.0
        if predecessor is not None:
            self._expect_orphans()

    def __next__(self) -> ClaimedMessage | None:
        """The next message, or None after a short wait so that the thread can look whether it is to stop.

        Raises:
            psycopg2.Error: the table is not as it should be.
        """
        if self.is_stopping:
            self._return_claimed()
        if not self._claimed:
            self._wait()
            try:
                has_written = self._acknowledge()
                if self._claim() or has_written:
                    self._is_back()
            except DatabaseUnreachable as error:
                self._is_away(error)
        return self._claimed.popleft() if self._claimed else None

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self.stopping.is_set() or self._all_stopping.is_set()

    @property
    def has_room(self) -> bool:
        """Whether more messages are to be claimed: not after each that is done, but once there is room for several."""
        return len(self.in_hand) - len(self._done) <= self._low

    @property
    def is_idle(self) -> bool:
        """Whether nothing that was read is being worked on any more."""
        return len(self.in_hand) <= len(self._done)

    def look_soon(self, delay: float = 0.0) -> None:
        """There is something new in the queue, to be read after `delay` seconds."""
        with self._changed:
            if not delay:
                self._has_news = True
                # Where it is not there yet, it is looked for again soon.
                self._poll.pause = SHORTEST_POLL
            elif delay <= LONGEST_REMEMBERED:
                moment = math.ceil((time.monotonic() + delay) / MOMENTS_APART) * MOMENTS_APART
                if moment not in self._moments:
                    heapq.heappush(self._moments, moment)
            self._changed.notify_all()

    def take_in(self, message: Message, priority: int) -> ClaimedMessage:
        """A message that is not in the table, in hand as if it had been read: the table has nothing to learn of it."""
        read = ClaimedContent(Claim(message.message_id, NOT_STORED), priority, datetime.now(UTC), "")
        with self._changed:
            self.in_hand.add(read.claim)
        taken = ClaimedMessage(message, read, self._worker_session.worker_id, self.stopping)
        taken.mark_done()
        return taken

    def ack(self, message: ClaimedMessage) -> None:
        """Deletes a message that is done with the next few, unless the transaction of the work has done so.

        One of whose end not all middleware was told, as where the thread was interrupted meanwhile, is a dead letter:
        something that it had to requeue may not be stored.
        """
        if self._is_ours(message).is_detached:
            return
        if message.has_begun and not message.has_ended and not message.is_done:
            logger.error("The end of message %s was interrupted; it is a dead letter.", message.message_id)
            self.nack(message)
            return
        with self._changed:
            had_room, had_done = self.has_room, bool(self._done)
            if message.is_done:
                self.in_hand.discard(message.claim)
            else:
                self._done.append(message.claim)
            if self.has_room != had_room or bool(self._done) != had_done:
                self._changed.notify_all()
        message.at_end()
        if self.closed:
            self._acknowledge()

    def nack(self, message: ClaimedMessage) -> None:
        """Keeps a message that failed for good as a dead letter.

        Raises:
            BrokerUnreachable: the database is away; Dramatiq tries again.
        """
        if self._is_ours(message).is_detached:
            return
        if not self._is_ours(message).is_done:
            failure = message._exception  # noqa: SLF001 - where Dramatiq puts it for its own brokers
            self._write_off(message.claim, type(failure).__name__ if failure else None)
        self._put_down([message.claim])
        message.at_end()

    def requeue(self, messages_: Iterable[ClaimedMessage]) -> None:
        """Returns what was prefetched and never begun."""
        given = list(messages_)
        # Of what is not in the table others know elsewhere.
        self._put_down([message.claim for message in given if message.is_done])
        unstarted = [message.claim for message in given if not message.is_done]
        if unstarted:
            try:
                messages.return_unstarted(self._database, unstarted)
            except DatabaseUnreachable as error:
                # Others give them back once our session has ended.
                logger.warning("The database is away (%s); what is in hand is left to others.", error.reason)
            self._put_down(unstarted)

    def close(self) -> None:
        """Acknowledges what is done, and returns what was claimed and not yet handed on."""
        self.closed = True
        try:
            self._acknowledge()
        except DatabaseUnreachable as error:
            logger.warning("The database is away (%s); what was done may be done again.", error.reason)
        self._return_claimed()
        self._database.close()

    def _is_ours(self, message: ClaimedMessage) -> ClaimedMessage:
        if not isinstance(message, ClaimedMessage):
            raise TypeError(
                f"{type(message).__name__}: only what this consumer has given can be acknowledged or rejected"
            )
        return message

    def _wait(self) -> None:
        """Until there is something to write or to read; a little longer, so that there is more of it."""
        with self._changed:
            if self._away:
                self._changed.wait(AWAY_PAUSE)
                return
            until = time.monotonic() + self._timeout
            while not self._done and (left := min(until, self._next_look()) - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._is_half_free():
                self._changed.wait(LINGER)

    def _is_half_free(self) -> bool:
        return len(self.in_hand) - len(self._done) <= self._prefetch // 2

    def _next_look(self) -> float:
        return float("inf") if not self.has_room or self.is_stopping else self._news_at()

    def _news_at(self) -> float:
        return -float("inf") if self._has_news else min([self._poll.due_at, *self._moments[:1]])

    def _acknowledge(self) -> bool:
        """Writes down what is done; gives whether there was anything, so that the table has been spoken to."""
        with self._changed:
            done = list(self._done)
        if done:
            messages.acknowledge_alone(self._database, done)
            with self._changed:
                del self._done[: len(done)]
            self._put_down(done)
        return bool(done)

    def _claim(self) -> bool:
        """Reads what there is room for, if it is time to; gives whether the table has been read."""
        room = self._prefetch - len(self.in_hand)
        now = time.monotonic()
        if room <= 0 or now < self._news_at() or self.is_stopping:
            return False
        self._has_news = False
        with self._changed:
            while self._moments and self._moments[0] <= now:
                heapq.heappop(self._moments)
        if not self._worker_session.is_proven():
            self._poll.due_at = now + LONGEST_POLL
            return False
        worker_id = self._worker_session.worker_id
        self._return_orphans(now, worker_id)
        claimed = self._read(room, worker_id)
        self.looked_at = now = time.monotonic()
        if not claimed:
            self._poll.empty(now)
            return True
        self._poll.found(now, all_of_it=len(claimed) < room)
        with self._changed:
            self.in_hand.update(each.claim for each in claimed)
        unreadable = [each for each in claimed if not self._take(each, worker_id)]
        for each in unreadable:
            self._write_off(each.claim, DecodeError.__name__)
            self._put_down([each.claim])
        return True

    def _read(self, room: int, worker_id: int) -> list[ClaimedContent]:
        is_full_scan = self._full_scan_throttle.is_due
        with self._full_scan_throttle.measured() if is_full_scan else nullcontext():
            places = None if is_full_scan else self._places
            claimed, now, looked_at = messages.claim(
                self._database,
                self.queue_name,
                room,
                worker_id,
                places,
                least_urgent_first=self._is_fair and next(self._reads) % LEAST_URGENT_TURN == 0,
            )
        if is_full_scan:
            # The next claim may go on from here, and has to know of messages with a priority of their own.
            known = (*self._priorities, *looked_at)
            self._places = {each: self._places.get(each, messages.BEGINNING) for each in known}
        if len(claimed) < room:
            # All that was due has been seen.
            self._places.update(dict.fromkeys(self._places, now - OVERLAP))
        else:
            self._places.update({each.priority: min(each.eta, now) - OVERLAP for each in claimed})
        return claimed

    def _return_orphans(self, now: float, worker_id: int) -> None:
        if self._orphans_due_at > min(now, self._orphans_until):
            return
        # No claim of this queue is under way, but one that we hung up on may still be carried out by the server.
        messages.return_orphaned(self._database, self.queue_name, worker_id, list(self.in_hand))
        self._orphans_due_at = now + ORPHANS_INTERVAL

    def _take(self, claimed: ClaimedContent, worker_id: int) -> bool:
        try:
            message = as_its_row_says(decoded(claimed.content), claimed.claim.message_id, self.queue_name)
        except DecodeError:
            logger.critical("Message %s cannot be read; it is a dead letter.", claimed.claim.message_id)
            return False
        self._claimed.append(ClaimedMessage(message, claimed, worker_id, self.stopping))
        return True

    def _return_claimed(self) -> None:
        self.requeue(self._claimed)
        self._claimed.clear()

    def _put_down(self, claims: Sequence[Claim]) -> None:
        with self._changed:
            self.in_hand.difference_update(claims)
            self._changed.notify_all()

    def _write_off(self, claim: Claim, failure: str | None) -> None:
        try:
            try:
                messages.reject(self._database, claim, failure)
            except psycopg2.Error as error:
                logger.warning("A dead letter is kept as it is: %s.", type(error).__name__)
                messages.reject_as_it_is(self._database, claim)
        except DatabaseUnreachable as error:
            if not self.is_stopping:
                raise BrokerUnreachable(error.reason) from error
            # Dramatiq would try for ever. Others return what we hold once our session has ended.
            logger.warning("The database is away (%s); a message that failed is left to others.", error.reason)

    def _is_back(self) -> None:
        if self._away:
            self._away = False
            logger.info("The queue %s can be read again.", self.queue_name)

    def _is_away(self, error: DatabaseUnreachable) -> None:
        if not self._away:
            logger.warning("The queue %s cannot be read: %s. Waiting.", self.queue_name, error.reason)
        self._away = True
        self._expect_orphans()

    def _expect_orphans(self) -> None:
        self._orphans_due_at = time.monotonic()
        self._orphans_until = self._orphans_due_at + self._database.limits.answer + ORPHANS_INTERVAL
