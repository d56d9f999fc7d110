"""Things that threads share, each lent to one thread at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Pool(Generic[Thing]):
    """Lends what is free, the one used last first, so that what is not needed stays idle; else makes a new one.

    Args:
        make: makes one.
        is_good: whether one that comes back, or has lain idle, may be lent again; says no to what is of no use.
        most: how many are lent at the most; a thread waits for one to come back. Any number without it.
    """

    def __init__(
        self, make: Callable[[], Thing], is_good: Callable[[Thing], bool] = lambda _: True, most: int | None = None
    ) -> None:
        self._make = make
        self._is_good = is_good
        self._free: list[Thing] = []
        self._room = threading.Semaphore(most) if most is not None else nullcontext()

    @contextmanager
    def lent(self, *, waits: bool = True) -> Iterator[Thing]:
        """One, for as long as the block lasts.

        Args:
            waits: whether to wait while as many are lent as may be; else there may be more for a while.

        Raises:
            Exception: what making one raises.
        """
        with self._room if waits else nullcontext():
            thing = self.take_free() or self._make()
            try:
                yield thing
            finally:
                if self._is_good(thing):
                    self._free.append(thing)

    def take_free(self) -> Thing | None:
        """One that nobody has just now, for good; None if there is none."""
        with suppress(IndexError):
            while True:
                thing = self._free.pop()
                if self._is_good(thing):
                    return thing
        return None
