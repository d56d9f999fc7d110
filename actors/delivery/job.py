"""A message's work: what its actor's thread waits for, and the context that it is done in."""

import contextvars
import threading
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Job(Protocol):
    """One message's work, in whatever thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of it in the message's own context."""

    def end(self, failure: BaseException | None = None) -> None:
        """Ends it, well or by a failure; does nothing where it has ended before."""


class OwnJob:
    """The message that an actor was called with: the actor's thread waits for it, or works on it itself."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._failure: BaseException | None = None
        self._over = threading.Lock()
        self._over.acquire()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of it in the message's own context."""
        return self._context.run(work, *args, **kwargs)

    def end(self, failure: BaseException | None = None) -> None:
        """Ends it, well or by a failure."""
        if self._over.locked():
            self._failure = failure
            self._over.release()

    def wait(self) -> None:
        """Waits until it is over.

        Raises:
            BaseException: what it failed of.
        """
        self._over.acquire()
        if self._failure is not None:
            raise self._failure


class DirectJob:
    """The work on an item that was claimed without a message.

    Args:
        moved: called as it begins, and as it ends: there is progress.
        fail: told what it failed of, once.
    """

    def __init__(self, moved: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        self._context = contextvars.Context()
        self._moved = moved
        self._fail = fail
        self._is_over = False
        moved()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of it in a context of its own, in which no message is in process."""
        return self._context.run(work, *args, **kwargs)

    def end(self, failure: BaseException | None = None) -> None:
        """Ends it, well or by a failure."""
        if self._is_over:
            return
        self._is_over = True
        self._moved()
        if failure is not None:
            self._fail(failure)
