"""The broker: any Dramatiq actor on the application's own PostgreSQL."""

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import dramatiq
import pytest
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import AsyncIO, MiddlewareError, Retries

from actors.queue.broker import BrokerUnreachable, PostgresBroker
from actors.queue.consumer import LONGEST_POLL, SHORTEST_POLL
from models import messages, workers
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.errors import DatabaseUnreachable
from tests.postgres import Connection, PostgresServer
from tests.waiting import wait_until


@pytest.fixture
def broker(database: Database) -> Iterator[PostgresBroker]:
    """A broker, and this process present as a worker."""
    broker = PostgresBroker(database, [Retries(min_backoff=10, max_backoff=50)])
    broker.worker_session.start()
    yield broker
    broker.worker_session.stop()


@pytest.fixture
def start_worker(broker: PostgresBroker) -> Iterator[Callable[[], dramatiq.Worker]]:
    started: list[dramatiq.Worker] = []
    broker.worker_session.stop()

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

    monkeypatch.setattr(FullScanThrottle, "is_due", False)
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


def test_what_was_only_prefetched_is_returned_at_once(broker: PostgresBroker, database: Database) -> None:
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
    assert workers.reap_dead(database, grace=0) == [], "a living worker is never called gone"
    worker_session = broker.worker_session
    worker_session._stop.set()
    worker_session._thread.join()  # type: ignore[union-attr]
    worker_session._connection.close()  # type: ignore[union-attr]
    wait_until(lambda: workers.reap_dead(database, grace=0), what="the death to be seen")
    messages.return_from_dead(database)
    assert states(database) == {"queued": 1}


def test_a_session_that_is_terminated_comes_back_before_anything_is_reclaimed(
    broker: PostgresBroker, database: Database
) -> None:
    worker_session = broker.worker_session
    before = worker_session.worker_id
    database.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    wait_until(lambda: not worker_session.is_proven() or worker_session._proven_at > 0)
    wait_until(lambda: worker_session.wait_until_proven(1))
    assert workers.reap_dead(database) == []
    assert worker_session.worker_id == before


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


def test_after_a_restart_each_send_of_a_pool_is_stored(own_server: PostgresServer) -> None:
    with own_server.fresh_database() as url:
        broker = PostgresBroker(url, [])

        @dramatiq.actor(broker=broker)
        def note(number: int) -> None: ...

        together = threading.Barrier(8)

        def hold() -> None:
            with broker.database.transaction() as cursor:
                cursor.execute("SELECT 1")
                together.wait()

        with ThreadPoolExecutor(8) as pool:
            for held in [pool.submit(hold) for _ in range(8)]:
                held.result()
        own_server.restart()
        for number in range(12):
            note.send(number)
        assert states(broker.database) == {"queued": 12}
        broker.database.close()


def test_a_send_whose_answer_is_lost_is_tried_once_more_and_stored_once(
    broker: PostgresBroker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    insert, tries = messages.insert_alone, []

    def insert_and_lose_the_answer(database: Database, message: messages.StoredMessage, *, again: bool = False) -> None:
        tries.append(again)
        insert(database, message, again=again)
        if not again:
            # A worker has it already.
            database.execute("UPDATE dramatiq.queue SET state = 'consumed', claim = 7")
            raise DatabaseUnreachable("lost")

    monkeypatch.setattr(messages, "insert_alone", insert_and_lose_the_answer)
    note.send()
    assert tries == [False, True]
    assert database.execute("SELECT state::text, claim FROM dramatiq.queue") == [("consumed", 7)]


def test_children_after_a_fork_send_on_connections_of_their_own(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note(number: int) -> None: ...

    note.send(0)
    # What a thread of the parent may hold at that moment, and no thread of the child will ever release.
    consumer = broker.consume("default", prefetch=1, timeout=10)
    children = []
    with consumer._changed, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(3):
            child = os.fork()
            if not child:
                for number in range(100):
                    note.send(number)
                os._exit(0)
            children.append(child)
    wait_until(lambda: states(database) == {"queued": 301}, timeout=30)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_async_actors_have_a_transaction_each(database: Database, url: str) -> None:
    broker = PostgresBroker(database, [Retries(max_retries=0), AsyncIO()])
    opened, seen = threading.Event(), threading.Event()
    done: list[str] = []

    @dramatiq.actor(broker=broker)
    def note(word: str) -> None:
        done.append(word)

    @dramatiq.actor(broker=broker)  # type: ignore[arg-type]  # Dramatiq annotates coroutines otherwise
    async def roll_back() -> None:
        with broker.database.transaction() as cursor:
            cursor.execute("SELECT 1")
            note.send("in the transaction that is rolled back")
            opened.set()
            await asyncio.to_thread(seen.wait)
            raise LookupError

    @dramatiq.actor(broker=broker)  # type: ignore[arg-type]
    async def send() -> None:
        await asyncio.to_thread(opened.wait)
        note.send("on its own")
        with broker.database.transaction() as cursor:
            cursor.execute("SELECT 1")
            note.send("in a transaction of its own")
            await asyncio.sleep(0)
        seen.set()

    roll_back.send()
    send.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=4)
    worker.start()
    wait_until(lambda: sorted(done) == ["in a transaction of its own", "on its own"])
    wait_until(lambda: states(database) == {"rejected": 1})
    worker.stop()
    assert len(done) == 2


def test_the_own_priority_of_a_message_counts_in_memory_too(
    broker: PostgresBroker, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    order: list[str] = []

    @dramatiq.actor(broker=broker, priority=0)
    def usual() -> None:
        time.sleep(0.01)
        order.append("usual")

    @dramatiq.actor(broker=broker, priority=100)
    def low() -> None:
        order.append("low")

    for _ in range(30):
        usual.send()
    for _ in range(3):
        low.send_with_options(priority=-5)
    start_worker()
    wait_until(lambda: len(order) == 33)
    # One of four threads takes the first usual one once the three are taken.
    assert {place for place, which in enumerate(order) if which == "low"} <= set(range(4))


def test_a_consumer_knows_when_the_delays_of_its_own_process_end(broker: PostgresBroker) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    consumer = broker.consume("default", prefetch=8, timeout=10)
    while consumer._poll.pause < LONGEST_POLL:
        assert next(consumer) is None
    began = time.monotonic()
    note.send_with_options(delay=20)
    note.send_with_options(delay=30)
    with broker.database.transaction():
        note.send_with_options(delay=40)
    assert len(consumer._moments) == 3
    consumer._poll.due_at = float("inf")
    for delay in 0.02, 0.03, 0.04:
        found = wait_until(lambda: next(consumer))
        assert found is not None
        assert time.monotonic() >= began + delay
    left = list(consumer._moments)
    note.send_with_options(delay=86_400_000)
    assert consumer._moments == left


def test_workers_of_one_process_are_independent(broker: PostgresBroker, database: Database) -> None:
    broker.worker_session.stop()
    done: list[int] = []

    @dramatiq.actor(broker=broker)
    def note(number: int) -> None:
        done.append(number)

    workers_ = [dramatiq.Worker(broker, worker_timeout=50, worker_threads=1) for _ in range(3)]
    for worker in workers_:
        worker.start()
    for number, worker in enumerate(workers_):
        note.send(number)
        wait_until(lambda: done == list(range(number + 1)) and states(database) == {})  # noqa: B023 - at once
        worker.stop()
    note.send(7)
    assert states(database) == {"queued": 1}
    again = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    again.start()
    wait_until(lambda: states(database) == {})
    again.stop()
    broker.worker_session.start()


def test_a_queue_that_nobody_declared_is_named(broker: PostgresBroker) -> None:
    message: dramatiq.Message[object] = dramatiq.Message("elsewhere", "note", (), {}, {})
    for action in (
        lambda: broker.enqueue(message),
        lambda: broker.join("elsewhere"),
        lambda: broker.flush("elsewhere"),
        lambda: broker.consume("elsewhere"),
    ):
        with pytest.raises(QueueNotFound, match="elsewhere"):
            action()
    broker.declare_queue("elsewhere")
    broker.enqueue(message)


def test_a_worker_sends_on_to_queues_of_other_processes(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker]
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None:
        broker.enqueue(dramatiq.Message("elsewhere", "theirs", (), {}, {}))

    note.send()
    start_worker()
    wait_until(lambda: database.execute("SELECT queue_name FROM dramatiq.queue") == [("elsewhere",)])


def test_only_a_worker_reads(database: Database) -> None:
    broker = PostgresBroker(database, [])
    broker.declare_queue("default")
    with pytest.raises(RuntimeError, match="worker"):
        broker.consume("default")
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    consumer = broker.consume("default")
    with pytest.raises(TypeError, match="Message"):
        consumer.nack(dramatiq.Message("default", "note", (), {}, {}))  # type: ignore[arg-type]
    worker.stop()
    with pytest.raises(RuntimeError, match="worker"):
        broker.consume("default")


def test_a_worker_does_not_start_on_a_database_that_has_not_seen_migrate(database: Database) -> None:
    database.execute("DROP SCHEMA duepost CASCADE")
    with pytest.raises(MiddlewareError, match="duepost migrate"):
        dramatiq.Worker(PostgresBroker(database, [])).start()


def test_what_a_consumer_is_told_to_look_for_is_looked_for_again_soon(broker: PostgresBroker) -> None:
    broker.declare_queue("default")
    consumer = broker.consume("default", prefetch=8, timeout=10)
    while consumer._poll.pause < LONGEST_POLL:
        assert next(consumer) is None
    broker.look_soon("default")
    assert next(consumer) is None
    assert consumer._poll.pause == 2 * SHORTEST_POLL
