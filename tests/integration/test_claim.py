"""A claim sees what was committed until the moment when it has the row, not until its statement began."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from models import emails, undeliverable, workers
from models.database.connections import Cursor, Database
from models.words import Reopening
from tests import operators
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

    def claim() -> None:
        claimed.extend(emails.read_recipients(database, emails.claim_unread(database, email_ids, worker_id)))

    claiming = threading.Thread(target=claim)
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


#: What becomes of an email while a claim is under way, after which it is not to be sent now.
CHANGES = {
    "rescheduled": "SELECT duepost.reschedule_email(%s, '2030-01-01 00:00:00+00')",
    "put off": "UPDATE duepost.item SET due_at = now() + interval '1 hour' WHERE id = %s",
    "held": "UPDATE duepost.item SET is_held = true, unknowns = 2 WHERE id = %s",
    "expired": "UPDATE duepost.item SET scheduled_at = '2020-01-01', expires_at = '2020-01-02' WHERE id = %s",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_an_email_that_is_not_to_be_sent_any_more_once_a_claim_comes_to_it_is_not_claimed(
    application: Connection, database: Database, change: str
) -> None:
    first, second = queued(application, "slow"), queued(application, "ann")
    with stopped_claim(application, database, [first, second]) as claimed:
        run(application, change, second)
    assert users_of(claimed) == [["slow"]]


def test_what_a_claim_says_of_an_email_is_as_of_the_moment_when_it_has_the_row(
    application: Connection, database: Database
) -> None:
    first, second = queued(application, "slow"), queued(application, "ann")
    with stopped_claim(application, database, [first, second]) as claimed:
        run(application, "UPDATE duepost.item SET attempts = 7, unknowns = 1 WHERE id = %s", second)
    assert [(each.attempts, each.unknowns) for each in claimed] == [(0, 0), (7, 1)]


def beside_a_claim(database: Database, application: Connection, email_id: int, call: Callable[[], object]) -> object:
    """What a call gives that meets an open claim of this email, which is committed once the call waits for it."""
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as cursor:
            cursor.execute("SELECT id FROM duepost.claim_emails_v3(ARRAY[%s]::bigint[], 1, 'default')", (email_id,))
            assert cursor.fetchall() == [(email_id,)]
            called = pool.submit(call)
            wait_until(lambda: run(application, WAITING, "transactionid") != [], what="the call to wait for the row")
        return called.result(timeout=30)


@pytest.mark.parametrize("resolve", [operators.resolve_sent, operators.resolve_drop])
def test_an_email_that_is_claimed_just_now_is_not_resolved_as_one_that_waits(
    application: Connection, url: str, resolve: Callable[[Cursor, int], bool]
) -> None:
    email_id = queued(application, "ann")
    run(application, "DELETE FROM dramatiq.queue")
    run(application, "UPDATE duepost.item SET unknowns = 1 WHERE id = %s", email_id)
    database = Database(url)

    def call() -> bool:
        with database.transaction() as cursor:
            return resolve(cursor, email_id)

    assert beside_a_claim(database, application, email_id, call) is False
    assert run(application, "SELECT state FROM duepost.scheduled_email") == [("sending",)]
    assert run(application, "SELECT * FROM duepost.delivery") == []


def test_an_email_that_is_claimed_just_now_is_not_reopened_beside_its_conclusion(
    application: Connection, url: str
) -> None:
    """Who was reopened then would not be among those whom the worker concludes, and would leave without a trace."""
    email_id = queued(application, "ann", "bob")
    run(application, "UPDATE duepost.scheduled_email_user SET outcome = 'undeliverable' WHERE user_id = 'bob'")
    run(
        application,
        "INSERT INTO duepost.undeliverable_email (id, kind, email, kept_until)"
        " SELECT id, kind, to_jsonb(e), now() + interval '1 day' FROM duepost.scheduled_email AS e",
    )
    run(
        application,
        "INSERT INTO duepost.undeliverable_recipient (email_id, user_id, address, reply)"
        " VALUES (%s, 'bob', 'b@x.example', 'no')",
        email_id,
    )
    database = Database(url)

    def call() -> Reopening:
        with database.transaction() as cursor:
            return undeliverable.reopen(cursor, email_id)

    assert beside_a_claim(database, application, email_id, call) is Reopening.TOO_LATE
    assert run(application, "SELECT outcome FROM duepost.scheduled_email_user WHERE user_id = 'bob'") == [
        ("undeliverable",)
    ]
