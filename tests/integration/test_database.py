"""Connections and durable transactions."""

import asyncio
import gc
import os
import resource
import select
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg2
import pytest

from models.database.connections import Database, Limits
from models.errors import DatabaseUnreachable, NestedTransaction
from tests.namespaces import Namespace, NamespaceNetwork
from tests.network import Network
from tests.postgres import PostgresServer
from tests.waiting import wait_until


@pytest.fixture
def other(url: str) -> Iterator[Database]:
    other = Database(url)
    yield other
    other.close()


def test_a_transaction_inside_another_is_refused(database: Database) -> None:
    def nest() -> None:
        with database.transaction(), database.transaction():
            pass

    with pytest.raises(NestedTransaction):
        nest()


def test_a_statement_of_its_own_is_refused_inside_a_transaction(database: Database) -> None:
    def nest() -> None:
        with database.transaction():
            database.execute("SELECT 1")

    with pytest.raises(NestedTransaction):
        nest()


def test_a_transaction_commits_at_its_end(database: Database, other: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")
        assert other.execute("SELECT count(*) FROM duepost.email_kind") == [(0,)]
    assert other.execute("SELECT count(*) FROM duepost.email_kind") == [(1,)]


def test_a_transaction_that_raises_leaves_nothing_and_the_next_one_works(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert database.execute("SELECT count(*) FROM duepost.email_kind") == [(0,)]


def test_what_waits_for_the_commit_is_forgotten_by_a_rollback(database: Database) -> None:
    done: list[str] = []

    def run(word: str, *, fail: bool) -> None:
        with database.transaction():
            assert database.current is not None
            database.current.after_commit(lambda: done.append(word))
            if fail:
                raise LookupError

    with pytest.raises(LookupError):
        run("rolled back", fail=True)
    run("committed", fail=False)
    assert done == ["committed"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def listening_server(each_server: PostgresServer) -> Iterator[PostgresServer]:
    """Each PostgreSQL at hand, reachable by TCP and by its Unix socket."""
    server = PostgresServer(each_server.binaries, port=free_port())
    server.start()
    yield server
    server.stop("immediate")
    server.remove()


@pytest.fixture(params=["socket", "tcp"])
def each_way(request: pytest.FixtureRequest, listening_server: PostgresServer) -> str:
    """The URL of each of the two ways to each server."""
    return listening_server.tcp_url() if request.param == "tcp" else listening_server.url()


def end_session(other: Database, pid: object) -> None:
    """Ends a session from outside, and waits until it is over."""
    other.execute("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid})
    wait_until(
        lambda: other.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %(pid)s", {"pid": pid}) == [(0,)]
    )


def test_the_next_statement_after_the_server_ended_the_session_goes_over_a_new_one(each_way: str) -> None:
    database, other = Database(each_way), Database(each_way)
    [(pid,)] = database.execute("SELECT pg_backend_pid()")
    end_session(other, pid)
    assert database.execute("SELECT pg_backend_pid()") != [(pid,)]
    database.close()
    other.close()


def test_after_a_restart_each_pooled_connection_is_made_again(listening_server: PostgresServer) -> None:
    for url in listening_server.url(), listening_server.tcp_url():
        database = Database(url)
        hold_connections(database, 8)
        for mode in "fast", "immediate":
            listening_server.restart(mode)
            assert [database.execute("SELECT 1") for _ in range(12)] == [[(1,)]] * 12
            hold_connections(database, 8)
        database.close()


def hold_connections(database: Database, count: int) -> None:
    """Has that many connections in use at the same moment."""
    together = threading.Barrier(count)

    def hold() -> None:
        with database.transaction() as cursor:
            cursor.execute("SELECT 1")
            together.wait()

    with ThreadPoolExecutor(count) as pool:
        for held in [pool.submit(hold) for _ in range(count)]:
            held.result()


def test_a_statement_that_the_driver_cannot_write_does_not_take_begin_with_it(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as cursor:
            with pytest.raises(ValueError, match="NUL"):
                cursor.execute("SELECT %s", ("a\x00b",))
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert database.execute("SELECT count(*) FROM duepost.email_kind") == [(0,)]


def test_a_value_beyond_postgresqls_limits_is_not_taken_for_a_database_that_is_away(database: Database) -> None:
    with pytest.raises(psycopg2.errors.StatementTooComplex):
        database.execute("SELECT %(deep)s::jsonb", {"deep": "[" * 50_000 + "]" * 50_000})


def test_a_process_with_thousands_of_open_files_sees_what_is_closed(database: Database, other: Database) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with ExitStack() as files:
        for _ in range(1100):
            files.enter_context(Path("/dev/null").open())
        [(pid,)] = database.execute("SELECT pg_backend_pid()")
        assert database.execute("SELECT pg_backend_pid()") == [(pid,)]
        end_session(other, pid)
        assert database.execute("SELECT pg_backend_pid()") != [(pid,)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def in_a_child(work: Callable[[], object], *, seconds: float = 20) -> str:
    """What `work` gives or raises in a child process after a fork, or that it hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: which is what this is about
        child = os.fork()
    if not child:
        try:
            answer = repr(work())
        except BaseException as error:  # noqa: BLE001 - this is what the child has to say
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    answered, _, _ = select.select([reading], [], [], seconds)
    answer = os.read(reading, 1000).decode() if answered else "hangs"
    os.close(reading)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return answer


def test_a_child_after_a_fork_has_connections_of_its_own_and_leaves_the_parents_alone(each_way: str) -> None:
    database = Database(each_way)
    own = database.connect()
    [(pid,)] = database.execute("SELECT pg_backend_pid()")

    def child() -> bool:
        [(mine,)] = database.execute("SELECT pg_backend_pid()")
        own.close()
        gc.collect()
        return mine != pid

    assert in_a_child(child) == "True"
    assert database.execute("SELECT pg_backend_pid()") == [(pid,)]
    with own.cursor() as cursor:
        cursor.execute("SELECT 1")
    own.close()
    database.close()


def test_a_session_ends_with_the_parent_though_a_child_lives_on(database: Database, other: Database) -> None:
    connection = database.connect()
    pid = connection.info.backend_pid

    def socket_is_the_parents() -> bool:
        return socket.socket(fileno=os.dup(connection.fileno())).family == socket.AF_UNIX and os.path.samestat(
            os.fstat(connection.fileno()), parents
        )

    parents = os.fstat(connection.fileno())
    assert in_a_child(socket_is_the_parents) == "False"
    assert other.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %(pid)s", {"pid": pid}) == [(1,)]
    connection.close()


def test_a_transaction_that_was_open_at_a_fork_is_not_the_childs(database: Database, other: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")

        def go_on() -> None:
            assert database.current is None
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('of the child')")

        assert in_a_child(go_on) == "DatabaseUnreachable"
        assert in_a_child(lambda: database.execute("SELECT count(*) FROM duepost.email_kind")) == "[(0,)]"
    assert other.execute("SELECT kind FROM duepost.email_kind") == [("k",)]


def test_a_child_does_not_wait_for_what_the_parents_threads_hold(url: str) -> None:
    database = Database(url, most=1)
    with database.deadlines._lock, database.transaction() as cursor:
        cursor.answer = 0
        answer = in_a_child(lambda: database.execute("SELECT 1"))
    assert answer == "[(1,)]"
    database.close()


def test_a_transaction_belongs_to_its_asyncio_task(database: Database, other: Database) -> None:
    async def rolls_back(opened: asyncio.Event, seen: asyncio.Event) -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('rolled back')")
            opened.set()
            await seen.wait()
            raise LookupError

    async def commits(opened: asyncio.Event, seen: asyncio.Event) -> None:
        await opened.wait()
        assert database.current is None
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('committed')")
        database.execute("INSERT INTO duepost.email_kind (kind) VALUES ('on its own')")
        seen.set()

    async def both() -> tuple[BaseException | None, BaseException | None]:
        opened, seen = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(rolls_back(opened, seen), commits(opened, seen), return_exceptions=True)

    failed, done = asyncio.run(both())
    assert isinstance(failed, LookupError)
    assert done is None
    rows = other.execute("SELECT kind FROM duepost.email_kind ORDER BY kind")
    assert rows == [("committed",), ("on its own",)]


def test_a_transaction_is_not_its_tasks_children_nor_its_threads(database: Database) -> None:
    async def current() -> object:
        return database.current

    async def work() -> list[object]:
        with database.transaction():
            assert database.current is not None
            return [await asyncio.create_task(current()), await asyncio.to_thread(lambda: database.current)]

    assert asyncio.run(work()) == [None, None]


def test_a_transaction_inside_another_of_the_same_task_is_refused(database: Database) -> None:
    async def nest() -> None:
        with database.transaction():
            await asyncio.sleep(0)
            database.execute("SELECT 1")

    with pytest.raises(NestedTransaction):
        asyncio.run(nest())


def test_tasks_never_wait_for_one_anothers_connection(url: str) -> None:
    database = Database(url, most=1)

    async def hold(both: asyncio.Barrier) -> None:
        with database.transaction() as cursor:
            cursor.execute("SELECT 1")
            await both.wait()

    async def two() -> None:
        both = asyncio.Barrier(2)
        await asyncio.wait_for(asyncio.gather(hold(both), hold(both)), 20)

    asyncio.run(two())
    database.close()


def test_an_unreachable_server_is_said_in_one_line_without_the_password() -> None:
    away = Database("postgresql://somebody:hushhush@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnreachable) as caught:
        away.execute("SELECT 1")
    assert len(str(caught.value).splitlines()) == 1
    assert "hushhush" not in str(caught.value)


def test_every_session_has_limits_and_speaks_utc(database: Database) -> None:
    for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        [(value,)] = database.execute(f"SHOW {setting}")
        assert value != "0"
    assert database.execute("SHOW timezone") == [("UTC",)]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"postgresql://somebody@127.0.0.1:{listener.getsockname()[1]}/somewhere"


def test_a_server_that_never_answers_is_given_up(url: str) -> None:
    with Network(url) as network:
        database = Database(network.url, limits=Limits(statement=1, patience=0.5))
        assert database.execute("SELECT 1") == [(1,)]
        network.cut()
        with pytest.raises(DatabaseUnreachable):
            database.execute("SELECT 1")
        network.mend()
        assert database.execute("SELECT 1") == [(1,)]
        database.close()


@pytest.mark.parametrize("waits_already", [False, True])
def test_a_statement_whose_packets_vanish_is_given_up_by_keepalives(
    far_server: PostgresServer, namespace: Namespace, *, waits_already: bool
) -> None:
    with ThreadPoolExecutor() as threads, far_server.fresh_database() as url:
        network = NamespaceNetwork(namespace, url)
        database, beside = Database(network.url, limits=Limits(statement=600)), Database(url)
        assert database.execute("SELECT 1") == [(1,)]
        if waits_already:
            waiting = threads.submit(database.execute, "SELECT pg_sleep(600)")
            asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            wait_until(lambda: beside.execute(asleep))
            network.cut()
        else:
            network.cut()
            waiting = threads.submit(database.execute, "SELECT 1")
        # By the statement's limit it would be hung up on only after ten minutes, and in other words.
        with pytest.raises(DatabaseUnreachable, match="Connection timed out"):
            waiting.result(timeout=120)
        network.mend()
        assert database.execute("SELECT 1") == [(1,)]
        database.close()
        beside.close()


def test_an_answer_that_cannot_be_written_keeps_no_lock(far_server: PostgresServer, namespace: Namespace) -> None:
    with ThreadPoolExecutor() as threads, far_server.fresh_database() as url:
        network = NamespaceNetwork(namespace, url)
        database, beside = Database(network.url), Database(url)
        beside.execute("CREATE TABLE email AS SELECT 1 AS id")
        # More than the sockets hold: the server waits until it may write on, with the row locked.
        claiming = threads.submit(
            database.execute,
            "WITH locked AS MATERIALIZED (SELECT id FROM email FOR UPDATE)"
            " SELECT repeat('x', 20000000), pg_sleep(1) FROM locked",
        )
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        wait_until(lambda: beside.execute(asleep))
        network.cut()
        assert beside.execute("SELECT id FROM email FOR UPDATE SKIP LOCKED") == []
        with pytest.raises(DatabaseUnreachable):
            claiming.result(timeout=120)
        wait_until(lambda: beside.execute("SELECT id FROM email FOR UPDATE SKIP LOCKED"), timeout=60)
        database.close()
        beside.close()


def test_a_connection_that_is_never_answered_is_given_up(silent_server: str) -> None:
    database = Database(f"{silent_server}?connect_timeout=2")
    with pytest.raises(DatabaseUnreachable, match="timeout"):
        database.execute("SELECT 1")


def test_a_statement_that_takes_too_long_is_given_up(url: str) -> None:
    database = Database(url, limits=Limits(statement=0.1))
    with pytest.raises(DatabaseUnreachable, match="statement timeout"):
        database.execute("SELECT pg_sleep(10)")
    with pytest.raises(DatabaseUnreachable, match="statement timeout"), database.transaction() as cursor:
        cursor.execute("SELECT pg_sleep(10)")
    assert database.execute("SELECT 1") == [(1,)]
    database.close()


def test_a_lock_that_is_not_to_be_had_is_given_up(url: str, database: Database) -> None:
    waiting = Database(url, limits=Limits(lock=0.1))
    with database.transaction() as cursor:
        cursor.execute("LOCK TABLE duepost.control")
        with pytest.raises(DatabaseUnreachable, match="lock timeout"):
            waiting.execute("SELECT paused FROM duepost.control")
    assert waiting.execute("SELECT paused FROM duepost.control") == [(False,)]
    waiting.close()


def test_a_transaction_that_idles_too_long_is_ended_by_the_server_and_leaves_nothing(
    url: str, database: Database
) -> None:
    idle = Database(url, limits=Limits(idle=0.1))

    def idle_too_long() -> None:
        with idle.transaction() as cursor:
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")
            wait_until(
                lambda: (
                    database.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
                        " AND datname = current_database()",
                        {},
                    )
                    == []
                )
            )

    with pytest.raises(DatabaseUnreachable):
        idle_too_long()
    assert idle.execute("SELECT count(*) FROM duepost.email_kind") == [(0,)]
    idle.close()


def test_a_transaction_in_which_a_statement_failed_is_not_taken_for_committed(database: Database) -> None:
    def go_on_after_an_error() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO duepost.email_kind (kind) VALUES ('k')")
            with suppress(psycopg2.ProgrammingError):
                cursor.execute("SELECT nonsense")

    with pytest.raises(psycopg2.Error, match="nothing was committed"):
        go_on_after_an_error()
    assert database.execute("SELECT count(*) FROM duepost.email_kind") == [(0,)]


def test_limits_end_with_their_transaction(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        assert cursor.fetchone() == ("30s",)
    database.execute("SELECT 1")
    # A call sets no limits, and comes by the same connection.
    assert database.call("SELECT current_setting('statement_timeout')", {}) == [("0",)]


def test_how_a_look_is_planned_ends_with_its_transaction(database: Database) -> None:
    shown = (
        "SELECT current_setting('enable_sort'), current_setting('enable_hashjoin'), current_setting('enable_seqscan')"
    )
    assert database.execute(shown, limits=database.limits.by_index) == [("off", "off", "off")]
    assert database.call(shown, {}) == [("on", "on", "on")]


def test_threads_share_connections_and_wait_for_one_to_be_free(url: str) -> None:
    database = Database(url, most=2)
    meeting = threading.Barrier(3)

    def work() -> tuple[object, ...]:
        meeting.wait(timeout=30)
        return [database.execute("SELECT pg_backend_pid()")[0] for _ in range(20)][-1]

    with ThreadPoolExecutor(3) as threads:
        pids = {each.result(timeout=60) for each in [threads.submit(work) for _ in range(3)]}
    assert 1 <= len(pids) <= 2
    with database.transaction() as first:
        first.execute("SELECT 1")
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(database.execute, "SELECT 1").result(timeout=30) == [(1,)]
    database.close()


def test_a_connection_comes_back_from_a_transaction_that_failed(url: str) -> None:
    database = Database(url, most=1)
    [(pid,)] = database.execute("SELECT pg_backend_pid()")
    with pytest.raises(psycopg2.Error), database.transaction() as cursor:
        cursor.execute("SELECT nonsense")
    assert database.execute("SELECT pg_backend_pid()") == [(pid,)]
    database.close()
