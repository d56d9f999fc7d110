"""Hangs up on servers that do not answer: a cut network sends neither FIN nor RST, and libpq would wait for ever."""

import os
import socket
import threading
import time
from contextlib import suppress

#: Seconds between two looks at what is overdue.
LOOK_INTERVAL = 0.5

#: Looks without anything to look at, after which the thread ends: two seconds. A worker proves its session more often.
LOOKS_UNTIL_END = 4


class Deadlines:
    """The answers that connections of this process are waiting for, by file descriptor, and until when.

    One thread shuts the sockets of those that are overdue: the waiting call then fails as it does when a server ends.
    It begins with the first of them, and ends once nothing was waited for in `LOOKS_UNTIL_END` looks. Any thread may
    call it.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a child after a fork: the thread is the parent's, and so is what others were waiting for.

        One of them may have had the lock.
        """
        self._awaited: dict[int, float] = {}
        self._lock = threading.Lock()
        self._is_watched = False
        self._was_used = False

    def begin(self, descriptor: int, seconds: float) -> None:
        """Limits how many seconds an answer is awaited on a socket."""
        with self._lock:
            self._awaited[descriptor] = time.monotonic() + seconds
            self._was_used = True
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="duepost-deadlines", daemon=True).start()

    def end(self, descriptor: int) -> None:
        """The answer has come, or the connection is gone."""
        with self._lock:
            self._awaited.pop(descriptor, None)

    def _watch(self) -> None:
        idle_looks, is_needed = 0, True
        while is_needed:
            time.sleep(LOOK_INTERVAL)
            self.hang_up_overdue()
            with self._lock:
                idle_looks = 0 if self._was_used or self._awaited else idle_looks + 1
                self._was_used = False
                is_needed = self._is_watched = idle_looks < LOOKS_UNTIL_END

    def hang_up_overdue(self) -> None:
        """Shuts the sockets of what should have been answered by now."""
        with self._lock:
            now = time.monotonic()
            for descriptor in [each for each, until in self._awaited.items() if until < now]:
                del self._awaited[descriptor]
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as twin:
                    twin.shutdown(socket.SHUT_RDWR)
