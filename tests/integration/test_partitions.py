"""The ledger's partitions: made ahead, dropped when they are older than the retention."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql

from models import control
from models.database import advisory_locks
from models.database.connections import Database
from models.database.migrate import migrate
from tests.postgres import Connection, PostgresServer, run

PARENTS = ("delivery", "attempt")
each_parent = pytest.mark.parametrize("parent", PARENTS)

#: What the tables ask of a row.
ROWS = {
    "delivery": (
        "INSERT INTO duepost.delivery"
        " (email_id, kind, outcome, attempts, unknowns, scheduled_at, finished_at, message_id_header)"
        " VALUES (1, 'k', 'sent', 1, 0, now(), {moment}, '<x@y>')"
    ),
    "attempt": (
        "INSERT INTO duepost.attempt (email_id, claim, worker_id, started_at, finished_at, verdict)"
        " VALUES (1, 1, 1, now(), {moment}, 'sent')"
    ),
}


@pytest.fixture(scope="module")
def shared(each_server: PostgresServer) -> Iterator[Connection]:
    """One database for all that is rolled back, tables too."""
    with each_server.fresh_database() as url, closing(psycopg2.connect(url)) as connection:
        yield connection


@pytest.fixture
def ledger(shared: Connection) -> Iterator[Connection]:
    """An open transaction, on every PostgreSQL at hand."""
    yield shared
    shared.rollback()


def partitions(ledger: Connection, parent: str) -> list[str]:
    """The partitions of months, by name."""
    rows = run(
        ledger,
        f"SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid"
        f" WHERE inhparent = 'duepost.{parent}'::regclass AND relname ~ '_[0-9]{{4}}_' ORDER BY relname",
    )
    return [str(name) for (name,) in rows]


def months(parent: str, *aheads: int) -> list[str]:
    """The names of partitions that many months ahead."""
    now = datetime.now(UTC)
    return [
        f"{parent}_{now.year + (now.month - 1 + ahead) // 12}_{(now.month - 1 + ahead) % 12 + 1:02}"
        for ahead in sorted(aheads)
    ]


def make(ledger: Connection, parent: str, ahead: int) -> str:
    """A partition of its own for another month; gives its name."""
    [name] = months(parent, ahead)
    [bounds] = run(
        ledger,
        f"SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + interval '{ahead} months' || '+00',"
        f" date_trunc('month', now() AT TIME ZONE 'UTC') + interval '{ahead + 1} months' || '+00'",
    )
    run(
        ledger,
        f"CREATE TABLE duepost.{name} PARTITION OF duepost.{parent} FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')",
    )
    return name


def maintain(ledger: Connection, retention: str = "NULL") -> None:
    run(ledger, f"SELECT duepost.maintain_partitions({retention})")


def place(ledger: Connection, parent: str, moment: str) -> str:
    """Inserts a row, and gives the partition that took it."""
    run(ledger, ROWS[parent].format(moment=moment))
    [(name,)] = run(ledger, f"SELECT relname FROM duepost.{parent} JOIN pg_class c ON c.oid = {parent}.tableoid")
    return str(name)


@each_parent
def test_there_are_partitions_for_this_month_and_the_next_two(ledger: Connection, parent: str) -> None:
    assert partitions(ledger, parent) == months(parent, 0, 1, 2)


@each_parent
def test_making_them_again_changes_nothing(ledger: Connection, parent: str) -> None:
    maintain(ledger)
    maintain(ledger)
    assert partitions(ledger, parent) == months(parent, 0, 1, 2)


@each_parent
def test_one_that_is_missing_is_made(ledger: Connection, parent: str) -> None:
    run(ledger, f"DROP TABLE duepost.{months(parent, 1)[0]}")
    maintain(ledger)
    assert partitions(ledger, parent) == months(parent, 0, 1, 2)


def test_racing_runs_do_no_harm(connect: Callable[[], Connection]) -> None:
    setup = connect()
    for ahead in (1, 2):
        run(setup, f"DROP TABLE duepost.{months('delivery', ahead)[0]}")
    setup.commit()

    def race(connection: Connection) -> None:
        for _ in range(5):
            maintain(connection, "'1 year'")
            connection.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [connect() for _ in range(4)]))
    assert partitions(setup, "delivery") == months("delivery", 0, 1, 2)


@each_parent
def test_a_row_goes_to_its_months_partition(ledger: Connection, parent: str) -> None:
    assert place(ledger, parent, "now()") == months(parent, 0)[0]


@pytest.mark.parametrize("style", ["ISO", "SQL, DMY", "German", "Postgres, MDY"])
@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York", "Pacific/Kiritimati"])
def test_a_month_is_one_of_utc_whatever_the_session_says(ledger: Connection, style: str, zone: str) -> None:
    name = months("delivery", 1)[0]
    bounds = f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{name}'"
    before = run(ledger, bounds)
    run(ledger, f"DROP TABLE duepost.{name}")
    run(ledger, f"SET DateStyle = '{style}'; SET TimeZone = '{zone}'")
    maintain(ledger)
    run(ledger, "SET DateStyle = 'ISO'; SET TimeZone = 'UTC'")
    assert run(ledger, bounds) == before


@each_parent
def test_those_wholly_older_than_the_retention_are_dropped_with_their_rows(ledger: Connection, parent: str) -> None:
    make(ledger, parent, -13)
    run(ledger, ROWS[parent].format(moment="date_trunc('month', now()) - interval '13 months' + interval '3 days'"))
    maintain(ledger, "'11 months'")
    assert partitions(ledger, parent) == months(parent, 0, 1, 2)
    assert run(ledger, f"SELECT count(*) FROM duepost.{parent}") == [(0,)]


@each_parent
def test_those_within_the_retention_are_kept(ledger: Connection, parent: str) -> None:
    make(ledger, parent, -1)
    make(ledger, parent, -2)
    make(ledger, parent, -3)
    # The month before last holds rows that are younger than this, unless it is the first of a month.
    maintain(ledger, "now() - (date_trunc('month', now()) - interval '1 month 1 day')")
    assert partitions(ledger, parent) == months(parent, -2, -1, 0, 1, 2)


@each_parent
def test_without_a_retention_nothing_is_dropped(ledger: Connection, parent: str) -> None:
    make(ledger, parent, -100)
    maintain(ledger)
    assert partitions(ledger, parent) == months(parent, -100, 0, 1, 2)


def test_a_table_of_another_name_is_never_dropped(ledger: Connection) -> None:
    run(
        ledger,
        "CREATE TABLE duepost.delivery_archive PARTITION OF duepost.delivery"
        " FOR VALUES FROM ('2001-01-01') TO ('2002-01-01')",
    )
    maintain(ledger, "'1 day'")
    assert run(ledger, "SELECT to_regclass('duepost.delivery_archive') IS NOT NULL") == [(True,)]


@each_parent
@pytest.mark.parametrize("moment", ["'2001-01-01'", "now() + interval '1 year'"], ids=["past", "future"])
def test_a_row_that_no_partition_fits_is_kept(ledger: Connection, parent: str, moment: str) -> None:
    assert place(ledger, parent, moment) == f"{parent}_rest"
    maintain(ledger, "'1 year'")
    assert run(ledger, f"SELECT count(*) FROM duepost.{parent}_rest") == [(1,)]


@each_parent
def test_a_row_that_came_before_its_partition_stays_where_it_is_and_does_no_harm(
    ledger: Connection, parent: str
) -> None:
    run(ledger, f"DROP TABLE duepost.{months(parent, 1)[0]}")
    assert place(ledger, parent, "date_trunc('month', now()) + interval '1 month 3 days'") == f"{parent}_rest"
    maintain(ledger)
    assert run(ledger, f"SELECT count(*) FROM duepost.{parent}_rest") == [(1,)]
    assert partitions(ledger, parent) == months(parent, 0, 2)


# What a worker's role may ask for ------------------------------------------------------------------------------------

#: Each comes to a moment that lies less than a day back, or to none.
TOO_SHORT = [
    "'-1000 years'",
    "'0'",
    "'23:59:59'",
    "'-1 day'",
    # By its parts it is 510 days, and it comes to a time that is still to come.
    "'-100 years +36510 days +24 hours'",
    "'1 month -40 days'",
    "'170000000 years'",
    "'-170000000 years'",
]


@pytest.fixture
def worker(ledger: Connection) -> Iterator[Connection]:
    """A login that is a member of duepost_worker, in the ledger's transaction."""
    run(ledger, "CREATE ROLE partitions_worker IN ROLE duepost_worker")
    run(ledger, "SET SESSION AUTHORIZATION partitions_worker")
    yield ledger
    ledger.rollback()


@pytest.mark.parametrize("retention", TOO_SHORT)
@pytest.mark.parametrize("is_owner", [True, False])
def test_a_retention_under_a_day_is_refused_and_drops_nothing(
    ledger: Connection, request: pytest.FixtureRequest, retention: str, is_owner: bool
) -> None:
    make(ledger, "delivery", -13)
    before = partitions(ledger, "delivery")
    if not is_owner:
        request.getfixturevalue("worker")
    run(ledger, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^retention: "):
        maintain(ledger, f"interval {retention}")
    run(ledger, "ROLLBACK TO before")
    assert partitions(ledger, "delivery") == before


@each_parent
@pytest.mark.parametrize(
    ("owners", "asked", "is_dropped"),
    [
        (None, "1 day", False),
        (None, "1 year", False),
        (900, "1 day", False),
        (300, "1 day", True),
        (300, "1000 days", False),
        (300, "330 days", True),
    ],
)
def test_a_worker_drops_nothing_that_the_owner_keeps(
    ledger: Connection,
    request: pytest.FixtureRequest,
    parent: str,
    owners: int | None,
    asked: str,
    is_dropped: bool,
) -> None:
    make(ledger, parent, -13)
    if owners is not None:
        run(ledger, f"INSERT INTO duepost.retention (days) VALUES ({owners})")
    request.getfixturevalue("worker")
    maintain(ledger, f"interval '{asked}'")
    assert (months(parent, -13)[0] not in partitions(ledger, parent)) is is_dropped


@pytest.mark.parametrize(
    "statement", ["INSERT INTO duepost.retention (days) VALUES (1)", "DELETE FROM duepost.retention"]
)
def test_a_worker_does_not_set_what_is_kept(worker: Connection, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(worker, statement)


def test_what_migrate_is_told_is_kept_until_it_is_told_something_else(each_server: PostgresServer) -> None:
    with each_server.fresh_database() as url:
        database = Database(url)
        for told, kept in ((90, 90), (None, 90), (30, 30)):
            list(migrate(database, queue_schema=generate_init_sql(), retention_days=told))
            assert control.keeping(database) == (kept, True)
        database.close()


# Behind a long reader ------------------------------------------------------------------------------------------------


def test_a_long_reader_keeps_maintenance_waiting_and_nobody_else(url: str) -> None:
    [name] = months("delivery", 2)
    database = Database(url)
    database.execute(f"DROP TABLE duepost.{name}")
    with closing(psycopg2.connect(url)) as reader, closing(psycopg2.connect(url)) as other:
        run(reader, "LOCK TABLE duepost.delivery, duepost.attempt IN ACCESS SHARE MODE")
        assert not control.maintain_partitions(database, retention_days=None)
        # What waits for it would have to wait for the reader: this one does not.
        run(other, "SET lock_timeout = '50ms'")
        assert place(other, "delivery", "now()") == months("delivery", 0)[0]
        other.rollback()
        assert database.execute("SELECT to_regclass(%(name)s)", {"name": f"duepost.{name}"}) == [(None,)]
        reader.rollback()
        assert control.maintain_partitions(database, retention_days=None)
    assert partitions_of(database) == months("delivery", 0, 1, 2)
    database.close()


def partitions_of(database: Database) -> list[str]:
    with closing(psycopg2.connect(database.url)) as connection:
        return partitions(connection, "delivery")


def test_maintenance_that_does_not_come_to_its_end_has_its_turn_again_in_a_minute(database: Database) -> None:
    def after(interval: str) -> bool:
        database.execute(f"UPDATE duepost.control SET maintained_at = maintained_at - interval '{interval}'")
        return control.take_maintenance(database)

    assert control.take_maintenance(database)
    assert not after("30 s")
    assert after("31 s")
    control.note_maintenance(database)
    assert not after("5 h")
    assert after("1 h 1 s")


def test_maintenance_goes_on_although_somebody_holds_its_lock_of_release_0_1(url: str) -> None:
    database = Database(url)
    [name] = months("delivery", 2)
    database.execute(f"DROP TABLE duepost.{name}")
    with closing(psycopg2.connect(url)) as client:
        run(client, f"SELECT pg_advisory_lock({advisory_locks.WORKER}, 0)")
        assert control.maintain_partitions(database, retention_days=None)
    assert partitions_of(database) == months("delivery", 0, 1, 2)
    database.close()
