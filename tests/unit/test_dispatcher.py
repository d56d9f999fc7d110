"""A dispatcher's thread works for all: nobody is left waiting, each fails of its own, a lone job is done at once."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import ParamSpec, TypeVar

import pytest

from actors.channels.smtp.channel import SmtpChannel
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.session import SmtpSession
from actors.delivery import dispatcher as module
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.job import Job
from actors.delivery.lanes import Blocking, Lane
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.relays import ScriptedRelay, close, hang, reply
from tests.smtp_client import AnyTime, NoRoute
from tests.waiting import wait_until

P = ParamSpec("P")
T = TypeVar("T")


class StoppedThread(BaseException):
    """As Dramatiq raises it in a thread."""


Item = tuple[int, Job]


@dataclass(eq=False)
class Work:
    """A claimed number."""

    number: int
    job: Job
    is_unread: bool = False
    is_plain: bool = True
    has_route_failed: bool = False
    is_urgent: bool = False


class AllAtOnce:
    """A route that takes everything."""

    retry = 0.0
    hold = 0.0
    idle_limit = float("inf")
    called = "The route"

    def most(self, size: int) -> int:
        return size

    def should_yield(self) -> bool:
        return False


class Simple:
    """Work with nothing to read, and nothing that is not plain; and the inbox that it waits in."""

    def __init__(self) -> None:
        self.in_memory: deque[Item] = deque()
        self.released: list[int] = []
        self.postponed: list[int] = []

    def claim(self, jobs: Sequence[Item]) -> list[Work]:
        return [Work(*each) for each in jobs]

    def read(self, claimed: Sequence[Work]) -> None:
        raise AssertionError(claimed)

    def conclude(self, works: Sequence[Work]) -> list[Work]:
        for work in works:
            work.job.end()
        return []

    def conclude_alone(self, work: Work) -> None:
        work.job.end()

    def release(self, works: Sequence[Work]) -> None:
        self.released.extend(work.number for work in works)
        for work in works:
            work.job.end()

    def postpone(self, work: Work) -> None:
        self.postponed.append(work.number)
        work.job.end()

    def fail(self, work: Work, failure: BaseException) -> None:
        work.job.end(failure)

    def has_more(self, *, are_urgent: bool = False) -> bool:
        return bool(self.in_memory) and not are_urgent

    def next(self, *, is_urgent: bool = False) -> Item | None:
        return self.in_memory.popleft() if self.in_memory and not is_urgent else None


class Squares(Simple):
    """Work that can be held up on the way; numbers below zero fail there, and those of `stops` stop the thread."""

    def __init__(self, lane: Lane = Lane.READ_ALONE) -> None:
        super().__init__()
        self.lane = lane
        self.begun: list[list[int]] = []
        self.concluded: list[list[int]] = []
        self.squares: dict[int, int] = {}
        self.threads: set[str] = set()
        self.may_go_on = threading.Event()
        self.stop_at: int | None = None

    def claim(self, jobs: Sequence[Item]) -> list[Work]:
        self.begun.append([number for number, _ in jobs])
        return super().claim(jobs)

    def advance(self, work: Work) -> Envelope | Blocking | None:
        if work.number in self.squares:
            return None
        if work.number == self.stop_at:
            raise StoppedThread
        self.threads.add(threading.current_thread().name)
        return Blocking(self.lane, partial(self._wait, work.number))

    def take(self, work: Work, rulings: Mapping[str, Ruling]) -> None:
        raise AssertionError(work, rulings)

    def conclude(self, works: Sequence[Work]) -> list[Work]:
        if any(work.number > 1000 for work in works):
            raise ArithmeticError("too large")
        self.concluded.append([work.number for work in works])
        return super().conclude(works)

    def conclude_alone(self, work: Work) -> None:
        if work.number > 1000:
            raise ArithmeticError("too large")
        super().conclude_alone(work)

    def _wait(self, number: int) -> None:
        assert self.may_go_on.wait(30)
        if number < 0:
            raise ArithmeticError(number)
        self.squares[number] = number**2


class BatchedMessage:
    """A job that nobody waits for."""

    def __init__(self) -> None:
        self.ends: list[BaseException | None] = []

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)

    def end(self, failure: BaseException | None = None) -> None:
        self.ends.append(failure)


@pytest.fixture
def squares() -> Squares:
    return Squares()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


def channel_to(url: str, timeouts: Timeouts = Timeouts()) -> SmtpChannel:  # noqa: B008 (frozen)
    return SmtpChannel(lambda: Relay.from_url(url), timeouts, permit=AnyTime(), route=NoRoute())


def dispatcher_of(size: int, squares: Squares) -> Dispatcher[Work, Envelope]:
    return Dispatcher(squares, squares, channel_to("smtp://127.0.0.1:9"), size, AllAtOnce())


def at_once(
    pool: ThreadPoolExecutor, dispatcher: Dispatcher[Work, Envelope], squares: Squares, numbers: Sequence[int]
) -> dict[int, Future[bool]]:
    """The first is on its way when the others come."""
    first, *others = numbers
    done = {first: pool.submit(dispatcher.do, first)}
    wait_until(lambda: squares.begun == [[first]])
    done |= {number: pool.submit(dispatcher.do, number) for number in others}
    wait_until(lambda: len(dispatcher._waiting) == len(others) or sum(map(len, squares.begun)) == len(numbers))
    squares.may_go_on.set()
    return done


def test_what_may_block_never_runs_in_the_thread_that_drives_not_even_for_a_lone_job(squares: Squares) -> None:
    squares.may_go_on.set()
    blocking: set[str] = set()
    wait = squares._wait
    squares._wait = lambda number: (blocking.add(threading.current_thread().name), wait(number))  # type: ignore[assignment, func-returns-value]
    dispatcher = dispatcher_of(4, squares)
    dispatcher.do(3)
    dispatcher.do(4)
    assert squares.squares == {3: 9, 4: 16}
    assert squares.begun == squares.concluded == [[3], [4]]
    assert squares.threads == {threading.current_thread().name}
    assert blocking == {"duepost-read_alone"}


def test_all_are_concluded_and_none_twice(squares: Squares, pool: ThreadPoolExecutor) -> None:
    done = at_once(pool, dispatcher_of(8, squares), squares, range(1, 9))
    for each in done.values():
        each.result(30)
    assert squares.squares == {number: number**2 for number in range(1, 9)}
    assert sorted(number for batch in squares.concluded for number in batch) == list(range(1, 9))
    assert len(squares.threads) == 1


def test_no_more_are_begun_than_connections_can_take_soon(pool: ThreadPoolExecutor) -> None:
    squares = Squares(Lane.ALONE)
    squares.in_memory.extend((number, BatchedMessage()) for number in range(2, 50))
    dispatcher = dispatcher_of(2, squares)
    done = pool.submit(dispatcher.do, 1)
    wait_until(lambda: len(squares.begun) == 1)
    assert squares.begun == [[1, 2, 3, 4]]
    squares.may_go_on.set()
    done.result(30)
    wait_until(lambda: len(squares.squares) == 49)
    assert max(map(len, squares.begun)) <= 4


def test_what_takes_the_processor_for_long_keeps_nobody_from_being_begun_and_too_much_of_it_is_put_off(
    pool: ThreadPoolExecutor,
) -> None:
    squares = Squares(Lane.LONG)
    squares.in_memory.extend((number, BatchedMessage()) for number in range(2, 30))
    dispatcher = dispatcher_of(2, squares)
    done = pool.submit(dispatcher.do, 1)
    wait_until(lambda: sum(map(len, squares.begun)) == 29)
    wait_until(lambda: sorted(squares.postponed) == list(range(5, 30)))
    squares.may_go_on.set()
    done.result(30)
    wait_until(lambda: sorted(squares.squares) == [1, 2, 3, 4])


def test_what_fails_is_nobody_elses(squares: Squares, pool: ThreadPoolExecutor) -> None:
    done = at_once(pool, dispatcher_of(4, squares), squares, [1, -2, 3])
    with pytest.raises(ArithmeticError):
        done[-2].result(30)
    done[1].result(30)
    done[3].result(30)
    assert squares.squares == {1: 1, 3: 9}


@pytest.mark.parametrize("method", ["claim", "advance", "read", "conclude", "next"])
def test_whatever_is_raised_ends_jobs_and_the_next_one_is_done(squares: Squares, method: str) -> None:
    squares.may_go_on.set()
    dispatcher = dispatcher_of(4, squares)

    def broken(*_: object, **__: object) -> None:
        raise KeyError(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squares, method, broken)
        if method == "conclude":
            patch.setattr(squares, "conclude_alone", broken)
        if method == "next":
            patch.setattr(squares, "has_more", lambda **_: True)
        if method == "read":
            patch.setattr(squares, "claim", lambda jobs: [Work(number, job, is_unread=True) for number, job in jobs])
        with pytest.raises(KeyError):
            dispatcher.do(1)
    dispatcher.do(2)
    assert squares.squares[2] == 4


def test_a_failure_of_a_shared_conclusion_is_taken_apart(squares: Squares, pool: ThreadPoolExecutor) -> None:
    done = at_once(pool, dispatcher_of(8, squares), squares, [1, 2000, 3, 4])
    with pytest.raises(ArithmeticError):
        done[2000].result(30)
    for number in (1, 3, 4):
        done[number].result(30)


def test_what_waits_in_memory_is_claimed_with_it(squares: Squares) -> None:
    batched = [BatchedMessage() for _ in range(3)]
    squares.in_memory.extend((number + 2, each) for number, each in enumerate(batched))
    squares.may_go_on.set()
    dispatcher_of(4, squares).do(1)
    wait_until(lambda: [each.ends for each in batched] == [[None]] * 3)
    assert squares.squares == {1: 1, 2: 4, 3: 9, 4: 16}


def test_when_the_thread_is_stopped_nobody_is_left_waiting_and_the_next_one_works(
    squares: Squares, pool: ThreadPoolExecutor
) -> None:
    dispatcher = dispatcher_of(2, squares)
    squares.stop_at = 6
    done = at_once(pool, dispatcher, squares, [0, 1, 2, 3, 4, 5, 6])
    for number in range(7):
        assert isinstance(done[number].exception(30), StoppedThread | None)
    dispatcher.do(9)
    assert squares.squares[9] == 81


class Letters(Simple):
    """Work with a real relay: a letter to each number."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rulings: dict[int, Ruling] = {}
        self.circuit_is_open = False
        self._envelopes = {
            number: Envelope("from@example.com", (f"{number}@example.com",), b"Subject: hi\r\n\r\nhi\r\n")
            for number in range(count)
        }
        self.in_memory.extend((number, BatchedMessage()) for number in range(1, count))

    def advance(self, work: Work) -> Envelope | Blocking | None:
        return None if work.number in self.rulings else self._envelopes[work.number]

    def take(self, work: Work, rulings: Mapping[str, Ruling]) -> None:
        [ruling] = rulings.values()
        self.rulings[work.number] = ruling
        work.has_route_failed = ruling.scope is Scope.RELAY

    def claim(self, jobs: Sequence[Item]) -> list[Work]:
        if not self.circuit_is_open:
            return super().claim(jobs)
        for _, job in jobs:
            job.end()
        return []

    def conclude_alone(self, work: Work) -> None:
        self.circuit_is_open = self.circuit_is_open or work.has_route_failed
        super().conclude_alone(work)


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay(query="?pipelining=ahead") as relay:
        yield relay


def dispatcher_with(relay: ScriptedRelay, letters: Letters, size: int) -> Dispatcher[Work, Envelope]:
    return Dispatcher(letters, letters, channel_to(relay.url), size, AllAtOnce())


def taken(relay: ScriptedRelay) -> list[int]:
    return sorted(int(message.recipients[0].partition("@")[0]) for message in relay.messages)


class RememberingChannel(SmtpChannel):
    """Knows the sessions that it has opened."""

    def __init__(self, url: str) -> None:
        super().__init__(lambda: Relay.from_url(url), Timeouts(), permit=AnyTime(), route=NoRoute())
        self.opened: list[SmtpSession] = []

    def connect(self) -> SmtpSession | Ruling:
        found = super().connect()
        if isinstance(found, SmtpSession):
            self.opened.append(found)
        return found


@pytest.mark.parametrize("ending", ["tidied", "closed before it is open", "closed after it is open"])
def test_a_session_that_is_opened_when_nothing_is_left_for_it_is_closed(
    relay: ScriptedRelay, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.on(Phase.BANNER, hang(), reply("220 late"), times=1)
    letters, channel, pacing = Letters(2), RememberingChannel(relay.url), AllAtOnce()
    dispatcher = Dispatcher(letters, letters, channel, 2, pacing)
    dispatcher.do(0)
    assert taken(relay) == [0, 1]
    assert len(channel.opened) == 1
    if ending == "closed before it is open":
        dispatcher.close()
    relay.release()
    wait_until(lambda: len(channel.opened) == 2)
    if ending == "closed after it is open":
        dispatcher.close()
    if ending == "tidied":
        monkeypatch.setattr(pacing, "idle_limit", -1.0)

        def is_closed() -> bool:
            dispatcher.tidy()
            return not any(each.is_open for each in channel.opened)

        wait_until(is_closed)
        dispatcher.close()
    wait_until(lambda: not any(each.is_open for each in channel.opened))


def test_what_waits_for_a_connection_goes_out_behind_the_dots_of_others(relay: ScriptedRelay) -> None:
    behind: list[bool] = []
    relay.on(
        Phase.DOT,
        lambda session: behind.append(session.buffer.startswith(b"MAIL")),
        reply("250 2.0.0 taken"),
    )
    letters = Letters(40)
    dispatcher = dispatcher_with(relay, letters, 2)
    dispatcher.do(0)
    dispatcher.close()
    assert taken(relay) == list(range(40))
    assert {ruling.verdict for ruling in letters.rulings.values()} == {Verdict.SENT}
    # What has been claimed when a dot goes out depends on other threads.
    assert any(behind)
    assert relay.connections == 2


def test_what_is_behind_a_dot_without_a_reply_goes_another_way_meanwhile(
    relay: ScriptedRelay, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIPELINED_FOR", 0.05)
    dots = count(1)
    relay.on(Phase.DOT, hang(), close(), when=lambda _: next(dots) == 7)
    letters = Letters(40)
    dispatcher = dispatcher_with(relay, letters, 2)
    done = pool.submit(dispatcher.do, 0)
    wait_until(lambda: len(letters.rulings) == 39, what="all others to be sent")
    relay.release()
    done.result(30)
    dispatcher.close()
    verdicts = Counter(ruling.verdict for ruling in letters.rulings.values())
    assert verdicts == {Verdict.SENT: 39, Verdict.UNKNOWN: 1}
    assert len(set(taken(relay))) == 39


def silent(relay: ScriptedRelay, connections: int) -> None:
    """That many connections get no banner."""
    relay.on(Phase.BANNER, hang(), close(), times=connections)


def test_a_silent_connection_holds_up_nobody_and_what_came_first_goes_another_way(
    relay: ScriptedRelay, pool: ThreadPoolExecutor
) -> None:
    silent(relay, 1)
    letters = Letters(2)
    second = letters.in_memory.pop()
    dispatcher = dispatcher_with(relay, letters, 4)
    done = [pool.submit(dispatcher.do, 0)]
    wait_until(lambda: relay.connections == 1)
    begun = time.monotonic()
    done.append(pool.submit(dispatcher.do, second[0]))
    for each in done:
        each.result(10)
    assert time.monotonic() - begun < Timeouts().connect, "not once the silent one is given up"
    assert taken(relay) == [0, 1]
    assert relay.connections == 2
    dispatcher.close()


def test_a_peer_that_is_silent_in_a_delivery_keeps_no_conclusion_waiting(
    relay: ScriptedRelay, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 3600.0)
    monkeypatch.setattr(module, "ENDS_SOON", 0.0)
    relay.on(Phase.RCPT, hang(), reply("250 Ok"), when=lambda line: "<0@" in line)
    letters = Letters(2)
    second = letters.in_memory.pop()
    dispatcher = dispatcher_with(relay, letters, 4)
    first = pool.submit(dispatcher.do, 0)
    wait_until(lambda: len(dispatcher._delivering) == 1)
    pool.submit(dispatcher.do, second[0]).result(10)
    assert not first.done()
    relay.release()
    first.result(10)
    assert taken(relay) == [0, 1]
    dispatcher.close()


def test_of_a_burst_all_leave_at_once_though_the_first_connection_is_silent(
    relay: ScriptedRelay, pool: ThreadPoolExecutor
) -> None:
    silent(relay, 1)
    letters = Letters(20)
    dispatcher = dispatcher_with(relay, letters, 8)
    begun = time.monotonic()
    done = pool.submit(dispatcher.do, 0)
    wait_until(lambda: len(letters.rulings) == 20)
    done.result(10)
    assert time.monotonic() - begun < Timeouts().connect, "not once the silent one is given up"
    assert len(set(taken(relay))) == 20
    dispatcher.close()


def test_a_relay_that_is_silent_to_all_is_asked_once_a_connection_and_one_email_tells_it(
    relay: ScriptedRelay, pool: ThreadPoolExecutor
) -> None:
    silent(relay, 100)
    letters = Letters(40)
    dispatcher = Dispatcher(letters, letters, channel_to(relay.url, Timeouts(command=0.3)), 4, AllAtOnce())
    pool.submit(dispatcher.do, 0).result(10)
    assert len(letters.rulings) == 1
    assert relay.connections == 4
    assert letters.circuit_is_open
    assert len(letters.released) >= 6
    assert not letters.in_memory


def test_after_a_failure_of_the_route_what_is_claimed_is_returned_and_nothing_is_opened(
    relay: ScriptedRelay, pool: ThreadPoolExecutor
) -> None:
    relay.on(Phase.BANNER, reply("554 5.3.2 not you"))
    letters = Letters(200)
    may_conclude = threading.Event()
    conclude_alone = letters.conclude_alone

    def slowly(work: Work) -> None:
        assert may_conclude.wait(10)
        conclude_alone(work)

    letters.conclude_alone = slowly  # type: ignore[method-assign]
    dispatcher = dispatcher_with(relay, letters, 4)
    done = pool.submit(dispatcher.do, 0)
    wait_until(lambda: bool(letters.rulings))
    wait_until(lambda: len(letters.rulings) + len(letters.released) == 8)
    may_conclude.set()
    done.result(10)
    assert len(letters.rulings) == 1
    assert relay.connections <= 4


class UrgentLetters(Letters):
    """Letters of which those from `URGENT` on are urgent; notes the order in which they are begun."""

    URGENT = 30

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.claimed: list[int] = []

    def claim(self, jobs: Sequence[Item]) -> list[Work]:
        self.claimed += [number for number, _ in jobs]
        return [Work(number, job, is_urgent=number >= self.URGENT) for number, job in jobs]


def test_what_is_urgent_is_claimed_though_there_is_no_room_and_goes_out_over_the_next_connection(
    pool: ThreadPoolExecutor,
) -> None:
    with ScriptedRelay() as relay:
        relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"))
        letters = UrgentLetters(40)
        letters.in_memory = deque(each for each in letters.in_memory if each[0] < UrgentLetters.URGENT)
        dispatcher = dispatcher_with(relay, letters, 2)
        done = [pool.submit(dispatcher.do, 0)]
        wait_until(lambda: relay.transcript.count("C: .") == 2 and len(letters.claimed) >= 4, what="no room to be left")
        before = list(letters.claimed)
        done += [pool.submit(dispatcher.do, 35, is_urgent=True)]
        wait_until(lambda: letters.claimed == [*before, 35], what="what is urgent to be claimed")
        wait_until(lambda: 35 in [each.work.number for each in dispatcher._ready], what="it to be ready")
        relay.release()
        for each in done:
            each.result(30)
        order = [int(message.recipients[0].partition("@")[0]) for message in relay.messages]
        # Before all but what was under way.
        assert order.index(35) <= 3
        dispatcher.close()


class OpenCircuit(AllAtOnce):
    """An open circuit: connections without an email are closed at once."""

    idle_limit = 0.0


def test_a_probe_goes_out_over_the_connection_that_was_opened_for_it(
    relay: ScriptedRelay, pool: ThreadPoolExecutor
) -> None:
    letters = Letters(3)
    dispatcher = Dispatcher(letters, letters, channel_to(relay.url), 1, OpenCircuit())
    pool.submit(dispatcher.do, 0).result(10)
    dispatcher.close()
    assert taken(relay) == [0, 1, 2]
    assert relay.connections <= 3


class CrowdedRoute(NoRoute):
    """A route that knows whether a refusal is for there being others; asked in a pool, as it may ask a database."""

    def __init__(self, *, crowded: bool) -> None:
        super().__init__()
        self.asked_in: list[str] = []
        self._is_crowded = crowded

    def is_full(self, _refusal: Ruling) -> bool:
        self.asked_in.append(threading.current_thread().name)
        return self._is_crowded


@pytest.mark.parametrize("crowded", [True, False])
def test_an_email_over_a_session_that_was_one_too_many_goes_another_way_and_is_ruled_on_where_it_was_not(
    relay: ScriptedRelay, crowded: bool
) -> None:
    relay.on(Phase.MAIL, reply("421 4.7.0 Too many concurrent SMTP connections; try again later"), close(), times=1)
    letters = Letters(1)
    route = CrowdedRoute(crowded=crowded)
    channel = SmtpChannel(lambda: Relay.from_url(relay.url), Timeouts(), permit=AnyTime(), route=route)
    dispatcher = Dispatcher(letters, letters, channel, 1, AllAtOnce())
    dispatcher.do(0)
    dispatcher.close()
    assert route.asked_in == ["duepost-session"]
    assert letters.rulings[0].verdict is (Verdict.SENT if crowded else Verdict.RETRY)
    assert taken(relay) == ([0] if crowded else [])
