"""Ends Python code that takes too long, from outside: a template that loops for ever holds up one email, no more."""

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Seconds between two looks at what takes too long.
LOOK_INTERVAL = 0.01

#: Seconds after which it is raised again in a thread that has not ended: where Python calls by itself (a finalizer, a
#: callback of its garbage collector), an exception is printed and dropped.
AGAIN = 0.5

#: Looks without anything to look at, after which the thread ends: a second.
LOOKS_UNTIL_END = 100

# A prototype of our own: the types of `ctypes.pythonapi`'s are everybody's.
_raise_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_NOTHING: "ctypes.py_object[Exception]" = ctypes.py_object()


class TookTooLong(Exception):
    """The time for it is over."""


#: Seconds for which one thread may keep Python's lock while others want it, as long as something slow is being done:
#: each wait of the thread that drives the dialogues ends in a wait for that lock.
SWITCH_INTERVAL = 0.0005


class TimeLimit:
    """Threads whose work is limited, and until when.

    One thread raises `TookTooLong` in those that are late; it begins with the first of them, and ends once there were
    none in `LOOKS_UNTIL_END` looks. Any thread may call it. Python code is ended between two of its steps; a single
    long call into C is not, nor is an import before it is done: an exception between two steps of one can leave
    Python's import lock taken for ever, and with it every thread that resolves a name.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        #: By thread: the frame that the limited block is in. Once a thread has left it, nothing may be raised there.
        self._frames: dict[int, FrameType | None] = {}
        self._raised: set[int] = set()
        self._lock = threading.Lock()
        self._is_watched = False
        self._was_used = False
        self._pid = 0
        self._yielding = 0
        self._usual_interval = 0.0

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Limits the block.

        Raises:
            TookTooLong: it took longer.
        """
        thread = threading.get_ident()
        within = sys._getframe().f_back  # noqa: SLF001 - there is no other
        try:
            # Here, as it may come as soon as this has begun: who stops the process stops it anywhere.
            self._begin(thread, seconds, within.f_back if within else None)
            yield
        finally:
            is_over = False
            while not is_over:
                # One that comes through here is too late to matter; nothing may be raised after the block.
                with suppress(TookTooLong):
                    self._end(thread)
                    is_over = True

    @contextmanager
    def yielding(self) -> Iterator[None]:
        """Around what may take the processor for long: all other threads get it more often meanwhile."""
        with self._lock:
            self._yielding += 1
            if self._yielding == 1:
                self._usual_interval = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            yield
        finally:
            with self._lock:
                self._yielding -= 1
                if self._yielding == 0:
                    sys.setswitchinterval(self._usual_interval)

    def _begin(self, thread: int, seconds: float, frame: FrameType | None) -> None:
        with self._lock:
            self._raised.discard(thread)
            self._frames[thread] = frame
            self._until[thread] = time.monotonic() + seconds
            self._was_used = True
            # A fork leaves threads behind.
            if not self._is_watched or self._pid != os.getpid():
                self._pid, self._is_watched = os.getpid(), True
                threading.Thread(target=self._watch, name="duepost-time_limit", daemon=True).start()

    def _end(self, thread: int) -> None:
        with self._lock:
            self._until.pop(thread, None)
            self._frames.pop(thread, None)
            if thread in self._raised:
                self._raised.discard(thread)
                # It may not have come through yet, and must not come through later.
                _raise_in(thread, _NOTHING)

    def _watch(self) -> None:
        idle_looks, is_needed = 0, True
        while is_needed:
            time.sleep(LOOK_INTERVAL)
            self.end_the_late()
            with self._lock:
                idle_looks = 0 if self._was_used or self._until else idle_looks + 1
                self._was_used = False
                is_needed = self._is_watched = idle_looks < LOOKS_UNTIL_END

    def end_the_late(self) -> None:
        """Raises `TookTooLong` in the threads whose time is over."""
        if not self._until:
            return
        with self._lock:
            now = time.monotonic()
            late = [each for each, until in self._until.items() if until < now]
            frames = _current_frames() if late else {}
            for thread in [each for each in late if not _is_in(self._frames.get(each), frames.get(each))]:
                self._until.pop(thread)
                self._frames.pop(thread, None)
            # One that imports is looked at again in a moment.
            for thread in [each for each in late if each in self._until and not is_importing(frames.get(each))]:
                self._until[thread] = now + AGAIN
                self._raised.add(thread)
                _raise_in(thread, TookTooLong)


def _current_frames() -> dict[int, FrameType]:
    """Where each thread is.

    Up to Python 3.11 the garbage collector may begin in the middle of the question, while Python's list of threads is
    locked: where a finalizer then waits, and another thread begins or ends, the whole process stops for ever
    (https://github.com/python/cpython/issues/106883). So nothing is collected meanwhile.
    """
    is_collecting = sys.version_info < (3, 12) and gc.isenabled()
    if is_collecting:
        gc.disable()
    try:
        return sys._current_frames()  # noqa: SLF001 - it is documented, and there is no other
    finally:
        if is_collecting:
            gc.enable()


def _is_in(block: FrameType | None, frame: FrameType | None) -> bool:
    """Whether a thread that is at `frame` is still in the function that holds the block."""
    while frame is not None and frame is not block:
        frame = frame.f_back
    return frame is not None


def is_importing(frame: FrameType | None) -> bool:
    """Whether this frame is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
