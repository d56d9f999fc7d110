"""A message whose thread has gone on is a message like any other, until its own end."""

import contextvars
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import dramatiq
import pytest
from dramatiq.middleware import Retries

from actors.queue.batching import BatchedMessage
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import LeftToOthers
from models.database.connections import Database
from tests.waiting import wait_until

IN_PROCESS: contextvars.ContextVar[object] = contextvars.ContextVar("IN_PROCESS", default=None)


class Keeping(dramatiq.Middleware):
    """Middleware that keeps something of a message in its context, and takes it back at the end, as Sentry's does."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._tokens: dict[str, contextvars.Token[object]] = {}

    def before_process_message(self, _broker: dramatiq.Broker, message: dramatiq.Message[object]) -> None:
        self._tokens[message.message_id] = IN_PROCESS.set(message.args[0])
        self.told.append(f"before {message.args[0]}")

    def after_process_message(
        self,
        _broker: dramatiq.Broker,
        message: dramatiq.Message[object],
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        assert IN_PROCESS.get() == message.args[0]
        # In another context than the one that it was set in, this raises ValueError.
        IN_PROCESS.reset(self._tokens.pop(message.message_id))
        self.told.append(f"after {message.args[0]}" + (f": {type(exception).__name__}" if exception else ""))


@dataclass
class Desk:
    """A worker with one thread, and an actor that leaves each message to somebody else."""

    broker: PostgresBroker
    keeping: Keeping
    left: dict[object, BatchedMessage] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    worker: dramatiq.Worker | None = None

    def leave(self, guest: object) -> None:
        assert IN_PROCESS.get() is None, "the thread keeps nothing of its messages"
        self.threads.add(threading.get_ident())
        job = self.broker.detach()
        assert job is not None
        self.left[guest] = job
        raise LeftToOthers

    def take(self, *guests: object) -> None:
        actor = self.broker.get_actor("leave")
        for guest in guests:
            actor.send(guest)
        if self.worker is None:
            self.worker = dramatiq.Worker(self.broker, worker_timeout=50, worker_threads=1)
            self.worker.start()
        wait_until(lambda: set(guests) <= self.left.keys(), state=lambda: self.left)

    @property
    def unfinished(self) -> int:
        assert self.worker is not None
        return int(self.worker.work_queue.unfinished_tasks)


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    keeping = Keeping()
    broker = PostgresBroker(database, [Retries(max_retries=1, min_backoff=10, max_backoff=50), keeping])
    desk = Desk(broker, keeping)
    dramatiq.actor(desk.leave, broker=broker, actor_name="leave", detaches=True, batch=8)
    yield desk
    if desk.worker is not None:
        desk.worker.stop()


def states(database: Database) -> dict[object, object]:
    return dict(database.execute("SELECT state::text, count(*) FROM dramatiq.queue GROUP BY 1"))  # type: ignore[arg-type]


def test_one_thread_takes_the_next_message_while_those_before_are_worked_on(desk: Desk, database: Database) -> None:
    desk.take(1, 2, 3)
    assert len(desk.threads) == 1
    assert states(database) == {"consumed": 3}
    assert desk.keeping.told == ["before 1", "before 2", "before 3"]
    wait_until(lambda: desk.unfinished == 3, what="the thread to go on")
    for job in desk.left.values():
        job.end()
    wait_until(lambda: states(database) == {})
    assert desk.keeping.told[3:] == ["after 1", "after 2", "after 3"]
    assert desk.unfinished == 0


def test_its_own_message_is_the_current_one_in_whatever_thread(desk: Desk) -> None:
    seen: list[object] = []

    def look() -> None:
        message = desk.broker.message_in_process
        seen.append(message and message.args[0])

    desk.take(1, 2)
    for job in desk.left.values():
        job.run(look)
        job.end()
    assert seen == [1, 2]


def test_one_that_fails_is_retried_and_the_others_are_done(desk: Desk, database: Database) -> None:
    desk.take(1, 2)
    first = desk.left.pop(1)
    first.end(ArithmeticError())
    desk.left.pop(2).end()
    wait_until(lambda: 1 in desk.left, what="the retry")
    desk.left.pop(1).end()
    wait_until(lambda: states(database) == {})
    assert desk.keeping.told.count("before 1") == 2
    assert "after 1: ArithmeticError" in desk.keeping.told


def test_one_that_fails_for_good_is_a_dead_letter_with_its_failure(desk: Desk, database: Database) -> None:
    desk.take(1)
    desk.left.pop(1).end(ArithmeticError())
    wait_until(lambda: 1 in desk.left, what="the retry")
    desk.left.pop(1).end(ArithmeticError())
    wait_until(lambda: states(database) == {"rejected": 1})
    assert database.execute("SELECT message #>> '{options,failure}' FROM dramatiq.queue") == [("ArithmeticError",)]


def test_one_that_ends_before_its_thread_has_gone_on_ends_once(
    desk: Desk, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach = desk.broker.detach

    def detach_and_end() -> BatchedMessage | None:
        job = detach()
        assert job is not None
        job.end(ArithmeticError() if desk.keeping.told.count("before 1") == 1 else None)
        return job

    monkeypatch.setattr(desk.broker, "detach", detach_and_end)
    desk.take(1)
    wait_until(lambda: states(database) == {})
    assert desk.keeping.told == ["before 1", "after 1: ArithmeticError", "before 1", "after 1"]
    wait_until(lambda: desk.unfinished == 0)
