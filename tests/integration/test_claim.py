"""A claim sees what was committed until the moment when it has the row, not until its statement began."""

import threading
from collections.abc import Callable

import pytest

from models import emails, workers
from models.database import Database
from tests.postgres import Connection
from tests.waiting import wait_until

#: A claim that comes by this user waits for whoever holds the lock. Rows are locked one by one, as they are claimed.
SLOW_USERS = """
CREATE FUNCTION slow(user_id text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF user_id = 'slow' THEN
        PERFORM pg_advisory_xact_lock_shared(4711);
    END IF;
    RETURN user_id;
END
$$;
ALTER TABLE duepost.recipient RENAME TO app_user;
INSERT INTO duepost.app_user (user_id, address)
SELECT name, name || '@example.com' FROM unnest(ARRAY['slow', 'ann', 'bob']) AS name;
CREATE VIEW duepost.recipient AS
SELECT slow(user_id) AS user_id, address, name, locale, timezone, active FROM duepost.app_user;
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET enable_hashjoin = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET enable_mergejoin = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database());
END
$$
"""


@pytest.fixture
def application(connect: Callable[[], Connection]) -> Connection:
    connection = connect()
    connection.autocommit = True
    return connection


def run(connection: Connection, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


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


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_user_who_is_cleared_while_a_claim_is_under_way_is_not_claimed(
    application: Connection, url: str, isolation: str
) -> None:
    run(application, SLOW_USERS)
    run(
        application,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L',"
        f" current_database(), '{isolation}'); END $$",
    )
    first, second = queued(application, "slow"), queued(application, "ann", "bob")
    database = Database(url)
    worker_id = workers.enrol(database.connect(), workers.Process("here", 1))
    run(application, "SELECT pg_advisory_lock(4711)")
    claimed: list[emails.ClaimedEmail] = []
    claiming = threading.Thread(target=lambda: claimed.extend(emails.claim(database, [first, second], worker_id)))
    claiming.start()
    wait_until(
        lambda: run(application, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") != [],
        what="the claim to be at the first email",
    )
    assert run(application, "SELECT * FROM duepost.clear_scheduled_emails(%s)", ["ann"]) == [(second, "user_removed")]
    run(application, "SELECT pg_advisory_unlock(4711)")
    claiming.join(timeout=30)
    assert [[each.user_id for each in email.recipients] for email in claimed] == [["slow"], ["bob"]]
