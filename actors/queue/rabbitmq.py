"""Messages through RabbitMQ, by Dramatiq's own broker. Knows nothing of email.

What is carried is a hint: its message is in the table too, and is read there later if it has not ended by then.
So nothing that happens to RabbitMQ loses anything: restarted, cut off, purged, or called by a wrong name.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, Full, Queue
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.errors import ConnectionClosed
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionBlockedTimeout

from actors.queue.broker import PostgresBroker
from actors.queue.encoding import Message
from models.errors import DuepostError
from models.messages import CARRIED_FOR

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats, where the URL names none: after two that are missing a connection is given up.
HEARTBEAT: Final = 10

#: Seconds that a connection may take.
CONNECT_TIMEOUT: Final = 5.0

#: Seconds until the next try where RabbitMQ is away.
AWAY_PAUSE: Final = 1.0

#: Seconds between two looks whether to go on.
LOOK_INTERVAL: Final = 0.25

#: How many messages of a queue a process has in hand at the most; less where its actor has room for less than twice as
#: many: what is read from the table needs some of it.
PREFETCH: Final = 64

#: How many messages wait to be published; what is more is read from the table.
OUTBOX: Final = 10_000

#: Seconds that RabbitMQ may take nothing from who publishes, as its memory or disk is short.
BLOCKED_TIMEOUT: Final = 1.0

#: Where what is published to see whether that is allowed goes: there is no such queue, and RabbitMQ throws it away.
NOBODY: Final = "duepost_nobody"

#: What of ours is away when messages are not published; else the queue that is not read.
PUBLISHING: Final = "publishing"

#: The numbers of rows.
NUMBERS: Final = range(1, 2**63)

#: RabbitMQ's priorities: of what goes first, and of what is less urgent.
URGENT, LESSER = 1, 0

#: What RabbitMQ closes with for a login or rights, for a queue of another make, for the virtual host; and what to do.
REFUSALS: Final = {
    403: "mend the login in DUEPOST_BROKER_URL, or its rights: rabbitmqctl list_permissions -p VHOST",
    406: "delete the queue that it names, what is in it is in the database too: rabbitmqctl delete_queue -p VHOST NAME",
    530: "mend the virtual host in DUEPOST_BROKER_URL: rabbitmqctl list_vhosts",
}

#: How pika quotes what a connection was closed with before it was open.
_CLOSED_WITH: Final = re.compile(r"ClosedByBroker: \((\d+)\) ['\"]?(.*?)['\"]?$")

#: What it says of a queue that is not there.
NOT_FOUND: Final = 404


class RabbitmqAway(DuepostError):
    """RabbitMQ cannot be reached."""


class RabbitmqRefused(DuepostError):
    """RabbitMQ takes no messages of ours: login, rights, virtual host or queues are not as they should be.

    Args:
        said: where, and what RabbitMQ says.
        code: what it has closed with.
    """

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        #: What to do about it.
        self.advice = REFUSALS[code]


class QueueState(NamedTuple):
    """A queue in RabbitMQ: how many messages wait in it, and how many processes read it."""

    waiting: int
    readers: int


class Rabbitmq:
    """Carries messages of some queues: a thread publishes, one for each queue reads.

    A queue is called by its name and what tells the database from others, so that two may share a virtual host.

    Args:
        url: `amqp://` or `amqps://`.
        broker: whose messages.
        queue_names: of those that this process reads.
        installation: what tells the database from others; asked when it is first needed.

    Raises:
        ValueError: pika makes nothing of the URL.
    """

    def __init__(
        self, url: str, broker: PostgresBroker, queue_names: Sequence[str], installation: Callable[[], str]
    ) -> None:
        self._url = url
        _transport(url)
        self._broker = broker
        self._installation = installation
        self._names: dict[str, str] = {}
        self._queue_names = tuple(queue_names)
        #: What is read from RabbitMQ just now: single operations of a set.
        self._being_read: set[str] = set()
        #: Until when each is of use, by the monotonic clock, and it.
        self._outbox: Queue[tuple[float, Message]] = Queue(OUTBOX)
        #: Whether RabbitMQ takes what is published just now.
        self._is_publishing = threading.Event()
        self._lock = threading.Lock()
        #: What is not done just now: `PUBLISHING`, and the queues that are not read.
        self._away: set[str] = set()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._publish, name="duepost-rabbitmq-publish", daemon=True),
            *(
                threading.Thread(target=self._read, args=(name,), name="duepost-rabbitmq-read", daemon=True)
                for name in queue_names
            ),
        ]

    def check(self) -> None:
        """Looks whether RabbitMQ takes our messages, and makes the queues. One that is away is waited for later.

        Raises:
            RabbitmqRefused: it does not.
        """
        quieten()
        try:
            with _opened(self._url) as transport:
                for queue_name in self._queue_names:
                    transport.declare_queue(self._name(queue_name), ensure=True)
                _check_publishing(transport)
        except RabbitmqAway as error:
            self._lost(error, PUBLISHING, *self._queue_names)

    def start(self) -> None:
        """Begins to publish, and to read where the broker's worker does."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends; what is in hand here and not at its end goes to other workers."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=CONNECT_TIMEOUT)

    def takes(self, queue_name: str) -> bool:
        """Whether this process reads the queue from RabbitMQ just now, and may publish. Never waits."""
        return queue_name in self._being_read and self._is_publishing.is_set()

    def carry(self, messages: Sequence[tuple[Message, int]]) -> None:
        """Publishes messages soon. What cannot be is read from the table. Never waits."""
        until = time.monotonic() + CARRIED_FOR
        for message, priority in messages:
            with suppress(Full):
                self._outbox.put_nowait((until, self._published(message, priority)))

    def _published(self, message: Message, priority: int) -> Message:
        """The message as it is published: for RabbitMQ's queue, and with nothing of what middleware has added."""
        is_urgent = priority <= self._broker.get_actor(message.actor_name).priority
        return dramatiq.Message(
            queue_name=self._name(message.queue_name),
            actor_name=message.actor_name,
            args=message.args,
            kwargs={},
            options={"broker_priority": URGENT if is_urgent else LESSER},
            message_id=message.message_id,
        )

    def _name(self, queue_name: str) -> str:
        if queue_name not in self._names:
            self._names[queue_name] = name_of(queue_name, self._installation())
        return self._names[queue_name]

    def _publish(self) -> None:
        while not self._stop.is_set():
            try:
                with _opened(self._url) as transport:
                    _check_publishing(transport)
                    self._is_publishing.set()
                    self._found(PUBLISHING)
                    self._publish_until_lost(transport)
            except (RabbitmqAway, RabbitmqRefused) as error:
                self._lost(error, PUBLISHING)
            except Exception as error:  # noqa: BLE001 - without this thread nothing is carried; the table has it
                logger.warning("Nothing is published to RabbitMQ: %s.", type(error).__name__)
            finally:
                self._is_publishing.clear()
            self._stop.wait(AWAY_PAUSE)

    def _publish_until_lost(self, transport: RabbitmqBroker) -> None:
        """Publishes what is to be carried, until the connection is another one, of which nothing is known.

        Raises:
            AMQPError: the connection is lost, or RabbitMQ takes nothing.
        """
        connection = transport.connection
        looks_at = time.monotonic()
        while not self._stop.is_set():
            with suppress(Empty):
                until, message = self._outbox.get(timeout=LOOK_INTERVAL)
                if time.monotonic() < until:
                    transport.enqueue(message)
            if transport.connection is not connection:
                # Dramatiq's broker has made itself a new one.
                return
            if time.monotonic() >= looks_at:
                looks_at = time.monotonic() + LOOK_INTERVAL
                # Heartbeats are answered, and alarms heard of.
                connection.process_data_events(0)

    def _read(self, queue_name: str) -> None:
        while not self._stop.is_set():
            if not self._broker.is_reading(queue_name):
                # Nor is it to be: that is no trouble of RabbitMQ's.
                self._found(queue_name)
                self._stop.wait(LOOK_INTERVAL)
                continue
            try:
                self._read_until_lost(queue_name)
            except (RabbitmqAway, RabbitmqRefused) as error:
                self._lost(error, queue_name)
                self._stop.wait(AWAY_PAUSE)
            except Exception as error:  # noqa: BLE001 - without this thread nothing is read; the table has it
                logger.warning("RabbitMQ's queue %s is not read: %s.", queue_name, type(error).__name__)
                self._stop.wait(AWAY_PAUSE)

    def _read_until_lost(self, queue_name: str) -> None:
        """Reads while this worker may begin something new.

        Raises:
            RabbitmqAway, RabbitmqRefused: it cannot be read any more.
        """
        name = self._name(queue_name)
        with _opened(self._url) as transport:
            # That connection makes the queue; the consumer has one of its own.
            consumer = transport.consume(name, self._prefetch(queue_name), timeout=round(LOOK_INTERVAL * 1000))
        self._being_read.add(queue_name)
        self._found(queue_name)
        try:
            while not self._stop.is_set() and self._broker.is_reading(queue_name):
                with _explained(self._url):
                    found = next(consumer.iterator, None)
                if found is None:
                    raise RabbitmqAway(f"somebody has deleted the queue {name}")
                delivery, _, body = found
                if delivery is None:
                    continue
                if not self._take(queue_name, body, partial(_acknowledge, consumer, delivery.delivery_tag)):
                    return
        finally:
            self._being_read.discard(queue_name)
            with suppress(Exception):
                consumer.connection.close()

    def _prefetch(self, queue_name: str) -> int:
        actors = [each for each in self._broker.actors.values() if each.queue_name == queue_name]
        room = max((each.options.get("batch", 0) for each in actors), default=0)
        return max(1, min(PREFETCH, room // 2))

    def _take(self, queue_name: str, body: bytes, acknowledge: Callable[[], None]) -> bool:
        """Hands a message to this process's worker; gives whether it takes any: if not, others get it."""
        try:
            message, priority = self._read_message(queue_name, body)
        except Exception:  # noqa: BLE001 - anybody may have put anything there, and it would come again and again
            logger.warning("A message in RabbitMQ's queue %s is none of ours, and is thrown away.", queue_name)
            acknowledge()
            return True
        return self._broker.hand_over(message, priority, at_end=acknowledge)

    def _read_message(self, queue_name: str, body: bytes) -> tuple[Message, int]:
        """A message and its priority. No more is taken of it than whom it is for, and the number of its row.

        Raises:
            Exception: it is no message for an actor of this queue.
        """
        carried: Message = dramatiq.Message.decode(body)
        actor = self._broker.get_actor(carried.actor_name)
        [number] = carried.args
        if actor.queue_name != queue_name or carried.kwargs or type(number) is not int or number not in NUMBERS:
            raise ValueError("none of ours")
        lesser = actor.options.get("lesser_priorities", ())
        is_urgent = not lesser or carried.options.get("broker_priority") == URGENT
        message: Message = dramatiq.Message(
            queue_name=queue_name, actor_name=actor.actor_name, args=(number,), kwargs={}, options={}
        )
        return message, actor.priority if is_urgent else min(each for each in lesser if each > actor.priority)

    def _lost(self, error: RabbitmqAway | RabbitmqRefused, *parts: str) -> None:
        with self._lock:
            was_away = bool(self._away)
            self._away.update(parts)
        if not was_away:
            logger.warning("RabbitMQ: %s. Messages go through the database meanwhile (duepost doctor).", error)

    def _found(self, part: str) -> None:
        with self._lock:
            was_away = bool(self._away)
            self._away.discard(part)
            is_back = was_away and not self._away
        if is_back:
            logger.info("RabbitMQ carries messages again.")


def name_of(queue_name: str, installation: str) -> str:
    """What a queue is called in RabbitMQ."""
    return f"{queue_name}.{installation}"


def inspect(url: str, names: Sequence[str]) -> dict[str, QueueState | None]:
    """Whether messages may be published, and how these queues are, by RabbitMQ's names; None: there is no such queue.

    Raises:
        RabbitmqAway, RabbitmqRefused: it does not say.
    """
    quieten()
    found: dict[str, QueueState | None] = {}
    with _opened(url) as transport:
        _check_publishing(transport)
        for name in names:
            found[name] = _state_of(transport, name)
            if found[name] is not None:
                # One of another make would be refused.
                transport.declare_queue(name, ensure=True)
    return found


def _check_publishing(transport: RabbitmqBroker) -> None:
    """Publishes something that goes nowhere: only who publishes is told of an alarm, or has no right to.

    Raises:
        AMQPError: it may not be, or RabbitMQ takes nothing just now.
    """
    transport.channel.basic_publish("", NOBODY, b"")
    # Answered only after what was published.
    transport.channel.basic_qos(prefetch_count=1)


def _state_of(transport: RabbitmqBroker, name: str) -> QueueState | None:
    try:
        answer = transport.channel.queue_declare(name, passive=True).method
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        del transport.channel
        return None
    return QueueState(answer.message_count, answer.consumer_count)


def where(url: str) -> str:
    """Host, port and virtual host of a URL; nothing of the login."""
    parameters = pika.URLParameters(url)
    return f"{parameters.host}:{parameters.port}, virtual host {parameters.virtual_host}"


def quieten() -> None:
    """Leaves to us what there is to say: pika and Dramatiq say the same in many lines, some with a traceback."""
    for name in ("pika", "dramatiq.brokers.rabbitmq", "dramatiq.broker.RabbitmqBroker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _transport(url: str) -> RabbitmqBroker:
    """Dramatiq's broker, without middleware: our messages have been told of already. Does no I/O."""
    transport = RabbitmqBroker(url=url, middleware=[], max_priority=URGENT)
    # What patches Dramatiq's brokers may have added some.
    transport.middleware = []
    # A URL gives one set of them; the annotation is that of several.
    parameters: pika.connection.Parameters = cast("pika.connection.Parameters", transport.parameters)
    if "heartbeat" not in urlsplit(url).query:
        parameters.heartbeat = HEARTBEAT
    parameters.socket_timeout = CONNECT_TIMEOUT
    parameters.stack_timeout = 2 * CONNECT_TIMEOUT
    parameters.blocked_connection_timeout = BLOCKED_TIMEOUT
    parameters.client_properties = {"connection_name": "duepost"}
    return transport


def _acknowledge(consumer: _RabbitmqConsumer, delivery_tag: int) -> None:
    """Tells RabbitMQ that a message is at its end; any thread may."""
    # Where the connection is lost, it comes once more, and there is nothing left to do for it.
    with suppress(AMQPError):
        consumer.connection.add_callback_threadsafe(partial(consumer.channel.basic_ack, delivery_tag))


@contextmanager
def _opened(url: str) -> Iterator[RabbitmqBroker]:
    """A transport whose connection is closed in the end.

    Raises:
        RabbitmqAway, RabbitmqRefused: what it was used for went wrong.
    """
    transport = _transport(url)
    try:
        with _explained(url):
            yield transport
    finally:
        with suppress(Exception):
            del transport.connection


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Gives what goes wrong in between our own names.

    Raises:
        RabbitmqAway, RabbitmqRefused: something went wrong.
    """
    try:
        yield
    except (ConnectionClosed, AMQPError, AssertionError, OSError) as error:
        causes = list(_causes(error))
        refusal = next(filter(None, map(_refusal_in, causes)), None)
        if refusal is not None:
            code, said = refusal
            raise RabbitmqRefused(f"{where(url)}: {said.rstrip('.')}", code) from error
        raise RabbitmqAway(f"{where(url)}: {_said(causes[-1])}") from error


def _refusal_in(error: BaseException) -> tuple[int, str] | None:
    """What RabbitMQ has closed with, where it refuses us. Of a login pika keeps its words only, as a text."""
    code = getattr(error, "reply_code", None)
    if code in REFUSALS:
        return int(code), str(getattr(error, "reply_text", ""))
    found = _CLOSED_WITH.search(str(error.args[0])) if error.args else None
    return (int(found[1]), found[2]) if found is not None and int(found[1]) in REFUSALS else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was made of, the outermost first."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        within = [each for each in (*inner.args, getattr(inner, "exception", None)) if isinstance(each, BaseException)]
        inner = within[0] if within else None


def _said(error: BaseException) -> str:
    if isinstance(error, ConnectionBlockedTimeout):
        return "it takes no messages, as its memory or disk is short"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
