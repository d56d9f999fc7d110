"""schedule_emails(): many emails or none, by the very rules of schedule_email()."""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_schedule import (
    BAD,
    OTHER,
    PLAIN,
    TEMPLATED,
    TYPES,
    Arguments,
    counts,
    one,
    schedule,
    without,
)
from tests.postgres import Connection
from tests.waiting import wait_until


def in_json(arguments: Arguments) -> dict[str, object]:
    """The arguments as JSON has them: what is JSON in SQL is a value here."""
    return {
        name: json.loads(value) if name in {"context", "headers"} and isinstance(value, str) else value
        for name, value in arguments.items()
    }


def schedule_all(connection: Connection, emails: object) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT duepost.schedule_emails(%s::jsonb)", (json.dumps(emails),))
        return [row[0] for row in cursor.fetchall()]


def refused(connection: Connection, emails: object) -> tuple[str | None, str]:
    """What is said of a set, of which nothing is stored."""
    one(connection, "SAVEPOINT before")
    before = counts(connection)
    with pytest.raises(psycopg2.Error) as caught:
        schedule_all(connection, emails)
    one(connection, "ROLLBACK TO before")
    assert counts(connection) == before
    return caught.value.pgcode, caught.value.diag.message_primary or ""


#: In JSON null is what is not given.
GIVEN = [(name, each) for name, each in BAD if "null" not in (each.get("context"), each.get("headers"))]


@pytest.mark.parametrize(("argument", "arguments"), GIVEN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(GIVEN)])
def test_a_bad_argument_is_named_with_its_place_and_nothing_is_stored(
    application: Connection, argument: str, arguments: Arguments
) -> None:
    code, said = refused(application, [PLAIN, in_json(arguments), PLAIN, {"kind": ""}])
    assert code == "22023"
    assert said.startswith(f"emails[1]: {argument}: ")


@pytest.mark.parametrize(
    ("emails", "said"),
    [
        (None, "emails: must be a JSON array"),
        ({}, "emails: must be a JSON array"),
        (PLAIN, "emails: must be a JSON array"),
        ("text", "emails: must be a JSON array"),
        ([PLAIN, None], "emails[1]: must be an object"),
        ([PLAIN, []], "emails[1]: must be an object"),
        ([[PLAIN]], "emails[0]: must be an object"),
        ([{**PLAIN, "adress": "a@example.com"}], "emails[0]: adress: unknown; known are kind, address, users"),
        ([{**PLAIN, "Kind": "a"}], "emails[0]: Kind: unknown"),
        ([{**PLAIN, "kind": 5}], "emails[0]: kind: must be a string"),
        ([{**PLAIN, "subject": ["a"]}], "emails[0]: subject: must be a string"),
        ([{**PLAIN, "body_text": True}], "emails[0]: body_text: must be a string"),
        ([{**PLAIN, "key": 7}], "emails[0]: key: must be a string"),
        ([without(PLAIN, "address", users="ann")], "emails[0]: users: must be a list of strings"),
        ([without(PLAIN, "address", users=["ann", 7])], "emails[0]: users: must be a list of strings"),
        ([without(PLAIN, "address", users=[["ann"]])], "emails[0]: users: must be a list of strings"),
        ([without(PLAIN, "address", users={"ann": 1})], "emails[0]: users: must be a list of strings"),
        ([PLAIN, {**PLAIN, "scheduled_at": "soon"}], "emails[1]: scheduled_at: must be a time such as"),
        ([PLAIN, {**PLAIN, "scheduled_at": "2026-02-30T00:00Z"}], "emails[1]: scheduled_at: must be a time such as"),
        ([{**PLAIN, "expires_at": 1700000000}], "emails[0]: expires_at: must be a time such as"),
        ([{**TEMPLATED, "context": "{}"}], "emails[0]: context: must be an object"),
        ([{**PLAIN, "headers": [["X-A", "b"]]}], "emails[0]: headers: must be an object"),
    ],
)
def test_what_has_no_form_is_named_with_its_place(application: Connection, emails: object, said: str) -> None:
    code, message = refused(application, emails)
    assert code == "22023"
    assert message.startswith(said)


@pytest.mark.parametrize(
    "text",
    ["2030-12-24 18:00", "2030-01-01T09:00:00", "2030-01-01", "01/02/2030", "01.02.2030 10:00 +01", "tomorrow", "now",
     "infinity", "2030-01-01T09:00:00 CET", "2030-01-01T09:00:00 IST", "Tue Jan 1 09:00 2030 +0100", "epoch", "12:00Z"],
)  # fmt: skip
@pytest.mark.parametrize("argument", ["scheduled_at", "expires_at"])
@pytest.mark.parametrize("style", ["ISO, MDY", "SQL, DMY"])
def test_a_time_that_sessions_read_differently_is_refused(
    application: Connection, argument: str, text: str, style: str
) -> None:
    with application.cursor() as cursor:
        cursor.execute("SET LOCAL DateStyle = %s", (style,))
    code, message = refused(application, [PLAIN, {**PLAIN, argument: text}])
    assert code == "22023"
    assert re.match(rf"emails\[1\]: {argument}: must .*2026-01-31T09:00:00\+01:00", message)


def test_null_is_refused(application: Connection) -> None:
    one(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="emails: must be a JSON array"):
        one(application, "SELECT duepost.schedule_emails(NULL)")
    one(application, "ROLLBACK TO before")


def test_no_emails_are_none(application: Connection) -> None:
    assert schedule_all(application, []) == []


SET: Sequence[Arguments] = [
    PLAIN,
    without(TEMPLATED, context={"name": "Ann"}, sender="Ann <ann@sender.example>", headers={"X-A": "b"}),
    without(PLAIN, "address", users=["bob", "ann", "bob"], scheduled_at="2030-01-01T09:00:00+01:00"),
    without(PLAIN, address=None, users=["ann"], key="k", expires_at="2040-01-01T00:00Z", reply_to="a@example.com"),
    without(PLAIN, "body_text", body_html="<p>World</p>", kind="short_lived", context=None),
]


def test_a_set_is_stored_as_one_by_one(application: Connection) -> None:
    one(application, "INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('short_lived', '1 hour')")
    one_by_one = [schedule(application, **{
        name: json.dumps(value) if isinstance(value, dict) else value for name, value in email.items()
    }) for email in SET]  # fmt: skip
    one(application, "DELETE FROM duepost.email_key")
    at_once = schedule_all(application, SET)
    assert at_once == sorted(at_once)
    assert set(at_once).isdisjoint(one_by_one)
    for each, other in zip(one_by_one, at_once, strict=True):
        looks = [
            one(
                application,
                "SELECT to_jsonb(e) - 'id' - 'message_id_header', split_part(message_id_header, '@', 2),"
                " ARRAY(SELECT user_id FROM duepost.scheduled_email_user WHERE email_id = e.id ORDER BY 1)"
                " FROM duepost.scheduled_email AS e WHERE id = %s",
                email_id,
            )
            for email_id in (each, other)
        ]
        assert looks[0] == looks[1]


def test_each_has_a_message_id_of_its_own(application: Connection) -> None:
    schedule_all(application, [PLAIN] * 20)
    assert one(application, "SELECT count(DISTINCT message_id_header) FROM duepost.scheduled_email") == (20,)


def test_a_key_makes_each_idempotent_for_good(application: Connection) -> None:
    emails = [{**PLAIN, "key": f"k{n}"} for n in range(5)]
    first = schedule_all(application, emails)
    assert schedule_all(application, emails[::-1]) == first[::-1]
    assert schedule(application, **PLAIN, key="k3") == first[3]
    assert counts(application)[0] == 5


def test_a_key_twice_in_a_set_is_one_email(application: Connection) -> None:
    users = without(PLAIN, "address", users=["a", "b"], key="k")
    ids = schedule_all(application, [users, PLAIN, {**users, "users": ["b", "a"]}])
    assert ids[0] == ids[2] != ids[1]
    assert counts(application) == (2, 2, 1)


@pytest.mark.parametrize("other", OTHER, ids=range(len(OTHER)))
def test_a_key_for_another_content_is_refused(application: Connection, other: Arguments) -> None:
    used = schedule(application, **PLAIN, key="k")
    assert refused(application, [PLAIN, in_json({**other, "key": "k"})]) == (
        "23505", f"emails[1]: key: already used for another content, by email {used}",
    )  # fmt: skip


def test_a_key_twice_in_a_set_for_other_contents_is_refused(application: Connection) -> None:
    code, said = refused(application, [{**PLAIN, "key": "k"}, {**PLAIN, "subject": "Other", "key": "k"}])
    assert code == "23505"
    assert said.startswith("emails[1]: key: already used for another content, by email ")


def test_two_sets_that_race_on_the_same_keys_do_not_deadlock(connect: Callable[[], Connection]) -> None:
    emails = [{**PLAIN, "key": f"k{n}"} for n in range(50)]
    first, second = connect(), connect()
    ids = schedule_all(first, emails[:25])
    pid = second.get_backend_pid()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(schedule_all, second, emails[::-1])
        wait_until(
            lambda: one(first, "SELECT cardinality(pg_blocking_pids(%s)) > 0", pid) == (True,), what="it to wait"
        )
        ids += schedule_all(first, emails[25:])
        first.commit()
        assert waiting.result(timeout=60) == ids[::-1]
    second.commit()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ALMOST = st.fixed_dictionaries(
    {name: st.just(value) for name, value in PLAIN.items()},
    optional=dict.fromkeys([*TYPES, "sender", "key", "template"], JSON),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(emails=JSON | st.lists(JSON | ALMOST, max_size=4))
def test_any_json_is_stored_or_refused_with_its_place(application: Connection, emails: object) -> None:
    application.rollback()
    try:
        ids = schedule_all(application, emails)
    except psycopg2.Error as error:
        refusal = error
    else:
        assert isinstance(emails, list)
        assert len(ids) == len(emails)
        return
    # PostgreSQL's JSON has no NUL and no lone surrogate.
    is_text = "\\u0000" not in json.dumps(emails) and not re.search("\\\\ud[89a-f]", json.dumps(emails))
    if is_text:
        assert refusal.pgcode == "22023"
        assert (refusal.diag.message_primary or "").startswith("emails")


def test_a_line_of_a_thousand_is_one_statement(application: Connection) -> None:
    ids = schedule_all(application, [{**PLAIN, "address": f"a{n}@example.com"} for n in range(1000)])
    assert one(
        application,
        "SELECT array_agg(substring(address FROM '\\d+')::integer ORDER BY id) FROM duepost.scheduled_email",
    ) == ([*range(1000)],)
    assert ids == sorted(ids)
