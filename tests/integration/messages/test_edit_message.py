"""Editing and moving a message: effective, or too late, whatever a worker does meanwhile."""

from collections.abc import Callable

import psycopg2
import pytest

from tests.integration.messages.support import CLAIM, error_of, messages, schedule, while_it_waits
from tests.postgres import Connection, run

NEW = '{"n": 2}'


def edit(connection: Connection, message_id: int, payload: str = NEW) -> str:
    return str(run(connection, "SELECT duepost.edit_message(%s, %s)", message_id, payload)[0][0])


def move(connection: Connection, message_id: int, when: str = "2030-01-01 09:00+00") -> str:
    return str(run(connection, "SELECT duepost.reschedule_message(%s, %s)", message_id, when)[0][0])


def queue(connection: Connection, message_id: int) -> None:
    run(
        connection,
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message, key)"
        " VALUES (gen_random_uuid(), 'q', 'queued', '{}', %s)",
        message_id,
    )


# Receipts ------------------------------------------------------------------------------------------------------------


def test_an_edited_message_has_the_new_payload_and_keeps_all_else(application: Connection) -> None:
    message_id = schedule(application, "key => 'a', users => ARRAY['ann']")
    kept = "id, kind, endpoint, scheduled_at, due_at, key, wire_id, attempts, state"
    before = messages(application, kept)
    assert edit(application, message_id) == "edited"
    assert messages(application, "payload, edited_at = now()") == [({"n": 2}, True)]
    assert messages(application, kept) == before
    assert schedule(application, "key => 'a', users => ARRAY['ann']") == message_id


@pytest.mark.parametrize(
    "change",
    ["attempts = 3, last_error = 'http 500', due_at = now() + interval '1 min'", "probe = true"],
    ids=["between retries", "a probe"],
)
def test_what_is_not_on_its_way_can_be_edited_and_moved(application: Connection, change: str) -> None:
    message_id = schedule(application)
    run(application, f"UPDATE duepost.item SET {change}")
    assert edit(application, message_id) == "edited"
    assert move(application, message_id) == "rescheduled"


def test_a_queued_message_is_edited_in_place_and_moved_out_of_the_queue(application: Connection) -> None:
    message_id = schedule(application)
    queue(application, message_id)
    assert edit(application, message_id) == "edited"
    assert messages(application, "state") == [("queued",)]
    assert move(application, message_id) == "rescheduled"
    assert messages(application, "state, scheduled_at = '2030-01-01 09:00+00', due_at = scheduled_at") == [
        ("scheduled", True, True)
    ]


@pytest.mark.parametrize(
    "change",
    ["UPDATE duepost.item SET is_held = true, unknowns = 1", "UPDATE duepost.item SET unknowns = 1",
     "UPDATE duepost.message SET may_have_arrived = true",
     "INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at) SELECT id, 1, 1, now() FROM duepost.item"],
    ids=["unknown", "to be resent", "a request of it may have arrived", "sending"],
)  # fmt: skip
def test_what_may_have_arrived_is_too_late_to_edit(application: Connection, change: str) -> None:
    message_id = schedule(application)
    run(application, change)
    assert edit(application, message_id) == "too_late"
    assert messages(application, "payload, edited_at") == [({"n": 1}, None)]


@pytest.mark.parametrize("message_id", [-1, 0, 999_999, 2**63 - 1])
def test_a_message_that_is_not_there_is_too_late(application: Connection, message_id: int) -> None:
    assert edit(application, message_id) == "too_late"
    assert move(application, message_id) == "too_late"


def test_an_email_is_no_message(application: Connection) -> None:
    [(email_id,)] = run(
        application, "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b')"
    )
    message_id = schedule(application)
    assert isinstance(email_id, int)
    assert edit(application, email_id) == "too_late"
    assert move(application, email_id) == "too_late"
    assert run(application, "SELECT duepost.reschedule_email(%s, '2030-01-01')", message_id) == [("too_late",)]


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("id", "edit_message(NULL, '[]')"),
        ("payload", "edit_message({id}, NULL)"),
        ("payload", "edit_message({id}, '3')"),
        ("payload", "edit_message({id}, '{{\"n\": 1e5000}}')"),
        ("payload", "edit_message(-1, '{{\"n\": 1e5000}}')"),
        ("payload", "edit_message({id}, jsonb_build_object('t', repeat('x', 262144)))"),
        ("id", "reschedule_message(NULL, now())"),
        ("scheduled_at", "reschedule_message({id}, NULL)"),
        ("scheduled_at", "reschedule_message({id}, 'infinity')"),
        ("scheduled_at", "reschedule_message({id}, '1969-01-01')"),
        ("scheduled_at", "reschedule_message({id}, '2040-01-01')"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_changes(application: Connection, argument: str, call: str) -> None:
    message_id = schedule(application, "expires_at => '2040-01-01'")
    before = messages(application, "payload, scheduled_at, edited_at")
    assert error_of(application, f"SELECT duepost.{call.format(id=message_id)}").startswith(f"{argument}: ")
    assert messages(application, "payload, scheduled_at, edited_at") == before


def test_an_edit_is_checked_as_its_endpoints_format_wants(application: Connection) -> None:
    message_id = schedule(application, endpoint="slack", payload='{"text": "x"}')
    assert error_of(application, f'SELECT duepost.edit_message({message_id}, \'{{"txt": "x"}}\')') == (
        "payload: must have a text, blocks or attachments"
    )


# Among workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [edit, move])
def test_a_change_that_comes_while_a_worker_claims_waits_and_is_too_late(
    sessions: Callable[[], Connection], change: Callable[[Connection, int], str]
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    assert run(worker, CLAIM, message_id) == [(message_id,)]
    receipt = while_it_waits(application, lambda: change(application, message_id), sessions(), worker.commit)
    assert receipt == "too_late"
    assert messages(application, "payload, scheduled_at < now()") == [({"n": 1}, True)]


@pytest.mark.parametrize("change", [edit, move])
def test_a_change_after_a_claim_that_was_taken_back_is_effective(
    sessions: Callable[[], Connection], change: Callable[[Connection, int], str]
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    run(worker, CLAIM, message_id)
    receipt = while_it_waits(application, lambda: change(application, message_id), sessions(), worker.rollback)
    assert receipt in {"edited", "rescheduled"}


@pytest.mark.parametrize("change", [edit, move])
def test_a_worker_passes_over_what_is_being_changed_and_then_finds_it_changed(
    sessions: Callable[[], Connection], change: Callable[[Connection, int], str]
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    assert change(application, message_id) in {"edited", "rescheduled"}
    assert run(worker, CLAIM, message_id) == []
    application.commit()
    assert run(worker, CLAIM, message_id) == [(message_id,)]
    assert (messages(worker, "payload, scheduled_at > now()") == [({"n": 1}, False)]) is False


def test_a_transaction_with_one_snapshot_does_not_edit_what_was_claimed_since(
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
        edit(application, message_id)
    application.rollback()
    assert edit(application, message_id) == "too_late"


def test_a_transaction_with_one_snapshot_does_not_edit_what_may_have_arrived_since(
    sessions: Callable[[], Connection],
) -> None:
    application, worker = sessions(), sessions()
    message_id = schedule(application)
    application.commit()
    application.set_session(isolation_level="REPEATABLE READ")
    run(application, "SELECT 1 FROM duepost.item")
    run(worker, "UPDATE duepost.message SET may_have_arrived = true")
    worker.commit()
    with pytest.raises(psycopg2.errors.SerializationFailure):
        edit(application, message_id)


# Where it stands -----------------------------------------------------------------------------------------------------

STATUS = "channel, kind, state, outcome, due_at = scheduled_at, finished_at IS NOT NULL, attempts"


def status(connection: Connection, given: str) -> list[tuple[object, ...]]:
    return run(connection, f"SELECT {STATUS} FROM duepost.status({given})")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("SELECT 1", "scheduled"),
        ("UPDATE duepost.item SET is_held = true", "unknown"),
        ("INSERT INTO dramatiq.queue (message_id, queue_name, state, message, key)"
         " SELECT gen_random_uuid(), 'q', 'queued', '{}', id FROM duepost.item", "queued"),
        ("INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at) SELECT id, 1, 1, now() FROM duepost.item",
         "sending"),
    ],
)  # fmt: skip
def test_a_client_learns_where_a_message_stands(application: Connection, change: str, state: str) -> None:
    message_id = schedule(application, "key => 'a'")
    run(application, change)
    expected = [("message", "k", state, None, True, False, 0)]
    assert status(application, str(message_id)) == status(application, "key => 'a'") == expected


def test_a_client_learns_where_an_email_stands_and_how_it_ended(application: Connection) -> None:
    call = "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b', key => 'a')"
    [(email_id,)] = run(application, call)
    assert status(application, "key => 'a'") == [("email", "k", "scheduled", None, True, False, 0)]
    run(application, f"SELECT duepost.clear_scheduled_email({email_id})")
    assert status(application, f"{email_id}") == [("email", "k", "finished", "cleared", None, True, 0)]


def test_an_email_that_one_of_its_users_has_is_sent(application: Connection) -> None:
    call = "SELECT duepost.schedule_email('k', users => ARRAY['ann', 'bob'], subject => 's', body_text => 'b')"
    [(email_id,)] = run(application, call)
    run(application, "UPDATE duepost.scheduled_email_user SET outcome = 'sent' WHERE user_id = 'bob'")
    assert run(application, f"SELECT duepost.clear_scheduled_email({email_id})") == [("user_removed",)]
    assert [row[3] for row in status(application, str(email_id))] == ["sent"]


def test_of_what_nobody_knows_there_is_no_status(application: Connection) -> None:
    assert status(application, "-1") == status(application, "key => 'nobody''s'") == []


@pytest.mark.parametrize("given", ["", "NULL, NULL", "1, 'a'"])
def test_a_status_is_asked_for_by_id_or_key(application: Connection, given: str) -> None:
    assert error_of(application, f"SELECT * FROM duepost.status({given})") == "id: give either id or key"
