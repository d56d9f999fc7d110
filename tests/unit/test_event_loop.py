"""The event loop drives dialogues of any channel side by side; here over a pair of sockets each, without SMTP."""

import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from actors.channels.channel import Dialogue, Event, NoPlace, Rulings, Wait, converse
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.event_loop import EventLoop, Slot
from actors.delivery.job import Job, OwnJob
from actors.delivery.lanes import Blocking
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict

TAKEN = Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.DOT)
LATE = Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.DOT, reply="too late")


@dataclass(frozen=True)
class Postcard:
    """A payload: its text is written, and any answer takes it."""

    text: bytes
    seconds: float = 60.0
    recipients: tuple[str, ...] = ("ada",)


class PostcardSession:
    """A session of a channel that is not SMTP's."""

    refusal: Ruling | None = None
    idle_since = 0.0

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket: socket.socket | None = ours

    def deliver(self, payload: Postcard) -> Dialogue[Rulings | None]:
        assert self._socket is not None
        if payload.text == b"poison":
            raise ArithmeticError(payload.text)
        left = memoryview(payload.text)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                yield Wait(Event.WRITE, payload.seconds)
        has_come = yield Wait(Event.READ, payload.seconds)
        if not has_come:
            return {"ada": LATE}
        return {"ada": TAKEN} if self._socket.recv(100) else None

    def pipeline(self, payload: Postcard) -> bool:
        raise AssertionError(payload)

    def withdraw(self) -> None:
        raise AssertionError

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    @property
    def is_ready(self) -> bool:
        return self.is_open

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass
class Line:
    """A session, its peer, and what came of a dialogue over it."""

    session: PostcardSession
    peer: socket.socket
    rulings: list[Rulings | None] = field(default_factory=list)
    failures: list[BaseException | None] = field(default_factory=list)

    def ended(self, rulings: Rulings | None, failure: BaseException | None) -> None:
        self.rulings.append(rulings)
        self.failures.append(failure)


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    lines = []
    for _ in range(3):
        ours, peer = socket.socketpair()
        lines.append(Line(PostcardSession(ours), peer))
    yield lines
    for line in lines:
        line.session.close()
        line.peer.close()


@pytest.fixture
def loop() -> EventLoop[Postcard]:
    return EventLoop()


def begin(loop: EventLoop[Postcard], line: Line, postcard: Postcard) -> None:
    loop.drive(Slot(line.session), line.session.deliver(postcard), line.ended)


def test_a_dialogue_goes_on_when_its_peer_has_said_something_and_no_other(
    loop: EventLoop[Postcard], lines: list[Line]
) -> None:
    first, second, _ = lines
    begin(loop, first, Postcard(b"hello"))
    begin(loop, second, Postcard(b"hello"))
    second.peer.send(b"thanks")
    loop.wait(60)
    assert (first.rulings, second.rulings) == ([], [{"ada": TAKEN}])
    assert len(loop) == 1


def test_a_dialogue_is_told_when_its_time_is_over(loop: EventLoop[Postcard], lines: list[Line]) -> None:
    begin(loop, lines[0], Postcard(b"hello", seconds=0.01))
    while loop:
        loop.wait(60)
    assert lines[0].rulings == [{"ada": LATE}]


def test_what_has_arrived_counts_however_late_it_is_looked_at(loop: EventLoop[Postcard], lines: list[Line]) -> None:
    begin(loop, lines[0], Postcard(b"hello", seconds=-1.0))
    lines[0].peer.send(b"thanks")
    loop.wait(0)
    assert lines[0].rulings == [{"ada": TAKEN}]


def test_a_dialogue_that_fails_is_nobody_elses(loop: EventLoop[Postcard], lines: list[Line]) -> None:
    first, second, third = lines
    begin(loop, first, Postcard(b"hello"))
    begin(loop, second, Postcard(b"poison"))
    begin(loop, third, Postcard(b"hello"))
    for line in lines:
        line.peer.send(b"thanks")
    while loop:
        loop.wait(60)
    assert isinstance(second.failures[0], ArithmeticError)
    assert (first.rulings, third.rulings) == ([{"ada": TAKEN}], [{"ada": TAKEN}])


def test_a_dialogue_waits_until_its_peer_takes_more(loop: EventLoop[Postcard], lines: list[Line]) -> None:
    [line, *_] = lines
    text = b"x" * 5_000_000
    begin(loop, line, Postcard(text))
    heard = 0
    line.peer.setblocking(False)
    while heard < len(text):
        loop.wait(0)
        try:
            heard += len(line.peer.recv(100_000))
        except BlockingIOError:
            continue
    assert line.rulings == []
    line.peer.send(b"thanks")
    loop.wait(60)
    assert line.rulings == [{"ada": TAKEN}]


class Errand:
    """A payload of a session that goes from peer to peer."""

    recipients = ("ada",)

    def __init__(self, *peers: socket.socket) -> None:
        self.peers = peers


class Errands:
    """A session that has another socket for each peer, and none between deliveries."""

    refusal: Ruling | None = None
    idle_since = 0.0
    is_open = is_ready = True

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def deliver(self, errand: Errand) -> Dialogue[Rulings | None]:
        for peer in errand.peers:
            self._socket, theirs = socket.socketpair()
            self._socket.setblocking(False)
            with theirs:
                theirs.send(peer.recv(100))
                has_come = yield Wait(Event.READ, 60.0)
            if self._socket.recv(100) == b"poison":
                self._socket.close()
                self._socket = None
                raise ArithmeticError(has_come)
            yield Wait(Event.LEAVE, 0.0)
            self._socket.close()
            self._socket = None
        return {"ada": TAKEN}

    def pipeline(self, payload: Errand) -> bool:
        raise AssertionError(payload)

    def withdraw(self) -> None:
        raise AssertionError

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        raise AssertionError

    def abandon(self) -> None:
        raise AssertionError


def test_a_session_may_change_its_socket_in_a_dialogue_and_has_none_between_two() -> None:
    loop: EventLoop[Errand] = EventLoop()
    slot = Slot(Errands())
    rulings: list[Rulings | None] = []
    failures: list[str] = []

    def ended(said: Rulings | None, failure: BaseException | None) -> None:
        rulings.append(said)
        failures.append(type(failure).__name__)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for words in ([b"one", b"two", b"three"], [b"one", b"poison", b"three"], [b"one"]):
            for word in words:
                theirs.send(word)
            loop.drive(slot, slot.session.deliver(Errand(*[ours] * len(words))), ended)
            while loop:
                loop.wait(60)
            # A number that is free again may be another session's next.
            assert set(loop._selector.get_map()) == {loop._wake_reader}
            while select.select([ours], [], [], 0)[0]:
                ours.recv(100)
    loop.close()
    assert rulings == [{"ada": TAKEN}, None, {"ada": TAKEN}]
    assert failures == ["NoneType", "ArithmeticError", "NoneType"]


def test_a_dialogue_goes_on_with_whatever_comes_first(loop: EventLoop[Postcard], lines: list[Line]) -> None:
    ours, peer = lines[0].session, lines[0].peer
    came: list[bool | None] = []

    def either() -> Dialogue[Rulings | None]:
        came.append((yield Wait(Event.EITHER, 60.0)))
        came.append((yield Wait(Event.EITHER, 60.0)))
        return None

    # It can be written to at once.
    loop.drive(Slot(ours), either(), lines[0].ended)
    loop.wait(60)
    # It can no longer be written to, and something has come.
    fill(ours)
    peer.send(b"thanks")
    loop.wait(60)
    assert came == [True, True]
    assert lines[0].rulings == [None]


def fill(session: PostcardSession) -> None:
    """Writes until nothing more goes out."""
    assert session._socket is not None
    with suppress(BlockingIOError):
        while True:
            session._socket.send(b"x" * 100_000)


def test_leaving_is_nothing_to_wait_for_in_one_thread(lines: list[Line]) -> None:
    def leaving() -> Dialogue[bool | None]:
        return (yield Wait(Event.LEAVE, 0.0))

    assert converse(leaving(), lines[0].session.fileno) is True


def test_a_wait_is_ended_by_another_thread(loop: EventLoop[Postcard]) -> None:
    threading.Timer(0.01, loop.wake).start()
    loop.wait(float("inf"))


def test_the_same_dialogue_can_be_waited_for_in_one_thread(lines: list[Line]) -> None:
    line = lines[0]
    line.peer.send(b"thanks")
    assert converse(line.session.deliver(Postcard(b"hello")), line.session.fileno) == {"ada": TAKEN}


class PostOffice:
    """A channel that is not SMTP's: it takes two sessions, and answers each postcard."""

    pipelines = False

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._peers: list[socket.socket] = []
        self._lock = threading.Lock()

    def connect(self) -> PostcardSession | Ruling:
        with self._lock:
            if len(self._peers) == 2:
                raise NoPlace
            ours, peer = socket.socketpair()
            self._peers.append(peer)
        threading.Thread(target=self._answer, args=(peer,), daemon=True).start()
        return PostcardSession(ours)

    def is_full(self, refusal: Ruling) -> bool:
        raise AssertionError(refusal)

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            while text := peer.recv(100):
                self.heard.append(text)
                peer.send(b"thanks")


@dataclass(eq=False)
class Written:
    """A claimed postcard."""

    number: int
    job: Job
    rulings: list[Rulings] = field(default_factory=list)
    is_unread: bool = False
    is_plain: bool = True
    has_route_failed: bool = False
    is_urgent: bool = False


class Desk:
    """What is done with postcards."""

    def __init__(self, count: int) -> None:
        self.left = list(range(1, count))
        self.done: list[int] = []

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[Written]:
        return [Written(number, job) for number, job in jobs]

    def read(self, claimed: Sequence[Written]) -> None:
        raise AssertionError(claimed)

    def advance(self, work: Written) -> Postcard | Blocking | None:
        return None if work.rulings else Postcard(b"%d" % work.number)

    def take(self, work: Written, rulings: Rulings) -> None:
        work.rulings.append(rulings)

    def conclude(self, works: Sequence[Written]) -> list[Written]:
        for work in works:
            self.done.append(work.number)
            work.job.end()
        return []

    def conclude_alone(self, work: Written) -> None:
        raise AssertionError(work)

    def release(self, works: Sequence[Written]) -> None:
        raise AssertionError(works)

    def postpone(self, work: Written) -> None:
        raise AssertionError(work)

    def fail(self, work: Written, failure: BaseException) -> None:
        work.job.end(failure)

    def has_more(self, *, are_urgent: bool = False) -> bool:
        return bool(self.left) and not are_urgent

    def next(self, *, is_urgent: bool = False) -> tuple[int, Job] | None:
        assert not is_urgent
        return (self.left.pop(), OwnJob()) if self.left else None


class Unpaced:
    """A route that takes everything."""

    retry = 0.0
    hold = 0.0
    idle_limit = float("inf")
    called = "The route"

    def most(self, size: int) -> int:
        return size

    def should_yield(self) -> bool:
        return False


def test_a_channel_that_is_not_smtps_needs_no_other_dispatcher() -> None:
    desk, office = Desk(50), PostOffice()
    dispatcher = Dispatcher(desk, desk, office, 4, Unpaced())
    dispatcher.do(0)
    dispatcher.close()
    assert sorted(desk.done) == list(range(50))
    assert sorted(office.heard) == sorted(b"%d" % number for number in range(50))
