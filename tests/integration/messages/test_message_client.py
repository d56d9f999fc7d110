"""Messages by the Python client."""

from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

import duepost
from tests.postgres import Connection, Cursor, run

LATER = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def cursor(application: Connection) -> Cursor:
    return application.cursor()


def test_schedule_message_gives_the_id_and_passes_every_argument_on(application: Connection, cursor: Cursor) -> None:
    message_id = duepost.schedule_message(
        cursor, kind="news", endpoint="webhook", payload={"text": "Grüße", "n": [1.5, None]}, scheduled_at=LATER,
        users=["ann", "bob"], key="a", expires_at=LATER + timedelta(days=1),
    )  # fmt: skip
    assert run(
        application,
        "SELECT id, kind, endpoint, payload, scheduled_at, expires_at, key,"
        " (SELECT array_agg(user_id ORDER BY user_id) FROM duepost.scheduled_email_user)"
        " FROM duepost.scheduled_message",
    ) == [
        (message_id, "news", "webhook", {"text": "Grüße", "n": [1.5, None]}, LATER, LATER + timedelta(days=1), "a",
         ["ann", "bob"])
    ]  # fmt: skip


@pytest.mark.parametrize("payload", [[1, 2], "text", 3, 1.5, True])
def test_a_payload_may_be_any_json(application: Connection, cursor: Cursor, payload: object) -> None:
    duepost.schedule_message(cursor, kind="k", endpoint="function", payload=payload)  # type: ignore[arg-type]
    assert run(application, "SELECT payload FROM duepost.scheduled_message") == [(payload,)]


def test_schedule_messages_gives_the_ids_in_order(application: Connection, cursor: Cursor) -> None:
    ids = duepost.schedule_messages(
        cursor,
        ({"kind": "k", "endpoint": "webhook", "payload": {"n": n}, "scheduled_at": LATER} for n in range(3)),
    )
    assert run(application, "SELECT id, payload, scheduled_at FROM duepost.scheduled_message ORDER BY id") == [
        (message_id, {"n": n}, LATER) for n, message_id in enumerate(ids)
    ]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"scheduled_at": datetime(2030, 1, 1)}, ValueError, "scheduled_at: needs a time zone"),  # noqa: DTZ001 - the point
        ({"users": "ann"}, TypeError, "users: must be a list of user ids"),
        ({"payload": {"n": float("nan")}}, TypeError, "payload: n: not JSON serializable"),
        (
            {"payload": {"a": ["x", {"b": "\0"}]}},
            ValueError,
            r"payload: a\[1\]: b: must not contain NUL or a lone surrogate",
        ),
        ({"payload": {"a": "\ud800"}}, ValueError, "payload: a: must not contain NUL or a lone surrogate"),
        ({"payload": {"a": {"\0": 1}}}, ValueError, "payload: a: must not contain NUL or a lone surrogate"),
        (
            {"payload": {"a": "x" * 262_144}},
            psycopg2.errors.InvalidParameterValue,
            "payload: must be at most 262144 bytes",
        ),
        ({"payload": "text"}, psycopg2.errors.InvalidParameterValue, "payload: must be a JSON object or a list"),
        ({"endpoint": "nobody"}, psycopg2.errors.InvalidParameterValue, "endpoint: there is none called nobody"),
    ],
)
def test_what_is_wrong_is_named(
    application: Connection, cursor: Cursor, wrong: dict[str, object], error: type[Exception], said: str
) -> None:
    given: dict[str, object] = {"kind": "k", "endpoint": "webhook", "payload": {}}
    run(application, "SAVEPOINT before")
    with pytest.raises(error, match=rf"^{said}"):
        duepost.schedule_message(cursor, **{**given, **wrong})  # type: ignore[arg-type]
    run(application, "ROLLBACK TO before")
    with pytest.raises(error, match=rf"^messages\[1\]: {said}"):
        duepost.schedule_messages(cursor, [given, {**given, **wrong}])


def test_what_only_looks_like_nul_is_text(application: Connection, cursor: Cursor) -> None:
    payload = {"a": "write \\u0000 or \\ud800", "b": "\N{GRINNING FACE}"}
    duepost.schedule_message(cursor, kind="k", endpoint="webhook", payload=payload)
    assert run(application, "SELECT payload FROM duepost.scheduled_message") == [(payload,)]


def test_an_edit_names_what_is_wrong_with_its_payload(application: Connection, cursor: Cursor) -> None:
    message_id = duepost.schedule_message(cursor, kind="k", endpoint="webhook", payload={"n": 1})
    with pytest.raises(ValueError, match=r"^payload: a: must not contain NUL"):
        duepost.edit_message(cursor, message_id, {"a": "\0"})
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^payload: must be a JSON object or a list"):
        duepost.edit_message(cursor, message_id, 3)
    run(application, "ROLLBACK TO before")
    assert run(application, "SELECT payload FROM duepost.scheduled_message") == [({"n": 1},)]


def test_a_message_is_edited_moved_and_asked_for(cursor: Cursor) -> None:
    message_id = duepost.schedule_message(cursor, kind="k", endpoint="webhook", payload={}, key="a")
    assert duepost.edit_message(cursor, message_id, {"n": 2}) == "edited"
    assert duepost.edit_message(cursor, 999_999, {"n": 2}) == "too_late"
    assert duepost.reschedule_message(cursor, message_id, LATER) == "rescheduled"
    expected = duepost.Status(message_id, "message", "k", "scheduled", None, LATER, LATER, None, 0)
    assert duepost.status(cursor, message_id) == duepost.status(cursor, key="a") == expected
    assert duepost.status(cursor, key="b") is None


def test_what_is_left_out_is_named_by_python_itself(cursor: Cursor) -> None:
    with pytest.raises(TypeError, match="payload"):
        duepost.schedule_message(cursor, kind="k", endpoint="webhook")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="adress"):
        duepost.schedule_message(cursor, kind="k", endpoint="webhook", payload={}, adress="x")  # type: ignore[call-arg]
