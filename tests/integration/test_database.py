"""Connections and durable transactions."""

from collections.abc import Iterator

import pytest

from models.database import Database
from models.errors import DatabaseUnreachable, NestedTransaction


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


def test_a_connection_that_the_server_has_closed_is_made_anew(database: Database, other: Database) -> None:
    [(pid,)] = database.execute("SELECT pg_backend_pid()")
    other.execute("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid})
    other.execute("SELECT count(*) FROM pg_stat_activity")
    for _ in range(50):
        try:
            rows = database.execute("SELECT pg_backend_pid()")
        except DatabaseUnreachable:
            continue
        if rows != [(pid,)]:
            return
    pytest.fail("the connection was not made anew")


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
