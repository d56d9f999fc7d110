"""Who is there: no other login makes the living look dead, or the dead alive."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from uuid import uuid4

import psycopg2
import pytest

from actors.liveness.worker_session import WorkerSession
from actors.queue.broker import SESSION_LIMITS
from models import messages, watching, workers
from models.database import advisory_locks
from models.database.connections import Connection as Session
from models.database.connections import Database
from models.messages import StoredMessage
from models.workers import Process
from tests.postgres import Connection, PostgresServer
from tests.waiting import wait_until

CLIENT, WORKER, COLLEAGUE = "presence_client", "presence_worker", "presence_colleague"

#: What workers of release 0.1 go by.
WORKERS_LOCK = advisory_locks.WORKER
WATCH_AND_TICK_LOCK = advisory_locks.ROLE


@pytest.fixture(scope="module")
def logins(each_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server with a client and two logins for workers; none of them sees what the others do."""
    with each_server.fresh_database():
        pass
    for login, role in ((CLIENT, "duepost_client"), (WORKER, "duepost_worker"), (COLLEAGUE, "duepost_worker")):
        each_server.execute(f"CREATE ROLE {login} LOGIN IN ROLE {role}")
    yield each_server
    for login in (CLIENT, WORKER, COLLEAGUE):
        each_server.execute(f"DROP ROLE {login}")


@pytest.fixture
def open_as(logins: PostgresServer, each_url: str) -> Iterator[Callable[[str], Database]]:
    """Duepost's way to the database, as one of the logins."""
    with ExitStack() as stack:

        def open_as(login: str) -> Database:
            database = Database(each_url.replace("postgres@", f"{login}@", 1), limits=SESSION_LIMITS)
            stack.callback(database.close)
            return database

        yield open_as


@pytest.fixture
def client(logins: PostgresServer, each_url: str) -> Iterator[Connection]:
    """A session of an application, which may do no more than schedule and clear."""
    with closing(psycopg2.connect(each_url.replace("postgres@", f"{CLIENT}@", 1))) as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture
def worker(open_as: Callable[[str], Database]) -> Database:
    return open_as(WORKER)


@pytest.fixture(params=[WORKER, COLLEAGUE])
def watcher(request: pytest.FixtureRequest, open_as: Callable[[str], Database]) -> Database:
    """Who looks for the dead: under the worker's own login, and under another one, which is not shown as much."""
    return open_as(request.param)


def lock(client: Connection, numbers: str, key: int = WORKERS_LOCK) -> None:
    with client.cursor() as cursor:
        cursor.execute(f"SELECT pg_try_advisory_lock({key}, number) FROM {numbers} AS number")


def wait_for_lock(client: Connection, worker_id: int) -> threading.Thread:
    """Waits for a worker's lock, in a thread of its own, as long as it takes."""

    def wait() -> None:
        with client.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (WORKERS_LOCK, worker_id))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting


def end(session: Session, watcher: Database) -> None:
    """Ends a worker's session, and waits until the server has seen it."""
    pid = session.info.backend_pid
    session.close()
    ended = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %(pid)s)"
    wait_until(lambda: watcher.execute(ended, {"pid": pid}) == [(True,)])


def reaped(watcher: Database) -> list[int]:
    return workers.reap_dead(watcher, grace=0, grace_after_restart=0)


def test_a_worker_is_there_while_its_session_is_and_not_after(worker: Database, watcher: Database) -> None:
    session = worker.connect()
    worker_id = workers.register(session, Process("here", 1))
    assert (workers.present(watcher), reaped(watcher)) == (1, [])
    end(session, watcher)
    assert workers.present(watcher) == 0, "also before anyone has called it gone"
    assert reaped(watcher) == [worker_id]


def test_numbers_whose_locks_somebody_holds_are_passed_over(
    worker: Database, watcher: Database, client: Connection
) -> None:
    lock(client, "generate_series(1, 40)")
    session = worker.connect()
    worker_id = workers.register(session, Process("here", 1))
    assert worker_id == 41
    client.close()
    assert reaped(watcher) == []
    assert watcher.execute("SELECT id FROM duepost.worker") == [(worker_id,)]
    end(session, watcher)
    assert reaped(watcher) == [worker_id]


def test_who_waits_for_a_living_workers_lock_does_not_make_it_live_on(
    worker: Database, watcher: Database, client: Connection
) -> None:
    session = worker.connect()
    worker_id = workers.register(session, Process("here", 1))
    waiting = wait_for_lock(client, worker_id)
    wait_until(lambda: watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted") != [])
    assert reaped(watcher) == []
    end(session, watcher)
    waiting.join(timeout=20)
    assert workers.present(watcher) == 0
    assert reaped(watcher) == [worker_id]


def test_a_worker_whose_lock_was_taken_while_it_was_away_comes_back_under_its_own_number(
    worker: Database, watcher: Database, client: Connection, open_as: Callable[[str], Database]
) -> None:
    worker_session = WorkerSession(open_as(WORKER))
    worker_session.start()
    try:
        worker_id = worker_session.worker_id
        waiting = wait_for_lock(client, worker_id)
        wait_until(lambda: watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted") != [])
        first = f"SELECT session_pid FROM duepost.worker WHERE id = {worker_id}"
        [(pid,)] = watcher.execute(first)
        assert worker.execute("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid}) == [(True,)]
        waiting.join(timeout=20)
        wait_until(
            lambda: watcher.execute(first) != [(pid,)] and worker_session.is_proven(), what="the worker to be back"
        )
        assert worker_session.worker_id == worker_id
        client.close()
        assert reaped(watcher) == []
    finally:
        worker_session.stop()


def test_a_back_end_that_is_given_a_dead_workers_number_is_not_that_worker(
    worker: Database, watcher: Database, client: Connection
) -> None:
    session = worker.connect()
    worker_id = workers.register(session, Process("here", 1))
    end(session, watcher)
    others = [client, worker.connect()]
    lock(client, f"generate_series({worker_id}, {worker_id})")
    for other in others:
        watcher.execute("UPDATE duepost.worker SET session_pid = %(pid)s", {"pid": other.info.backend_pid})
        assert workers.present(watcher) == 0
    assert reaped(watcher) == [worker_id]
    for other in others:
        other.close()


def test_a_session_that_was_noted_before_the_server_started_counts_no_more(worker: Database, watcher: Database) -> None:
    session = worker.connect()
    workers.register(session, Process("here", 1))
    watcher.execute("UPDATE duepost.worker SET server_started_at = server_started_at - interval '1 h'")
    assert workers.present(watcher) == 0
    session.close()


def test_workers_of_release_0_1_are_there_as_long_as_their_lock_is_held(worker: Database, watcher: Database) -> None:
    session = worker.connect()
    with session.cursor() as cursor:
        cursor.execute("INSERT INTO duepost.worker (host, pid) VALUES ('old', 1) RETURNING id")
        [worker_id] = cursor.fetchone() or (0,)
        assert workers.present(watcher) == 0
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (WORKERS_LOCK, worker_id))
    assert (workers.present(watcher), reaped(watcher)) == (1, [])
    end(session, watcher)
    assert reaped(watcher) == [worker_id]


def test_workers_of_release_0_1_see_by_the_lock_that_a_worker_is_there(worker: Database, watcher: Database) -> None:
    session = worker.connect()
    worker_id = workers.register(session, Process("here", 1))
    held = (
        "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted"
        f" AND classid = {WORKERS_LOCK} AND objsubid = 2"
    )
    assert watcher.execute(held) == [(worker_id,)]
    session.close()


# Watch and tick ------------------------------------------------------------------------------------------------------


def test_a_watch_acts_although_somebody_holds_its_lock(worker: Database, client: Connection) -> None:
    lock(client, "generate_series(0, 2)", WATCH_AND_TICK_LOCK)
    session = worker.connect()
    assert watching.lead(session)
    session.close()


def test_of_two_watches_one_acts_until_its_session_ends(worker: Database, watcher: Database) -> None:
    first, second = worker.connect(), watcher.connect()
    assert watching.lead(first)
    assert not watching.lead(second)
    end(first, watcher)
    assert watching.lead(second)
    second.close()


def test_of_watches_that_begin_at_once_one_acts(worker: Database, watcher: Database) -> None:
    for _ in range(5):
        sessions = [each.connect() for each in (worker, watcher) for _ in range(3)]
        with ThreadPoolExecutor(len(sessions)) as pool:
            assert sum(pool.map(watching.lead, sessions)) == 1
        for session in sessions:
            end(session, watcher)


def test_a_tick_comes_although_somebody_holds_its_lock_and_racing_ones_are_one(
    worker: Database, client: Connection, open_as: Callable[[str], Database]
) -> None:
    lock(client, "generate_series(0, 2)", WATCH_AND_TICK_LOCK)
    asking = [open_as(WORKER) for _ in range(4)]

    def tick(database: Database) -> bool:
        message = StoredMessage(str(uuid4()), "q", '{"actor_name": "a"}')
        with database.transaction() as cursor:
            return messages.insert_unless_one_waits(cursor, message, "a")

    with ThreadPoolExecutor(len(asking)) as pool:
        assert sum(pool.map(tick, asking)) == 1
