"""Ends Python code that takes too long, from outside: a template that loops for ever holds up one email, no more."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two looks at what takes too long.
LOOK_INTERVAL = 0.25

# A prototype of our own: the types of `ctypes.pythonapi`'s are everybody's.
_raise_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_NOTHING: "ctypes.py_object[Exception]" = ctypes.py_object()


class TookTooLong(Exception):
    """The time for it is over."""


class Overtime:
    """Threads whose work is limited, and until when.

    One thread, begun with the first of them, raises `TookTooLong` in those that are late. Python code is ended
    between two of its steps; a single long call into C is not.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._raised: set[int] = set()
        self._lock = threading.Lock()
        self._pid = 0

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Limits the block.

        Raises:
            TookTooLong: it took longer.
        """
        self._begin(threading.get_ident(), seconds)
        try:
            yield
        finally:
            self._end(threading.get_ident())

    def _begin(self, thread: int, seconds: float) -> None:
        with self._lock:
            self._raised.discard(thread)
            self._until[thread] = time.monotonic() + seconds
            if self._pid != os.getpid():
                # A fork leaves threads behind.
                self._pid = os.getpid()
                threading.Thread(target=self._watch, name="duepost-overtime", daemon=True).start()

    def _end(self, thread: int) -> None:
        with self._lock:
            self._until.pop(thread, None)
            if thread in self._raised:
                self._raised.discard(thread)
                # It may not have come through yet, and must not come through later.
                _raise_in(thread, _NOTHING)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_INTERVAL)
            self.end_the_late()

    def end_the_late(self) -> None:
        """Raises `TookTooLong` in the threads whose time is over."""
        with self._lock:
            now = time.monotonic()
            for thread in [each for each, until in self._until.items() if until < now]:
                del self._until[thread]
                self._raised.add(thread)
                _raise_in(thread, TookTooLong)


overtime = Overtime()
