"""One thread that delivers many emails at once: claims several, speaks over several connections, concludes several.

The first thread that comes with a job works until there is nothing left to do; one that comes meanwhile hands its job
over and waits, and what waits in this process's memory is taken along. So a lone email is claimed, delivered and
concluded by its own thread at once, and with many of them each statement and each commit serves many (group commit:
DeWitt et al., Implementation Techniques for Main Memory Database Systems, 1984), and hardly a thread is switched to.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from actors.smtp.connection import Connection, Envelope
from actors.smtp.dialogue import Script
from actors.smtp.switchboard import Line, Switchboard

#: Seconds that a conclusion waits for others, while some are on their way.
LINGER = 0.02

#: Seconds between two looks for messages that have come meanwhile, while a relay is waited for.
LOOK_INTERVAL = 0.02

#: Seconds for which an email stays behind another's dot without a reply to that.
BEHIND_FOR = 1.0

P = ParamSpec("P")
T = TypeVar("T")
Work = TypeVar("Work")


class Job(Protocol):
    """One message's work, in whatever thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of it in the message's own context."""

    def end(self, failure: BaseException | None = None) -> None:
        """It is over; nothing happens where it was before."""


class OwnJob:
    """The message that an actor was called with: its thread waits for it, or works on it itself."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._failure: BaseException | None = None
        self._over = threading.Lock()
        self._over.acquire()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of it in the message's own context."""
        return self._context.run(work, *args, **kwargs)

    def end(self, failure: BaseException | None = None) -> None:
        """It is over."""
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


class Trade(Protocol[Work]):
    """What a crew does. Nothing of it raises."""

    def begin(self, jobs: Sequence[tuple[int, Job]], *, in_company: bool) -> list[Work]:
        """Claims what these jobs are for; ends those for which there is nothing to do."""

    def script(self, work: Work, connection: Connection, following: Callable[[], Envelope | None]) -> Script[None]:
        """What is said to the relay; `following` is asked with the last dot, as `Connection.delivering` has it."""

    def prepare(self, work: Work) -> Envelope | None:
        """What its script will say first, if that is known without waiting; it may go out behind another's dot."""

    def conclude(self, works: Sequence[Work], *, in_company: bool) -> None:
        """Writes down what came of it, and ends the jobs; others wait for this thread if it is `in_company`."""

    def fail(self, work: Work, failure: BaseException) -> None:
        """The script has raised, or the crew has been stopped: ends the job."""

    def take_along(self) -> tuple[int, Job] | None:
        """One more job, if one waits."""


class Behind(NamedTuple, Generic[Work]):
    """What has gone out behind a dot, and until when it stays there, by the monotonic clock."""

    work: Work
    until: float


class Crew(Generic[Work]):
    """The connections of a process to the relay, and the thread that works with them just now, if any.

    Args:
        trade: what is done.
        connect: makes a connection.
        size: how many connections at the most.
    """

    def __init__(self, trade: Trade[Work], connect: Callable[[], Connection], size: int) -> None:
        self._trade = trade
        self._connect = connect
        self._size = size
        self._lock = threading.Lock()
        self._is_at_work = False
        self._waiting: deque[tuple[int, Job]] = deque()
        self._begin_anew()

    def do(self, number: int) -> None:
        """Does the job for an email, in whatever thread; returns when it is over.

        Raises:
            BaseException: what it failed of.
        """
        job = OwnJob()
        with self._lock:
            self._waiting.append((number, job))
            leads, self._is_at_work = not self._is_at_work, True
        if leads:
            self._work_until_done()
        else:
            self._board.wake()
        job.wait()

    def close(self) -> None:
        """Closes the connections; nobody may be at work."""
        for line in self._free:
            self._board.forget(line)
            line.connection.close()
        self._lines -= len(self._free)
        self._free.clear()

    def _begin_anew(self) -> None:
        self._board = Switchboard()
        self._free: list[Line] = []
        self._lines = 0
        self._taken: list[tuple[int, Job]] = []
        self._claimed: deque[Work] = deque()
        self._spoken: dict[Line, Work] = {}
        #: What has gone out behind the dot that a line waits for the reply to, the oldest first.
        self._behind: dict[Line, Behind[Work]] = {}
        self._done: list[Work] = []
        self._done_at = 0.0

    def _work_until_done(self) -> None:
        while True:
            try:
                self._work()
            except BaseException as failure:  # noqa: BLE001 - nobody is left waiting; their threads raise it
                self._give_up(failure)
            with self._lock:
                if not self._waiting:
                    self._is_at_work = False
                    return

    def _work(self) -> None:
        while True:
            self._claim()
            self._speak()
            if self._board:
                self._board.wait(self._patience())
                self._take_back()
                # What is claimed goes out before this thread waits for the database.
                self._speak()
            elif not self._done:
                return
            self._conclude()

    def _give_up(self, failure: BaseException) -> None:
        jobs = [job for _, job in self._taken]
        works = [*self._claimed, *self._done, *self._spoken.values(), *(each.work for each in self._behind.values())]
        for line in self._spoken:
            line.connection.abandon()
        self._begin_anew()
        for work in works:
            self._trade.fail(work, failure)
        while self._waiting:
            jobs.append(self._waiting.popleft()[1])
        for job in jobs:
            job.end(failure)

    def _claim(self) -> None:
        """Claims the next emails, once it is worth it: what waits for a connection is no more than what has one."""
        if not self._has_room:
            return
        for _ in range(2 * self._size - self._under_way):
            job = self._waiting.popleft() if self._waiting else self._trade.take_along()
            if job is None:
                break
            self._taken.append(job)
        if self._taken:
            in_company = len(self._taken) + self._under_way > 1
            self._claimed.extend(self._trade.begin(self._taken, in_company=in_company))
            self._taken = []

    def _speak(self) -> None:
        while self._claimed and (line := self._free_line()):
            self._play(line, self._claimed.popleft())

    def _play(self, line: Line, work: Work) -> None:
        self._spoken[line] = work
        script = self._trade.script(work, line.connection, partial(self._put_behind, line))
        self._board.play(line, script, partial(self._ended, line, work))

    def _put_behind(self, line: Line) -> Envelope | None:
        """Of what is claimed and waits for a line, the next goes out behind this one's last dot, unless one is free."""
        envelope = self._trade.prepare(self._claimed[0]) if self._claimed and not self._free else None
        if envelope is not None:
            self._behind[line] = Behind(self._claimed.popleft(), time.monotonic() + BEHIND_FOR)
        return envelope

    def _take_back(self) -> None:
        """What is behind a dot that has no reply for long goes another way."""
        while self._behind:
            line, oldest = next(iter(self._behind.items()))
            if oldest.until > time.monotonic():
                return
            line.connection.forgo()
            self._claimed.appendleft(self._behind.pop(line).work)

    def _ended(self, line: Line, work: Work, failure: BaseException | None) -> None:
        del self._spoken[line]
        if failure is not None:
            self._trade.fail(work, failure)
        else:
            if not self._done:
                self._done_at = time.monotonic()
            self._done.append(work)
        behind = self._behind.pop(line, None)
        if behind is None:
            self._free.append(line)
        else:
            self._play(line, behind.work)

    def _conclude(self) -> None:
        if not self._done:
            return
        is_worth_it = len(self._done) >= self._size * 3 // 4 or time.monotonic() >= self._done_at + LINGER
        if is_worth_it or not self._board:
            self._trade.conclude(self._done, in_company=len(self._done) + self._under_way > 1)
            self._done = []

    def _free_line(self) -> Line | None:
        if self._free:
            return self._free.pop()
        if self._lines == self._size:
            return None
        self._lines += 1
        return Line(self._connect())

    def _patience(self) -> float:
        now = time.monotonic()
        if self._done:
            return max(0.0, self._done_at + LINGER - now)
        if self._has_room:
            return LOOK_INTERVAL
        oldest = next(iter(self._behind.values()), None)
        return max(0.0, oldest.until - now) if oldest else float("inf")

    @property
    def _under_way(self) -> int:
        return len(self._board) + len(self._claimed)

    @property
    def _has_room(self) -> bool:
        return self._under_way <= self._size * 5 // 4
