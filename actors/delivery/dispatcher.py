"""Delivers many emails at once: claims several, speaks over several connections, concludes several.

The first thread that comes with a job drives all dialogues until there is nothing left to do; one that comes meanwhile
hands its job over and waits, and what waits in this process's memory is taken along. So with many emails each statement
and each commit serves many (group commit: DeWitt et al., Implementation Techniques for Main Memory Database Systems,
1984).

The thread that drives the dialogues does nothing that may block, however little there is to do: claims, reads,
rendering, connections and conclusions each run in threads of their own kind (`Lane`), and come back to it.
"""

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from typing import Final, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from actors.channels.smtp.connection import Connection, Envelope
from actors.channels.smtp.dialogue import Script
from actors.channels.smtp.route import NoPlace
from actors.channels.smtp.verdicts import judge_failure
from actors.delivery.event_loop import EventLoop, Line
from actors.delivery.thread_pool import ThreadPool
from actors.ruling import Phase, Ruling

logger = logging.getLogger(__name__)

#: Seconds that a conclusion waits for others, while some are on their way.
LINGER = 0.02

#: Seconds between two looks for messages that have come meanwhile, while a relay is waited for.
LOOK_INTERVAL = 0.02

#: Seconds for which an email stays behind another's dot without a reply to that.
BEHIND_FOR = 1.0

#: Seconds without a place for a connection after which what was claimed goes back, for another worker to take.
STARVED_FOR = 5.0

#: Seconds until another connection is tried while others work and one could not be opened: at first, and at the most.
FIRST_OPENING_PAUSE, LONGEST_OPENING_PAUSE = 1.0, 60.0


class Lane(Enum):
    """Where work that may block is done: kinds that are not to wait for each other have threads of their own."""

    CLAIM = auto()
    #: What is read of many emails at once, and of one that is not to hold up others.
    READ = auto()
    READ_ALONE = auto()
    #: Rendering: a first try, which is short; a longer one; and for as long as an email may take.
    TRIAL = auto()
    SHORT = auto()
    LONG = auto()
    CONCLUDE = auto()
    #: What may wait for a row that an application holds.
    ALONE = auto()


#: Threads of each lane.
THREADS: Final = {
    Lane.CLAIM: 1,
    Lane.READ: 1,
    Lane.READ_ALONE: 2,
    Lane.TRIAL: 1,
    # Few: each of them takes its turn at Python's lock whenever somebody else wants it.
    Lane.SHORT: 1,
    Lane.LONG: 2,
    Lane.CONCLUDE: 1,
    Lane.ALONE: 3,
}

#: Lanes whose work takes the processor for long: what waits there is not counted as being under way.
SLOW: Final = frozenset({Lane.SHORT, Lane.LONG})

#: Lanes whose work does not keep others from being claimed.
ASIDE: Final = SLOW | {Lane.TRIAL, Lane.READ_ALONE}

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


class Blocking(NamedTuple):
    """Work on an email that may block, and where it is done. What it raises ends that email's job, and no other's."""

    lane: Lane
    work: Callable[[], None]


class Trade(Protocol[Work]):
    """What a dispatcher does. What one email's work raises ends that email's job.

    `advance`, `take`, `has_more` and the questions run in the thread that drives the dialogues, and never block; all
    others run in threads of their own.
    """

    def begin(self, jobs: Sequence[tuple[int, Job]]) -> list[Work]:
        """Claims what these jobs are for; ends those for which there is nothing to do."""

    def read(self, works: Sequence[Work]) -> None:
        """Reads what is still to be known of what was claimed together."""

    def advance(self, work: Work) -> Envelope | Blocking | None:
        """What comes next: an envelope for the relay, something that may block, or nothing: then it is concluded."""

    def take(self, work: Work, rulings: dict[str, Ruling]) -> None:
        """What the relay has made of its envelope."""

    def is_unread(self, work: Work) -> bool:
        """Whether something is still to be read before it can go on."""

    def is_plain(self, work: Work) -> bool:
        """Whether it can be concluded together with others."""

    def is_broken(self, work: Work) -> bool:
        """Whether the relay, or our settings for it, have failed: then nothing more is tried until it is concluded."""

    def conclude(self, works: Sequence[Work]) -> list[Work]:
        """Writes down what came of plain ones, and ends their jobs; returns those that are to be concluded alone."""

    def conclude_alone(self, work: Work) -> None:
        """Writes down what came of it, and ends its job."""

    def release(self, works: Sequence[Work]) -> None:
        """Gives back claims of which nothing was sent; they keep their place in line."""

    def postpone(self, work: Work) -> None:
        """Gives a claim back for a while, as there are too many slow ones."""

    def fail(self, work: Work, failure: BaseException) -> None:
        """Something has been raised, or the dispatcher has been stopped: ends the job."""

    def has_more(self) -> bool:
        """Whether one more job may wait."""

    def take_along(self) -> tuple[int, Job] | None:
        """One more job, if one waits."""


class Pacing(Protocol):
    """How much of a dispatcher its relay takes just now. Never blocks."""

    def most(self, size: int) -> int:
        """Of `size` connections, how many are to be used."""

    @property
    def retry(self) -> float:
        """Seconds for which no connection is to be opened; 0 where one may."""

    @property
    def hold(self) -> float:
        """Seconds for which no email is to be begun; 0 where one may. Never long."""

    @property
    def idle_limit(self) -> float:
        """Seconds after which a connection without an email is to be closed."""

    def should_yield(self) -> bool:
        """Whether a connection is to be closed so that another worker gets its place; asked after each email."""


class NoPacing:
    """A relay that takes everything."""

    retry = 0.0
    hold = 0.0
    idle_limit = float("inf")

    def most(self, size: int) -> int:
        """All."""
        return size

    def should_yield(self) -> bool:
        """Never."""
        return False


class Ready(NamedTuple, Generic[Work]):
    """What can go out over the next connection."""

    work: Work
    envelope: Envelope


class Behind(NamedTuple, Generic[Work]):
    """What has gone out behind a dot, and until when it stays there, by the monotonic clock."""

    ready: Ready[Work]
    until: float


class Dispatcher(Generic[Work]):
    """The connections of a process to the relay, and the thread that drives their dialogues just now, if any.

    Args:
        trade: what is done.
        connect: makes a connection.
        size: how many connections at the most.
        pacing: how many of them the relay takes just now; all without it.
    """

    def __init__(
        self, trade: Trade[Work], connect: Callable[[], Connection], size: int, pacing: Pacing | None = None
    ) -> None:
        self._trade = trade
        self._connect = connect
        self._size = size
        self._pacing = pacing or NoPacing()
        self._lock = threading.Lock()
        self._is_at_work = False
        #: Both under the lock.
        self._waiting: deque[tuple[int, Job]] = deque()
        #: What has come back from other threads; they append, the driving thread takes.
        self._returned: deque[Callable[[], None]] = deque()
        self._lanes = {
            lane: ThreadPool(f"duepost-{lane.name.lower()}", most, newest_first=lane is Lane.TRIAL)
            for lane, most in THREADS.items()
        }
        #: A line opens a connection, or waits for one thing aside: there are no more threads than lines.
        self._aside = ThreadPool("duepost-aside", size)
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
        free = self._free
        for line in free:
            self._board.forget(line)
        self._begin_anew()
        for line in free:
            line.connection.close()

    def tidy(self) -> None:
        """Closes connections that have been idle for too long. Any thread may call this; it does not block."""
        with self._lock:
            if not self._is_at_work:
                self._retire_idle()

    def _begin_anew(self) -> None:
        self._board = EventLoop(self._aside.submit)
        self._free: list[Line] = []
        #: Lines that are open, or being opened; of those the latter, and since when.
        self._lines = 0
        self._opening = 0
        self._opens_at = 0.0
        self._opening_pause = FIRST_OPENING_PAUSE
        #: Since when there has been no place for a connection, though something waits for one; None while there is.
        self._starved_since: float | None = None
        #: When the relay has last done something for an email.
        self._worked_at = -float("inf")
        #: Jobs whose claim is under way: one claim at a time, so that it serves many.
        self._taken: list[tuple[int, Job]] = []
        self._is_claiming = False
        #: What is in some lane's hands.
        self._away: dict[int, tuple[Work, Lane]] = {}
        self._ready: deque[Ready[Work]] = deque()
        self._spoken: dict[Line, Ready[Work]] = {}
        self._rulings: dict[Line, dict[str, Ruling] | None] = {}
        #: What has gone out behind the dot that a line waits for the reply to, the oldest first.
        self._behind: dict[Line, Behind[Work]] = {}
        self._done: list[Work] = []
        self._done_at = 0.0
        self._is_concluding = False
        #: Failures of the route that are being written down: until then nothing is begun.
        self._broken = 0
        #: How many there have been.
        self._breaks = 0

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
            self._go_on_with_returned()
            self._retire_idle()
            self._hold_back()
            self._claim()
            self._speak()
            self._conclude()
            if self._is_over:
                return
            self._board.wait(self._patience())
            self._take_back()

    @property
    def _is_over(self) -> bool:
        is_busy = self._board or self._is_claiming or self._away or self._ready or self._done or self._is_concluding
        # What may not be claimed yet waits for its moment here.
        is_held = self._pacing.hold and self._waiting
        return not is_busy and not self._returned and not is_held

    def _give_up(self, failure: BaseException) -> None:
        with self._lock:
            jobs = [job for _, job in (*self._taken, *self._waiting)]
            self._waiting.clear()
        ready = [*self._ready, *self._spoken.values(), *(each.ready for each in self._behind.values())]
        works = [*(each.work for each in ready), *self._done, *(work for work, _ in self._away.values())]
        for line in self._spoken:
            line.connection.abandon()
        self._begin_anew()
        for work in works:
            self._fail(work, failure)
        for job in jobs:
            self._lanes[Lane.ALONE].submit(partial(job.end, failure))

    def _fail(self, work: Work, failure: BaseException) -> None:
        self._lanes[Lane.ALONE].submit(partial(self._trade.fail, work, failure))

    # What other threads do.

    def _have_done(self, submit: Callable[[Callable[[], None]], None], work: Callable[[], Callable[[], None]]) -> None:
        """Has work done in another thread; what that returns is called by the driving one."""
        board = self._board

        def do() -> None:
            self._returned.append(partial(self._unless_stale, board, work()))
            self._board.wake()

        submit(do)

    def _unless_stale(self, board: EventLoop, then: Callable[[], None]) -> None:
        # What was begun before a stop was failed with it.
        if board is self._board:
            then()

    def _go_on_with_returned(self) -> None:
        while self._returned:
            self._returned.popleft()()

    def _send_away(
        self, work: Work, lane: Lane, action: Callable[[], None], then: Callable[[], None], anyway: bool = False
    ) -> None:
        """Has a lane do something for one email; `then` follows if it succeeds, or `anyway`."""
        self._away[id(work)] = (work, lane)

        def do() -> Callable[[], None]:
            return partial(back, failure_of(action))

        def back(failure: BaseException | None) -> None:
            del self._away[id(work)]
            if failure is not None:
                self._fail(work, failure)
            if failure is None or anyway:
                then()

        self._have_done(self._lanes[lane].submit, do)

    def _send_all_away(
        self, works: Sequence[Work], lane: Lane, action: Callable[[], None], then: Callable[[Work], None]
    ) -> None:
        """Has a lane do something for several emails at once."""
        self._away.update((id(work), (work, lane)) for work in works)

        def do() -> Callable[[], None]:
            return partial(back, failure_of(action))

        def back(failure: BaseException | None) -> None:
            for work in works:
                del self._away[id(work)]
                if failure is not None:
                    self._fail(work, failure)
                else:
                    then(work)

        self._have_done(self._lanes[lane].submit, do)

    # Claim, and prepare.

    def _claim(self) -> None:
        """Claims the next emails, once it is worth it: what waits for a connection is no more than what has one."""
        room = 2 * self._most - self._under_way
        if self._is_claiming or self._broken or not self._has_room or room <= 0 or self._pacing.hold:
            return
        with self._lock:
            while self._waiting and len(self._taken) < room:
                self._taken.append(self._waiting.popleft())
        if self._taken or self._trade.has_more():
            begin = partial(self._begin, self._board, self._taken, room, self._breaks)
            self._is_claiming = True
            self._have_done(self._lanes[Lane.CLAIM].submit, begin)

    def _begin(self, board: EventLoop, jobs: list[tuple[int, Job]], room: int, breaks: int) -> Callable[[], None]:
        while len(jobs) < room and (more := self._trade.take_along()) is not None:
            jobs.append(more)
        works: list[Work] = []
        failure = failure_of(lambda: works.extend(self._trade.begin(jobs)) if jobs else None)
        if failure is not None:
            for _, job in jobs:
                job.end(failure)
        if board is not self._board:
            for work in works:
                self._fail(work, InterruptedError("the thread that drives the dialogues was stopped"))
        return partial(self._begun, works, breaks)

    def _begun(self, works: list[Work], breaks: int) -> None:
        self._taken, self._is_claiming = [], False
        self._away.update((id(work), (work, Lane.CLAIM)) for work in works)
        unread = [work for work in works if self._trade.is_unread(work)]
        if unread:
            go_on = partial(self._advance, breaks=breaks)
            self._send_all_away(unread, Lane.READ, partial(self._trade.read, unread), go_on)
        for work in works:
            if self._away[id(work)][1] is Lane.CLAIM:
                del self._away[id(work)]
                self._advance(work, breaks)

    def _advance(self, work: Work, breaks: int) -> None:
        """Goes on with an email until there is an envelope for the relay, somebody else's work to do, or nothing.

        Args:
            work: it.
            breaks: how many failures of the route there had been when it was claimed, or was last spoken about.
        """
        with self._contained(work):
            step = self._trade.advance(work)
            if step is None:
                self._finish(work)
            elif breaks != self._breaks:
                self._release([work])
            elif isinstance(step, Envelope):
                self._ready.append(Ready(work, step))
            elif step.lane in SLOW and self._in_lanes(SLOW) >= 2 * self._size:
                self._send_away(work, Lane.ALONE, partial(self._trade.postpone, work), nothing)
            else:
                self._send_away(work, step.lane, step.work, partial(self._advance, work, breaks))

    def _take(self, ready: Ready[Work], rulings: dict[str, Ruling]) -> None:
        with self._contained(ready.work):
            self._trade.take(ready.work, rulings)
            if not self._trade.is_broken(ready.work):
                self._worked_at = time.monotonic()
            self._advance(ready.work, self._breaks)

    @contextmanager
    def _contained(self, work: Work) -> Iterator[None]:
        """The boundary at which one email's failure ends, in the thread that drives the dialogues."""
        try:
            yield
        except BaseException as failure:
            self._fail(work, failure)
            if not isinstance(failure, Exception):
                raise

    def _in_lanes(self, lanes: frozenset[Lane]) -> int:
        return sum(lane in lanes for _, lane in self._away.values())

    # Speak.

    def _speak(self) -> None:
        while self._ready and (line := self._ready_line()):
            self._play(line, self._ready.popleft())
        if self._ready and not self._broken:
            self._open_lines()

    def _ready_line(self) -> Line | None:
        """A line that is open; one that is not as it should be is opened again aside."""
        stale: list[Line] = []
        found = None
        while self._free and found is None:
            line = self._free.pop()
            if line.connection.is_ready:
                found = line
            else:
                stale.append(line)
        for line in stale:
            if found is None and self._opening < len(self._ready):
                self._open(line)
            else:
                self._free.insert(0, line)
        return found

    def _open_lines(self) -> None:
        """Opens a line for each email that has none, unless some could not be opened a moment ago."""
        while self._opening < len(self._ready) and self._lines < self._most and self._may_open:
            try:
                line = Line(self._connect())
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is the route's failure
                self._route_failed(failure)
                return
            self._lines += 1
            self._open(line)

    @property
    def _may_open(self) -> bool:
        return time.monotonic() >= self._opens_at and not self._pacing.retry

    def _retire_idle(self) -> None:
        """Closes what has been idle for too long, and what there is more of than the relay takes.

        While an email waits for a connection, none is idle: a probe's is opened while the circuit has others closed.
        """
        now, limit = time.monotonic(), float("inf") if self._ready else self._pacing.idle_limit
        surplus = self._lines - self._opening - self._most
        for line in list(self._free):
            if surplus > 0 or now - line.connection.idle_since > limit:
                self._free.remove(line)
                self._retire(line)
                surplus -= 1

    def _retire(self, line: Line) -> None:
        self._board.forget(line)
        self._lines -= 1
        self._aside.submit(line.connection.close)

    def _hold_back(self) -> None:
        """Gives back what was not begun, where the relay has had too much, or there is no place for long."""
        has_starved = self._starved_since is not None and time.monotonic() - self._starved_since > STARVED_FOR
        if self._lines:
            self._starved_since = None
        elif has_starved:
            self._starved_since = time.monotonic()
        if self._ready and (self._pacing.hold or (has_starved and not self._lines)):
            self._breaks += 1
            self._release([each.work for each in self._ready])
            self._ready.clear()

    def _open(self, line: Line) -> None:
        self._board.forget(line)
        self._opening += 1
        begun_at = time.monotonic()
        board = self._board

        def do() -> Callable[[], None]:
            rulings: list[Ruling | None] = []
            failure = failure_of(lambda: rulings.append(line.connection.open()))
            if failure is not None or board is not self._board:
                # It failed, or nobody waits for it any more.
                line.connection.abandon()
            return partial(self._opened, line, begun_at, rulings[0] if rulings else failure)

        self._have_done(self._aside.submit, do)

    def _opened(self, line: Line, begun_at: float, failure: Ruling | BaseException | None) -> None:
        self._opening -= 1
        if failure is None:
            self._opening_pause = FIRST_OPENING_PAUSE
            self._starved_since = None
            self._free.append(line)
            return
        self._lines -= 1
        if isinstance(failure, NoPlace):
            # Others have the places that there are.
            if self._starved_since is None:
                self._starved_since = begun_at
        elif self._worked_at > begun_at and self._lines > self._opening:
            # The relay works, over others.
            self._opens_at = time.monotonic() + self._opening_pause
            self._opening_pause = min(2 * self._opening_pause, LONGEST_OPENING_PAUSE)
            logger.info("A further connection to the relay could not be opened; those that are open go on.")
        else:
            self._route_failed(failure)

    def _route_failed(self, failure: Ruling | BaseException) -> None:
        """One of those that wait tells it, and nothing more is opened for the others."""
        if not self._ready:
            return
        ready = self._ready.popleft()
        if not isinstance(failure, Ruling):
            logger.error("A connection to the relay could not be made: %s.", type(failure).__name__, exc_info=failure)
            failure = judge_failure(Phase.CONNECT, f"no connection could be made: {type(failure).__name__}")
        self._take(ready, dict.fromkeys(ready.envelope.recipients, failure))

    def _play(self, line: Line, ready: Ready[Work]) -> None:
        self._spoken[line] = ready
        self._board.play(line, self._dialogue(line, ready.envelope), partial(self._ended, line, ready))

    def _dialogue(self, line: Line, envelope: Envelope) -> Script[None]:
        self._rulings[line] = yield from line.connection.submitting(envelope, partial(self._put_behind, line))

    def _put_behind(self, line: Line) -> Envelope | None:
        """Of what waits for a line, the next goes out behind this one's dot, unless a line is free."""
        if not self._ready or self._free:
            return None
        self._behind[line] = Behind(self._ready.popleft(), time.monotonic() + BEHIND_FOR)
        return self._behind[line].ready.envelope

    def _take_back(self) -> None:
        """What is behind a dot that has no reply for long goes another way."""
        while self._behind:
            line, oldest = next(iter(self._behind.items()))
            if oldest.until > time.monotonic():
                return
            line.connection.forgo()
            self._go_another_way(self._behind.pop(line).ready)

    def _go_another_way(self, ready: Ready[Work]) -> None:
        if self._broken:
            self._release([ready.work])
        else:
            self._ready.appendleft(ready)

    def _ended(self, line: Line, ready: Ready[Work], failure: BaseException | None) -> None:
        del self._spoken[line]
        rulings = self._rulings.pop(line, None)
        behind = self._behind.pop(line, None)
        if line.connection.wire is None:
            self._lines -= 1
            if behind is not None:
                self._go_another_way(behind.ready)
        elif behind is not None:
            self._play(line, behind.ready)
        elif self._lines - self._opening > self._most or self._pacing.should_yield():
            self._retire(line)
        else:
            self._free.append(line)
        if failure is not None:
            self._fail(ready.work, failure)
        elif rulings is not None:
            self._take(ready, rulings)
        else:
            self._go_another_way(ready)

    # Conclude.

    def _finish(self, work: Work) -> None:
        if self._trade.is_broken(work):
            self._broken += 1
            self._breaks += 1
            self._release([each.work for each in self._ready])
            self._ready.clear()
            self._send_away(work, Lane.ALONE, partial(self._trade.conclude_alone, work), self._mend, anyway=True)
        elif self._trade.is_plain(work):
            if not self._done:
                self._done_at = time.monotonic()
            self._done.append(work)
        else:
            self._conclude_alone(work)

    def _mend(self) -> None:
        self._broken -= 1

    def _release(self, works: Sequence[Work]) -> None:
        if works:
            self._send_all_away(works, Lane.ALONE, partial(self._trade.release, works), nothing)

    def _conclude(self) -> None:
        if not self._done or self._is_concluding:
            return
        is_worth_it = len(self._done) >= self._most * 3 // 4 or time.monotonic() >= self._done_at + LINGER
        if is_worth_it or not self._is_worth_waiting:
            self._is_concluding = True
            done, self._done = self._done, []
            self._have_done(self._lanes[Lane.CONCLUDE].submit, partial(self._conclude_together, done))

    @property
    def _is_worth_waiting(self) -> bool:
        """Whether more may come to an end soon."""
        return bool(self._board or self._ready or self._is_claiming)

    def _conclude_together(self, works: list[Work]) -> Callable[[], None]:
        left: list[Work] = []
        failure = failure_of(lambda: left.extend(self._trade.conclude(works)))
        return partial(self._concluded, works if failure is not None else left)

    def _concluded(self, left: Sequence[Work]) -> None:
        self._is_concluding = False
        for work in left:
            self._conclude_alone(work)

    def _conclude_alone(self, work: Work) -> None:
        self._send_away(work, Lane.ALONE, partial(self._trade.conclude_alone, work), nothing)

    # How long to wait.

    def _patience(self) -> float:
        if self._returned:
            return 0.0
        now = time.monotonic()
        if self._done and not self._is_concluding:
            return max(0.0, self._done_at + LINGER - now)
        if self._has_room and not self._is_claiming:
            return LOOK_INTERVAL
        waits = [each.until - now for each in list(self._behind.values())[:1]]
        if self._ready and self._lines < self._most:
            waits.append(max(self._opens_at - now, self._pacing.retry, LOOK_INTERVAL))
        if self._free:
            waits.append(self._pacing.idle_limit)
        return max(0.0, min(waits, default=float("inf")))

    @property
    def _under_way(self) -> int:
        away = len(self._away) - self._in_lanes(ASIDE)
        return len(self._board) + len(self._ready) + len(self._taken) + away

    @property
    def _has_room(self) -> bool:
        return self._under_way <= self._most * 5 // 4

    @property
    def _most(self) -> int:
        """How many connections there may be just now."""
        return self._pacing.most(self._size)


def failure_of(action: Callable[[], object]) -> BaseException | None:
    """Does something, and returns what it raised: the boundary at which one email's failure ends."""
    try:
        action()
    except BaseException as failure:  # noqa: BLE001 - whoever submitted it is told
        return failure
    return None


def nothing(*_: object) -> None:
    """Nothing follows."""
