"""How much of what emails carry is in memory at once."""

import threading
from typing import Final

#: Bytes of attachments, as they go over the wire, that the emails of one route hold at once in a process. One that is
#: larger goes alone.
MOST_HELD: Final = 64 * 2**20


class Held:
    """A share of a room; it is returned when the last reference to it goes, or before."""

    def __init__(self, room: "Room", size: int) -> None:
        self._room = room
        self._size = size

    def __del__(self) -> None:
        self._room.release(self._size)


class Room:
    """A bound on memory. Any thread may call it.

    Args:
        most: bytes at once.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()
        #: Whoever has it is next, so that a large one comes to its room.
        self._turn = threading.Lock()

    def take(self, size: int) -> Held:
        """Waits until there is room for as many bytes; more than the room holds waits until it is empty."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size
        return Held(self, size)

    def release(self, size: int) -> None:
        """Called by what was taken."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()
