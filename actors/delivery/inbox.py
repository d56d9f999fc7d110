"""What waits in this process's memory for the dispatcher."""

from actors.queue.batching import BatchedMessage
from actors.queue.broker import PostgresBroker


class ItemInbox:
    """Messages in this process's memory that ask for items to be delivered.

    Args:
        broker: in whose workers' memory.
        actor_name: the actor that they are for.
    """

    def __init__(self, broker: PostgresBroker, actor_name: str) -> None:
        self._broker = broker
        self._actor_name = actor_name

    def has_more(self) -> bool:
        """Whether one may wait."""
        return self._broker.has_more(self._actor_name)

    def next(self) -> tuple[int, BatchedMessage] | None:
        """Takes the next one: its item's id, and its job."""
        while (batched := self._broker.next_batched(self._actor_name)) is not None:
            match batched.message.args:
                case (int() as item_id,):
                    return item_id, batched
            batched.end(TypeError("the message names no item"))
        return None
