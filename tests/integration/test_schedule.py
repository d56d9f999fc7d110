"""schedule_email(): everything that can be checked is checked at once, in the caller's own transaction."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.database import Connection
from tests.postgres import PostgresServer

PLAIN = {"kind": "welcome", "address": "ann@example.com", "subject": "Hello", "body_text": "World"}
TEMPLATED = {"kind": "welcome", "address": "ann@example.com", "template": "welcome"}
BIG = "x" * 1048576


@pytest.fixture
def application(each_url: str) -> Iterator[Connection]:
    """An application's connection, on every PostgreSQL at hand."""
    connection = psycopg2.connect(each_url)
    yield connection
    connection.close()


def schedule(connection: Connection, **arguments: object) -> int:
    types = {
        "users": "text[]",
        "context": "jsonb",
        "headers": "jsonb",
        "scheduled_at": "timestamptz",
        "expires_at": "timestamptz",
    }
    named = ", ".join(f"{name} => %({name})s::{types.get(name, 'text')}" for name in arguments)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT duepost.schedule_email({named})", arguments)
        return int((cursor.fetchone() or (0,))[0])


def one(connection: Connection, statement: str, *parameters: object) -> tuple[object, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        row: tuple[object, ...] = cursor.fetchone() or ()
        return row


def without(arguments: dict[str, str], *names: str, **more: object) -> dict[str, object]:
    return {**{name: value for name, value in arguments.items() if name not in names}, **more}


BAD_ADDRESSES = [
    "nobody", "@example.com", "ann@", "ann@@example.com", "ann@b@example.com", "ann @example.com", "ann@exa mple.com",
    ".ann@example.com", "ann.@example.com", "a..b@example.com", "ann@-example.com", "ann@example-.com",
    "ann@example..com", "ann@.com", "ann@example.com.", "Ann <ann@example.com>", "ann@example.com, bob@example.com",
    "a" * 65 + "@example.com", "ann@" + "a" * 64 + ".com", "ann@" + "a.b" * 90 + ".com", '"ann"@example.com', "",
]  # fmt: skip

BAD_HEADERS: list[object] = [
            [], "text", {"X-A": 1}, {"X-A": None}, {"X-A": "b\r\nc"}, {"X-A": "b\x01"}, {"": "b"}, {"X A": "b"},
            {"X:A": "b"}, {"Ü": "b"}, {"X\nA": "b"}, {"X-A": "b" * 8193}, {"From": "b"}, {"BCC": "b"}, {"subject": "b"},
            {"Message-ID": "b"}, {"Content-Type": "b"}, {"Return-Path": "b"}, {"Auto-Submitted": "no"},
]  # fmt: skip

BAD = [
    *[("address", without(PLAIN, address=address)) for address in BAD_ADDRESSES],
    *[("address", without(PLAIN, address=f"ann{mark}@example.com")) for mark in ("\r\n", "\n", "\r", "\x01", "\x7f")],
    ("address", without(PLAIN, "address")),
    ("address", without(PLAIN, users=["ann"])),
    ("users", without(PLAIN, "address", users=[])),
    ("users", without(PLAIN, "address", users=["ann", None])),
    ("users", without(PLAIN, "address", users=["ann", ""])),
    ("users", without(PLAIN, "address", users=["ann\nbob"])),
    ("users", without(PLAIN, "address", users=[str(n) for n in range(1001)])),
    ("kind", without(PLAIN, kind="")),
    ("kind", without(PLAIN, kind=None)),
    ("kind", without(PLAIN, kind="a\nb")),
    ("kind", without(PLAIN, kind="k" * 101)),
    ("template", without(PLAIN, "subject", "body_text")),
    ("template", without(PLAIN, template="welcome")),
    ("template", without(TEMPLATED, subject="Hello")),
    ("template", without(TEMPLATED, body_text="World")),
    *[
        ("template", without(TEMPLATED, template=name))
        for name in ("", "../x", "/etc/passwd", "a//b", "a/../b", "a b", "a\\b", ".hidden", "a/", "x" * 201)
    ],
    ("context", without(TEMPLATED, context="[1]")),
    ("context", without(TEMPLATED, context='"text"')),
    ("context", without(TEMPLATED, context="null")),
    ("context", without(PLAIN, context="{}")),
    ("context", without(TEMPLATED, context=json.dumps({"a": "x" * 262144}))),
    ("subject", without(PLAIN, subject="")),
    ("subject", without(PLAIN, subject="   ")),
    ("subject", without(PLAIN, subject="Hello\r\nBcc: eve@example.com")),
    ("subject", without(PLAIN, subject="x" * 4097)),
    ("body_text", without(PLAIN, "body_text")),
    ("body_text", without(PLAIN, body_text="")),
    ("body_text", without(PLAIN, body_text=BIG + "x")),
    ("body_html", without(PLAIN, body_html=BIG + "x")),
    ("expires_at", without(PLAIN, scheduled_at="2030-01-02T00:00Z", expires_at="2030-01-01T00:00Z")),
    ("expires_at", without(PLAIN, scheduled_at="2030-01-02T00:00Z", expires_at="2030-01-02T00:00Z")),
    ("expires_at", without(PLAIN, expires_at="infinity")),
    ("scheduled_at", without(PLAIN, scheduled_at="infinity")),
    ("scheduled_at", without(PLAIN, scheduled_at="-infinity")),
    ("sender", without(PLAIN, sender="nobody")),
    ("sender", without(PLAIN, sender="Ann <ann@example.com>\r\nBcc: eve@example.com")),
    ("sender", without(PLAIN, sender="Ann <nobody>")),
    ("reply_to", without(PLAIN, reply_to="nobody")),
    ("reply_to", without(PLAIN, reply_to="a@example.com\n")),
    ("key", without(PLAIN, key="")),
    ("key", without(PLAIN, key="a\nb")),
    ("key", without(PLAIN, key="k" * 513)),
    *[
        ("headers", without(PLAIN, headers=json.dumps(headers)))
        for headers in BAD_HEADERS
    ],
]  # fmt: skip


@pytest.mark.parametrize(("argument", "arguments"), BAD, ids=range(len(BAD)))
def test_a_bad_argument_is_named_and_nothing_is_stored(
    refusing: Connection, argument: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(psycopg2.Error) as caught:
        schedule(refusing, **arguments)
    refusing.rollback()
    assert caught.value.pgcode == "22023"
    assert (caught.value.diag.message_primary or "").startswith(f"{argument}:")
    assert one(
        refusing,
        "SELECT (SELECT count(*) FROM duepost.scheduled_email) + (SELECT count(*) FROM duepost.scheduled_email_user)"
        " + (SELECT count(*) FROM duepost.email_key)",
    ) == (0,)


@pytest.fixture(scope="module")
def refusing(each_server: PostgresServer) -> Iterator[Connection]:
    """One database for all that is refused: nothing must ever be stored in it."""
    with each_server.fresh_database() as url:
        connection = psycopg2.connect(url)
        yield connection
        connection.close()


@pytest.mark.parametrize("argument", ["address", "subject", "body_text", "kind", "key", "sender"])
def test_nul_is_refused_by_the_driver_or_the_server_and_nothing_is_stored(refusing: Connection, argument: str) -> None:
    with pytest.raises((ValueError, psycopg2.Error)):
        schedule(refusing, **without(PLAIN, **{argument: "a\x00b"}))
    refusing.rollback()
    assert one(refusing, "SELECT count(*) FROM duepost.scheduled_email") == (0,)


@pytest.mark.parametrize(
    "arguments",
    [
        PLAIN,
        TEMPLATED,
        without(PLAIN, address="ünï@exämple.de"),
        without(PLAIN, address="a+b/c=d!#$%&'*-_@sub.example.co"),
        without(PLAIN, address="root@localhost"),
        without(PLAIN, body_text=BIG, body_html=BIG),
        without(TEMPLATED, template="account/welcome.v2", context=json.dumps({"a": "x" * 262100})),
        without(PLAIN, sender="Ann Example <ann@example.com>", reply_to="help@example.com"),
        without(PLAIN, headers='{"List-Unsubscribe": "<https://example.com/u>", "X-Campaign": "Grüße"}'),
        without(PLAIN, "address", users=["1", "2", "1"]),
        without(PLAIN, scheduled_at=None),
        without(PLAIN, kind="Any kind of email"),
    ],
    ids=range(12),
)
def test_good_arguments_are_stored(application: Connection, arguments: dict[str, object]) -> None:
    email_id = schedule(application, **arguments)
    found = one(
        application,
        "SELECT state, attempts, due_at = scheduled_at FROM duepost.scheduled_email WHERE id = %s",
        email_id,
    )
    assert found == ("scheduled", 0, True)


def test_it_leaves_now_where_no_time_is_given(application: Connection) -> None:
    email_id = schedule(application, **PLAIN)
    assert one(application, "SELECT scheduled_at = now() FROM duepost.scheduled_email WHERE id = %s", email_id) == (
        True,
    )


def test_users_are_taken_once(application: Connection) -> None:
    email_id = schedule(application, **without(PLAIN, "address", users=["b", "a", "b"]))
    assert one(
        application,
        "SELECT array_agg(user_id ORDER BY user_id) FROM duepost.scheduled_email_user WHERE email_id = %s",
        email_id,
    ) == (["a", "b"],)


def test_message_ids_are_unique_and_of_the_senders_domain(application: Connection) -> None:
    ids = [schedule(application, **without(PLAIN, sender="Ann <ann@mail.example.org>")) for _ in range(3)]
    found = one(
        application,
        "SELECT count(DISTINCT message_id_header),"
        " bool_and(message_id_header ~ '^<[0-9a-f-]{36}@mail\\.example\\.org>$')"
        " FROM duepost.scheduled_email WHERE id = ANY (%s)",
        ids,
    )
    assert found == (3, True)


def test_a_kind_can_set_the_expiry(application: Connection) -> None:
    one(application, "INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('digest', '1 day') RETURNING 1")
    email_id = schedule(application, **without(PLAIN, kind="digest"))
    assert one(
        application,
        "SELECT expires_at - scheduled_at = interval '1 day' FROM duepost.scheduled_email WHERE id = %s",
        email_id,
    ) == (True,)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_rollback_leaves_nothing(application: Connection, level: str) -> None:
    with application.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    schedule(application, **without(PLAIN, key="k"))
    application.rollback()
    assert one(
        application, "SELECT (SELECT count(*) FROM duepost.scheduled_email), (SELECT count(*) FROM duepost.email_key)"
    ) == (0, 0)


def test_a_savepoint_takes_back_one_email(application: Connection) -> None:
    schedule(application, **PLAIN)
    with application.cursor() as cursor:
        cursor.execute("SAVEPOINT s")
        schedule(application, **PLAIN)
        cursor.execute("ROLLBACK TO s")
    application.commit()
    assert one(application, "SELECT count(*) FROM duepost.scheduled_email") == (1,)


def test_the_same_key_and_content_are_the_same_email(application: Connection) -> None:
    first = schedule(application, **without(PLAIN, key="k"))
    assert schedule(application, **without(PLAIN, key="k")) == first
    assert one(application, "SELECT count(*) FROM duepost.scheduled_email") == (1,)


def test_no_context_and_an_empty_one_are_the_same_content(application: Connection) -> None:
    first = schedule(application, **without(TEMPLATED, key="k"))
    assert schedule(application, **without(TEMPLATED, key="k", context="{}")) == first


def test_a_key_is_kept_when_its_email_is_finished(application: Connection) -> None:
    first = schedule(application, **without(PLAIN, key="k"))
    one(application, "SELECT duepost.clear_scheduled_email(%s)", first)
    assert schedule(application, **without(PLAIN, key="k")) == first
    assert one(application, "SELECT count(*) FROM duepost.scheduled_email") == (0,)


def test_times_are_not_content(application: Connection) -> None:
    first = schedule(application, **without(PLAIN, key="k", scheduled_at="2030-01-01T00:00Z"))
    assert schedule(application, **without(PLAIN, key="k", scheduled_at="2031-01-01T00:00Z")) == first


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "Other"},
        {"body_text": "Other"},
        {"address": "bob@example.com"},
        {"kind": "other"},
        {"sender": "b@example.com"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_same_key_with_another_content_is_refused(application: Connection, other: dict[str, str]) -> None:
    schedule(application, **without(PLAIN, key="k"))
    application.commit()
    with pytest.raises(psycopg2.errors.UniqueViolation, match="key: already used"):
        schedule(application, **without(PLAIN, key="k", **other))
    application.rollback()
    assert one(application, "SELECT count(*) FROM duepost.scheduled_email") == (1,)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_of_two_that_race_on_a_key_one_email_comes(connect: Callable[[], Connection], ending: str) -> None:
    first, second = connect(), connect()
    first_id = schedule(first, **without(PLAIN, key="k"))
    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()

        def race() -> int:
            started.set()
            return schedule(second, **without(PLAIN, key="k"))

        waiting = pool.submit(race)
        started.wait()
        getattr(first, ending)()
        second_id = waiting.result(timeout=30)
    second.commit()
    assert (second_id == first_id) == (ending == "commit")
    assert one(second, "SELECT count(*) FROM duepost.scheduled_email") == (1,)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    argument=st.sampled_from(["kind", "address", "subject", "body_text", "key", "sender", "reply_to", "template"]),
    text=st.text(max_size=80),
)
def test_any_text_is_stored_or_refused_with_22023(refusing: Connection, argument: str, text: str) -> None:
    base = TEMPLATED if argument == "template" else PLAIN
    try:
        schedule(refusing, **without(base, **{argument: text}))
    except (ValueError, UnicodeEncodeError):
        assert "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text)
    except psycopg2.errors.InvalidParameterValue:
        pass
    finally:
        refusing.rollback()
