"""Hangs up on servers that do not answer: a cut network sends neither FIN nor RST, and libpq would wait for ever."""

import os
import socket
import threading
import time
from contextlib import suppress

#: Seconds between two looks at what is overdue.
LOOK_INTERVAL = 0.5


class Deadlines:
    """The answers that this process's connections are waiting for, by file descriptor, and until when.

    One thread, begun with the first of them, shuts the sockets of those that are overdue: the waiting call then
    fails as it does when a server ends.
    """

    def __init__(self) -> None:
        self._forget()
        # A fork leaves the thread behind, and what others were waiting for; one of them may have had the lock.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._awaited: dict[int, float] = {}
        self._lock = threading.Lock()
        self._is_watched = False

    def begin(self, descriptor: int, seconds: float) -> None:
        """Limits how many seconds an answer is awaited on a socket."""
        with self._lock:
            self._awaited[descriptor] = time.monotonic() + seconds
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="duepost-deadlines", daemon=True).start()

    def end(self, descriptor: int) -> None:
        """The answer has come, or the connection is gone."""
        with self._lock:
            self._awaited.pop(descriptor, None)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_INTERVAL)
            self.hang_up_overdue()

    def hang_up_overdue(self) -> None:
        """Shuts the sockets of what should have been answered by now."""
        with self._lock:
            now = time.monotonic()
            for descriptor in [each for each, until in self._awaited.items() if until < now]:
                del self._awaited[descriptor]
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as twin:
                    twin.shutdown(socket.SHUT_RDWR)


deadlines = Deadlines()
