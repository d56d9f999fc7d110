"""The tick: a broker message that asks for a pass of the scheduler."""

from typing import Final

import dramatiq

from actors.queue.broker import PostgresBroker

#: The scheduler's name as an actor, and its queue and priority.
SCHEDULER: Final = "enqueue_due_emails"
QUEUE: Final = "duepost_scheduler"
PRIORITY: Final = 0


def tick(broker: PostgresBroker) -> bool:
    """Asks for a pass of the scheduler, unless that is asked for already.

    Returns:
        whether a message was enqueued.

    Raises:
        BrokerUnreachable: the database is away.
    """
    return broker.enqueue_unless_one_waits(tick_message())


def tick_later(broker: PostgresBroker, seconds: float) -> None:
    """Asks for a pass of the scheduler after this many seconds; in the open transaction, if there is one."""
    broker.enqueue(tick_message(), delay=round(seconds * 1000))


def tick_message() -> dramatiq.Message[object]:
    """A message that asks for a pass of the scheduler."""
    return dramatiq.Message(queue_name=QUEUE, actor_name=SCHEDULER, args=(), kwargs={}, options={})
