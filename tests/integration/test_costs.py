"""What an email costs, counted: round trips, transactions, bytes of WAL. A guard that does not depend on the clock."""

import threading

import pytest

from models.database.connections import Cursor
from tests.app_harness import Harness

#: How many emails are counted; some costs are for a page of them.
EMAILS = 200

#: The most for each email, from enqueue to ledger, with one thread: nobody shares a commit.
ROUND_TRIPS = 2.2
TRANSACTIONS = 2.2
#: About 3,400 where nothing else runs: the fewer are concluded together, the more it takes.
WAL_BYTES = 4_500

#: What it writes goes by the clock.
NO_AUTOVACUUM = """
DO $$
DECLARE
    named regclass;
BEGIN
    FOR named IN
        SELECT c.oid FROM pg_class AS c
        WHERE c.relkind = 'r' AND c.relnamespace IN ('duepost'::regnamespace, 'dramatiq'::regnamespace)
    LOOP
        EXECUTE format('ALTER TABLE %%s SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)', named);
    END LOOP;
END
$$
"""


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each statement that is sent, in whatever thread; proofs of the worker's session go by the clock."""
    sent: list[str] = []
    execute = Cursor.execute

    def counted(cursor: Cursor, query: str, vars: object = None) -> None:  # noqa: A002 - the driver's name
        if threading.current_thread().name != "duepost-worker-session":
            sent.append(query)
        execute(cursor, query, vars)

    monkeypatch.setattr(Cursor, "execute", counted)
    return sent


def test_an_email_costs_no_more_than_it_should(each_harness: Harness, round_trips: list[str]) -> None:
    harness = each_harness
    harness.query(
        "SELECT count(duepost.schedule_email(kind => 'k', address => 'a' || i || '@example.com', subject => 's',"
        " body_text => repeat('All work and no play. ', 90))) FROM generate_series(1, %(count)s) AS i",
        count=EMAILS,
    )
    harness.query(NO_AUTOVACUUM)
    harness.query("CHECKPOINT")
    before, wal_before = spent(harness)
    round_trips.clear()
    harness.deliver()
    trips = len(round_trips)
    after, wal_after = spent(harness)
    assert harness.query("SELECT count(*) FROM duepost.delivery WHERE outcome = 'sent'") == [(EMAILS,)]
    assert trips / EMAILS <= ROUND_TRIPS
    assert (after - before) / EMAILS <= TRANSACTIONS
    assert (wal_after - wal_before) / EMAILS <= WAL_BYTES


def spent(harness: Harness) -> tuple[float, float]:
    """Transactions that were given a number, and bytes of WAL, so far."""
    [(transactions, wal)] = harness.query(
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float,"
        " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float"
    )
    return float(str(transactions)), float(str(wal))
