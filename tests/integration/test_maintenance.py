"""A worker process says that it makes progress, and ends if it does not while work is due."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import dramatiq
import pytest

from actors.liveness.maintenance import TOO_OLD, WEDGED, Maintenance, Patience
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import PostgresConsumer
from models import messages, workers
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.messages import StoredMessage
from tests.waiting import wait_until


@pytest.fixture
def broker(database: Database) -> Iterator[PostgresBroker]:
    broker = PostgresBroker(database, [])
    broker.worker_session.start()
    yield broker
    broker.worker_session.stop()


@pytest.fixture
def consumer(broker: PostgresBroker) -> PostgresConsumer:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    return broker.consume("default", prefetch=2, timeout=10)


@pytest.fixture
def ended() -> list[int]:
    """The exit statuses with which the process would have ended."""
    return []


@pytest.fixture
def maintenance(broker: PostgresBroker, database: Database, ended: list[int]) -> Maintenance:
    return Maintenance(
        database,
        broker.worker_session,
        broker.progress,
        patience=Patience(idle=60, busy=600),
        dead_letters_kept=timedelta(days=7),
        retire=lambda: ended.append(TOO_OLD),
        end=ended.append,
    )


def let_time_pass(maintenance: Maintenance, broker: PostgresBroker, seconds: float) -> None:
    """Moves the monotonic times back: as if nothing had happened for so long."""
    assert broker.worker_session.wait_until_proven(10)
    maintenance.stamp_or_end()
    assert maintenance._proven_since is not None
    maintenance._proven_since -= seconds
    broker.progress.moved_at -= seconds
    for consumer in broker.consumers.values():
        consumer.looked_at -= seconds


def send(broker: PostgresBroker, count: int = 1, *, waiting_for: float = 0) -> None:
    for _ in range(count):
        broker.actors["note"].send()
    broker.database.execute(
        "UPDATE dramatiq.queue SET eta = eta - make_interval(secs => %(seconds)s)", {"seconds": waiting_for}
    )


def test_a_process_that_reads_its_queue_stamps_its_progress(
    broker: PostgresBroker, database: Database, maintenance: Maintenance, consumer: PostgresConsumer, ended: list[int]
) -> None:
    database.execute("UPDATE duepost.worker SET progressed_at = now() - interval '1 h'")
    assert next(consumer) is None
    assert broker.worker_session.wait_until_proven(10)
    maintenance.stamp_or_end()
    assert database.execute("SELECT now() - progressed_at < interval '1 min' FROM duepost.worker") == [(True,)]
    assert ended == []


def test_a_process_that_leaves_messages_waiting_ends(
    broker: PostgresBroker, maintenance: Maintenance, consumer: PostgresConsumer, ended: list[int]
) -> None:
    let_time_pass(maintenance, broker, 61)
    send(broker, waiting_for=61)
    maintenance.stamp_or_end()
    assert ended == [WEDGED]


def test_a_process_with_nothing_to_do_does_not_end(
    broker: PostgresBroker, maintenance: Maintenance, consumer: PostgresConsumer, ended: list[int]
) -> None:
    let_time_pass(maintenance, broker, 3600)
    maintenance.stamp_or_end()
    send(broker, waiting_for=1)
    maintenance.stamp_or_end()
    assert ended == []


def test_a_process_whose_hands_are_full_may_take_its_time_but_not_for_ever(
    broker: PostgresBroker, maintenance: Maintenance, consumer: PostgresConsumer, ended: list[int]
) -> None:
    send(broker, 5, waiting_for=3600)
    assert next(consumer) is not None
    let_time_pass(maintenance, broker, 599)
    maintenance.stamp_or_end()
    assert ended == []
    let_time_pass(maintenance, broker, 2)
    maintenance.stamp_or_end()
    assert ended == [WEDGED]


def test_a_process_that_was_cut_off_is_given_its_time_again(
    broker: PostgresBroker, maintenance: Maintenance, consumer: PostgresConsumer, ended: list[int]
) -> None:
    let_time_pass(maintenance, broker, 61)
    send(broker, waiting_for=61)
    broker.worker_session._proven_at = -float("inf")
    maintenance._stalled()
    wait_until(broker.worker_session.is_proven)
    maintenance.stamp_or_end()
    assert ended == []


def test_a_process_whose_session_is_lost_stamps_nothing(
    broker: PostgresBroker, database: Database, maintenance: Maintenance, consumer: PostgresConsumer
) -> None:
    database.execute("UPDATE duepost.worker SET progressed_at = now() - interval '1 h'")
    broker.worker_session.is_proven = lambda: False  # type: ignore[method-assign]
    maintenance.stamp_or_end()
    assert database.execute("SELECT now() - progressed_at < interval '1 min' FROM duepost.worker") == [(False,)]


def test_messages_of_a_process_whose_session_ended_are_returned_after_the_grace_and_not_before(
    broker: PostgresBroker, database: Database, maintenance: Maintenance, url: str
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    other = Database(url)
    session = other.connect()
    worker_id = workers.register(session, workers.Process("elsewhere", 1))
    note.send()
    assert len(messages.claim(database, "default", 5, worker_id)[0]) == 1

    def state() -> object:
        maintenance.reap()
        return database.execute("SELECT state::text FROM dramatiq.queue")

    assert state() == [("consumed",)]
    session.close()
    wait_until(lambda: database.execute("SELECT 1 FROM pg_locks WHERE objid = %(id)s", {"id": worker_id}) == [])
    assert state() == [("consumed",)]
    database.execute(
        "UPDATE duepost.worker SET missing_since = missing_since - interval '3 s' WHERE id = %(id)s", {"id": worker_id}
    )
    assert state() == [("queued",)]


def test_old_dead_letters_and_results_are_purged(
    broker: PostgresBroker, database: Database, maintenance: Maintenance, consumer: PostgresConsumer
) -> None:
    send(broker, 2)
    database.execute("UPDATE dramatiq.queue SET state = 'rejected', mtime = now() - interval '6 d'")
    messages.store_result(database, "old", b"1", -1)
    messages.store_result(database, "new", b"1", 60)
    maintenance.purge()
    assert database.execute("SELECT count(*) FROM dramatiq.queue") == [(2,)]
    assert database.execute("SELECT message_key FROM dramatiq.result") == [("new",)]
    database.execute("UPDATE dramatiq.queue SET mtime = now() - interval '8 d'")
    maintenance.purge()
    assert database.execute("SELECT count(*) FROM dramatiq.queue") == [(0,)]


def acknowledge_twenty(broker: PostgresBroker, consumer: PostgresConsumer) -> None:
    taken = [next(consumer) for _ in range(20)]
    threads = [threading.Thread(target=consumer.ack, args=(message,)) for message in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_acknowledgements_share_a_statement_and_are_written_at_the_end(
    broker: PostgresBroker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    written: list[int] = []
    acknowledge = messages.acknowledge_alone

    def count(database: Database, claims: list[messages.Claim]) -> None:
        written.append(len(claims))
        acknowledge(database, claims)

    monkeypatch.setattr(messages, "acknowledge_alone", count)
    send(broker, 41)
    consumer = broker.consume("default", prefetch=20, timeout=10)
    acknowledge_twenty(broker, consumer)
    assert written == []
    acknowledge_twenty(broker, consumer)
    assert written == [20]
    consumer.close()
    assert written == [20, 20]
    assert database.execute("SELECT state::text FROM dramatiq.queue") == [("queued",)]


def test_an_acknowledgement_of_a_claim_that_has_passed_on_changes_nothing(
    broker: PostgresBroker, database: Database, consumer: PostgresConsumer
) -> None:
    send(broker)
    stale = next(consumer)
    assert stale is not None
    database.execute("UPDATE dramatiq.queue SET state = 'queued', claim = NULL, worker_id = NULL")
    [again], *_ = messages.claim(database, "default", 5, broker.worker_session.worker_id)
    assert again.claim.number > stale.claim.number
    consumer.ack(stale)
    consumer.close()
    consumer.nack(stale)
    consumer.requeue([stale])
    assert database.execute("SELECT state::text, claim FROM dramatiq.queue") == [("consumed", again.claim.number)]


def test_a_message_is_not_begun_once_its_claim_may_have_passed_on(broker: PostgresBroker, database: Database) -> None:
    begun: list[int] = []

    @dramatiq.actor(broker=broker)
    def note() -> None:
        begun.append(1)

    def skips(change: Callable[[], None]) -> bool:
        note.send()
        consumer = broker.consume("default", prefetch=1, timeout=10)
        message = next(consumer)
        assert message is not None
        change()
        with pytest.raises(dramatiq.middleware.SkipMessage):
            broker.emit_before("process_message", message)
        consumer.ack(message)
        consumer.close()
        return database.execute("SELECT state::text FROM dramatiq.queue") == [("consumed",)]

    def register_again() -> None:
        broker.worker_session._worker_id = broker.worker_session.worker_id + 1000

    assert skips(register_again), "it stays with the worker that was called gone, until that is returned"
    database.execute("TRUNCATE dramatiq.queue")

    def lose_the_session_while_stopping() -> None:
        broker.worker_session.wait_until_proven = lambda timeout: False  # type: ignore[method-assign]
        broker.worker_session.is_proven = lambda: False  # type: ignore[method-assign]
        broker.stopping.set()

    assert skips(lose_the_session_while_stopping)
    assert begun == []


def test_what_was_claimed_in_an_answer_that_never_arrived_is_returned_and_nothing_else(
    broker: PostgresBroker, database: Database, consumer: PostgresConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(broker, 3)
    first = next(consumer)
    second = next(consumer)
    assert first is not None
    assert second is not None
    consumer._prefetch = 5
    claim = messages.claim

    def lose_the_answer(*arguments: object, **options: object) -> None:
        claimed, *_ = claim(*arguments, **options)  # type: ignore[arg-type]
        assert claimed
        raise DatabaseUnreachable("the network is cut")

    with monkeypatch.context() as patch:
        patch.setattr(messages, "claim", lose_the_answer)
        assert wait_until(lambda: next(consumer) is None and consumer._away)
    assert database.execute("SELECT count(*) FROM dramatiq.queue WHERE state = 'consumed'") == [(3,)]
    found = wait_until(lambda: next(consumer))
    assert found is not None
    assert found.message_id not in {first.message_id, second.message_id}
    assert len(consumer.in_hand) == 3


def test_when_the_clock_goes_back_nothing_waits_for_it_to_come_round_again(
    maintenance: Maintenance, consumer: PostgresConsumer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages.insert_alone(database, StoredMessage(str(uuid4()), "default", "{}"))
    messages.insert_alone(database, StoredMessage(str(uuid4()), "default", "{}", delay=600))
    database.execute(
        "INSERT INTO duepost.item (id, kind, scheduled_at, due_at, last_error)"
        " VALUES (1, 'k', now() - interval '2 h', now() + interval '63 min', 'rate: waits for the rate of x: 1')"
    )
    maintenance.follow_the_clock()
    # What an hour back makes of what was written before it.
    database.execute("UPDATE dramatiq.queue SET eta = eta + interval '1 h', mtime = mtime + interval '1 h'")
    clock = messages.clock
    maintenance.follow_the_clock()
    assert next(consumer) is None
    monkeypatch.setattr(messages, "clock", lambda database: clock(database) - 3600)
    maintenance.follow_the_clock()
    waits = database.execute(
        "SELECT round(extract(epoch FROM eta - now()) / 60)::integer FROM dramatiq.queue ORDER BY eta"
    )
    assert waits == [(0,), (10,)]
    assert database.execute("SELECT round(extract(epoch FROM due_at - now()) / 60)::integer FROM duepost.item") == [
        (3,)
    ]


def test_a_process_that_has_become_too_old_is_told_to_end_once(
    database: Database, maintenance: Maintenance, ended: list[int]
) -> None:
    maintenance.retire_if_too_old()
    assert ended == []
    database.execute("UPDATE duepost.migration SET oldest_worker = 9001 WHERE number = 1")
    maintenance.retire_if_too_old()
    maintenance.retire_if_too_old()
    assert ended == [TOO_OLD]


def test_maintenance_goes_on_whatever_one_of_its_turns_fails_of(
    maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ended: list[int]
) -> None:
    def fail(_: Database) -> float:
        raise ValueError("a row that cannot be read")

    monkeypatch.setattr(messages, "clock", fail)
    maintenance.start()
    wait_until(lambda: "Maintenance failed with ValueError, and tries again." in caplog.messages)
    maintenance.stop()
    assert ended == []
