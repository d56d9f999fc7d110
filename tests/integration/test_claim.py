"""A claim sees what was committed until the moment when it has the row, not until its statement began."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from models import emails, workers
from models.database.connections import Database
from tests.postgres import Connection, run
from tests.waiting import wait_until

#: A claim that comes to this user's email waits for whoever holds the lock. Rows are locked one by one, as they are
#: claimed.
SLOW_CLAIM = """
CREATE FUNCTION slow_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM duepost.scheduled_email_user WHERE email_id = new.item_id AND user_id = 'slow') THEN
        PERFORM pg_advisory_xact_lock_shared(4711);
    END IF;
    RETURN new;
END
$$;
CREATE TRIGGER slow_claim BEFORE INSERT ON duepost.in_hand FOR EACH ROW EXECUTE FUNCTION slow_claim();
INSERT INTO duepost.recipient (user_id, address)
SELECT name, name || '@example.com' FROM unnest(ARRAY['slow', 'ann', 'bob']) AS name;
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET enable_hashjoin = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET enable_mergejoin = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database());
END
$$
"""


#: Whether somebody waits for a lock of a sort.
WAITING = "SELECT 1 FROM pg_locks WHERE locktype = %s AND NOT granted"


@pytest.fixture
def application(connect: Callable[[], Connection]) -> Connection:
    connection = connect()
    connection.autocommit = True
    return connection


def queued(application: Connection, *users: str) -> int:
    [(email_id,)] = run(
        application,
        "SELECT duepost.schedule_email(kind => 'digest', users => %s, subject => 'Hello', body_text => 'World')",
        list(users),
    )
    run(
        application,
        "UPDATE duepost.scheduled_email SET state = 'queued', message_id = gen_random_uuid() WHERE id = %s",
        email_id,
    )
    return int(str(email_id))


@pytest.fixture(params=["read committed", "repeatable read", "serializable"])
def database(request: pytest.FixtureRequest, application: Connection, url: str) -> Database:
    """A database with this isolation level as its default, in which a claim stops at the email of the user slow."""
    run(application, SLOW_CLAIM)
    run(
        application,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L',"
        f" current_database(), '{request.param}'); END $$",
    )
    return Database(url)


@contextmanager
def stopped_claim(
    application: Connection, database: Database, email_ids: list[int]
) -> Iterator[list[emails.ClaimedEmail]]:
    """A claim of these that stands at the email of the user slow within the block; afterwards, what it has claimed."""
    worker_id = workers.register(database.connect(), workers.Process("here", 1))
    run(application, "SELECT pg_advisory_lock(4711)")
    claimed: list[emails.ClaimedEmail] = []
    claiming = threading.Thread(target=lambda: claimed.extend(emails.claim(database, email_ids, worker_id)))
    claiming.start()
    wait_until(lambda: run(application, WAITING, "advisory") != [], what="the claim to be at the email")
    yield claimed
    run(application, "SELECT pg_advisory_unlock(4711)")
    claiming.join(timeout=30)


def users_of(claimed: list[emails.ClaimedEmail]) -> list[list[str | None]]:
    return [[each.user_id for each in email.recipients] for email in claimed]


def test_a_user_who_is_cleared_while_a_claim_is_under_way_is_not_claimed(
    application: Connection, database: Database
) -> None:
    first, second = queued(application, "slow"), queued(application, "ann", "bob")
    with stopped_claim(application, database, [first, second]) as claimed:
        cleared = run(application, "SELECT * FROM duepost.clear_scheduled_emails(%s)", ["ann"])
        assert cleared == [(second, "user_removed")]
    assert users_of(claimed) == [["slow"], ["bob"]]


def test_an_email_that_is_cleared_while_a_claim_is_under_way_is_not_claimed(
    application: Connection, database: Database
) -> None:
    first, second = queued(application, "slow"), queued(application, "ann")
    with stopped_claim(application, database, [first, second]) as claimed:
        cleared = run(application, "SELECT * FROM duepost.clear_scheduled_emails(%s)", ["ann"])
        assert cleared == [(second, "cleared")]
    assert users_of(claimed) == [["slow"]]


def test_a_clear_waits_for_the_claim_that_holds_its_email_and_comes_too_late(
    application: Connection, database: Database, connect: Callable[[], Connection]
) -> None:
    email_id = queued(application, "ann", "slow")
    other = connect()
    other.autocommit = True
    # Whoever asks for more is told that the row has changed (SQLSTATE 40001), and asks again.
    run(other, "SET default_transaction_isolation = 'read committed'")
    cleared: list[tuple[object, ...]] = []
    clear = "SELECT * FROM duepost.clear_scheduled_emails(%s)"
    clearing = threading.Thread(target=lambda: cleared.extend(run(other, clear, ["ann"])))
    with stopped_claim(application, database, [email_id]) as claimed:
        clearing.start()
        wait_until(lambda: run(application, WAITING, "transactionid") != [], what="the clear to wait for the row")
        assert cleared == []
    clearing.join(timeout=30)
    assert users_of(claimed) == [["ann", "slow"]]
    assert cleared == [(email_id, "too_late")]
