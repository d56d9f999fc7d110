"""The sender: the actor `send_email`, and one more for each route that has a name."""

from typing import Final

import dramatiq

from actors.delivery.email_work import EmailDispatcher
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import LeftToOthers
from models.emails import DEFAULT, LATE_PRIORITY, PRIORITY, queue_of

#: The sender's name as an actor, for the default route.
SEND_EMAIL: Final = "send_email"

#: Messages in hand for each connection to the relay: some are being sent, some claimed, some take long to render, and
#: some are read ahead.
IN_HAND: Final = 6


def actor_of(route: str) -> str:
    """The name of the actor that sends by a route."""
    return SEND_EMAIL if route == DEFAULT else f"{SEND_EMAIL}_{route}"


def declare_sender(
    broker: PostgresBroker, route: str, dispatcher: EmailDispatcher, connections: int, *, detaches: bool
) -> dramatiq.Actor[[int], None]:
    """Declares the actor that delivers emails by a route.

    Args:
        broker: where.
        route: its name.
        dispatcher: what delivers them.
        connections: to the relay, of this process, at the most.
        detaches: whether a thread goes on while its message is worked on by another one.
    """

    def send_email(email_id: int) -> None:
        """Delivers one scheduled email, if it is still to be sent."""
        if not dispatcher.do(email_id):
            raise LeftToOthers

    return dramatiq.actor(
        send_email,
        actor_name=actor_of(route),
        broker=broker,
        queue_name=queue_of(route),
        priority=PRIORITY,
        lesser_priorities=(LATE_PRIORITY,),
        max_retries=None,
        min_backoff=1_000,
        max_backoff=60_000,
        batch=IN_HAND * connections,
        detaches=detaches,
    )


def message_for(email_id: int, route: str) -> dramatiq.Message[None]:
    """A message that asks for an email to be delivered by a route."""
    return dramatiq.Message(
        queue_name=queue_of(route), actor_name=actor_of(route), args=(email_id,), kwargs={}, options={}
    )
