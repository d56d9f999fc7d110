"""A connection to a server, and those that are kept for the next request."""

import re
import threading
import time
from collections import deque
from typing import Final

import h11

from actors.channels.http.request import Target
from actors.channels.stream import Stream

#: Bytes of an answer's head.
MAX_HEAD: Final = 64 * 1024

#: Seconds for which an idle connection is kept: Node's servers close theirs after 5.
IDLE: Final = 4.0

#: Idle connections that are kept, to all servers together.
MOST_IDLE: Final = 100

_TIMEOUT: Final = re.compile(r"(?:.*[ ,;])?timeout=([0-9]{1,6})\b.*", re.IGNORECASE)


class Connection:
    """A connection to a server, over which one request after the other goes.

    Args:
        stream: it; ready for a request.
        target: the server.
    """

    def __init__(self, stream: Stream, target: Target) -> None:
        self.stream = stream
        self.target = target
        self.protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        #: Whether it has had a request before; and until when it is of use without one, by the monotonic clock.
        self.is_kept = False
        self.until = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether it stands, and the server has said nothing unasked. Never waits."""
        return self.stream.overheard() is None

    def rest(self, keep_alive: str | None) -> None:
        """It waits for its next request, for as long as the server is known to keep it."""
        self.protocol.start_next_cycle()
        self.is_kept = True
        told = _TIMEOUT.fullmatch(keep_alive or "")
        self.until = time.monotonic() + (IDLE if told is None else min(IDLE, int(told[1]) - 1))


class KeptConnections:
    """Connections that wait for their next request. Any thread may call this; nothing here blocks."""

    def __init__(self) -> None:
        #: Under the lock: the oldest first.
        self._idle: deque[Connection] = deque()
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self, target: Target) -> Connection | None:
        """A connection to this very server that stands, the one used last; None where there is none."""
        while (found := self._pop(target)) is not None:
            if found.until > time.monotonic() and found.is_quiet:
                return found
            found.stream.close()
        return None

    def put(self, connection: Connection) -> None:
        """Keeps a connection for a while."""
        with self._lock:
            self._idle.append(connection)
            is_tidy = self._idle[0].until > time.monotonic() and len(self._idle) <= MOST_IDLE and not self._is_closed
        if not is_tidy:
            self.close_idle()

    def close_idle(self) -> None:
        """Closes what has waited for too long, and what there is too much of."""
        now = time.monotonic()
        with self._lock:
            most = 0 if self._is_closed else MOST_IDLE
            late = [each for each in self._idle if each.until <= now]
            kept = [each for each in self._idle if each.until > now]
            surplus = kept[: max(0, len(kept) - most)]
            self._idle = deque(kept[len(surplus) :])
        for connection in (*late, *surplus):
            connection.stream.close()

    def close(self) -> None:
        """Closes all; what comes back later is closed at once."""
        with self._lock:
            self._is_closed = True
        self.close_idle()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._idle)

    def _pop(self, target: Target) -> Connection | None:
        with self._lock:
            found = next((each for each in reversed(self._idle) if each.target == target), None)
            if found is not None:
                self._idle.remove(found)
            return found
