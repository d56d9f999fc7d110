"""Rescheduling: to any moment, until the email is on its way."""

from collections.abc import Callable

import psycopg2
import pytest

from duepost import client
from tests.postgres import Connection, run

SENDING = "state = 'sending', claim = 1, worker_id = 1, claimed_at = now()"
QUEUED = "state = 'queued', message_id = gen_random_uuid()"
LATER = "2030-01-01T00:00Z"


def schedule(connection: Connection, change: str = "attempts = 0", **more: str) -> int:
    """Schedules an email, and makes it what a test wants."""
    given = {"address": "ann@example.com", "subject": "Hello", "body_text": "World", **more}
    with connection.cursor() as cursor:
        email_id = client.schedule_email(cursor, kind="welcome", **given)  # type: ignore[arg-type]
    run(connection, f"UPDATE duepost.scheduled_email SET {change} WHERE id = %s", email_id)
    return email_id


def reschedule(connection: Connection, email_id: int, moment: str = LATER) -> str:
    with connection.cursor() as cursor:
        return client.reschedule_email(cursor, email_id, moment)


def row(connection: Connection, columns: str) -> tuple[object, ...]:
    [found] = run(connection, f"SELECT {columns} FROM duepost.scheduled_email")
    return found


@pytest.mark.parametrize(
    "change",
    ["attempts = 0", QUEUED, "attempts = 3, due_at = now() + interval '1 min'", f"{QUEUED}, probe = true"],
    ids=["scheduled", "queued", "between retries", "a probe"],
)
def test_an_email_can_be_moved_until_it_is_on_its_way(application: Connection, change: str) -> None:
    assert reschedule(application, schedule(application, change)) == "rescheduled"
    assert row(application, f"state, scheduled_at = '{LATER}', due_at = '{LATER}', message_id, probe") == (
        "scheduled", True, True, None, False,
    )  # fmt: skip


def test_an_email_can_be_moved_forward_too(application: Connection) -> None:
    email_id = schedule(application, scheduled_at="2040-01-01T00:00Z")
    assert reschedule(application, email_id) == "rescheduled"
    assert row(application, f"due_at = '{LATER}'") == (True,)


def test_moved_to_the_past_it_is_due_at_once(application: Connection) -> None:
    email_id = schedule(application, scheduled_at=LATER)
    assert reschedule(application, email_id, "2001-01-01T00:00Z") == "rescheduled"
    assert row(application, "due_at < now(), date_header = now()") == (True, True)


def test_the_date_moves_along_before_the_first_attempt(application: Connection) -> None:
    reschedule(application, schedule(application))
    assert row(application, f"date_header = '{LATER}'") == (True,)


@pytest.mark.parametrize("change", ["attempts = 1", "attempts = 1, unknowns = 1"], ids=["failed", "unknown"])
def test_the_date_is_fixed_by_the_first_attempt(application: Connection, change: str) -> None:
    email_id = schedule(application, f"{change}, date_header = '2020-01-01T00:00Z'")
    assert reschedule(application, email_id) == "rescheduled"
    assert row(application, "date_header = '2020-01-01T00:00Z'") == (True,)


def test_the_message_id_never_changes(application: Connection) -> None:
    email_id = schedule(application)
    before = row(application, "message_id_header")
    reschedule(application, email_id)
    assert row(application, "message_id_header") == before


@pytest.mark.parametrize("change", [SENDING, "state = 'unknown', unknowns = 1"], ids=["sending", "unknown"])
def test_what_is_on_its_way_cannot_be_moved(application: Connection, change: str) -> None:
    email_id = schedule(application, change)
    before = row(application, "state, scheduled_at, due_at, date_header")
    assert reschedule(application, email_id) == "too_late"
    assert row(application, "state, scheduled_at, due_at, date_header") == before


def test_what_is_finished_or_was_never_there_cannot_be_moved(application: Connection) -> None:
    email_id = schedule(application)
    run(application, "SELECT duepost.clear_scheduled_email(%s)", email_id)
    assert reschedule(application, email_id) == "too_late"
    assert reschedule(application, 999_999) == "too_late"


@pytest.mark.parametrize(
    "moment",
    ["2031-01-01T00:00Z", "2030-06-01T00:00Z", "infinity", "-infinity", "0044-03-15 BC", "10000-01-01", None],
    ids=["after its expiry", "at its expiry", "infinity", "-infinity", "BC", "five-digit year", "NULL"],
)
def test_a_moment_at_which_it_could_not_be_sent_is_refused_and_nothing_moves(
    application: Connection, moment: str | None
) -> None:
    email_id = schedule(application, expires_at="2030-06-01T00:00Z", scheduled_at=LATER)
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^scheduled_at: must be"):
        run(application, "SELECT duepost.reschedule_email(%s, %s::timestamptz)", email_id, moment)
    run(application, "ROLLBACK TO before")
    assert row(application, f"due_at = '{LATER}'") == (True,)


def test_the_expiry_stays_where_it_is(application: Connection) -> None:
    email_id = schedule(application, expires_at="2030-06-01T00:00Z")
    assert reschedule(application, email_id, "2030-05-31T23:59:59Z") == "rescheduled"
    assert row(application, "expires_at = '2030-06-01T00:00Z'") == (True,)


def test_a_move_that_is_rolled_back_never_happened(connect: Callable[[], Connection]) -> None:
    application = connect()
    email_id = schedule(application, scheduled_at="2029-01-01T00:00Z")
    application.commit()
    assert reschedule(application, email_id) == "rescheduled"
    application.rollback()
    assert row(application, "due_at = '2029-01-01T00:00Z'") == (True,)


def test_a_move_never_waits_for_smtp(connect: Callable[[], Connection]) -> None:
    worker, application = connect(), connect()
    email_id = schedule(worker, SENDING)
    worker.commit()
    # The relay is being spoken to. A lock that is not there at once would be an error.
    run(application, "SET lock_timeout = '1ms'")
    assert reschedule(application, email_id) == "too_late"
