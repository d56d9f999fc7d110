"""A crew's thread works for all: nobody is left waiting, each fails of its own, and a lone job is done at once."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import ParamSpec, TypeVar

import pytest

from actors import crew as module
from actors.crew import Crew, Job
from actors.smtp.connection import Connection, Envelope
from actors.smtp.dialogue import Aside, Script
from actors.smtp.relay import Relay
from actors.smtp.verdicts import Phase, Ruling
from models.words import Verdict
from tests.relays import ScriptedRelay, close, hang, reply
from tests.waiting import wait_until

P = ParamSpec("P")
T = TypeVar("T")


class StoppedThread(BaseException):
    """As Dramatiq raises it in a thread."""


class Squares:
    """A trade that can be held up on the way; numbers below zero fail there, and zero stops the thread."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []
        self.concluded: list[list[int]] = []
        self.squares: dict[int, int] = {}
        self.threads: set[str] = set()
        self.in_memory: deque[tuple[int, Job]] = deque()
        self.may_go_on = threading.Event()

    def begin(self, jobs: Sequence[tuple[int, Job]], *, in_company: bool) -> list[tuple[int, Job]]:
        self.begun.append([number for number, _ in jobs])
        assert in_company or len(jobs) == 1
        return list(jobs)

    def prepare(self, work: tuple[int, Job]) -> Envelope | None:
        return None

    def script(
        self, work: tuple[int, Job], connection: Connection, following: Callable[[], Envelope | None]
    ) -> Script[None]:
        assert connection.wire is None
        yield Aside(self._wait)
        if work[0] < 0:
            raise ArithmeticError(work[0])
        self.squares[work[0]] = work[0] ** 2

    def conclude(self, works: Sequence[tuple[int, Job]], *, in_company: bool) -> None:
        self.threads.add(threading.current_thread().name)
        if 0 in (number for number, _ in works):
            raise StoppedThread
        self.concluded.append([number for number, _ in works])
        for _, job in works:
            job.end()

    def fail(self, work: tuple[int, Job], failure: BaseException) -> None:
        work[1].end(failure)

    def take_along(self) -> tuple[int, Job] | None:
        return self.in_memory.popleft() if self.in_memory else None

    def _wait(self) -> None:
        assert self.may_go_on.wait(30)


class Companion:
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


def crew_of(size: int, squares: Squares) -> Crew[tuple[int, Job]]:
    return Crew(squares, lambda: Connection(Relay.from_url("smtp://127.0.0.1:9")), size)


def at_once(
    pool: ThreadPoolExecutor, crew: Crew[tuple[int, Job]], squares: Squares, numbers: Sequence[int]
) -> dict[int, Future[None]]:
    """The first is on its way when the others come."""
    first, *others = numbers
    done = {first: pool.submit(crew.do, first)}
    wait_until(lambda: squares.begun == [[first]])
    done |= {number: pool.submit(crew.do, number) for number in others}
    wait_until(lambda: len(crew._waiting) == len(others))
    squares.may_go_on.set()
    return done


def test_a_lone_job_is_done_at_once_in_its_own_thread(squares: Squares) -> None:
    squares.may_go_on.set()
    crew = crew_of(4, squares)
    crew.do(3)
    crew.do(4)
    assert squares.squares == {3: 9, 4: 16}
    assert squares.begun == squares.concluded == [[3], [4]]
    assert squares.threads == {threading.current_thread().name}


def test_those_that_come_meanwhile_are_begun_and_concluded_together(squares: Squares, pool: ThreadPoolExecutor) -> None:
    done = at_once(pool, crew_of(8, squares), squares, range(1, 9))
    for each in done.values():
        each.result(30)
    assert squares.squares == {number: number**2 for number in range(1, 9)}
    assert len(squares.begun) <= 3
    assert sorted(number for batch in squares.concluded for number in batch) == list(range(1, 9))
    assert len(squares.threads) == 1


def test_no_more_are_begun_than_connections_can_take_soon(squares: Squares, pool: ThreadPoolExecutor) -> None:
    squares.in_memory.extend((number, Companion()) for number in range(2, 50))
    crew = crew_of(2, squares)
    done = pool.submit(crew.do, 1)
    wait_until(lambda: len(squares.begun) == 1)
    assert squares.begun == [[1, 2, 3, 4]]
    squares.may_go_on.set()
    done.result(30)
    wait_until(lambda: len(squares.squares) == 49)
    assert max(map(len, squares.begun)) <= 4


def test_what_fails_is_nobody_elses(squares: Squares, pool: ThreadPoolExecutor) -> None:
    done = at_once(pool, crew_of(4, squares), squares, [1, -2, 3])
    with pytest.raises(ArithmeticError):
        done[-2].result(30)
    done[1].result(30)
    done[3].result(30)
    assert squares.squares == {1: 1, 3: 9}


def test_what_waits_in_memory_is_taken_along(squares: Squares) -> None:
    companions = [Companion() for _ in range(3)]
    squares.in_memory.extend((number + 2, each) for number, each in enumerate(companions))
    squares.may_go_on.set()
    crew_of(4, squares).do(1)
    assert squares.squares == {1: 1, 2: 4, 3: 9, 4: 16}
    assert [each.ends for each in companions] == [[None]] * 3


def test_when_the_thread_is_stopped_nobody_is_left_waiting_and_the_next_one_works(
    squares: Squares, pool: ThreadPoolExecutor
) -> None:
    crew = crew_of(2, squares)
    done = at_once(pool, crew, squares, [0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(StoppedThread):
        done[0].result(30)
    for number in range(1, 7):
        assert isinstance(done[number].exception(30), StoppedThread | None)
    crew.do(9)
    assert squares.squares[9] == 81


class Letters:
    """A trade with a real relay: a letter to each number."""

    def __init__(self, count: int) -> None:
        self.rulings: dict[int, Ruling] = {}
        self._envelopes = {
            number: Envelope("from@example.com", (f"{number}@example.com",), b"Subject: hi\r\n\r\nhi\r\n")
            for number in range(count)
        }
        self._left = deque((number, Companion()) for number in range(1, count))

    def begin(self, jobs: Sequence[tuple[int, Job]], *, in_company: bool) -> list[tuple[int, Job]]:
        return list(jobs)

    def prepare(self, work: tuple[int, Job]) -> Envelope | None:
        return self._envelopes[work[0]]

    def script(
        self, work: tuple[int, Job], connection: Connection, following: Callable[[], Envelope | None]
    ) -> Script[None]:
        rulings = yield from connection.delivering(self._envelopes[work[0]], following)
        [self.rulings[work[0]]] = rulings.values()

    def conclude(self, works: Sequence[tuple[int, Job]], *, in_company: bool) -> None:
        for _, job in works:
            job.end()

    def fail(self, work: tuple[int, Job], failure: BaseException) -> None:
        work[1].end(failure)

    def take_along(self) -> tuple[int, Job] | None:
        return self._left.popleft() if self._left else None


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay(query="?pipelining=ahead") as relay:
        yield relay


def crew_with(relay: ScriptedRelay, letters: Letters, size: int) -> Crew[tuple[int, Job]]:
    return Crew(letters, lambda: Connection(Relay.from_url(relay.url)), size)


def taken(relay: ScriptedRelay) -> list[int]:
    return sorted(int(message.recipients[0].partition("@")[0]) for message in relay.messages)


def test_what_waits_for_a_connection_goes_out_behind_the_dots_of_others(relay: ScriptedRelay) -> None:
    behind: list[bool] = []
    relay.on(
        Phase.DOT,
        lambda session: behind.append(session.buffer.startswith(b"MAIL")),
        reply("250 2.0.0 taken"),
    )
    letters = Letters(40)
    crew = crew_with(relay, letters, 2)
    crew.do(0)
    crew.close()
    assert taken(relay) == list(range(40))
    assert {ruling.verdict for ruling in letters.rulings.values()} == {Verdict.SENT}
    assert behind.count(True) > len(behind) // 2
    assert relay.connections == 2


def test_what_is_behind_a_dot_without_a_reply_goes_another_way_meanwhile(
    relay: ScriptedRelay, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEHIND_FOR", 0.05)
    dots = count(1)
    relay.on(Phase.DOT, hang(), close(), when=lambda _: next(dots) == 7)
    letters = Letters(40)
    crew = crew_with(relay, letters, 2)
    done = pool.submit(crew.do, 0)
    wait_until(lambda: len(letters.rulings) == 39, what="all others to be sent")
    relay.release()
    done.result(30)
    crew.close()
    verdicts = Counter(ruling.verdict for ruling in letters.rulings.values())
    assert verdicts == {Verdict.SENT: 39, Verdict.UNKNOWN: 1}
    assert len(set(taken(relay))) == 39
