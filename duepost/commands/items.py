"""What an id stands for, in words: an email or a message. One sequence numbers both."""

from collections.abc import Collection, Mapping

from duepost import client
from duepost.client import Cursor
from duepost.commands.context import BadInput
from models import reports
from models.database.connections import Database


class Names:
    """What items are called, by their channels.

    Args:
        channels: of each item that is known.
    """

    def __init__(self, channels: Mapping[int, str]) -> None:
        self._channels = channels

    def one(self, item_id: int) -> str:
        """`message 42`; `email 42` also where nothing is known of it."""
        return f"{self._channels.get(item_id, 'email')} {item_id}"

    def many(self, item_ids: Collection[int]) -> str:
        """`3 emails`, `1 message`; `3 emails and messages` where there are both."""
        words = sorted({self._channels.get(each, "email") for each in item_ids}) or ["email"]
        plural = "" if len(item_ids) == 1 else "s"
        return f"{len(item_ids)} {' and '.join(word + plural for word in words)}"


def names_of(database: Database, item_ids: Collection[int]) -> Names:
    """What these items are called."""
    return Names(reports.channels(database, sorted(item_ids)))


def check_channel(cursor: Cursor, item_id: int, channel: str, command: str) -> None:
    """Makes sure that an item is of this channel, as far as it is known.

    Args:
        cursor: of a client.
        item_id: its id.
        channel: `email` or `message`.
        command: the command for one of the other channel, up to its id.

    Raises:
        BadInput: it is of the other one.
    """
    found = client.status(cursor, item_id)
    if found is not None and found.channel != channel:
        raise BadInput(f"{item_id} is {'a message' if found.channel == 'message' else 'an email'}: {command} {item_id}")
