"""The sender: the actor `send_email`."""

from typing import Final

import dramatiq

from actors.delivery.email_work import EmailDispatcher
from actors.queue.broker import PostgresBroker
from models.emails import LATE_PRIORITY, PRIORITY, QUEUE

#: The sender's name as an actor.
SEND_EMAIL: Final = "send_email"

#: Messages in hand for each connection to the relay: some are being sent, some claimed, some take long to render, and
#: some are read ahead.
IN_HAND: Final = 6


def declare_sender(
    broker: PostgresBroker, dispatcher: EmailDispatcher, connections: int
) -> dramatiq.Actor[[int], None]:
    """Declares the actor that delivers emails.

    Args:
        broker: where.
        dispatcher: what delivers them.
        connections: to the relay, of this process, at the most.
    """

    def send_email(email_id: int) -> None:
        """Delivers one scheduled email, if it is still to be sent."""
        dispatcher.do(email_id)

    return dramatiq.actor(
        send_email,
        actor_name=SEND_EMAIL,
        broker=broker,
        queue_name=QUEUE,
        priority=PRIORITY,
        lesser_priorities=(LATE_PRIORITY,),
        max_retries=None,
        min_backoff=1_000,
        max_backoff=60_000,
        batch=IN_HAND * connections,
    )


def message_for(email_id: int) -> dramatiq.Message[None]:
    """A message that asks for an email to be delivered."""
    return dramatiq.Message(queue_name=QUEUE, actor_name=SEND_EMAIL, args=(email_id,), kwargs={}, options={})
