"""What waits in this process's memory for the dispatcher."""

from actors.queue.batching import BatchedMessage
from actors.queue.broker import PostgresBroker
from models.emails import URGENT_PRIORITY


class ItemInbox:
    """Messages in this process's memory that ask for items to be delivered.

    Args:
        broker: in whose workers' memory.
        actor_name: the actor that they are for.
    """

    def __init__(self, broker: PostgresBroker, actor_name: str) -> None:
        self._broker = broker
        self._actor_name = actor_name

    def has_more(self, *, are_urgent: bool = False) -> bool:
        """Whether one may wait, or one that is urgent."""
        return self._broker.has_more(self._actor_name, self._least(are_urgent))

    def next(self, *, is_urgent: bool = False) -> tuple[int, BatchedMessage] | None:
        """Takes the next one: its item's id, and its job; or only one that is urgent."""
        while (batched := self._broker.next_batched(self._actor_name, self._least(is_urgent))) is not None:
            match batched.message.args:
                case (int() as item_id,):
                    return item_id, batched
            batched.end(TypeError("the message names no item"))
        return None

    def _least(self, is_urgent: bool) -> int | None:
        return URGENT_PRIORITY if is_urgent else None
