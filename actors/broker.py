"""A PostgreSQL broker for Dramatiq, built on dramatiq-pg's: nothing in it knows of email.

What it does otherwise than stock dramatiq-pg: a message joins the transaction that is open; claims come in
batches from one indexed statement; there is one advisory lock for each worker process instead of one for each
message; delayed messages stay in the table until they are due; and nothing is notified inside a transaction.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import dramatiq
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionError as BrokerUnreachable
from dramatiq.middleware import CurrentMessage, Middleware
from dramatiq_pg import PostgresBroker as StockBroker

from actors.attendance import Attendance
from models import messages
from models.database import DISCONNECTS, Cursor, Database
from models.errors import DatabaseUnreachable

logger = logging.getLogger(__name__)

Message = dramatiq.Message[object]
T = TypeVar("T")

#: Seconds between two looks at an empty queue: the first after work, and the longest.
SHORTEST_POLL = 0.01
LONGEST_POLL = 0.1

#: Seconds between two tries while the database is away.
AWAY_PAUSE = 0.5


class ClaimedMessage(MessageProxy):
    """A message in hand, and the worker it was claimed for."""

    def __init__(self, message: Message, worker_id: int) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]
        self.worker_id = worker_id
        self.acknowledged = False

    def mark_acknowledged(self) -> None:
        """The transaction that concluded the work has taken the message with it."""
        self.acknowledged = True


class PostgresBroker(StockBroker):  # type: ignore[misc]  # dramatiq-pg is untyped
    """Dramatiq's broker on the application's own PostgreSQL.

    Building one does no I/O.

    Args:
        database: where the messages are.
        attendance: this worker process's presence; started and stopped by the owner.
        middleware: Dramatiq's middleware, all of it.
    """

    def __init__(self, database: Database, attendance: Attendance, middleware: list[Middleware]) -> None:
        # CurrentMessage comes first, so that it still knows the message while Retries puts it back.
        super().__init__(pool=database, results=False, middleware=[CurrentMessage(), *middleware])
        self.database = database
        self.attendance = attendance
        self.stopping = threading.Event()

    def declare_queue(self, queue_name: str) -> None:
        """Declares a queue. There is no queue for delayed messages: they wait in the table."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = True
            self.emit_after("declare_queue", queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> "PostgresConsumer":
        """A consumer of one queue, with at most `prefetch` messages in hand; `timeout` in milliseconds."""
        return PostgresConsumer(self, queue_name, prefetch, timeout / 1000)

    def enqueue(self, message: Message, *, delay: int | None = None) -> Message:
        """Stores a message, to be read after `delay` milliseconds.

        Inside an open transaction of the database it is inserted through that very transaction, and commits or
        vanishes with it. Outside it has its own; in a worker it then waits for a database that is away.

        Raises:
            BrokerUnreachable: the database is away, and this is no worker or it is stopping.
        """
        message, stored = self._prepare(message, delay)
        self.emit_before("enqueue", message, delay)
        transaction = self.database.current
        if transaction is not None:
            messages.insert(transaction.cursor, stored())
        else:
            self._insert_alone(stored())
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_unless_one_waits(self, message: Message) -> bool:
        """Stores a message unless one for the same actor is there to be read at once.

        Returns:
            whether it was stored.

        Raises:
            BrokerUnreachable: the database is away.
        """
        message, stored = self._prepare(message, None)
        self.emit_before("enqueue", message, None)
        try:
            with self.database.transaction() as cursor:
                inserted = messages.insert_unless_one_waits(cursor, stored(), message.actor_name)
        except (*DISCONNECTS, DatabaseUnreachable) as error:
            raise BrokerUnreachable(str(error)) from error
        if inserted:
            self.emit_after("enqueue", message, None)
        return inserted

    def acknowledge(self, cursor: Cursor) -> None:
        """Acknowledges the message in process with the caller's transaction: both commit, or neither does.

        Without a message in process, as when an actor is called like a function, it does nothing.
        """
        message = CurrentMessage.get_current_message()
        transaction = self.database.current
        if isinstance(message, ClaimedMessage) and transaction is not None:
            messages.acknowledge(cursor, [message.message_id], message.worker_id)
            transaction.after_commit(message.mark_acknowledged)

    def _insert_alone(self, stored: messages.StoredMessage) -> None:
        if CurrentMessage.get_current_message() is not None:
            wait_for_database(lambda: messages.insert_alone(self.database, stored), self.stopping)
            return
        try:
            messages.insert_alone(self.database, stored)
        except (*DISCONNECTS, DatabaseUnreachable) as error:
            raise BrokerUnreachable(str(error)) from error

    def _prepare(self, message: Message, delay: int | None) -> tuple[Message, Callable[[], messages.StoredMessage]]:
        if delay:
            message = message.copy(options={"eta": current_millis() + delay})

        def stored() -> messages.StoredMessage:
            # Made when it is inserted: middleware may still change the options.
            return messages.StoredMessage(
                message.message_id, message.queue_name, _as_json(message), (delay or 0) / 1000
            )

        return message, stored


@dataclass
class Poll:
    """How long to wait before the next look at a queue; knows no clock."""

    pause: float = SHORTEST_POLL

    def found(self) -> None:
        """There was something: look again soon."""
        self.pause = SHORTEST_POLL

    def empty(self) -> float:
        """There was nothing; gives the seconds to wait, growing while it stays so."""
        pause = self.pause
        self.pause = min(self.pause * 2, LONGEST_POLL)
        return pause


class PostgresConsumer(Consumer):
    """Reads one queue for one worker process. Belongs to Dramatiq's consumer thread; acks come from others."""

    def __init__(self, broker: PostgresBroker, queue_name: str, prefetch: int, timeout: float) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._timeout = timeout
        self._claimed: deque[ClaimedMessage] = deque()
        self._in_hand = 0
        self._changed = threading.Condition()
        self._poll = Poll()
        self._away = False

    def __next__(self) -> ClaimedMessage | None:
        """The next message, or None after a short wait so that the thread can look whether it is to stop."""
        if not self._claimed:
            self._claim()
        return self._claimed.popleft() if self._claimed else None

    def ack(self, message: ClaimedMessage) -> None:
        """Deletes a message that is done, unless the transaction that did the work has done so."""
        if not message.acknowledged:
            self._write(
                lambda: messages.acknowledge_alone(self._broker.database, [message.message_id], message.worker_id)
            )
        self._put_down(1)

    def nack(self, message: ClaimedMessage) -> None:
        """Keeps a message that failed for good as a dead letter."""
        self._write(lambda: messages.reject(self._broker.database, message.message_id, message.worker_id))
        self._put_down(1)

    def requeue(self, messages_: Iterable[ClaimedMessage]) -> None:
        """Gives back what was prefetched and never begun."""
        given_back = list(messages_)
        if given_back:
            self._give_back(given_back)
            self._put_down(len(given_back))

    def close(self) -> None:
        """Gives back what was claimed and not yet handed on."""
        self.requeue(self._claimed)
        self._claimed.clear()
        self._broker.database.close()

    def _claim(self) -> None:
        room = self._prefetch - self._in_hand
        if room <= 0 or self._broker.stopping.is_set():
            self._wait(self._timeout)
            return
        if not self._broker.attendance.is_proven():
            self._wait(AWAY_PAUSE)
            return
        try:
            self._take(room)
        except (*DISCONNECTS, DatabaseUnreachable) as error:
            if not self._away:
                logger.warning("The queue %s cannot be read: %s. Waiting.", self._queue_name, type(error).__name__)
            self._away = True
            self._wait(AWAY_PAUSE)

    def _take(self, room: int) -> None:
        worker_id = self._broker.attendance.worker_id
        contents = messages.claim(self._broker.database, self._queue_name, room, worker_id)
        if self._away:
            self._away = False
            logger.info("The queue %s can be read again.", self._queue_name)
        if not contents:
            self._wait(self._poll.empty())
            return
        self._poll.found()
        self._claimed.extend(ClaimedMessage(_from_json(content), worker_id) for content in contents)
        with self._changed:
            self._in_hand += len(contents)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            before = self._in_hand
            full = before >= self._prefetch
            self._changed.wait_for(lambda: full and self._in_hand < before, min(seconds, self._timeout))

    def _put_down(self, count: int) -> None:
        with self._changed:
            self._in_hand -= count
            self._changed.notify_all()

    def _give_back(self, given_back: Sequence[ClaimedMessage]) -> None:
        for worker_id in {message.worker_id for message in given_back}:
            ids = [message.message_id for message in given_back if message.worker_id == worker_id]
            self._write(lambda ids=ids, by=worker_id: messages.give_back(self._broker.database, ids, by))  # type: ignore[misc]

    def _write(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (*DISCONNECTS, DatabaseUnreachable) as error:
            if not self._broker.stopping.is_set():
                raise BrokerUnreachable(str(error)) from error
            # Dramatiq would try for ever. Others give back what we hold once our session has ended.
            logger.warning("The database is away (%s); what is in hand is left to others.", type(error).__name__)


def _as_json(message: Message) -> dict[str, object]:
    return {**message.asdict(), "args": list(message.args)}


def _from_json(content: dict[str, object]) -> Message:
    message: Message = dramatiq.Message(**{**content, "args": tuple(content["args"])})  # type: ignore[arg-type]
    # It is due, or it would not have been read: Dramatiq must not hold it back in memory.
    message.options.pop("eta", None)
    return message


def wait_for_database(action: Callable[[], T], stopping: threading.Event) -> T:
    """Runs `action` until the database is there to take it.

    Raises:
        BrokerUnreachable: the worker is stopping, and the database is still away.
    """
    while True:
        try:
            return action()
        except (*DISCONNECTS, DatabaseUnreachable) as error:
            logger.warning("The database is away (%s); waiting for it.", type(error).__name__)
            if stopping.wait(AWAY_PAUSE):
                raise BrokerUnreachable(type(error).__name__) from error


__all__ = ["BrokerUnreachable", "PostgresBroker", "PostgresConsumer", "wait_for_database"]
