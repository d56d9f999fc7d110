"""A PostgreSQL broker for Dramatiq, built on dramatiq-pg's: nothing in it knows of email.

What it does otherwise than stock dramatiq-pg: a message joins the transaction that is open; claims and
acknowledgements come in batches, each from one indexed statement; there is one advisory lock for each worker process
instead of one for each message; delayed messages stay in the table until they are due; and nothing is notified.
"""

import contextvars
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from queue import Empty, PriorityQueue
from typing import Protocol
from uuid import UUID
from weakref import WeakSet

import dramatiq
import psycopg2
from dramatiq.common import current_millis
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import (
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    SkipMessage,
    default_middleware,
)
from dramatiq.results import Results
from dramatiq_pg import PostgresBroker as StockBroker

from actors.liveness.maintenance import TOO_OLD, Maintenance, Patience, Progress
from actors.liveness.worker_session import WorkerSession
from actors.queue.batching import BatchedMessage, is_next, take_next
from actors.queue.consumer import LONGEST_POLL, ClaimedMessage, LeftToOthers, PostgresConsumer
from actors.queue.encoding import Message, MessageRefused, check_name, encoded
from actors.queue.waiting import AWAY_PAUSE, BrokerUnreachable, wait_for_database
from models import messages
from models.database.connections import Cursor, Database, Limits
from models.database.deadlines import Deadlines
from models.errors import DatabaseUnreachable, ReleaseTooOld, SchemaMismatch
from models.messages import StoredMessage

logger = logging.getLogger(__name__)

#: Of the session that marks a worker process as alive. Proven twice a second, it ends by itself where no proof arrives,
#: as with a worker that is stopped or cut off behind a proxy that keeps the connection.
SESSION_LIMITS = Limits(statement=3.0, lock=3.0, session=30.0, patience=2.0)

#: Seconds within which a message that could not be stored is tried once more, outside of workers: what fails at once
#: was a connection that had ended; what takes longer is a server that does not answer.
TRIED_AGAIN_WITHIN = 2.0

#: What is said of a database without the broker's tables.
NOT_MIGRATED = "the broker's tables are missing, or older than this code: run `duepost migrate`"

#: The signals at which middleware puts something back: the message itself, or what follows it.
ENDS = frozenset({"process_message", "skip_message"})

#: Dramatiq's middleware that puts something back then. Of others that is known once they fail to enqueue it.
STORING = (Callbacks, GroupCallbacks, Pipelines, Results, Retries)

#: Seconds between two looks whether a queue is empty.
JOIN_INTERVAL = 0.05

#: Seconds that a worker whose release is too old has to finish what it has in hand: as many as Dramatiq gives one that
#: is told to end.
FAREWELL = 600.0


class Carrier(Protocol):
    """Carries messages to workers beside the table, which has each of them too: what it loses is read there, later."""

    def takes(self, queue_name: str) -> bool:
        """Whether it can carry messages of a queue just now, and somebody reads them. Never waits."""

    def carry(self, messages: Sequence[tuple[Message, int]]) -> None:
        """Carries messages of one queue, each with its priority; never waits, and never fails."""


class PostgresBroker(StockBroker):  # type: ignore[misc]  # dramatiq-pg is untyped
    """Dramatiq's broker on the application's own PostgreSQL, whose schema `duepost migrate` makes.

    Building one does no I/O.

    Args:
        database: where the messages are, or its libpq URL. There may be a pooler in transaction mode in between.
        middleware: Dramatiq's middleware, all of it; Dramatiq's default without it.
        session_url: a libpq URL without a pooler in between, for the one session that marks a worker process as
            alive; the database's own without it.
        patience: how long a worker process may seem to stand still.
        dead_letters_kept: how long messages that failed for good are kept.
        longest_poll: seconds between two looks at a queue that stays empty.
    """

    def __init__(
        self,
        database: Database | str,
        middleware: list[Middleware] | None = None,
        *,
        session_url: str | None = None,
        patience: Patience | None = None,
        dead_letters_kept: timedelta = messages.DEAD_LETTERS_KEPT,
        longest_poll: float = LONGEST_POLL,
    ) -> None:
        self.database = Database(database, deadlines=Deadlines()) if isinstance(database, str) else database
        self.worker_session = WorkerSession(
            Database(
                session_url or self.database.url,
                application_name=f"{self.database.application_name} session",
                limits=SESSION_LIMITS,
                deadlines=self.database.deadlines,
            )
        )
        #: By queue; where several workers of the process read one, those of all but one have a number at its name.
        self.consumers: dict[str, PostgresConsumer] = {}
        self.progress = Progress(readers=self.consumers)
        self.stopping = threading.Event()
        #: What carries messages that are enqueued with rows; None: they are read from the table.
        self.carrier: Carrier | None = None
        self._patience = patience or Patience()
        self._dead_letters_kept = dead_letters_kept
        self._longest_poll = longest_poll
        self._maintenance: Maintenance | None = None
        #: Whether this process ends because its release is too old.
        self._is_retiring = False
        #: Set once Dramatiq's worker has been told to stop.
        self._is_told_to_stop = threading.Event()
        #: Those that run in this process; the last one booted is taken from.
        self._workers: list[dramatiq.Worker] = []
        #: Of each thread, the message that it was given last and may detach.
        self._at_hand = threading.local()
        #: By hook, whose it is, and how many middleware there were when that was found out.
        self._heard: dict[str, tuple[int, tuple[Middleware, ...]]] = {}
        given = [each() for each in default_middleware] if middleware is None else middleware
        others = [each for each in given if not isinstance(each, CurrentMessage)]
        # These come first, so that CurrentMessage still knows the message while Retries puts it back.
        super().__init__(pool=self.database, results=False, middleware=[Life(), CurrentMessage(), *others])
        _brokers.add(self)

    def emit_before(self, signal: str, *args: object, **kwargs: object) -> None:
        """Calls only the middleware that override this hook.

        What they keep of a message whose thread may go on before its end is kept in a context of its own, from its
        beginning to its end.
        """
        message = args[0] if args else None
        if signal == "process_message" and isinstance(message, ClaimedMessage) and self._may_detach(message):
            message.context = contextvars.copy_context()
            self._at_hand.message = message
            message.context.run(self.ask_before, signal, *args, **kwargs)
        else:
            self.ask_before(signal, *args, **kwargs)

    def ask_before(self, signal: str, *args: object, **kwargs: object) -> None:
        """Calls the middleware in the caller's context."""
        for middleware in self._listeners(f"before_{signal}"):
            try:
                getattr(middleware, f"before_{signal}")(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                logger.critical("Unexpected failure in before_%s of %r.", signal, middleware, exc_info=True)

    def emit_after(self, signal: str, *args: object, **kwargs: object) -> None:
        """The same after it, in the opposite order.

        At the end of a message, middleware that fails may have had something to requeue, such as a retry or the next
        step of a pipeline: then the message is not acknowledged but becomes a dead letter. One line is logged.
        """
        message = args[0] if args else None
        if signal in ENDS and isinstance(message, ClaimedMessage):
            if isinstance(kwargs.get("exception"), LeftToOthers):
                return
            if message.context is not None:
                message.context.run(self.tell_end, signal, message, **kwargs)
            else:
                self.tell_end(signal, message, **kwargs)
            return
        for middleware in reversed(self._listeners(f"after_{signal}")):
            try:
                getattr(middleware, f"after_{signal}")(self, *args, **kwargs)
            except Exception:
                logger.critical("Unexpected failure in after_%s of %r.", signal, middleware, exc_info=True)

    def tell_end(self, signal: str, message: ClaimedMessage, **told: object) -> None:
        """Tells the middleware of a message's end, in the caller's context."""
        hook = f"after_{signal}"
        for middleware in reversed(self._listeners(hook)):
            message.has_lost = False
            try:
                getattr(middleware, hook)(self, message, **told)
            except BaseException as error:
                # The boundary of one message; limits of time are raised here too.
                where = f"{hook} of {type(middleware).__name__}"
                logger.debug("Message %s, %s:", message.message_id, where, exc_info=True)
                is_lost = message.has_lost or isinstance(middleware, STORING) or told.get("exception") is not None
                self._end_badly(message, error, where, is_lost=is_lost and not message.is_done)
        message.has_ended = True

    def _end_badly(self, message: ClaimedMessage, error: BaseException, where: str, *, is_lost: bool) -> None:
        follows = "; it is a dead letter" if is_lost else ""
        logger.error("Message %s: %s in %s%s.", message.message_id, type(error).__name__, where, follows)
        if is_lost:
            message.fail()  # type: ignore[no-untyped-call]
        if is_lost and message._exception is None:  # noqa: SLF001 - where Dramatiq puts it for its own brokers
            message.stuff_exception(error)

    def _listeners(self, hook: str) -> Sequence[Middleware]:
        known, found = self._heard.get(hook, (0, ()))
        if known != len(self.middleware):
            found = tuple(each for each in self.middleware if listens(each, hook))
            self._heard[hook] = len(self.middleware), found
        return found

    def declare_actor(self, actor: dramatiq.Actor[..., object]) -> None:
        """Declares an actor.

        Raises:
            ValueError: its priority, or one of its `lesser_priorities`, cannot be stored.
        """
        for priority in (actor.priority, *actor.options.get("lesser_priorities", ())):
            if priority not in messages.PRIORITIES:
                raise ValueError(f"actor {actor.actor_name}: {_bad_priority(priority)}")
        super().declare_actor(actor)

    def declare_queue(self, queue_name: str) -> None:
        """Declares a queue. There is no queue for delayed messages: they wait in the table."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = True
            self.emit_after("declare_queue", queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> PostgresConsumer:
        """A consumer of one queue, with at most `prefetch` messages in hand; `timeout` in milliseconds.

        Raises:
            QueueNotFound: the queue is not declared here.
            RuntimeError: no worker of this broker runs here: what is read belongs to one.
        """
        self._check_queue(queue_name)
        if not self.worker_session.has_begun:
            raise RuntimeError(
                f"queue {queue_name}: only a worker that has started can read it (dramatiq.Worker.start())"
            )
        actors = [actor for actor in self.actors.values() if actor.queue_name == queue_name]
        # Each message that joins an actor's batch is in hand beside those that Dramatiq prefetches for its threads.
        prefetch += max((actor.options.get("batch", 0) for actor in actors), default=0)
        lesser = {each for actor in actors for each in actor.options.get("lesser_priorities", ())}
        name = self._free_name(queue_name)
        predecessor = self.consumers.get(name)
        consumer = self.consumers[name] = PostgresConsumer(
            self.database,
            self.worker_session,
            self.stopping,
            queue_name=queue_name,
            prefetch=prefetch,
            timeout=timeout / 1000,
            priorities={0, *(actor.priority for actor in actors), *lesser},
            is_fair=bool(lesser),
            longest_poll=self._longest_poll,
            predecessor=predecessor,
        )
        return consumer

    def _free_name(self, queue_name: str) -> str:
        """What a new consumer of a queue is known by: the queue, unless another worker's consumer reads it too."""
        name, number = queue_name, 1
        while (other := self.consumers.get(name)) is not None and not other.closed:
            number += 1
            name = f"{queue_name} ({number})"
        return name

    def enqueue(self, message: Message, *, delay: int | None = None) -> Message:
        """Stores a message, to be read after `delay` milliseconds.

        Inside an open transaction of the database it is inserted through that very transaction, and commits or
        vanishes with it. Outside it has its own; in a worker it then waits for a database that is away. The message
        in process is requeued (a retry), unless it is acknowledged already or has passed to another worker.

        Raises:
            BrokerUnreachable: the database is away, and this is no worker or it is stopping. Whether the message is
                stored is not known where the connection was lost meanwhile.
            MessageRefused: it cannot be stored; the text names the part that is to blame.
            QueueNotFound: its queue is not declared here. In a worker, what is sent on to others' queues may go there.
            SchemaMismatch: the database has not seen `duepost migrate`.
        """
        current = self.message_in_process
        if current is None:
            self._check_queue(message.queue_name)
        message, stored = self._prepare(message, delay)
        self.emit_before("enqueue", message, delay)
        with _refusals(current):
            if current is not None and current.message_id == message.message_id:
                self._requeue_current(current, message, stored, _seconds(delay))
            elif (transaction := self.database.current) is not None:
                made = stored()
                messages.insert(transaction.cursor, made)
                if current is not None or made.delay:
                    transaction.after_commit(partial(self._look_soon, [made.queue_name], made.delay))
            else:
                self._insert_alone(stored(), wait=current is not None)
        self.emit_after("enqueue", message, delay)
        return message

    def is_carried(self, queue_name: str) -> bool:
        """Whether something carries the messages of a queue beside the table just now. Never waits."""
        return self.carrier is not None and self.carrier.takes(queue_name)

    def enqueue_through(
        self,
        messages_: Sequence[Message],
        store: Callable[[list[StoredMessage]], Collection[str]],
        priorities: Sequence[int],
    ) -> None:
        """Stores messages by a statement of the caller's, which belongs to the caller's own data.

        Where something carries messages of their queue, it does once they are stored, and the table is where they are
        read later if it has lost them.

        Args:
            messages_: the messages, all of one queue.
            store: inserts them, to be read after their delay, and gives the ids of those that were inserted.
            priorities: what each is stored with.
        """
        carrier = self.carrier
        is_carried = self.is_carried(messages_[0].queue_name)
        delay = round(messages.CARRIED_FOR * 1000) if is_carried else None
        prepared = [self._prepare(message, delay)[1] for message in messages_]
        for message in messages_:
            self.emit_before("enqueue", message, None)
        stored = store([each() for each in prepared])
        if carrier is not None and is_carried:
            pairs = zip(messages_, priorities, strict=True)
            carrier.carry([(message, priority) for message, priority in pairs if message.message_id in stored])
        elif stored:
            self._look_soon({message.queue_name for message in messages_})
        for message in messages_:
            if message.message_id in stored:
                self.emit_after("enqueue", message, None)

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
            with _refusals(self.message_in_process), self.database.transaction() as cursor:
                inserted = messages.insert_unless_one_waits(cursor, stored(), message.actor_name)
        except DatabaseUnreachable as error:
            raise BrokerUnreachable(str(error)) from error
        if inserted:
            self._look_soon([message.queue_name])
            self.emit_after("enqueue", message, None)
        return inserted

    def hand_over(self, message: Message, priority: int, at_end: Callable[[], None] | None = None) -> bool:
        """Has a message worked on in this process as if it had been read. It is stored nowhere: lost with the process.

        For work that is known elsewhere, and done by others where it is not done here: nothing is requeued or kept
        where it fails. Any thread may call this; it does not block.

        Args:
            message: for an actor of this process.
            priority: the lower, the sooner a free thread takes it.
            at_end: called once, by any thread, when it is at its end here; not where it was not handed over.

        Returns:
            whether it was: not where no worker here reads its queue, or the worker is stopping.
        """
        worker, consumer = self._reader_of(message.queue_name)
        if worker is None or consumer is None or consumer.is_stopping:
            return False
        actor = self.get_actor(message.actor_name)
        taken = consumer.take_in(message, priority)
        if at_end is not None:
            taken.at_end = at_end
        worker.work_queue.put((actor.priority, taken))
        return True

    def tell_failed(self, message: Message, priority: int, failure: BaseException) -> None:
        """Tells the middleware what work failed of that was done without a message, as if it had been asked for by one.

        Any thread may call this.
        """
        worker, consumer = self._reader_of(message.queue_name)
        if worker is None or consumer is None or not isinstance(worker.work_queue, _WorkQueue):
            logger.error("Failed to process message %s.", message, exc_info=failure)
            return
        worker.work_queue.keep_unfinished()
        told = BatchedMessage(self, worker, consumer.take_in(message, priority))
        if told.begin():
            told.end(failure)

    def is_reading(self, queue_name: str) -> bool:
        """Whether a worker of this process reads a queue, and may begin something new."""
        _, consumer = self._reader_of(queue_name)
        return consumer is not None and not consumer.is_stopping and self.worker_session.is_proven()

    def _reader_of(self, queue_name: str) -> tuple[dramatiq.Worker | None, PostgresConsumer | None]:
        worker = self._workers[-1] if self._workers else None
        thread = worker.consumers.get(queue_name) if worker else None
        consumer = thread.consumer if thread else None
        return worker, consumer if isinstance(consumer, PostgresConsumer) and not consumer.closed else None

    def acknowledge(self, cursor: Cursor) -> None:
        """Acknowledges the message in process with the caller's transaction: both commit, or neither does.

        Once committed it is final: the message is not run again even if the actor then fails. Without a message in
        process, as when an actor is called like a function, it does nothing.

        Raises:
            ClaimLost: the message may run elsewhere, so the transaction must not be committed here. Dramatiq skips
                the message if the actor lets this pass.
            RuntimeError: no transaction of the broker's database is open.
        """
        message = self.message_in_process
        if message is not None and not self.acknowledge_if_held(cursor):
            abandon(message)
            raise ClaimLost("the message is another worker's by now, or waits for one")

    def acknowledge_if_held(self, cursor: Cursor) -> bool:
        """The same for work that is right even if its message runs again; gives whether it was acknowledged.

        Raises:
            RuntimeError: no transaction of the broker's database is open.
        """
        message, transaction = self.message_in_process, self.database.current
        if transaction is None:
            raise RuntimeError("an acknowledgement belongs in a transaction of the broker's database")
        if message is None:
            return False
        transaction.after_commit(message.mark_done)
        return messages.acknowledge(cursor, message.claim)

    @property
    def message_in_process(self) -> ClaimedMessage | None:
        """The message that this thread is working on, if any."""
        message = CurrentMessage.get_current_message()
        return message if isinstance(message, ClaimedMessage) else None

    def has_more(self, actor_name: str, priority: int | None = None) -> bool:
        """Whether `next_batched` may have one. Never waits."""
        worker = self._workers[-1] if self._workers else None
        return worker is not None and not self.stopping.is_set() and is_next(worker, actor_name, priority)

    def next_batched(self, actor_name: str, priority: int | None = None) -> BatchedMessage | None:
        """The next message that waits in this process for a free thread, if it is for that actor; else None.

        For actors that are better at several messages at once; the option `batch` says how many more than Dramatiq
        prefetches may wait. Each that is given has to be ended. With a priority only one that is that urgent.
        """
        worker = self._workers[-1] if self._workers else None
        while worker is not None and self.worker_session.is_proven() and not self.stopping.is_set():
            message = take_next(worker, actor_name, priority)
            if message is None:
                return None
            batched = BatchedMessage(self, worker, message)
            if batched.begin():
                return batched
        return None

    def detach(self) -> BatchedMessage | None:
        """Makes the message that this thread was given a job of its own, which any thread may end.

        The actor then raises `LeftToOthers`, and the thread is free. For actors with the option `detaches`; called once
        for each message. None where there is none, as when an actor is called like a function.
        """
        message: ClaimedMessage | None = getattr(self._at_hand, "message", None)
        worker = self._workers[-1] if self._workers else None
        if message is None or worker is None:
            return None
        self._at_hand.message = None
        message.is_detached = True
        if isinstance(worker.work_queue, _WorkQueue):
            worker.work_queue.keep_unfinished()
        return BatchedMessage(self, worker, message, message.context)

    def _may_detach(self, message: ClaimedMessage) -> bool:
        """Whether its actor leaves messages to others; without a worker there are none, and it is worked on here."""
        actor = self.actors.get(message.actor_name)
        return bool(self._workers) and actor is not None and actor.options.get("detaches") is True

    def flush(self, queue_name: str) -> None:
        """Deletes all messages of a queue, dead letters and what is in hand included.

        Raises:
            QueueNotFound: the queue is not declared here.
        """
        self._check_queue(queue_name)
        messages.flush(self.database, [queue_name])

    def flush_all(self) -> None:
        """Deletes all messages of the declared queues."""
        messages.flush(self.database, self.get_declared_queues())

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Waits until a queue has no message left, delayed ones included; for at most `timeout` milliseconds.

        Raises:
            QueueJoinTimeout: there still are some.
            QueueNotFound: the queue is not declared here.
        """
        self._check_queue(queue_name)
        until = float("inf") if timeout is None else time.monotonic() + timeout / 1000
        while messages.has_unfinished(self.database, queue_name):
            if time.monotonic() > until:
                raise QueueJoinTimeout(queue_name)
            time.sleep(JOIN_INTERVAL)

    def boot(self, worker: dramatiq.Worker) -> None:
        """Marks this process as a worker; done by Dramatiq's worker as it starts.

        Raises:
            BootFailed: the database is away.
            SystemExit: this release is too old for it.
        """
        worker.work_queue = _WorkQueue()
        if not self._workers:
            self._begin()
        self._workers.append(worker)

    def _begin(self) -> None:
        self.stopping.clear()
        self._is_told_to_stop.clear()
        try:
            self.worker_session.start()
        except DatabaseUnreachable as error:
            raise BootFailed(str(error)) from error
        except ReleaseTooOld as error:
            print(f"duepost: {error}", file=sys.stderr, flush=True)
            raise SystemExit(TOO_OLD) from error
        except messages.NOT_MIGRATED as error:
            raise BootFailed(NOT_MIGRATED) from error
        self._maintenance = Maintenance(
            self.database,
            self.worker_session,
            self.progress,
            patience=self._patience,
            dead_letters_kept=self._dead_letters_kept,
            retire=self._retire,
        )
        self._maintenance.start()

    def _retire(self) -> None:
        """Begins nothing new, returns what was only prefetched, and ends the process once the rest is done."""
        self._is_retiring = True
        for worker in list(self._workers):
            self.stop_reading(worker)
            return_unstarted(worker)
        self.stopping.set()
        threading.Thread(target=self._end_when_idle, name="duepost-retire", daemon=True).start()

    def _end_when_idle(self) -> None:
        """Ends by the way that SIGTERM takes, where Python handles it: workers stop in order, and `close()` follows.

        Not before all is done: Dramatiq's master tells the other workers to stop once the first has ended, and a second
        SIGTERM would break off what is in hand.
        """
        until = time.monotonic() + FAREWELL
        while not all(each.is_idle for each in list(self.consumers.values())) and time.monotonic() < until:
            time.sleep(JOIN_INTERVAL)
        if self._is_told_to_stop.is_set():
            return
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os._exit(TOO_OLD)

    def close(self) -> None:
        """Done by Dramatiq's command line after its worker has stopped.

        Raises:
            SystemExit: with a status of its own, where the worker's release is too old for the database.
        """
        super().close()
        if self._is_retiring:
            sys.exit(TOO_OLD)

    def told_to_stop(self) -> None:
        """Dramatiq's worker has been told to stop: the process ends without a word from here."""
        self._is_told_to_stop.set()

    def stop_reading(self, worker: dramatiq.Worker) -> None:
        """A worker begins nothing new: done by Dramatiq's worker as it stops."""
        if self._workers in ([], [worker]):
            self.stopping.set()
        for thread in worker.consumers.values():
            if isinstance(thread.consumer, PostgresConsumer):
                thread.consumer.stopping.set()

    def shut_down(self, worker: dramatiq.Worker) -> None:
        """Takes the mark away with the last worker; done by Dramatiq's worker when it has ended."""
        if worker in self._workers:
            self._workers.remove(worker)
        if self._workers:
            return
        if self._maintenance is not None:
            self._maintenance.stop()
        self.worker_session.stop()

    def forget_workers(self) -> None:
        """In a child after a fork: the workers are the parent's, and so are the locks that their threads had."""
        self._workers = []
        self._maintenance = None
        self.consumers = {}
        self.progress = Progress(readers=self.consumers)
        self.stopping = threading.Event()

    def _check_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            raise QueueNotFound(f"{queue_name!r} is declared by no actor here, nor by PostgresBroker.declare_queue()")

    def _requeue_current(
        self, current: ClaimedMessage, message: Message, stored: Callable[[], StoredMessage], delay: float
    ) -> None:
        if current.is_done:
            return
        transaction = self.database.current
        if transaction is not None:
            messages.store_retry(transaction.cursor, stored(), current.claim)
            transaction.after_commit(current.mark_done)
            return
        try:
            wait_for_database(partial(self._requeue_current_alone, current, message, stored, delay), self.stopping)
        except BrokerUnreachable:
            # It must not be acknowledged either: others give it back once our session has ended.
            current.mark_done()
            raise
        current.mark_done()
        self._look_soon([message.queue_name], delay)

    def _requeue_current_alone(
        self, current: ClaimedMessage, message: Message, stored: Callable[[], StoredMessage], delay: float
    ) -> None:
        try:
            messages.store_retry_alone(self.database, stored(), current.claim)
        except (MessageRefused, psycopg2.Error) as error:
            retries = message.options.get("retries")
            failure = type(error).__name__
            logger.warning(
                "Message %s cannot be requeued as it is now (%s), but as it was.", message.message_id, failure
            )
            messages.store_retry_as_it_was(
                self.database, current.claim, delay=delay, retries=retries if isinstance(retries, int) else 0
            )

    def _insert_alone(self, stored: StoredMessage, *, wait: bool) -> None:
        tried = False

        def insert() -> None:
            nonlocal tried
            again, tried = tried, True
            messages.insert_alone(self.database, stored, again=again)

        if wait:
            wait_for_database(insert, self.stopping)
        else:
            try:
                _at_most_twice(insert)
            except DatabaseUnreachable as error:
                raise BrokerUnreachable(str(error)) from error
        if wait or stored.delay:
            # What others send beside a worker comes in batches, the most urgent first: that is left to the next look.
            self._look_soon([stored.queue_name], stored.delay)

    def look_soon(self, queue_name: str) -> None:
        """There may be something new in a queue: this process reads it without waiting for its next look."""
        self._look_soon([queue_name])

    def _look_soon(self, queue_names: Iterable[str], delay: float = 0.0) -> None:
        """What this process has just stored, it reads without waiting for its next look."""
        for consumer in list(self.consumers.values()):
            if consumer.queue_name in queue_names and not consumer.closed:
                consumer.look_soon(delay)

    def _prepare(self, message: Message, delay: int | None) -> tuple[Message, Callable[[], StoredMessage]]:
        seconds = _seconds(delay)
        if seconds:
            message = message.copy(options={"eta": current_millis() + round(seconds * 1000)})

        def stored() -> StoredMessage:
            # Made when it is inserted: middleware may still change the options.
            check_name("queue_name", message.queue_name)
            check_name("actor_name", message.actor_name)
            _check_id(message.message_id)
            priority = self._priority(message)
            if priority not in messages.PRIORITIES:
                raise MessageRefused(_bad_priority(priority))
            return StoredMessage(message.message_id, message.queue_name, encoded(message), seconds, priority)

        return message, stored

    def _priority(self, message: Message) -> int:
        """The message's own, else its actor's; the lower, the more urgent."""
        own = message.options.get("priority")
        actor = self.actors.get(message.actor_name)
        return own if isinstance(own, int) else actor.priority if actor is not None else 0


class ClaimLost(SkipMessage):
    """The message in process is no longer this worker's: its work must not be committed here."""


class BootFailed(MiddlewareError):
    """A worker cannot begin."""


class Life(Middleware):
    """The life of a worker process: it is present while it works, and begins nothing that it has no right to."""

    @property
    def actor_options(self) -> set[str]:
        """The options that actors may have.

        `batch`: how many messages of its queue more than prefetched may be in hand; `lesser_priorities`: those that
        some of its messages are stored with, which one read in four begins with; `detaches`: whether its thread may go
        on before a message's end.
        """
        return {"batch", "lesser_priorities", "detaches"}

    def before_worker_boot(self, broker: PostgresBroker, worker: dramatiq.Worker) -> None:
        """Marks the process as a worker."""
        broker.boot(worker)

    def before_worker_shutdown(self, broker: PostgresBroker, worker: dramatiq.Worker) -> None:
        """Nothing new is begun, and what was only prefetched is returned at once; what runs may finish."""
        broker.told_to_stop()
        broker.stop_reading(worker)
        return_unstarted(worker)

    def after_worker_shutdown(self, broker: PostgresBroker, worker: dramatiq.Worker) -> None:
        """Leaves in order, so that others need not wait."""
        broker.shut_down(worker)

    def before_process_message(self, broker: PostgresBroker, message: Message) -> None:
        """Holds a message back while the process cannot prove its presence.

        Raises:
            SkipMessage: the message may be another worker's by now.
        """
        broker.progress.moved()
        if not isinstance(message, ClaimedMessage):
            return
        message.has_begun = True
        while not broker.worker_session.wait_until_proven(AWAY_PAUSE) and not (
            broker.stopping.is_set() or message.stopping.is_set()
        ):
            logger.debug("Message %s waits for this worker's session.", message.message_id)
        if message.worker_id != broker.worker_session.worker_id or not broker.worker_session.is_proven():
            abandon(message)
            raise SkipMessage("the message may be another worker's by now")

    def after_process_message(
        self,
        broker: PostgresBroker,
        message: Message,  # noqa: ARG002
        *,
        result: object = None,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """Notes that there is progress."""
        broker.progress.moved()


class _WorkQueue(PriorityQueue[tuple[int, ClaimedMessage]]):
    """What waits in a worker's memory for a free thread: by the priorities that the messages are stored with."""

    def _put(self, item: tuple[int, ClaimedMessage]) -> None:
        _, message = item
        super()._put((message.priority, message))

    def keep_unfinished(self) -> None:
        """What was taken is at its end once more than its thread has said so."""
        with self.all_tasks_done:
            self.unfinished_tasks += 1


@contextmanager
def _refusals(current: ClaimedMessage | None) -> Iterator[None]:
    """Gives what the database does not take the broker's own names; the message in process hears of any failure."""
    is_stored = False
    try:
        yield
        is_stored = True
    except messages.UNSTORABLE as error:
        raise MessageRefused(f"message: {error.diag.message_primary or type(error).__name__}") from error
    except messages.NOT_MIGRATED as error:
        raise SchemaMismatch(NOT_MIGRATED) from error
    finally:
        if current is not None and not is_stored:
            current.has_lost = True


def _at_most_twice(action: Callable[[], None]) -> None:
    """Does something, and once more if the database is lost at once; for what may be done twice."""
    began = time.monotonic()
    try:
        action()
    except DatabaseUnreachable:
        if time.monotonic() - began > TRIED_AGAIN_WITHIN:
            raise
        action()


def _seconds(delay: float | None) -> float:
    """A delay in milliseconds as seconds that can be stored: not before now, and at the most 200,000 years.

    Raises:
        MessageRefused: it is no number.
    """
    if not delay:
        return 0.0
    if not isinstance(delay, int | float) or delay != delay:  # noqa: PLR0124 - NaN is not
        raise MessageRefused(f"delay: {delay!r} is no number of milliseconds")
    return max(0.0, min(delay, messages.LONGEST_DELAY * 1000) / 1000)


def _check_id(message_id: str) -> None:
    try:
        UUID(message_id)
    except (ValueError, AttributeError, TypeError) as error:
        raise MessageRefused(f"message_id: {message_id!r} is no UUID") from error


def _bad_priority(priority: object) -> str:
    return f"priority: {priority!r} cannot be stored; it is a number from -2147483648 to 2147483647"


def _forget_the_parents_workers() -> None:
    for broker in list(_brokers):
        broker.forget_workers()


#: What a child has to forget after a fork.
_brokers: WeakSet[PostgresBroker] = WeakSet()
os.register_at_fork(after_in_child=_forget_the_parents_workers)


def listens(middleware: Middleware, hook: str) -> bool:
    """Whether a middleware has a hook of its own: what it inherits does nothing."""
    own = getattr(middleware, hook, None)
    return own is not None and getattr(own, "__func__", None) is not getattr(Middleware, hook, None)


def abandon(message: ClaimedMessage) -> None:
    """Leaves a message to others: nothing has come of it here, and what waits for its result is to get theirs."""
    message.mark_done()
    message.options["store_results"] = False


def return_unstarted(worker: dramatiq.Worker) -> None:
    """Returns to the queue what waits in a worker's memory for a free thread."""
    unstarted: dict[str, list[ClaimedMessage]] = {}
    with suppress(Empty):
        while True:
            _, message = worker.work_queue.get_nowait()
            unstarted.setdefault(message.queue_name, []).append(message)
            worker.work_queue.task_done()
    for queue_name, each in unstarted.items():
        worker.consumers[queue_name].requeue_messages(each)


__all__ = ["BrokerUnreachable", "ClaimLost", "MessageRefused", "PostgresBroker", "wait_for_database"]
