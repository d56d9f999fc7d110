"""Clearing messages: by users, by id, with emails at once; a receipt that is kept, whatever a worker does meanwhile."""

from collections.abc import Callable

import psycopg2
import pytest

from tests.integration.messages.support import CLAIM, error_of, messages, schedule, while_it_waits
from tests.postgres import Connection, run

IN_HAND = "INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at) SELECT id, 1, 1, now() FROM duepost.item"

EMAIL = "SELECT duepost.schedule_email('k', users => ARRAY['ann'], subject => 's', body_text => 'b')"


def clear(connection: Connection, *users: str, kind: str | None = None) -> list[tuple[object, ...]]:
    return run(connection, "SELECT * FROM duepost.clear_scheduled_messages(%s::text[], %s)", list(users), kind)


def clear_one(connection: Connection, message_id: int) -> object:
    return run(connection, "SELECT duepost.clear_scheduled_message(%s)", message_id)[0][0]


def ledger(connection: Connection) -> list[tuple[object, ...]]:
    return run(
        connection, "SELECT email_id, channel, endpoint, outcome, attempts FROM duepost.delivery ORDER BY email_id"
    )


def test_a_cleared_message_moves_to_the_ledger_with_all_that_is_stored_of_it(application: Connection) -> None:
    message_id = schedule(application, "key => 'a'")
    assert clear_one(application, message_id) == "cleared"
    assert clear_one(application, message_id) == "too_late"
    assert ledger(application) == [(message_id, "message", "webhook", "cleared", 0)]
    for table in ("item", "message", "scheduled_email_user", "in_hand"):
        assert run(application, f"SELECT count(*) FROM duepost.{table}") == [(0,)]
    assert schedule(application, "key => 'a'") == message_id, "a key is kept for good"
    assert messages(application) == []


def test_a_user_of_several_is_removed_and_the_last_one_clears_the_message(application: Connection) -> None:
    both, other = schedule(application, "users => ARRAY['ann', 'bob']"), schedule(application, "users => ARRAY['cleo']")
    assert clear(application, "ann") == [(both, "user_removed")]
    assert clear(application, "ann") == []
    assert clear(application, "bob", kind="other") == []
    assert clear(application, "bob", "cleo") == [(both, "cleared"), (other, "cleared")]
    assert messages(application) == []


def test_emails_and_messages_are_cleared_apart_or_at_once(application: Connection) -> None:
    message_id = schedule(application, "users => ARRAY['ann']")
    [(email_id,)] = run(application, EMAIL)
    run(application, "SAVEPOINT before")
    assert clear(application, "ann") == [(message_id, "cleared")]
    run(application, "ROLLBACK TO before")
    assert run(application, "SELECT * FROM duepost.clear_scheduled_emails(ARRAY['ann'])") == [(email_id, "cleared")]
    run(application, "ROLLBACK TO before")
    assert run(application, "SELECT * FROM duepost.clear_scheduled(ARRAY['ann'], 'other')") == []
    assert run(application, "SELECT * FROM duepost.clear_scheduled(ARRAY['ann'])") == [
        (message_id, "message", "cleared"),
        (email_id, "email", "cleared"),
    ]
    assert [(row[0], row[1], row[3]) for row in ledger(application)] == [
        (message_id, "message", "cleared"),
        (email_id, "email", "cleared"),
    ]


def test_the_id_of_an_email_is_no_messages(application: Connection) -> None:
    [(email_id,)] = run(application, EMAIL)
    message_id = schedule(application)
    assert run(application, "SELECT duepost.clear_scheduled_message(%s)", email_id) == [("too_late",)]
    assert run(application, "SELECT duepost.clear_scheduled_email(%s)", message_id) == [("too_late",)]
    assert run(application, "SELECT count(*) FROM duepost.item") == [(2,)]


@pytest.mark.parametrize(
    "change",
    [
        IN_HAND,
        "UPDATE duepost.item SET is_held = true, unknowns = 1",
        "UPDATE duepost.item SET unknowns = 1",
        "UPDATE duepost.message SET may_have_arrived = true",
    ],
    ids=["sending", "unknown", "to be resent", "answered"],
)
def test_what_may_have_arrived_is_too_late(application: Connection, change: str) -> None:
    message_id = schedule(application, "users => ARRAY['ann']")
    run(application, change)
    assert clear_one(application, message_id) == "too_late"
    assert clear(application, "ann") == [(message_id, "too_late")]
    assert ledger(application) == []


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("id", "clear_scheduled_message(NULL)"),
        ("users", "clear_scheduled_messages(NULL)"),
        ("users", "clear_scheduled_messages(ARRAY['ann', NULL])"),
        ("users", "clear_scheduled(NULL)"),
        ("users", "clear_scheduled(ARRAY['ann', NULL])"),
    ],
)
def test_null_is_refused_rather_than_taken_for_nothing_or_all(
    application: Connection, argument: str, call: str
) -> None:
    assert error_of(application, f"SELECT * FROM duepost.{call}").startswith(f"{argument}: ")


# Among workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_user", [True, False])
def test_a_clear_that_comes_while_a_worker_claims_waits_and_is_too_late(
    sessions: Callable[[], Connection], *, by_user: bool
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application, "users => ARRAY['ann']")
    application.commit()
    run(worker, CLAIM, message_id)

    def call() -> object:
        return clear(application, "ann") if by_user else clear_one(application, message_id)

    receipt = while_it_waits(application, call, sessions(), worker.commit)
    assert receipt == ([(message_id, "too_late")] if by_user else "too_late")
    assert messages(application) == [(message_id,)]


def test_a_worker_finds_nothing_of_what_was_cleared(sessions: Callable[[], Connection]) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    assert clear_one(application, message_id) == "cleared"
    assert run(worker, CLAIM, message_id) == [], "it passes over what somebody holds"
    application.commit()
    assert run(worker, CLAIM, message_id) == []


def test_a_transaction_with_one_snapshot_does_not_clear_what_was_claimed_since(
    sessions: Callable[[], Connection],
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    application.set_session(isolation_level="REPEATABLE READ")
    run(application, "SELECT 1 FROM duepost.item")
    run(worker, CLAIM, message_id)
    worker.commit()
    with pytest.raises(psycopg2.errors.SerializationFailure):
        clear_one(application, message_id)


# With their endpoint -------------------------------------------------------------------------------------------------


def test_the_messages_of_a_removed_endpoint_end_with_the_reason_and_others_stay(application: Connection) -> None:
    ended = [schedule(application, "users => ARRAY['ann']"), schedule(application)]
    other = schedule(application, endpoint="function")
    assert run(application, "SELECT duepost.remove_endpoint('webhook')") == [(2,)]
    assert [row[:4] for row in ledger(application)] == [(each, "message", "webhook", "undeliverable") for each in ended]
    assert run(application, "SELECT DISTINCT reply FROM duepost.delivery") == [("the endpoint webhook was removed",)]
    assert messages(application) == [(other,)]
    assert run(application, "SELECT count(*) FROM duepost.route WHERE name = 'endpoint:webhook'") == [(0,)]


def test_what_is_being_sent_or_unknown_outlives_its_endpoint(application: Connection) -> None:
    sending = schedule(application)
    run(application, IN_HAND)
    unknown = schedule(application)
    run(application, "UPDATE duepost.item SET is_held = true, unknowns = 1 WHERE id = %s", unknown)
    assert run(application, "SELECT duepost.remove_endpoint('webhook')") == [(0,)]
    assert messages(application) == [(sending,), (unknown,)]
    assert run(application, "SELECT count(*) FROM duepost.route WHERE name = 'endpoint:webhook'") == [(1,)]
