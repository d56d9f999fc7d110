"""Delivers many items at once: claims several, speaks over several sessions, concludes several.

The first thread that comes with a job drives all dialogues until there is nothing left to do; one that comes meanwhile
hands its job over and waits, or goes on where others need it. What waits in this process's memory is claimed with it.
So with many items each statement and each commit serves many (group commit: DeWitt et al., Implementation Techniques
for Main Memory Database Systems, 1984).

The thread that drives the dialogues does nothing that may block, however little there is to do: claims, reads,
rendering, connections and conclusions each run in a pool of their own (`Lane`), and their results come back to it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from actors.channels.channel import Channel, NoPlace, Payload, Rulings, Session
from actors.delivery.event_loop import EventLoop, Slot
from actors.delivery.job import Job, OwnJob
from actors.delivery.lanes import LIMITED, THREADS, UNCOUNTED, Blocking, Lane
from actors.delivery.rates import Facts, Grant, Place, Rates
from actors.delivery.thread_pool import ThreadPool
from actors.delivery.throughput import Throughput
from actors.ruling import Phase, Ruling, Scope
from models.rates import Want
from models.words import Verdict

logger = logging.getLogger(__name__)

#: Seconds that a conclusion waits for others, while some are on their way.
LINGER: Final = 0.02

#: Items that are concluded without waiting for more, however few sessions there are: with as many, one costs PostgreSQL
#: half of what it costs in a batch of eight. What a relay has answered meanwhile is in the journal.
CONCLUDED_TOGETHER: Final = 32

#: Seconds after which a delivery under way is not expected to end soon: a silent peer keeps no conclusion waiting.
ENDS_SOON: Final = 0.25

#: Items that are claimed at once, however few sessions there are, where each is begun within this many seconds.
CLAIMED_TOGETHER: Final = 32
CLAIMED_AHEAD: Final = 0.05

#: Items that are begun, one after the other, until claims and conclusions have their turn.
BEGUN_TOGETHER: Final = 8

#: Seconds between two looks for messages that have come meanwhile, while a peer is waited for.
LOOK_INTERVAL: Final = 0.02

#: The same while there is no room, for messages that are urgent.
URGENT_LOOK_INTERVAL: Final = 0.1

#: Seconds for which an item stays pipelined behind another one that has no answer; then it goes another way.
PIPELINED_FOR: Final = 1.0

#: Seconds without a place for a session after which what was claimed is released, for another worker to take.
STARVED_FOR: Final = 5.0

#: Seconds until another session is tried while others work and one could not be opened: at first, and at the most.
FIRST_CONNECT_PAUSE, LONGEST_CONNECT_PAUSE = 1.0, 60.0


class Claimed(Protocol):
    """A claimed item. Its questions are asked in the thread that drives the dialogues, and never wait."""

    @property
    def is_unread(self) -> bool:
        """Whether something is still to be read before it can go on, together with others."""

    @property
    def is_plain(self) -> bool:
        """Whether it can be concluded together with others."""

    @property
    def has_route_failed(self) -> bool:
        """Whether the route, or our settings for it, have failed: nothing more is tried until it is concluded."""

    @property
    def is_urgent(self) -> bool:
        """Whether it goes ahead of others."""


W = TypeVar("W", bound=Claimed)
P = TypeVar("P", bound=Payload)
P_co = TypeVar("P_co", bound=Payload, covariant=True)


class ItemWork(Protocol[W, P_co]):
    """The steps of an item of one sort, in order. An exception of one item ends its job alone.

    `advance` and `take` run in the thread that drives the dialogues, and never wait; all others run in the pools.
    """

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[W]:
        """Claims what these jobs are for; ends those for which there is nothing to do."""

    def read(self, claimed: Sequence[W]) -> None:
        """Reads the rest of items that were claimed together."""

    def advance(self, work: W) -> P_co | Blocking | None:
        """What comes next: a payload for the channel, something that may block, or nothing: then it is concluded."""

    def take(self, work: W, rulings: Rulings) -> None:
        """Takes what came of the payload."""

    def conclude(self, works: Sequence[W]) -> list[W]:
        """Writes down what came of plain ones, and ends their jobs; returns those that are to be concluded alone."""

    def conclude_alone(self, work: W) -> None:
        """Writes down what came of one, and ends its job."""

    def release(self, works: Sequence[W]) -> None:
        """Gives up claims of which nothing was sent, and ends their jobs; the items keep their place."""

    def postpone(self, work: W) -> None:
        """Gives up a claim for a while, as too many slow ones are under way, and ends its job."""

    def fail(self, work: W, failure: BaseException) -> None:
        """Ends the job of one that something was raised for, or that a stopped thread had."""


class DueItems(Protocol[W]):
    """Due items that can be claimed without a message."""

    @property
    def may_claim_due(self) -> bool:
        """Whether something may be due. Never waits."""

    def claim_due(self, room: int) -> list[W]:
        """Claims due items: at most `room`. Runs in a pool."""


class Inbox(Protocol):
    """Messages in this process's memory that ask for the same work."""

    def has_more(self, *, are_urgent: bool = False) -> bool:
        """Whether one waits, or one that is urgent, as far as is known. Never waits."""

    def next(self, *, is_urgent: bool = False) -> tuple[int, Job] | None:
        """Takes the next one: its item's number, and its job; or only one that is urgent. Runs in a pool."""


class RatedItems(Protocol[W, P]):
    """Items of which a limited number leaves in a second."""

    @property
    def rates(self) -> "Rates[Ready[W, P]]":
        """The limits, and who waits here for a place."""

    def facts(self, work: W) -> Facts:
        """An item, as far as it is known before its payload is made. Never waits."""

    def destinations(self, work: W, payload: P) -> Iterable[str]:
        """Where a payload goes, as far as rates know of it. Never waits."""

    def give_turns(self, works: Sequence[W], domains: tuple[str, ...]) -> None:
        """Gives up claims of which nothing was sent until their turn at these domains, and ends their jobs."""


class Pacing(Protocol):
    """How much of a dispatcher its route takes just now. Never blocks."""

    @property
    def called(self) -> str:
        """The route, as the beginning of a sentence."""

    def most(self, size: int) -> int:
        """Of `size` sessions, how many are to be used."""

    @property
    def retry(self) -> float:
        """Seconds for which no session is to be opened; 0 where one may."""

    @property
    def hold(self) -> float:
        """Seconds for which no item is to be begun; 0 where one may. Never long."""

    @property
    def idle_limit(self) -> float:
        """Seconds after which a session without an item is to be closed."""

    def should_yield(self) -> bool:
        """Whether a session is to be closed so that another worker gets its place; asked after each item."""


class Ready(NamedTuple, Generic[W, P]):
    """What can go out over the next session, and its place where the rate is limited."""

    work: W
    payload: P
    place: Place | None = None


class Delivering(NamedTuple, Generic[W, P]):
    """What goes out over a session, and since when, by the monotonic clock."""

    ready: Ready[W, P]
    since: float


class Pipelined(NamedTuple, Generic[W, P]):
    """What a session has for when it is done, and until when it stays there, by the monotonic clock."""

    ready: Ready[W, P]
    until: float


class Result(NamedTuple):
    """What came of work in a pool.

    Attributes:
        then: called by the driving thread.
        drop: called instead where that was stopped meanwhile, by whatever thread; it never blocks.
    """

    then: Callable[[], None]
    drop: Callable[[], object]


class Dispatcher(Generic[W, P]):
    """The sessions of a process with a route, and the thread that drives their dialogues now, if any.

    `do` and `tidy` may be called by any thread. All other state belongs to the driving thread; what other threads hand
    over is in `_waiting`, `_urgent` and `_is_driven` (under `_lock`) and in `_results` (they append under it).

    Args:
        items: the steps of an item.
        inbox: what waits in this process's memory.
        channel: opens sessions.
        size: how many sessions at the most.
        pacing: how many of them the route takes just now.
        due: due items, claimed without a message where no job waits; none without it.
        rated: items of which a limited number leaves in a second; none without it.
        detach: makes a job of the caller's message that the caller need not wait for, or gives None. With it a thread
            that comes while dialogues are driven goes on at once: where others need it, as there are other routes.
    """

    def __init__(
        self,
        items: ItemWork[W, P],
        inbox: Inbox,
        channel: Channel[P],
        size: int,
        pacing: Pacing,
        *,
        due: DueItems[W] | None = None,
        rated: RatedItems[W, P] | None = None,
        detach: Callable[[], Job | None] | None = None,
    ) -> None:
        self._due = due
        self._rated = rated
        self._rates = rated.rates if rated is not None else None
        self._detach = detach
        self._items = items
        self._inbox = inbox
        self._channel = channel
        self._size = size
        self._pacing = pacing
        self._lock = threading.Lock()
        #: All three under the lock.
        self._waiting: deque[tuple[int, Job]] = deque()
        self._urgent: deque[tuple[int, Job]] = deque()
        self._is_driven = False
        #: Of work in a pool that is done: appended and dropped under the lock, taken by the driving thread.
        self._results: deque[Result] = deque()
        self._pools = {
            lane: ThreadPool(f"duepost-{lane.name.lower()}", most, newest_first=lane is Lane.TRIAL)
            for lane, most in (THREADS | {Lane.SESSION: size}).items()
        }
        self._reset()

    def do(self, number: int, *, is_urgent: bool = False) -> bool:
        """Does the job for an item, in whatever thread.

        Args:
            number: the item's.
            is_urgent: it does not wait for others that are claimed already.

        Returns:
            True when it is over; False where the caller's message is a job of its own now, which ends by itself.

        Raises:
            BaseException: what it failed of.
        """
        job = (self._detach() if self._detach is not None else None) or OwnJob()
        with self._lock:
            (self._urgent if is_urgent else self._waiting).append((number, job))
            drives, self._is_driven = not self._is_driven, True
        if drives:
            self._drive_until_done()
        else:
            self._loop.wake()
        if not isinstance(job, OwnJob):
            return False
        job.wait()
        return True

    def add(self, number: int, job: Job) -> bool:
        """Adds a job that nobody waits for, where dialogues are being driven. Any thread may call this; never blocks.

        Returns:
            whether they are, and so it is done.
        """
        with self._lock:
            if not self._is_driven:
                return False
            self._waiting.append((number, job))
        self._loop.wake()
        return True

    def has_line(self) -> bool:
        """Whether jobs wait for their claim, as far as is known. Never waits."""
        return bool(self._waiting or self._urgent)

    def close(self) -> None:
        """Closes the sessions, and waits for that; no job may be under way."""
        free = self._free
        for slot in free:
            self._loop.forget(slot)
        self._loop.close()
        self._reset()
        for slot in free:
            slot.session.close()

    def tidy(self) -> None:
        """Closes sessions that have been idle for too long. Any thread may call this; it does not block."""
        with self._lock:
            if not self._is_driven:
                # A session that was opened when there was nothing left for it is idle, too.
                self._go_on_with_results()
                self._close_idle()

    def _reset(self) -> None:
        """Begins afresh; what comes of work that is under way is dropped."""
        with self._lock:
            self._loop: EventLoop[P] = EventLoop()
            dropped = [*self._results]
            self._results.clear()
        for result in dropped:
            result.drop()
        self._free: list[Slot[P]] = []
        #: Sessions that are open, or being opened; of those the latter, and when the next may be.
        self._sessions = 0
        self._connecting = 0
        self._connects_at = 0.0
        self._connect_pause = FIRST_CONNECT_PAUSE
        #: Since when there has been no place for a session, though something waits for one; None while there is.
        self._starved_since: float | None = None
        self._throughput = Throughput()
        #: When the route has last done something for an item.
        self._worked_at = -float("inf")
        #: Jobs whose claim is under way: one claim at a time, so that it serves many.
        self._claiming: list[tuple[int, Job]] = []
        self._is_claiming = False
        #: Work in a pool.
        self._in_pool: dict[int, tuple[W, Lane]] = {}
        self._ready: deque[Ready[W, P]] = deque()
        #: A question for places is under way; items that are to wait as scheduled, with the domains that they wait for.
        self._is_asking = False
        self._put_off: list[tuple[W, tuple[str, ...]]] = []
        #: How many of those there were since the last claim: it may ask for more.
        self._put_off_lately = 0
        self._has_more_to_begin = False
        #: In the order in which they began.
        self._delivering: dict[Slot[P], Delivering[W, P]] = {}
        #: Items that are delivered next over a session, the oldest first.
        self._pipelined: dict[Slot[P], Pipelined[W, P]] = {}
        self._done: list[W] = []
        self._done_at = 0.0
        self._is_concluding = False
        #: Failures of the route that are being concluded: until then nothing is begun.
        self._route_failures = 0
        #: Grows each time that what was claimed before is to be released.
        self._era = 0

    def _drive_until_done(self) -> None:
        while True:
            try:
                self._drive()
            except BaseException as failure:  # noqa: BLE001 - nobody is left waiting; their threads raise it
                self._give_up(failure)
            with self._lock:
                if not self._waiting and not self._urgent:
                    self._is_driven = False
                    return

    def _drive(self) -> None:
        while True:
            self._go_on_with_results()
            self._close_idle()
            self._release_held()
            self._claim()
            self._go_on_with_waiting()
            self._deliver_ready()
            self._conclude()
            if self._is_over:
                return
            self._loop.wait(self._patience())
            self._withdraw_late()

    @property
    def _is_over(self) -> bool:
        is_busy = self._loop or self._is_claiming or self._in_pool or self._ready or self._done or self._is_concluding
        # What may not be claimed yet waits for its moment here.
        is_held = self._pacing.hold and (self._waiting or self._urgent)
        is_waiting = self._is_asking or self._put_off or (self._rates is not None and self._rates.has_waiting)
        return not is_busy and not self._results and not is_held and not is_waiting

    def _give_up(self, failure: BaseException) -> None:
        """The driving thread was stopped: ends all that it had, so that nobody is left waiting."""
        with self._lock:
            jobs = [job for _, job in (*self._claiming, *self._urgent, *self._waiting)]
            self._waiting.clear()
            self._urgent.clear()
        delivering = [each.ready for each in self._delivering.values()]
        ready = [*self._ready, *delivering, *(each.ready for each in self._pipelined.values())]
        works = [*(each.work for each in ready), *self._done, *(work for work, _ in self._in_pool.values())]
        works += [work for work, _ in self._put_off]
        if self._rates is not None:
            works += [each.work for each in self._rates.drop()]
        for slot in (*self._delivering, *self._free):
            slot.session.abandon()
        self._loop.close()
        self._reset()
        for work in works:
            self._fail(work, failure)
        for job in jobs:
            self._pools[Lane.ALONE].submit(partial(job.end, failure))

    def _fail(self, work: W, failure: BaseException) -> None:
        self._pools[Lane.ALONE].submit(partial(self._items.fail, work, failure))

    # What runs in the pools.

    def _run(
        self, lane: Lane, work: Callable[[], Callable[[], None]], drop: Callable[[], object] | None = None
    ) -> None:
        """Runs work in a pool; what that returns is called by the driving thread.

        Args:
            lane: which pool.
            work: the work. What it raises stops the driving thread, so that nobody waits for what never comes.
            drop: called instead of what it returns where the driving thread was stopped meanwhile; never blocks.
        """
        loop = self._loop

        def run() -> None:
            then: list[Callable[[], None]] = []
            failure = failure_of(lambda: then.append(work()))
            result = Result(then[0] if failure is None else partial(_raise, failure), drop or nothing)
            with self._lock:
                is_awaited = loop is self._loop
                if is_awaited:
                    self._results.append(result)
            if is_awaited:
                loop.wake()
            else:
                result.drop()

        self._pools[lane].submit(run)

    def _go_on_with_results(self) -> None:
        while self._results:
            self._results.popleft().then()

    def _run_for(
        self, work: W, lane: Lane, action: Callable[[], None], then: Callable[[], None], anyway: bool = False
    ) -> None:
        """Runs something for one item in a pool; `then` follows if it succeeds, or `anyway`."""
        self._in_pool[id(work)] = (work, lane)

        def run() -> Callable[[], None]:
            return partial(back, failure_of(action))

        def back(failure: BaseException | None) -> None:
            del self._in_pool[id(work)]
            if failure is not None:
                self._fail(work, failure)
            if failure is None or anyway:
                then()

        self._run(lane, run)

    def _run_for_all(
        self, works: Sequence[W], lane: Lane, action: Callable[[], None], then: Callable[[W], None]
    ) -> None:
        """Runs something for several items at once in a pool."""
        self._in_pool.update((id(work), (work, lane)) for work in works)

        def run() -> Callable[[], None]:
            return partial(back, failure_of(action))

        def back(failure: BaseException | None) -> None:
            for work in works:
                del self._in_pool[id(work)]
                if failure is not None:
                    self._fail(work, failure)
                else:
                    then(work)

        self._run(lane, run)

    def _in_lanes(self, lanes: frozenset[Lane]) -> int:
        return sum(lane in lanes for _, lane in self._in_pool.values())

    # Claim, and prepare.

    def _claim(self) -> None:
        """Claims the next items, once it is worth it; urgent ones do not wait until those before are done."""
        if self._is_claiming or self._route_failures or self._pacing.hold:
            return
        room = self._most + self._ahead - self._under_way
        is_full = not self._has_room or min(room, self._room_by_rate) <= 0
        room = room + self._most if is_full else min(room, self._room_by_rate)
        if room <= 0 or (is_full and not self._has_urgent):
            return
        with self._lock:
            for waiting in [self._urgent] if is_full else [self._urgent, self._waiting]:
                while waiting and len(self._claiming) < room:
                    self._claiming.append(waiting.popleft())
        if self._claiming or self._inbox.has_more(are_urgent=is_full) or (not is_full and self._may_claim_due):
            self._is_claiming = True
            self._put_off_lately = 0
            works: list[W] = []
            claim = partial(self._claim_several, works, self._claiming, room, self._era, are_urgent=is_full)
            self._run(Lane.CLAIM, claim, partial(self._drop_claimed, works))

    @property
    def _has_urgent(self) -> bool:
        return bool(self._urgent) or self._inbox.has_more(are_urgent=True)

    @property
    def _room_by_rate(self) -> int:
        """How many items are worth a claim, where the whole route is limited; more where others are in between."""
        room = self._rates.room if self._rates is not None else None
        return self._most + self._ahead if room is None else room + 2 * self._put_off_lately

    @property
    def _may_claim_due(self) -> bool:
        return self._due is not None and self._due.may_claim_due

    def _claim_due(self, room: int) -> list[W]:
        return self._due.claim_due(room) if self._due is not None and room else []

    def _claim_several(
        self, works: list[W], jobs: list[tuple[int, Job]], room: int, era: int, *, are_urgent: bool = False
    ) -> Callable[[], None]:
        while len(jobs) < room and (more := self._inbox.next(is_urgent=are_urgent)) is not None:
            jobs.append(more)
        due = 0 if are_urgent else room
        failure = failure_of(lambda: works.extend(self._items.claim(jobs) if jobs else self._claim_due(due)))
        if failure is not None:
            for _, job in jobs:
                job.end(failure)
        return partial(self._claimed, works, era)

    def _drop_claimed(self, works: list[W]) -> None:
        for work in works:
            self._fail(work, InterruptedError("the thread that drives the dialogues was stopped"))

    def _claimed(self, works: list[W], era: int) -> None:
        self._claiming, self._is_claiming = [], False
        # Where this thread is stopped on the way, each of them is known.
        self._in_pool.update((id(work), (work, Lane.CLAIM)) for work in works)
        unread = [work for work in works if work.is_unread]
        if unread:
            go_on = partial(self._advance, era=era)
            self._run_for_all(unread, Lane.READ, partial(self._items.read, unread), go_on)
        for work in works:
            if self._in_pool[id(work)][1] is Lane.CLAIM:
                del self._in_pool[id(work)]
                self._advance(work, era)

    def _advance(self, work: W, era: int) -> None:
        """Goes on with an item until there is a payload for the channel, work for a pool, or nothing.

        Args:
            work: it.
            era: that in which it was claimed, or was last spoken about.
        """
        with self._contained(work):
            if self._has_to_wait(work):
                return
            step = self._items.advance(work)
            if step is None:
                self._finish(work)
            elif era != self._era:
                self._release([work])
            elif not isinstance(step, Blocking):
                self._admit(Ready(work, step))
            elif any(step.lane in lanes and self._in_lanes(lanes) >= 2 * self._size for lanes in LIMITED):
                self._run_for(work, Lane.ALONE, partial(self._items.postpone, work), nothing)
            else:
                self._run_for(work, step.lane, step.work, partial(self._advance, work, era))

    def _line_up(self, ready: Ready[W, P]) -> None:
        """Urgent ones go out over the next sessions, in their order; the rest in its turn."""
        if not ready.work.is_urgent:
            self._ready.append(ready)
            return
        before = next((at for at, each in enumerate(self._ready) if not each.work.is_urgent), len(self._ready))
        self._ready.insert(before, ready)

    @contextmanager
    def _contained(self, work: W) -> Iterator[None]:
        """The boundary at which one item's failure ends, in the thread that drives the dialogues."""
        try:
            yield
        except BaseException as failure:
            self._fail(work, failure)
            if not isinstance(failure, Exception):
                raise

    # Wait for a place, where the rate is limited.

    def _has_to_wait(self, work: W) -> bool:
        """Whether it is clear before its payload is made that an item has to wait as scheduled; then it does."""
        if self._rated is None or self._rates is None or not self._rates.has_waiting:
            # Where nobody waits, it may find a place.
            return False
        domains = self._rates.must_wait(self._rated.facts(work))
        if domains:
            self._put_off.append((work, domains))
        return bool(domains)

    def _admit(self, ready: Ready[W, P]) -> None:
        """An item can go out over the next session, as soon as it has a place where its rate is limited."""
        if self._rated is None or self._rates is None or not self._rates.is_limited:
            self._line_up(ready)
            return
        domains = self._rates.limited(self._rated.destinations(ready.work, ready.payload))
        if not domains:
            self._line_up(ready)
        elif self._rates.wait(ready, domains, self._rated.facts(ready.work)):
            return
        elif any(domains):
            self._put_off.append((ready.work, domains))
        else:
            # Whatever leaves by this route has to wait: it keeps its place in line.
            self._release([ready.work])

    def _go_on_with_waiting(self) -> None:
        """Asks for places for those that wait, and has those wait as scheduled that have waited here for too long."""
        rated, rates = self._rated, self._rates
        if rated is None or rates is None or (rates.is_idle and not self._put_off):
            return
        self._put_off += [(ready.work, domains) for ready, domains in rates.late()]
        by_domains: dict[tuple[str, ...], list[W]] = {}
        for work, domains in self._put_off:
            by_domains.setdefault(domains, []).append(work)
        self._put_off_lately += len(self._put_off)
        self._put_off.clear()
        for domains, works in by_domains.items():
            self._run_for_all(works, Lane.PLACES, partial(rated.give_turns, works, domains), nothing)
        if rates.asks_in == 0 and not self._is_asking and not self._pacing.hold:
            self._is_asking = True
            self._run(Lane.PLACES, partial(self._ask_for_places, rates.wants()))

    def _ask_for_places(self, wants: Sequence[Want]) -> Callable[[], None]:
        granted: list[Grant] = []
        if self._rates is not None:
            rates = self._rates
            failure = failure_of(lambda: granted.extend(rates.ask(wants)))
            if failure is not None:
                logger.warning("%s: places could not be asked for: %s.", self._pacing.called, type(failure).__name__)
        return partial(self._take_places, granted)

    def _take_places(self, granted: Sequence[Grant]) -> None:
        self._is_asking = False
        if self._rates is not None:
            for ready, place in self._rates.take(granted):
                self._line_up(ready._replace(place=place))

    def _release(self, works: Sequence[W]) -> None:
        if works:
            self._run_for_all(works, Lane.ALONE, partial(self._items.release, works), nothing)

    def _release_ready(self) -> None:
        """Releases claimed items that are not being delivered; those that are being prepared follow."""
        self._era += 1
        ready = [*self._ready, *(self._rates.drop() if self._rates is not None else ())]
        for each in ready:
            _end_place(each)
        self._release([each.work for each in ready])
        self._ready.clear()

    def _release_held(self) -> None:
        """Releases what was not begun, where the route has had too much, or there is no place for long."""
        has_starved = self._starved_since is not None and time.monotonic() - self._starved_since > STARVED_FOR
        if self._sessions:
            self._starved_since = None
        elif has_starved:
            self._starved_since = time.monotonic()
        if self._ready and (self._pacing.hold or (has_starved and not self._sessions)):
            self._release_ready()

    # Sessions: open, and close.

    def _connect_for_ready(self) -> None:
        """Opens a session for each item that has none, unless some could not be opened a moment ago."""
        while self._connecting < len(self._ready) and self._sessions < self._most and self._may_connect:
            self._sessions += 1
            self._connect()

    @property
    def _may_connect(self) -> bool:
        return time.monotonic() >= self._connects_at and not self._pacing.retry

    def _connect(self, worn_out: Slot[P] | None = None) -> None:
        """Opens a session, perhaps in the place of one that takes no more."""
        self._connecting += 1
        begun_at = time.monotonic()
        found: list[Session[P] | Ruling] = []

        def connect() -> None:
            if worn_out is not None:
                worn_out.session.close()
            found.append(self._channel.connect())

        def run() -> Callable[[], None]:
            failure = failure_of(connect)
            return partial(self._connected, found[0] if failure is None else failure, begun_at)

        def abandon() -> None:
            for each in found:
                if not isinstance(each, Ruling):
                    each.abandon()

        if worn_out is not None:
            self._loop.forget(worn_out)
        self._run(Lane.SESSION, run, abandon)

    def _connected(self, found: Session[P] | Ruling | BaseException, begun_at: float) -> None:
        self._connecting -= 1
        if not isinstance(found, Ruling | BaseException):
            self._connect_pause = FIRST_CONNECT_PAUSE
            self._starved_since = None
            self._free.append(Slot(found))
            return
        self._sessions -= 1
        if isinstance(found, NoPlace):
            # Others have the places that there are.
            if self._starved_since is None:
                self._starved_since = begun_at
        elif self._worked_at > begun_at and self._sessions > self._connecting:
            # The route works, over others.
            self._connects_at = time.monotonic() + self._connect_pause
            self._connect_pause = min(2 * self._connect_pause, LONGEST_CONNECT_PAUSE)
            logger.info("%s: a further connection could not be opened; those that are open go on.", self._pacing.called)
        else:
            self._route_failed(found)

    def _route_failed(self, failure: Ruling | BaseException) -> None:
        """One of those that wait tells it, and nothing more is opened for the others."""
        if not self._ready:
            return
        ready = self._ready.popleft()
        _end_place(ready)
        if not isinstance(failure, Ruling):
            name = type(failure).__name__
            logger.error("%s: a connection could not be made: %s.", self._pacing.called, name, exc_info=failure)
            said = f"no connection could be made: {type(failure).__name__}"
            failure = Ruling(Verdict.RETRY, Scope.RELAY, Phase.CONNECT, reply=said)
        self._take(ready, dict.fromkeys(ready.payload.recipients, failure))

    def _close_idle(self) -> None:
        """Closes what has been idle for too long, and what there is more of than the route takes.

        While an item waits for a session, none is idle: a probe's is opened while the circuit has others closed.
        """
        now, limit = time.monotonic(), float("inf") if self._ready else self._pacing.idle_limit
        surplus = self._sessions - self._connecting - self._most
        for slot in list(self._free):
            if surplus > 0 or now - slot.session.idle_since > limit:
                self._free.remove(slot)
                self._close(slot)
                surplus -= 1

    def _close(self, slot: Slot[P]) -> None:
        self._loop.forget(slot)
        self._sessions -= 1
        self._pools[Lane.SESSION].submit(slot.session.close)

    # Deliver.

    def _deliver_ready(self) -> None:
        begun = 0
        while self._ready and begun < BEGUN_TOGETHER and (slot := self._ready_slot()):
            self._deliver(slot, self._ready.popleft())
            begun += 1
            # Answers are read first: an email whose answer is unread comes twice if this process is killed.
            self._loop.go_on()
        self._has_more_to_begin = begun == BEGUN_TOGETHER
        if self._ready and not self._route_failures:
            self._connect_for_ready()
            if self._channel.pipelines:
                self._pipeline_ready()

    def _ready_slot(self) -> Slot[P] | None:
        """A session that takes an item; one that takes no more is replaced in the pool."""
        worn_out: list[Slot[P]] = []
        found = None
        while self._free and found is None:
            slot = self._free.pop()
            if slot.session.is_ready:
                found = slot
            else:
                worn_out.append(slot)
        for slot in worn_out:
            if found is None and self._connecting < len(self._ready):
                self._connect(slot)
            else:
                self._free.insert(0, slot)
        return found

    def _deliver(self, slot: Slot[P], ready: Ready[W, P]) -> None:
        self._delivering[slot] = Delivering(ready, time.monotonic())
        if self._rated is not None and self._rates is not None:
            self._rates.note(self._rated.destinations(ready.work, ready.payload))
        if self._channel.pipelines:
            self._pipeline(slot)
        self._loop.drive(slot, slot.session.deliver(ready.payload), partial(self._delivered, slot, ready))

    def _pipeline_ready(self) -> None:
        """Pipelines items that wait for a session behind those that are being delivered."""
        for slot in self._delivering:
            self._pipeline(slot)

    def _pipeline(self, slot: Slot[P]) -> None:
        """Of what waits for a session, the next is delivered after this one's, unless a session is free."""
        if not self._ready or self._free or slot in self._pipelined:
            return
        if slot.session.pipeline(self._ready[0].payload):
            self._pipelined[slot] = Pipelined(self._ready.popleft(), time.monotonic() + PIPELINED_FOR)

    def _withdraw_late(self) -> None:
        """Items that are pipelined behind one without an answer for long go another way."""
        while self._pipelined:
            slot, oldest = next(iter(self._pipelined.items()))
            if oldest.until > time.monotonic():
                return
            slot.session.withdraw()
            self._go_another_way(self._pipelined.pop(slot).ready)

    def _go_another_way(self, ready: Ready[W, P]) -> None:
        if self._route_failures:
            _end_place(ready)
            self._release([ready.work])
        elif ready.place is not None:
            # The relay may have heard of it: the next time it is another one.
            _end_place(ready)
            self._admit(Ready(ready.work, ready.payload))
        else:
            self._ready.appendleft(ready)

    def _delivered(
        self, slot: Slot[P], ready: Ready[W, P], rulings: Rulings | None, failure: BaseException | None
    ) -> None:
        del self._delivering[slot]
        _end_place(ready)
        pipelined = self._pipelined.pop(slot, None)
        session = slot.session
        if not session.is_open:
            self._sessions -= 1
            if pipelined is not None:
                self._go_another_way(pipelined.ready)
        elif pipelined is not None:
            self._deliver(slot, pipelined.ready)
        elif self._sessions - self._connecting > self._most or self._pacing.should_yield():
            self._close(slot)
        else:
            self._free.append(slot)
        if failure is not None:
            self._fail(ready.work, failure)
        elif rulings is None:
            self._go_another_way(ready)
        elif session.refusal is not None:
            self._ask_whether_full(ready, rulings, session.refusal)
        else:
            self._take(ready, rulings)

    def _ask_whether_full(self, ready: Ready[W, P], rulings: Rulings, refusal: Ruling) -> None:
        """The session was refused as such: where that is for there being others, nothing was said about the item."""
        is_full: list[bool] = []

        def then() -> None:
            if is_full == [True]:
                self._go_another_way(ready)
            else:
                self._take(ready, rulings)

        self._run_for(ready.work, Lane.SESSION, lambda: is_full.append(self._channel.is_full(refusal)), then)

    def _take(self, ready: Ready[W, P], rulings: Rulings) -> None:
        with self._contained(ready.work):
            self._items.take(ready.work, rulings)
            if not ready.work.has_route_failed:
                self._worked_at = time.monotonic()
                self._throughput.note()
            self._advance(ready.work, self._era)

    # Conclude.

    def _finish(self, work: W) -> None:
        if work.has_route_failed:
            self._route_failures += 1
            self._release_ready()
            conclude = partial(self._items.conclude_alone, work)
            self._run_for(work, Lane.ALONE, conclude, self._route_failure_concluded, anyway=True)
        elif work.is_plain:
            if not self._done:
                self._done_at = time.monotonic()
            self._done.append(work)
        else:
            self._conclude_alone(work)

    def _route_failure_concluded(self) -> None:
        self._route_failures -= 1

    def _conclude(self) -> None:
        if not self._done or self._is_concluding:
            return
        enough = max(CONCLUDED_TOGETHER, self._most * 3 // 4)
        is_worth_it = len(self._done) >= enough or time.monotonic() >= self._done_at + LINGER
        if is_worth_it or not self._is_worth_waiting:
            self._is_concluding = True
            done, self._done = self._done, []
            self._run(Lane.CONCLUDE, partial(self._conclude_together, done))

    @property
    def _is_worth_waiting(self) -> bool:
        """Whether more may come to an end soon."""
        latest = next(reversed(self._delivering.values()), None)
        ends_soon = latest is not None and time.monotonic() - latest.since < ENDS_SOON
        return bool(ends_soon or self._ready or self._is_claiming)

    def _conclude_together(self, works: list[W]) -> Callable[[], None]:
        left: list[W] = []
        failure = failure_of(lambda: left.extend(self._items.conclude(works)))
        return partial(self._concluded, works if failure is not None else left)

    def _concluded(self, left: Sequence[W]) -> None:
        self._is_concluding = False
        for work in left:
            self._conclude_alone(work)

    def _conclude_alone(self, work: W) -> None:
        self._run_for(work, Lane.ALONE, partial(self._items.conclude_alone, work), nothing)

    # How long to wait.

    def _patience(self) -> float:
        if self._results or self._has_more_to_begin:
            return 0.0
        now = time.monotonic()
        if self._done and not self._is_concluding:
            return max(0.0, self._done_at + LINGER - now)
        asks_in = self._rates.asks_in if self._rates is not None and not self._is_asking else None
        if self._has_room and not self._is_claiming:
            return LOOK_INTERVAL if asks_in is None else min(LOOK_INTERVAL, asks_in)
        waits = [] if asks_in is None else [max(asks_in, self._pacing.hold)]
        waits += [each.until - now for each in list(self._pipelined.values())[:1]]
        if self._ready and self._sessions < self._most:
            waits.append(max(self._connects_at - now, self._pacing.retry, LOOK_INTERVAL))
        if self._free:
            waits.append(self._pacing.idle_limit)
        if not self._is_claiming:
            waits.append(URGENT_LOOK_INTERVAL)
        return max(0.0, min(waits, default=float("inf")))

    @property
    def _under_way(self) -> int:
        in_pool = len(self._in_pool) - self._in_lanes(UNCOUNTED)
        return len(self._loop) + len(self._ready) + len(self._claiming) + in_pool

    @property
    def _has_room(self) -> bool:
        return self._under_way <= self._most + self._ahead // 4

    @property
    def _ahead(self) -> int:
        """How many items may wait for a session: as many as there are of those; more where that is not for long."""
        return max(self._most, min(CLAIMED_TOGETHER, int(CLAIMED_AHEAD * self._throughput.a_second)))

    @property
    def _most(self) -> int:
        """How many sessions there may be just now."""
        return self._pacing.most(self._size)


def failure_of(action: Callable[[], object]) -> BaseException | None:
    """Does something, and returns what it raised: the boundary at which one item's failure ends, in a pool."""
    try:
        action()
    except BaseException as failure:  # noqa: BLE001 - whoever submitted it is told
        return failure
    return None


def _raise(failure: BaseException) -> None:
    raise failure


def _end_place(ready: Ready[W, P]) -> None:
    if ready.place is not None:
        ready.place.end()


def nothing(*_: object) -> None:
    """Nothing follows."""
