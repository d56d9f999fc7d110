"""A conclusion sees who has its email in hand once it has the row, not as it was when its statement began."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from actors.delivery.attempt import EmailAttempt
from actors.delivery.job import OwnJob
from actors.delivery.lanes import Blocking
from actors.ruling import Phase, Ruling, Scope
from models import emails
from models.database.connections import Database
from models.emails import ClaimedEmail, Finished, Lost, Result
from models.words import Outcome, Verdict
from tests.app_harness import Harness
from tests.postgres import PostgresServer
from tests.waiting import wait_until

#: A login to which this applies sees an item, and has yet to lock it, while somebody holds the lock.
STOP_BEFORE_THE_LOCK = """
CREATE FUNCTION stop() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(4711);
    RETURN true;
END
$$;
ALTER TABLE duepost.item ENABLE ROW LEVEL SECURITY;
CREATE POLICY stop ON duepost.item USING (stop())
"""

#: Whether somebody waits for a lock of a sort.
WAITING = "SELECT 1 FROM pg_locks WHERE locktype = %(sort)s AND NOT granted"


@pytest.fixture
def stopping(harness: Harness, server: PostgresServer) -> Iterator[Database]:
    """The database as a worker's login sees it that stops before it locks an item."""
    login = f"stopping_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE ROLE {login} LOGIN IN ROLE duepost_worker")
    harness.query(STOP_BEFORE_THE_LOCK)
    with closing(Database(harness.database.url.replace("postgres@", f"{login}@", 1))) as database:
        yield database
    server.execute(f"DROP ROLE {login}")


@pytest.fixture
def email(harness: Harness) -> ClaimedEmail:
    """An email that a worker has claimed."""
    harness.schedule()
    harness.enqueue()
    [(email_id,)] = harness.query("SELECT id FROM duepost.item")
    claimed = harness.claim(int(str(email_id)))
    assert claimed is not None
    return claimed


def lost(harness: Harness, email: ClaimedEmail) -> Lost:
    worker_id = harness.worker_session.worker_id
    assert worker_id is not None
    return Lost(email.id, email.claim, email.kind, worker_id, "default")


def claims(harness: Harness) -> list[object]:
    return [claim for (claim,) in harness.query("SELECT claim FROM duepost.in_hand")]


@contextmanager
def meanwhile(harness: Harness, action: Callable[[], object], lock: str) -> Iterator[Future[object]]:
    """Runs it in a thread until it waits for a lock of this sort, and lets it go on after the block."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        wait_until(
            lambda: done.done() or harness.query(WAITING, sort=lock) != [], what="the other one to be at the lock"
        )
        assert not done.done(), done.result()
        yield done


def test_what_was_taken_away_while_a_conclusion_came_to_the_row_is_left_to_who_has_it_now(
    harness: Harness, stopping: Database, email: ClaimedEmail
) -> None:
    result = Result(None, "ann@example.com", Verdict.SENT, Outcome.SENT, "body", 250)
    holder = harness.application.connect()
    with closing(holder), holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(4711)")
        with meanwhile(
            harness, lambda: emails.conclude_finished_each(stopping, [Finished(email, [result])]), "advisory"
        ) as done:
            with harness.database.transaction() as other:
                emails.conclude_lost(other, lost(harness, email))
            harness.enqueue()
            again = harness.claim(email.id)
            cursor.execute("SELECT pg_advisory_unlock(4711)")
    assert done.result() == set()
    assert again is not None
    assert claims(harness) == [again.claim]
    assert harness.ledger(email.id) == []


def test_a_claim_that_was_taken_away_while_its_row_was_waited_for_is_not_the_rows(
    harness: Harness, email: ClaimedEmail
) -> None:
    def lock() -> bool:
        with harness.database.transaction() as cursor:
            return emails.lock_claimed(cursor, email)

    with harness.database.transaction() as other:
        other.execute("SELECT FROM duepost.item WHERE id = %s FOR UPDATE", (email.id,))
        with meanwhile(harness, lock, "transactionid") as locking:
            emails.conclude_lost(other, lost(harness, email))
            other.execute("COMMIT")
    assert locking.result() is False


@pytest.mark.parametrize("way", ["released", "postponed"])
@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.SENT])
def test_what_was_attempted_for_some_is_not_forgotten_when_the_rest_is_put_off(
    harness: Harness, verdict: Verdict, way: str
) -> None:
    """As where the relay fails for others before the next user's copy goes."""
    harness.recipient("1", "ann@example.com")
    harness.recipient("2", "bob@example.com")
    email_id = harness.schedule(users=["1", "2"])
    harness.enqueue()
    items = harness.app.routes["default"].email_work
    job = OwnJob()
    [work] = items.claim([(email_id, job)])
    items.read([work])
    attempt = work.attempt
    assert isinstance(attempt, EmailAttempt)
    assert not isinstance(attempt.advance(), Blocking)
    attempt.take({"ann@example.com": Ruling(verdict, Scope.MESSAGE, Phase.DOT, reply="said")})
    items.release([work]) if way == "released" else items.postpone(work)
    job.wait()
    assert harness.query("SELECT count(*) FROM duepost.in_hand") == [(0,)]
    assert [(each["user_id"], each["verdict"]) for each in harness.attempts(email_id)] == [("1", verdict)]
    receipts = harness.query("SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY['1'])")
    assert receipts == [("too_late",)]


def test_it_arrived_is_for_all_who_are_left_once_those_who_were_in_doubt_have_an_outcome(harness: Harness) -> None:
    email_id = harness.schedule(users=["ann", "bob"])
    harness.query("UPDATE duepost.item SET unknowns = 1 WHERE id = %(id)s", id=email_id)
    harness.query(
        "UPDATE duepost.scheduled_email_user SET unknown = true, outcome = 'undeliverable' WHERE user_id = 'ann'"
    )
    assert harness.query("SELECT duepost.resolve_item(%(id)s, 'sent')", id=email_id) == [("done",)]
    outcomes = harness.query("SELECT user_id, outcome FROM duepost.delivery ORDER BY user_id")
    assert outcomes == [("ann", "undeliverable"), ("bob", "sent")]
    assert harness.query("SELECT FROM duepost.scheduled_email") == []
