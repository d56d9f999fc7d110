"""The broker: any Dramatiq actor on the application's own PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import dramatiq
import pytest
from dramatiq.middleware import Retries

from actors.broker import BrokerUnreachable, PostgresBroker
from actors.ration import Ration
from models import messages, workers
from models.database import Database
from tests.postgres import Connection
from tests.waiting import wait_until


@pytest.fixture
def broker(database: Database) -> Iterator[PostgresBroker]:
    """A broker, and this process present as a worker."""
    broker = PostgresBroker(database, [Retries(min_backoff=10, max_backoff=50)])
    broker.attendance.start()
    yield broker
    broker.attendance.stop()


@pytest.fixture
def start_worker(broker: PostgresBroker) -> Iterator[Callable[[], dramatiq.Worker]]:
    started: list[dramatiq.Worker] = []
    broker.attendance.stop()

    def start() -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=4)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()


def states(database: Database) -> dict[str, int]:
    return dict(database.execute("SELECT state::text, count(*) FROM dramatiq.queue GROUP BY state"))  # type: ignore[arg-type]


def test_a_message_reaches_its_actor_and_leaves_the_table(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    done: list[tuple[int, str]] = []

    @dramatiq.actor(broker=broker)
    def note(number: int, *, word: str) -> None:
        done.append((number, word))

    note.send(7, word="seven")
    start_worker()
    wait_until(lambda: done == [(7, "seven")])
    wait_until(lambda: states(database) == {})


def test_a_message_sent_inside_a_transaction_vanishes_with_it(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    def send_and_fail() -> None:
        with database.transaction():
            note.send()
            raise LookupError("after it was sent")

    with pytest.raises(LookupError):
        send_and_fail()
    assert states(database) == {}


def test_a_message_sent_inside_a_transaction_is_not_seen_before_the_commit(
    broker: PostgresBroker, database: Database, url: str
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    other = Database(url)
    with database.transaction():
        note.send()
        assert states(other) == {}
    assert states(other) == {"queued": 1}
    other.close()


def test_no_notify_is_sent(broker: PostgresBroker, connect: Callable[[], Connection]) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    listener = connect()
    listener.autocommit = True
    with listener.cursor() as cursor:
        cursor.execute('LISTEN "dramatiq.default.enqueue"')
        note.send()
        cursor.execute("SELECT 1")
    listener.poll()
    assert listener.notifies == []


def test_a_delayed_message_stays_in_the_table_until_it_is_due(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    done = threading.Event()

    @dramatiq.actor(broker=broker)
    def note() -> None:
        done.set()

    note.send_with_options(delay=3_600_000)
    worker = start_worker()
    assert [name for name in worker.consumers if name.endswith(".DQ")] == []
    assert not done.wait(0.3)
    assert states(database) == {"queued": 1}
    database.execute("UPDATE dramatiq.queue SET eta = now()")
    assert done.wait(10)


def test_a_failing_actor_is_retried_and_then_its_message_is_gone(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    calls: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=None)
    def fail_twice() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")

    fail_twice.send()
    start_worker()
    wait_until(lambda: len(calls) == 3)
    wait_until(lambda: states(database) == {})


def test_a_message_that_failed_for_good_is_a_dead_letter(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    @dramatiq.actor(broker=broker, max_retries=0)
    def fail() -> None:
        raise RuntimeError("never")

    fail.send()
    start_worker()
    wait_until(lambda: states(database) == {"rejected": 1})


def test_an_acknowledgement_commits_or_vanishes_with_the_work(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    seen: list[dict[str, int]] = []
    tries: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=None)
    def work() -> None:
        tries.append(1)
        with database.transaction() as cursor:
            broker.acknowledge(cursor)
            if len(tries) == 1:
                raise RuntimeError("rolled back")
        seen.append(states(database))

    work.send()
    start_worker()
    wait_until(lambda: seen == [{}])
    assert len(tries) == 2


def test_work_whose_claim_was_lost_is_rolled_back_and_done_by_the_next(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker], url: str
) -> None:
    database.execute("CREATE TABLE work (n integer)")
    tries: list[int] = []
    other = Database(url)

    @dramatiq.actor(broker=broker, max_retries=None)
    def work() -> None:
        tries.append(1)
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO work VALUES (%s)", (len(tries),))
            if len(tries) == 1:
                # As a server does that crashes before the claim is on disk.
                other.execute("UPDATE dramatiq.queue SET state = 'queued', worker_id = NULL, claim = NULL")
            broker.acknowledge(cursor)

    work.send()
    start_worker()
    wait_until(lambda: states(database) == {})
    assert database.execute("SELECT n FROM work") == [(2,)]
    other.close()


def test_what_is_sent_is_found_without_a_look_from_the_beginning(
    broker: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dramatiq.actor(broker=broker, priority=7)
    def note() -> None: ...

    monkeypatch.setattr(Ration, "is_due", False)
    consumer = broker.consume("default", prefetch=2, timeout=10)
    assert next(consumer) is None
    for _ in range(3):
        sent = note.send()
        found = wait_until(lambda: next(consumer))
        assert found is not None
        assert found.message_id == sent.message_id
        consumer.ack(found)


def test_no_more_than_prefetch_is_in_hand(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    for _ in range(10):
        note.send()
    consumer = broker.consume("default", prefetch=4, timeout=10)
    taken = [consumer.__next__() for _ in range(4)]
    assert consumer.__next__() is None
    assert states(database) == {"queued": 6, "consumed": 4}
    assert taken[0] is not None
    consumer.ack(taken[0])
    assert consumer.__next__() is not None


def test_what_was_only_prefetched_is_given_back_at_once(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    for _ in range(3):
        note.send()
    consumer = broker.consume("default", prefetch=8, timeout=10)
    first = consumer.__next__()
    assert first is not None
    consumer.close()
    assert states(database) == {"queued": 2, "consumed": 1}


def test_two_consumers_never_get_the_same_message(broker: PostgresBroker, database: Database, url: str) -> None:
    @dramatiq.actor(broker=broker)
    def note(number: int) -> None: ...

    with database.transaction():
        for number in range(200):
            note.send(number)

    def drain(_: int) -> list[int]:
        consumer = broker.consume("default", prefetch=1000, timeout=10)
        return [message.args[0] for message in iter(consumer.__next__, None)]

    with ThreadPoolExecutor(4) as pool:
        taken = [number for numbers in pool.map(drain, range(4)) for number in numbers]
    assert sorted(taken) == list(range(200))


def test_messages_come_oldest_first(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note(number: int) -> None: ...

    for number in range(20):
        note.send(number)
    consumer = broker.consume("default", prefetch=50, timeout=10)
    assert [message.args[0] for message in iter(consumer.__next__, None)] == list(range(20))


def test_there_is_one_advisory_lock_whatever_the_backlog(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    with database.transaction():
        for _ in range(500):
            note.send()
    consumer = broker.consume("default", prefetch=500, timeout=10)
    assert consumer.__next__() is not None
    assert database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(1,)]


def test_messages_of_a_worker_that_is_gone_are_claimable_again(
    broker: PostgresBroker, database: Database, url: str
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    note.send()
    consumer = broker.consume("default", prefetch=8, timeout=10)
    assert consumer.__next__() is not None
    assert workers.bury_the_dead(database, grace=0) == [], "a living worker is never called gone"
    attendance = broker.attendance
    attendance._stop.set()
    attendance._thread.join()  # type: ignore[union-attr]
    attendance._connection.close()  # type: ignore[union-attr]
    wait_until(lambda: workers.bury_the_dead(database, grace=0), what="the death to be seen")
    messages.give_back_of_the_gone(database)
    assert states(database) == {"queued": 1}


def test_a_session_that_is_terminated_comes_back_before_anything_is_reclaimed(
    broker: PostgresBroker, database: Database
) -> None:
    attendance = broker.attendance
    before = attendance.worker_id
    database.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    wait_until(lambda: not attendance.is_proven() or attendance._proven_at > 0)
    wait_until(lambda: attendance.wait_until_proven(1))
    assert workers.bury_the_dead(database) == []
    assert attendance.worker_id == before


def test_enqueueing_without_a_database_says_so() -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/nothing")
    broker = PostgresBroker(away, [])

    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    with pytest.raises(BrokerUnreachable):
        note.send()


def test_a_tick_is_enqueued_once_however_many_ask(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def tick() -> None: ...

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: broker.enqueue_unless_one_waits(tick.message()), range(8)))
    assert answers.count(True) == 1
    assert states(database) == {"queued": 1}


def test_a_tick_is_seen_by_a_transaction_that_began_before_it(
    broker: PostgresBroker, database: Database, url: str
) -> None:
    @dramatiq.actor(broker=broker)
    def tick() -> None: ...

    earlier = Database(url)
    with earlier.transaction() as cursor:
        cursor.execute("SELECT now()")
        assert broker.enqueue_unless_one_waits(tick.message())
        _, stored = broker._prepare(tick.message(), None)
        assert not messages.insert_unless_one_waits(cursor, stored(), "tick")
    earlier.close()
