"""Clearing and rescheduling: at any moment, with a receipt that is kept, without waiting for SMTP."""

import random
import threading
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from duepost import client
from models.database import Connection
from tests.postgres import PostgresServer

SENDING = "state = 'sending', claim = 1, worker_id = 1, claimed_at = now()"
QUEUED = "state = 'queued', message_id = gen_random_uuid()"


@pytest.fixture
def application(each_url: str) -> Iterator[Connection]:
    connection = psycopg2.connect(each_url)
    connection.autocommit = True
    yield connection
    connection.close()


def run(connection: Connection, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def schedule(
    connection: Connection, *users: str, address: str = "ann@example.com", kind: str = "welcome", **more: str
) -> int:
    whom: dict[str, object] = {"users": users} if users else {"address": address}
    with connection.cursor() as cursor:
        return client.schedule_email(cursor, kind=kind, subject="Hello", body_text="World", **whom, **more)  # type: ignore[arg-type]


def become(connection: Connection, email_id: int, change: str) -> None:
    run(connection, f"UPDATE duepost.scheduled_email SET {change} WHERE id = %s", email_id)


def clear(connection: Connection, *users: str, kind: str | None = None) -> list[tuple[int, str]]:
    with connection.cursor() as cursor:
        return client.clear_scheduled_emails(cursor, users, kind)


def clear_one(connection: Connection, email_id: int) -> str:
    with connection.cursor() as cursor:
        return client.clear_scheduled_email(cursor, email_id)


def ledger(connection: Connection, email_id: int) -> list[str]:
    rows = run(
        connection, "SELECT outcome FROM duepost.delivery WHERE email_id = %s ORDER BY user_id NULLS LAST", email_id
    )
    return [str(row[0]) for row in rows]


def test_a_cleared_email_moves_to_the_ledger(application: Connection) -> None:
    email_id = schedule(application, "ann")
    assert clear(application, "ann") == [(email_id, "cleared")]
    assert ledger(application, email_id) == ["cleared"]
    assert run(application, "SELECT count(*) FROM duepost.scheduled_email_user") == [(0,)]


def test_a_user_of_several_is_removed_and_the_others_stay(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    assert clear(application, "ann") == [(email_id, "user_removed")]
    assert run(application, "SELECT user_id FROM duepost.scheduled_email_user") == [("bob",)]
    assert clear(application, "bob") == [(email_id, "cleared")]


def test_all_users_at_once_clear_the_email(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    assert clear(application, "ann", "bob", "cleo") == [(email_id, "cleared")]


def test_a_clear_can_be_limited_to_a_kind(application: Connection) -> None:
    schedule(application, "ann", kind="digest")
    reminder = schedule(application, "ann", kind="reminder")
    assert clear(application, "ann", kind="reminder") == [(reminder, "cleared")]


def test_receipts_come_by_ascending_id(application: Connection) -> None:
    ids = [schedule(application, "ann", scheduled_at=f"20{40 - n}-01-01T00:00Z") for n in range(5)]
    assert [email_id for email_id, _ in clear(application, "ann")] == ids


def test_nothing_is_cleared_for_a_user_without_emails(application: Connection) -> None:
    schedule(application, "ann")
    assert clear(application, "bob") == []
    assert clear(application) == []


def test_a_queued_email_can_be_cleared(application: Connection) -> None:
    email_id = schedule(application, "ann")
    become(application, email_id, QUEUED)
    assert clear(application, "ann") == [(email_id, "cleared")]


@pytest.mark.parametrize(
    "change",
    [SENDING, "state = 'unknown', unknowns = 1", "unknowns = 1", f"{QUEUED}, unknowns = 1"],
    ids=["sending", "unknown", "to be resent", "queued to be resent"],
)
def test_what_may_be_on_its_way_is_too_late(application: Connection, change: str) -> None:
    email_id = schedule(application, "ann")
    become(application, email_id, change)
    assert clear(application, "ann") == [(email_id, "too_late")]
    assert clear_one(application, email_id) == "too_late"
    assert run(application, "SELECT count(*) FROM duepost.scheduled_email") == [(1,)]


def test_an_email_between_retries_can_be_cleared(application: Connection) -> None:
    email_id = schedule(application, "ann")
    become(application, email_id, "attempts = 3, last_error = 'busy', due_at = now() + interval '1 min'")
    assert clear(application, "ann") == [(email_id, "cleared")]


def test_a_clear_by_address_does_not_mind_letter_case(application: Connection) -> None:
    email_id = schedule(application, address="Ann@Example.com")
    with application.cursor() as cursor:
        assert client.clear_scheduled_emails_to(cursor, "ann@example.COM") == [(email_id, "cleared")]
    assert run(application, "SELECT outcome, address FROM duepost.delivery") == [("cleared", "Ann@Example.com")]


def test_a_clear_by_address_can_be_limited_to_a_kind(application: Connection) -> None:
    schedule(application, kind="digest")
    email_id = schedule(application, kind="reminder")
    with application.cursor() as cursor:
        assert client.clear_scheduled_emails_to(cursor, "ann@example.com", "reminder") == [(email_id, "cleared")]


@pytest.mark.parametrize("email_id", [1, 999_999, 2**63 - 1])
def test_an_email_that_is_not_there_is_too_late(application: Connection, email_id: int) -> None:
    assert clear_one(application, email_id) == "too_late"


def test_an_email_can_be_cleared_once(application: Connection) -> None:
    email_id = schedule(application)
    assert [clear_one(application, email_id) for _ in range(2)] == ["cleared", "too_late"]


def test_who_has_it_already_is_too_late_and_the_others_are_removed(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob", "cleo")
    run(application, "UPDATE duepost.scheduled_email_user SET outcome = 'sent' WHERE user_id = 'ann'")
    assert clear(application, "ann") == [(email_id, "too_late")]
    assert clear(application, "bob") == [(email_id, "user_removed")]
    assert clear(application, "cleo") == [(email_id, "user_removed")]
    assert ledger(application, email_id) == ["sent"]


def test_a_partly_sent_email_is_not_called_cleared(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    run(application, "UPDATE duepost.scheduled_email_user SET outcome = 'sent' WHERE user_id = 'ann'")
    assert clear_one(application, email_id) == "user_removed"
    assert ledger(application, email_id) == ["sent", "cleared"]


def test_a_clear_that_is_rolled_back_never_happened(application: Connection) -> None:
    email_id = schedule(application)
    application.autocommit = False
    assert clear_one(application, email_id) == "cleared"
    application.rollback()
    assert run(application, "SELECT state FROM duepost.scheduled_email") == [("scheduled",)]


def test_a_clear_never_waits_for_smtp(application: Connection) -> None:
    email_id = schedule(application, "ann")
    become(application, email_id, SENDING)
    run(application, "SET lock_timeout = '100ms'")
    assert clear(application, "ann") == [(email_id, "too_late")]


@pytest.mark.parametrize("change", ["attempts = 0", QUEUED], ids=["scheduled", "queued"])
def test_an_email_can_be_moved(application: Connection, change: str) -> None:
    email_id = schedule(application)
    become(application, email_id, change)
    with application.cursor() as cursor:
        assert client.reschedule_email(cursor, email_id, "2030-01-01T00:00:00Z") == "rescheduled"
    assert run(
        application,
        "SELECT state, due_at = scheduled_at, date_header = scheduled_at, scheduled_at = '2030-01-01T00:00:00Z'"
        " FROM duepost.scheduled_email",
    ) == [("scheduled", True, True, True)]


def test_the_date_is_fixed_by_the_first_attempt(application: Connection) -> None:
    email_id = schedule(application)
    become(application, email_id, "attempts = 1")
    with application.cursor() as cursor:
        client.reschedule_email(cursor, email_id, "2030-01-01T00:00:00Z")
    assert run(application, "SELECT date_header < scheduled_at FROM duepost.scheduled_email") == [(True,)]


@pytest.mark.parametrize("change", [SENDING, "state = 'unknown'"], ids=["sending", "unknown"])
def test_what_is_on_its_way_cannot_be_moved(application: Connection, change: str) -> None:
    email_id = schedule(application)
    become(application, email_id, change)
    with application.cursor() as cursor:
        assert client.reschedule_email(cursor, email_id, "2030-01-01T00:00:00Z") == "too_late"
        assert client.reschedule_email(cursor, 999, "2030-01-01T00:00:00Z") == "too_late"


@pytest.mark.parametrize("moment", ["infinity", "2031-01-01T00:00:00Z", "2030-06-01T00:00:00Z"])
def test_an_email_cannot_be_moved_to_where_it_has_expired(application: Connection, moment: str) -> None:
    email_id = schedule(application, expires_at="2030-06-01T00:00:00Z")
    with (
        application.cursor() as cursor,
        pytest.raises(psycopg2.errors.InvalidParameterValue, match="scheduled_at: must be"),
    ):
        client.reschedule_email(cursor, email_id, moment)


def test_overlapping_clears_never_deadlock(server: PostgresServer, url: str, connect: Callable[[], Connection]) -> None:
    users = [f"user-{n}" for n in range(10)]
    failures: list[psycopg2.Error] = []

    def torture(connection: Connection, seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(40):
                schedule(connection, *rng.sample(users, 4))
                schedule(connection, *rng.sample(users, 4))
                clear(connection, *rng.sample(users, 5))
                connection.commit()
        except psycopg2.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=torture, args=(connect(), seed)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
