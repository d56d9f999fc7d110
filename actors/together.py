"""Work of several threads in one statement and one commit: what comes while one commit is under way shares the next.

A thread that comes alone does its own work at once; those that come meanwhile are done together by one of them, and as
long as there is company a commit waits a few milliseconds for more of it. With one thread there is no difference, with
many each commit serves many (group commit: DeWitt et al., Implementation Techniques for Main Memory Database Systems,
1984).
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import psycopg2

#: Seconds that a commit waits for company, while there is some.
LINGER = 0.004

Item = TypeVar("Item")
Found = TypeVar("Found")


def _held() -> threading.Lock:
    """A lock that is released when it is its thread's turn: half the price of an event."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class _Wish(Generic[Item, Found]):
    item: Item
    turn: threading.Lock = field(default_factory=_held)
    found: list[Found] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return bool(self.found) or self.failure is not None


class Together(Generic[Item, Found]):
    """Does the work of all threads that want it done.

    Args:
        work: does several at once, in one transaction, and gives what each came to, in order. It raises for all of
            them alike.
        most: how many at the most share a transaction.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Found]], most: int = 50) -> None:
        self._work = work
        self._most = most
        self._waiting: list[_Wish[Item, Found]] = []
        self._is_led = False
        self._had_company = False
        self._lock = threading.Lock()

    def do(self, item: Item) -> Found:
        """Does one item, in whatever company; blocks until it is committed.

        Raises:
            Exception: what the work raised. If it was done in company and the database refused, each is tried alone
                first, so that one failure is nobody else's.
        """
        wish: _Wish[Item, Found] = _Wish(item)
        with self._lock:
            self._waiting.append(wish)
            leads = not self._is_led
            self._is_led = True
        if not leads:
            wish.turn.acquire()
        if not wish.is_done:
            try:
                self._lead(wish)
            finally:
                self._hand_on()
        if wish.failure is not None:
            raise wish.failure
        return wish.found[0]

    def _lead(self, own: _Wish[Item, Found]) -> None:
        if self._had_company:
            time.sleep(LINGER)
        with self._lock:
            wishes = self._waiting[: self._most]
            del self._waiting[: self._most]
        self._had_company = len(wishes) > 1
        try:
            self._fulfil(wishes)
        finally:
            for wish in wishes:
                if not wish.is_done:
                    wish.failure = RuntimeError("the thread that did this for others was interrupted")
                if wish is not own:
                    wish.turn.release()

    def _hand_on(self) -> None:
        """The first of those who still wait does the next ones."""
        with self._lock:
            self._is_led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].turn.release()

    def _fulfil(self, wishes: Sequence[_Wish[Item, Found]]) -> None:
        try:
            for wish, found in zip(wishes, self._work([wish.item for wish in wishes]), strict=True):
                wish.found.append(found)
        except psycopg2.Error as error:
            if len(wishes) == 1:
                wishes[0].failure = error
                return
            for wish in wishes:
                self._fulfil([wish])
        except BaseException as error:  # noqa: BLE001 - each thread raises it as its own
            for wish in wishes:
                wish.failure = error if len(wishes) == 1 else _of_its_own(error)


def _of_its_own(error: BaseException) -> BaseException:
    """An exception that several threads can raise: each has a traceback of its own."""
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own
