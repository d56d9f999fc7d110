"""The senders: the actor `send_email`, one more for each relay that has a name, and `send_message`."""

from typing import Final

import dramatiq

from actors.delivery.email_work import EmailDispatcher
from actors.delivery.message_work import MessageDispatcher
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import LeftToOthers
from models import emails, scheduled_messages
from models.emails import BULK_PRIORITY, DEFAULT, LATE_PRIORITY, PRIORITY, URGENT_PRIORITY
from models.items import is_endpoint

#: The sender's name as an actor, for the default route.
SEND_EMAIL: Final = "send_email"

#: Messages in hand for each connection to the relay: some are being sent, some claimed, some take long to render, and
#: some are read ahead.
IN_HAND: Final = 6


#: The sender of messages, through whatever endpoint.
SEND_MESSAGE: Final = "send_message"

#: Messages in hand of this process: of endpoints that are slow many wait for a long time.
MESSAGES_IN_HAND: Final = 1_000


def actor_of(route: str) -> str:
    """The name of the actor that sends by a route."""
    if is_endpoint(route):
        return SEND_MESSAGE
    return SEND_EMAIL if route == DEFAULT else f"{SEND_EMAIL}_{route}"


def queue_of(route: str) -> str:
    """The broker's queue of items that are to be sent by a route."""
    return scheduled_messages.QUEUE if is_endpoint(route) else emails.queue_of(route)


def declare_sender(
    broker: PostgresBroker, route: str, dispatcher: EmailDispatcher, connections: int
) -> dramatiq.Actor[[int], None]:
    """Declares the actor that delivers emails by a route.

    Args:
        broker: where.
        route: its name.
        dispatcher: what delivers them.
        connections: to the relay, of this process, at the most.
    """

    def send_email(email_id: int) -> None:
        """Delivers one scheduled email, if it is still to be sent."""
        if not dispatcher.do(email_id, is_urgent=_is_urgent(broker)):
            raise LeftToOthers

    return dramatiq.actor(
        send_email,
        actor_name=actor_of(route),
        broker=broker,
        queue_name=queue_of(route),
        priority=PRIORITY,
        lesser_priorities=(URGENT_PRIORITY, LATE_PRIORITY, BULK_PRIORITY),
        max_retries=None,
        min_backoff=1_000,
        max_backoff=60_000,
        batch=IN_HAND * connections,
        detaches=True,
    )


def declare_message_sender(broker: PostgresBroker, dispatcher: MessageDispatcher) -> dramatiq.Actor[[int], None]:
    """Declares the actor that delivers messages; a thread goes on while its message is worked on by another one."""

    def send_message(message_id: int) -> None:
        """Delivers one scheduled message, if it is still to be sent."""
        if not dispatcher.do(message_id, is_urgent=_is_urgent(broker)):
            raise LeftToOthers

    return dramatiq.actor(
        send_message,
        actor_name=SEND_MESSAGE,
        broker=broker,
        queue_name=scheduled_messages.QUEUE,
        priority=PRIORITY,
        lesser_priorities=(URGENT_PRIORITY, LATE_PRIORITY, BULK_PRIORITY),
        max_retries=None,
        min_backoff=1_000,
        max_backoff=60_000,
        batch=MESSAGES_IN_HAND,
        detaches=True,
    )


def _is_urgent(broker: PostgresBroker) -> bool:
    message = broker.message_in_process
    return message is not None and message.priority <= URGENT_PRIORITY


def message_for(item_id: int, route: str) -> dramatiq.Message[None]:
    """A message that asks for an item to be delivered by a route."""
    return dramatiq.Message(
        queue_name=queue_of(route), actor_name=actor_of(route), args=(item_id,), kwargs={}, options={}
    )
