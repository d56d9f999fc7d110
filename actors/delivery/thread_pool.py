"""Threads for work that may block: as many as are needed, and never more than a pool's most."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Seconds for which a thread without work stays.
LINGER: Final = 10.0


class ThreadPool:
    """A pool of daemon threads. Any thread may submit work; each piece runs in one thread of the pool.

    Unlike an executor's, these threads keep no process from ending: what they wait for may never come.

    Args:
        name: what the threads are called.
        most: how many there are at the most; further work waits.
        newest_first: which of the waiting work goes first.
    """

    def __init__(self, name: str, most: int, *, newest_first: bool = False) -> None:
        self._name = name
        self._most = most
        self._newest_first = newest_first
        self._waiting: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._count = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Has the work done as soon as a thread is free. What it raises is logged, and nothing else."""
        with self._changed:
            self._waiting.append(work)
            if len(self._waiting) <= self._idle:
                self._changed.notify()
            elif self._count < self._most:
                self._begin()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # raised from outside, between two pieces of work: those that wait are done all the same
            logger.critical("A thread of %s was ended.", self._name, exc_info=True)
            with self._changed:
                self._count -= 1
                if self._waiting:
                    self._begin()

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException:  # one piece of work is no other's
                logger.critical("Work in %s failed.", self._name, exc_info=True)
            # Nothing of it may stay alive while the thread waits.
            del work

    def _begin(self) -> None:
        self._count += 1
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            until = time.monotonic() + LINGER
            while not self._waiting:
                self._idle += 1
                try:
                    self._changed.wait(max(0.0, until - time.monotonic()))
                finally:
                    self._idle -= 1
                if not self._waiting and time.monotonic() >= until:
                    self._count -= 1
                    return None
            return self._waiting.pop() if self._newest_first else self._waiting.popleft()
