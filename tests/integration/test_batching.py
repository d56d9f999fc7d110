"""Messages that join an actor's batch are messages like any other."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import dramatiq
import psycopg2
import pytest
from dramatiq.middleware import AgeLimit, Retries

from actors.delivery.attempt import EmailAttempt
from actors.delivery.job import OwnJob
from actors.queue.batching import BatchedMessage
from actors.queue.broker import PostgresBroker
from models.database.connections import Database
from tests.app_harness import Harness
from tests.waiting import wait_until


class Told(dramatiq.Middleware):
    """Middleware that notes what it is told."""

    def __init__(self) -> None:
        self.of: list[str] = []

    def before_process_message(self, _broker: dramatiq.Broker, message: dramatiq.Message[object]) -> None:
        self.of.append(f"before {message.args[0]}")

    def after_process_message(
        self,
        _broker: dramatiq.Broker,
        message: dramatiq.Message[object],
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        self.of.append(f"after {message.args[0]}" + (f": {type(exception).__name__}" if exception else ""))


@dataclass
class Table:
    """A worker with one thread, and an actor that takes whoever waits into its batch."""

    broker: PostgresBroker
    told: Told
    worker: dramatiq.Worker | None = None
    may_go_on: threading.Event = field(default_factory=threading.Event)
    served: list[object] = field(default_factory=list)
    do: Callable[[BatchedMessage], None] = BatchedMessage.end

    def serve(self, guest: object) -> None:
        assert self.may_go_on.wait(30)
        batch = []
        while batched := self.broker.next_batched("serve"):
            batch.append(batched)
        self.served.append(guest)
        for each in batch:
            self.served.append(each.message.args[0])
            self.do(each)

    def invite(self, guests: Sequence[object], **options: object) -> None:
        """All are there before the first one is served."""
        actor = self.broker.get_actor("serve")
        for guest in guests:
            actor.send_with_options(args=(guest,), **options)
        self.worker = dramatiq.Worker(self.broker, worker_timeout=50, worker_threads=1)
        self.worker.start()
        waiting = self.worker.work_queue
        wait_until(lambda: waiting.qsize() == len(guests) - 1)
        self.may_go_on.set()


@pytest.fixture
def table(database: Database) -> Iterator[Table]:
    told = Told()
    broker = PostgresBroker(database, [AgeLimit(), Retries(min_backoff=10, max_backoff=50), told])
    table = Table(broker, told)
    dramatiq.actor(table.serve, broker=broker, actor_name="serve", batch=10)
    yield table
    if table.worker is not None:
        table.worker.stop()


def states(database: Database) -> dict[object, object]:
    return dict(database.execute("SELECT state::text, count(*) FROM dramatiq.queue GROUP BY 1"))  # type: ignore[arg-type]


def test_what_waits_in_memory_joins_the_batch_with_the_middleware_around_each(table: Table, database: Database) -> None:
    table.invite([1, 2, 3, 4, 5])
    wait_until(lambda: states(database) == {})
    assert table.served == [1, 2, 3, 4, 5]
    assert table.told.of == [
        "before 1", "before 2", "before 3", "before 4", "before 5",
        "after 2", "after 3", "after 4", "after 5", "after 1",
    ]  # fmt: skip


def test_its_own_message_is_the_current_one(table: Table, database: Database) -> None:
    seen: list[object] = []

    def look() -> None:
        message = table.broker.message_in_process
        seen.append(message and message.args[0])

    def do(batched: BatchedMessage) -> None:
        batched.run(look)
        batched.end()

    table.do = do
    table.invite([1, 2, 3])
    wait_until(lambda: states(database) == {})
    assert seen == [2, 3]


def test_one_that_fails_is_retried_and_the_others_are_done(table: Table, database: Database) -> None:
    def do(batched: BatchedMessage) -> None:
        is_first_time = "retries" not in batched.message.options
        batched.end(ArithmeticError() if batched.message.args[0] == 2 and is_first_time else None)

    table.do = do
    table.invite([1, 2, 3])
    wait_until(lambda: states(database) == {})
    assert sorted(table.served, key=str) == [1, 2, 2, 3]
    assert "after 2: ArithmeticError" in table.told.of
    assert "after 2" in table.told.of


def test_one_that_the_middleware_skips_is_not_begun(table: Table, database: Database) -> None:
    table.invite([1, 2], max_age=60_000)
    wait_until(lambda: states(database) == {})
    assert table.served == [1, 2]
    assert table.worker is not None
    table.worker.stop()
    table.may_go_on.clear()
    # The first is young enough when it is begun; the others are too old when it is their turn.
    table.served.clear()
    actor = table.broker.get_actor("serve")
    actor.send(3)
    actor.send_with_options(args=(4,), max_age=1)
    table.worker = dramatiq.Worker(table.broker, worker_timeout=50, worker_threads=1)
    table.worker.start()
    waiting = table.worker.work_queue
    wait_until(lambda: waiting.qsize() == 1)
    time.sleep(0.01)
    table.may_go_on.set()
    wait_until(lambda: states(database) == {"rejected": 1})
    assert table.served == [3]


def test_another_actors_message_is_left_to_the_next_thread(table: Table, database: Database) -> None:
    others: list[int] = []

    @dramatiq.actor(broker=table.broker, priority=-1)
    def urgent(number: int) -> None:
        others.append(number)

    actor = table.broker.get_actor("serve")
    actor.send(1)
    table.worker = dramatiq.Worker(table.broker, worker_timeout=50, worker_threads=1)
    table.worker.start()
    wait_until(lambda: "before 1" in table.told.of)
    actor.send(2)
    urgent.send(9)
    waiting = table.worker.work_queue
    wait_until(lambda: waiting.qsize() == 2)
    table.may_go_on.set()
    wait_until(lambda: states(database) == {})
    assert table.told.of.index("before 9") < table.told.of.index("before 2")
    assert others == [9]


def test_a_refusal_is_taken_apart_and_is_nobody_elses(harness: Harness) -> None:
    ids = [harness.schedule(kind=kind) for kind in ("welcome", "refused", "welcome")]
    harness.enqueue()
    harness.query(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''refused''; END';
        CREATE TRIGGER refuse BEFORE INSERT ON duepost.delivery FOR EACH ROW WHEN (NEW.kind = 'refused')
        EXECUTE FUNCTION refuse()
        """
    )
    jobs = [OwnJob() for _ in ids]
    senders = harness.app.routes["default"].email_work
    works = senders.claim(list(zip(ids, jobs, strict=True)))
    for work in works:
        assert isinstance(work.attempt, EmailAttempt)
        work.attempt.judged.extend(harness.deliveries(work.attempt.item))
    for left in senders.conclude(works):
        senders.conclude_alone(left)
    assert [harness.ledger(email_id) for email_id in ids] == [["sent"], [], ["sent"]]
    jobs[0].wait()
    jobs[2].wait()
    with pytest.raises(psycopg2.errors.RaiseException):
        jobs[1].wait()
