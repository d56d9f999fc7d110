"""Scheduling messages: what is stored, under which id, and what is refused with nothing stored."""

import json
import shutil
import subprocess
from collections.abc import Callable

import psycopg2
import pytest

from tests.integration.messages.support import error_of, messages, schedule, while_it_waits
from tests.postgres import Connection, run

LATE = "'2030-01-01 09:00+00'"


# What is stored ------------------------------------------------------------------------------------------------------


def test_a_message_is_an_item_that_leaves_by_the_route_of_its_endpoint(application: Connection) -> None:
    message_id = schedule(application, f"scheduled_at => {LATE}, key => 'a', expires_at => '2030-01-02 09:00+00'")
    assert messages(
        application,
        "id, kind, endpoint, state, payload, scheduled_at = due_at, expires_at = '2030-01-02 09:00+00', attempts,"
        " unknowns, last_error, key, claim, edited_at, route",
    ) == [
        (message_id, "k", "webhook", "scheduled", {"n": 1}, True, True, 0, 0, None, "a", None, None, "endpoint:webhook")
    ]  # fmt: skip
    assert run(application, "SELECT channel, is_held FROM duepost.item") == [("message", False)]
    assert run(application, "SELECT id FROM duepost.scheduled_email") == []


def test_emails_and_messages_have_ids_of_one_sequence(application: Connection) -> None:
    first = schedule(application)
    [(email_id,)] = run(
        application, "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b')"
    )
    assert [email_id, schedule(application)] == [first + 1, first + 2]


def test_the_id_on_the_wire_names_the_installation_and_the_message_and_has_no_dot(application: Connection) -> None:
    ids = [schedule(application) for _ in range(3)]
    [(installation,)] = run(application, "SELECT installation FROM duepost.control")
    assert messages(application, "wire_id") == [(f"msg_{installation}_{message_id}",) for message_id in ids]
    assert isinstance(installation, str)
    assert len(installation) == 16


@pytest.mark.parametrize("given", ["", "scheduled_at => NULL"])
def test_a_message_without_a_time_is_due_now(application: Connection, given: str) -> None:
    schedule(application, given)
    assert messages(application, "scheduled_at = now(), due_at = now()") == [(True, True)]


def test_users_are_stored_once_each_with_the_users_of_emails(application: Connection) -> None:
    message_id = schedule(application, "users => ARRAY['bob', 'ann', 'bob']")
    assert run(application, "SELECT email_id, user_id, outcome FROM duepost.scheduled_email_user ORDER BY user_id") == [
        (message_id, "ann", None),
        (message_id, "bob", None),
    ]


@pytest.mark.parametrize(
    ("given", "after"), [("", "7 days"), ("expires_at => now() + '1 hour'", "1 hour")], ids=["of the kind", "its own"]
)
def test_a_message_that_names_no_expiry_has_its_kinds(application: Connection, given: str, after: str) -> None:
    run(application, "INSERT INTO duepost.kind (kind, expire_after) VALUES ('k', '7 days')")
    schedule(application, given)
    assert messages(application, f"expires_at = now() + interval '{after}'") == [(True,)]


def test_a_message_that_is_late_when_it_is_scheduled_is_taken_and_left_to_the_kind(application: Connection) -> None:
    run(application, "INSERT INTO duepost.kind (kind, late_after, catch_up) VALUES ('k', '1 min', 'expire')")
    schedule(application, "scheduled_at => now() - interval '1 day', expires_at => now() - interval '1 hour'")
    assert messages(application, "state") == [("scheduled",)]


@pytest.mark.parametrize(
    "text", ['{"n": 12345678901234567890.12}', '{"b": 1, "a": "ü"}', '[1, {"s": "</script>\\u2028"}]', "[]"]
)
def test_a_payload_is_stored_to_the_digit_and_the_letter(application: Connection, text: str) -> None:
    schedule(application, payload=text)
    assert run(application, "SELECT payload = %s::jsonb FROM duepost.message", text) == [(True,)]


@pytest.mark.parametrize("payload", ['"text"', "3", "null", "true", "[1]", "{}"])
def test_a_function_takes_any_json(application: Connection, payload: str) -> None:
    schedule(application, endpoint="function", payload=payload)
    assert messages(application, "payload::text") == [(payload,)]


def test_a_message_is_there_if_its_transaction_commits(sessions: Callable[[], Connection]) -> None:
    one, other = sessions(), sessions()
    schedule(one)
    assert messages(other) == []
    one.rollback()
    message_id = schedule(one)
    one.commit()
    assert messages(other) == [(message_id,)]


def test_psql_schedules_a_message_too(url: str, sessions: Callable[[], Connection]) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    statement = "SELECT duepost.schedule_message(kind => 'k', endpoint => 'slack', payload => '{\"text\": \"Grüße\"}')"
    done = subprocess.run([psql, "-XAtc", statement, url], capture_output=True, text=True, check=True)
    assert messages(sessions(), "id::text, payload") == [(done.stdout.strip(), {"text": "Grüße"})]
    bad = subprocess.run(
        [psql, "-XAtc", "\\set VERBOSITY verbose", "-c", statement.replace("slack", "x"), url],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "22023: endpoint: there is none called x" in bad.stderr


# Bad arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("kind", "NULL, 'webhook', '{}'"),
        ("kind", "'', 'webhook', '{}'"),
        ("kind", "E'a\\nb', 'webhook', '{}'"),
        ("kind", "repeat('k', 101), 'webhook', '{}'"),
        ("endpoint", "'k', NULL, '{}'"),
        ("endpoint", "'k', '', '{}'"),
        ("endpoint", "'k', 'nobody', '{}'"),
        ("endpoint", "'k', 'Webhook', '{}'"),
        ("endpoint", "'k', 'https://example.com/', '{}'"),
        ("endpoint", "'k', E'a\\nb', '{}'"),
        ("endpoint", "'k', repeat('e', 10000), '{}'"),
        ("payload", "'k', 'webhook', NULL"),
        ("payload", "'k', 'webhook', 'null'"),
        ("payload", "'k', 'webhook', '\"text\"'"),
        ("payload", "'k', 'webhook', '3'"),
        ("payload", "'k', 'slack', '[]'"),
        ("scheduled_at", "'k', 'webhook', '{}', 'infinity'"),
        ("scheduled_at", "'k', 'webhook', '{}', '1969-12-31 00:00+00'"),
        ("scheduled_at", "'k', 'webhook', '{}', '9999-12-31 00:00+00'"),
        ("users", "'k', 'webhook', '{}', users => '{}'"),
        ("users", "'k', 'webhook', '{}', users => ARRAY['ann', NULL]"),
        ("users", "'k', 'webhook', '{}', users => ARRAY['']"),
        ("users", "'k', 'webhook', '{}', users => ARRAY[E'a\\nb']"),
        ("users", "'k', 'webhook', '{}', users => ARRAY[repeat('u', 256)]"),
        ("users", "'k', 'webhook', '{}', users => ARRAY(SELECT n::text FROM generate_series(1, 1001) AS n)"),
        ("key", "'k', 'webhook', '{}', key => ''"),
        ("key", "'k', 'webhook', '{}', key => E'a\\tb'"),
        ("key", "'k', 'webhook', '{}', key => repeat('k', 513)"),
        ("expires_at", "'k', 'webhook', '{}', expires_at => now()"),
        ("expires_at", "'k', 'webhook', '{}', '2030-01-01', expires_at => '2029-01-01'"),
        ("expires_at", "'k', 'webhook', '{}', expires_at => 'infinity'"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_stored(application: Connection, argument: str, given: str) -> None:
    assert error_of(application, f"SELECT duepost.schedule_message({given})").startswith(f"{argument}: ")
    assert messages(application) == []
    assert run(application, "SELECT count(*) FROM duepost.email_key") == [(0,)]


TOO_LARGE = "jsonb_build_object('t', repeat('x', 262144 + 1 - 9))"

HOSTILE = {
    "a number of 5,000 digits": "'{\"n\": 1e5000}'",
    "a negative one": "'[-1e309]'",
    "many numbers of 131,000 digits": "(SELECT jsonb_agg(1e131000) FROM generate_series(1, 20000))",
    "a byte too many": TOO_LARGE,
    "a hundred and one levels": "(repeat('[', 102) || repeat(']', 102))::jsonb",
    "six thousand levels": "(repeat('{\"a\":', 6000) || '1' || repeat('}', 6000))::jsonb",
}


@pytest.mark.parametrize("endpoint", ["webhook", "function"])
@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_a_payload_that_no_worker_could_read_is_refused(application: Connection, endpoint: str, payload: str) -> None:
    call = f"duepost.schedule_message('k', '{endpoint}', {payload})"
    try:
        found = error_of(application, f"SELECT {call}")
    except psycopg2.errors.StatementTooComplex:
        # Deeper than the server reads, which says so before anybody is asked.
        assert "6000" in payload
    else:
        assert found.startswith("payload: ")
        assert len(found) < 200
    run(application, "ROLLBACK TO before")
    assert messages(application) == []


@pytest.mark.parametrize(
    ("payload", "sqlstate"),
    [
        ('{"a": "\\u0000"}', "22P05"),
        ('{"a": "\\ud800"}', "22P02"),
        ("{", "22P02"),
        ("", "22P02"),
        ('{"a": 1e200000}', "22003"),
    ],
)
def test_what_is_no_jsonb_is_refused_by_the_server_before_we_are_called(
    application: Connection, payload: str, sqlstate: str
) -> None:
    run(application, "SAVEPOINT before")
    for call in ("schedule_message('k', 'webhook', %s)", "edit_message(1, %s)"):
        with pytest.raises(psycopg2.Error) as caught:
            run(application, f"SELECT duepost.{call}", payload)
        assert caught.value.pgcode == sqlstate
        run(application, "ROLLBACK TO before")
    assert messages(application) == []


@pytest.mark.parametrize(
    "payload",
    [TOO_LARGE.replace("+ 1 ", ""), "(repeat('[', 101) || repeat(']', 101))::jsonb", "'[1e308, -1e308, 1e-400]'"],
    ids=["256 KiB", "a hundred levels", "the largest numbers"],
)
def test_what_is_just_within_the_limits_is_taken(application: Connection, payload: str) -> None:
    run(application, f"SELECT duepost.schedule_message('k', 'webhook', {payload})")
    assert len(messages(application)) == 1


def section(size: int) -> dict[str, object]:
    return {"type": "section", "text": {"type": "plain_text", "text": "x" * size}}


def zulip(**members: object) -> dict[str, object]:
    return {"to": "general", "content": "x", **members}


DIVIDER = {"type": "divider"}


@pytest.mark.parametrize(
    ("endpoint", "bad", "good"),
    [
        ("slack", {}, {"attachments": [{}]}),
        ("slack", {"text": " "}, {"text": "x"}),
        ("slack", {"text": 3}, {"text": "3"}),
        ("slack", {"text": "x" * 40_001}, {"text": "x" * 40_000}),
        ("slack", {"text": "x", "blocks": {}}, {"text": "x", "blocks": []}),
        ("slack", {"blocks": [3]}, {"blocks": [DIVIDER]}),
        ("slack", {"blocks": [{"type": None}]}, {"blocks": [{**DIVIDER, "x": None}]}),
        ("slack", {"blocks": [DIVIDER] * 51}, {"blocks": [DIVIDER] * 50}),
        ("slack", {"blocks": [DIVIDER, section(3001)]}, {"blocks": [DIVIDER, section(3000)]}),
        ("slack", {"attachments": [{}] * 101}, {"attachments": [{}] * 100}),
        ("mattermost", {"text": "x" * 16_384}, {"text": "x" * 16_383}),
        ("mattermost", {"username": "x"}, {"text": "x"}),
        ("zulip", {"content": "x"}, zulip()),
        ("zulip", {"to": "general"}, zulip(to=[7], type="direct")),
        ("zulip", zulip(to=[]), zulip(to=7)),
        ("zulip", zulip(to=[7]), zulip(to="7")),
        ("zulip", zulip(subject="x"), zulip(topic="x")),
        ("zulip", zulip(type="pigeon"), zulip(type="stream")),
        ("zulip", zulip(content="x" * 10_001), zulip(content="x" * 10_000)),
        ("zulip", zulip(topic="x" * 61), zulip(topic="x" * 60)),
        ("matrix", [], {"msgtype": "m.text", "body": "x"}),
        ("matrix", {"body": "x" * (65_537 - 12)}, {"body": "x" * (65_536 - 12)}),
    ],
)
def test_what_a_formats_receiver_refuses_is_refused_here(
    application: Connection, endpoint: str, bad: object, good: object
) -> None:
    call = "SELECT duepost.schedule_message('k', %s, %s)"
    assert error_of(application, call, endpoint, json.dumps(bad)).startswith("payload: ")
    assert messages(application) == []
    schedule(application, endpoint=endpoint, payload=json.dumps(good))
    assert len(messages(application)) == 1


def test_what_a_message_to_zulip_does_not_say_its_endpoint_does(application: Connection) -> None:
    options = '{"user": "bot@example.com", "to": "general", "topic": "x"}'
    run(application, "SELECT duepost.set_endpoint('zulip', options => %s)", options)
    schedule(application, endpoint="zulip", payload='{"content": "x"}')
    assert len(messages(application)) == 1


def test_a_disabled_endpoint_takes_no_message_and_says_why(application: Connection) -> None:
    run(application, "SELECT duepost.disable_endpoint('webhook', '410 Gone')")
    assert (
        error_of(application, "SELECT duepost.schedule_message('k', 'webhook', '{}')")
        == "endpoint: is disabled (410 Gone)"
    )


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_gives_the_first_id_whatever_the_times(application: Connection) -> None:
    given = "key => 'a', users => ARRAY['bob', 'ann']"
    first = schedule(application, given)
    again = f"key => 'a', users => ARRAY['ann', 'bob', 'ann'], scheduled_at => {LATE}, expires_at => '2031-01-01'"
    assert schedule(application, again, payload='{  "n" :1}') == first
    assert messages(application, "id, scheduled_at = now(), expires_at") == [(first, True, None)]


@pytest.mark.parametrize(
    "other",
    ["'l', 'webhook', '{\"n\": 1}'", "'k', 'matrix', '{\"n\": 1}'", "'k', 'webhook', '{\"n\": 2}'",
     "'k', 'webhook', '{\"n\": 1}', users => ARRAY['ann']"],
    ids=["kind", "endpoint", "payload", "users"],
)  # fmt: skip
def test_a_key_for_another_content_is_refused(application: Connection, other: str) -> None:
    first = schedule(application, "key => 'a'")
    with pytest.raises(
        psycopg2.errors.UniqueViolation, match=f"^key: already used for another content, by message {first}\n"
    ):
        run(application, f"SELECT duepost.schedule_message({other}, key => 'a')")


def test_an_email_and_a_message_share_no_key(application: Connection) -> None:
    email = "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b', key => %s)"
    message_id = schedule(application, "key => 'a'")
    [(email_id,)] = run(application, email, "b")
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.UniqueViolation, match=f"^key: already used .*, by message {message_id}\n"):
        run(application, email, "a")
    run(application, "ROLLBACK TO before")
    with pytest.raises(psycopg2.errors.UniqueViolation, match=f"^key: already used .*, by email {email_id}\n"):
        schedule(application, "key => 'b'")


@pytest.mark.parametrize("is_kept", [True, False])
def test_of_two_transactions_with_one_key_the_second_waits_for_the_first(
    sessions: Callable[[], Connection], *, is_kept: bool
) -> None:
    one, other = sessions(), sessions()
    first = schedule(one, "key => 'a'")
    second = while_it_waits(
        other, lambda: schedule(other, "key => 'a'"), sessions(), one.commit if is_kept else one.rollback
    )
    assert (second == first) is is_kept
    other.commit()
    assert messages(other) == [(second,)]


# Many at once --------------------------------------------------------------------------------------------------------

ONE = {"kind": "k", "endpoint": "webhook", "payload": {"n": 1}}


def many(connection: Connection, *given: object) -> list[int]:
    return [int(str(each)) for (each,) in run(connection, "SELECT duepost.schedule_messages(%s)", json.dumps(given))]


def test_many_messages_have_ids_in_their_order(application: Connection) -> None:
    given = [{**ONE, "payload": {"n": n}, "endpoint": ("webhook", "function")[n % 2]} for n in range(40)]
    ids = many(application, *given)
    assert messages(application, "id, payload, endpoint") == [
        (message_id, each["payload"], each["endpoint"]) for message_id, each in zip(ids, given, strict=True)
    ]


def test_a_key_that_occurs_twice_is_one_message(application: Connection) -> None:
    first, second, third = many(application, {**ONE, "key": "a"}, ONE, {**ONE, "key": "a"})
    assert third == first != second
    assert messages(application) == [(first,), (second,)]


def test_all_arguments_may_be_given_in_json(application: Connection) -> None:
    times = {"scheduled_at": "2030-01-01T09:00:00+01:00", "expires_at": "2031-01-01T00:00:00Z"}
    everything = {**ONE, **times, "users": ["ann"], "key": "a"}
    many(application, everything, {**ONE, "key": None, "users": None})
    assert messages(application, "key, scheduled_at = '2030-01-01 08:00+00'") == [("a", True), (None, False)]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({**ONE, "payload": None}, "messages[1]: payload: must be given"),
        ({**ONE, "payload": "x"}, "messages[1]: payload: must be a JSON object or a list"),
        ({**ONE, "endpoint": "x"}, "messages[1]: endpoint: there is none called x"),
        ({**ONE, "endpoint": 3}, "messages[1]: endpoint: must be a string"),
        ({**ONE, "users": "ann"}, "messages[1]: users: must be a list of strings"),
        ({**ONE, "scheduled_at": "2030-01-01"}, "messages[1]: scheduled_at: must have its zone"),
        ({**ONE, "scheduled_at": "soon"}, "messages[1]: scheduled_at: must be a time"),
        ({**ONE, "adress": "x"}, "messages[1]: adress: unknown; known are kind, endpoint, payload, scheduled_at"),
        ({"endpoint": "webhook", "payload": {}}, "messages[1]: kind: must not be empty"),
        (3, "messages[1]: must be an object such as"),
        (None, "messages[1]: must be an object such as"),
    ],
)
def test_what_is_wrong_with_one_of_many_is_named_with_its_place(
    application: Connection, given: object, error: str
) -> None:
    found = error_of(application, "SELECT duepost.schedule_messages(%s)", json.dumps([ONE, given, ONE]))
    assert found.startswith(error)
    assert messages(application) == []


@pytest.mark.parametrize("given", [None, "{}", "3", "null", '"x"'])
def test_many_messages_are_a_list(application: Connection, given: str | None) -> None:
    assert error_of(application, "SELECT duepost.schedule_messages(%s)", given).startswith(
        "messages: must be a JSON array"
    )


def test_no_messages_are_none(application: Connection) -> None:
    assert many(application) == []


def test_a_key_for_another_content_among_many_is_named_with_its_place(application: Connection) -> None:
    with pytest.raises(psycopg2.errors.UniqueViolation, match=r"^messages\[2\]: key: already used"):
        many(application, {**ONE, "key": "a"}, ONE, {**ONE, "key": "a", "payload": {"n": 2}})


def test_an_endpoint_is_not_removed_while_a_message_to_it_is_being_scheduled(
    sessions: Callable[[], Connection],
) -> None:
    one, other = sessions(), sessions()
    schedule(one)
    [(ended,)] = while_it_waits(
        other, lambda: run(other, "SELECT duepost.remove_endpoint('webhook')"), sessions(), one.commit
    )
    assert ended == 1
    other.commit()
    assert messages(one) == []


def test_a_change_of_an_endpoint_waits_for_nobody_who_schedules_to_it(sessions: Callable[[], Connection]) -> None:
    one, other = sessions(), sessions()
    schedule(one)
    run(other, "SET lock_timeout = '2s'")
    run(
        other,
        "SELECT duepost.set_endpoint('webhook', url => 'https://new.example.com/'), duepost.disable_endpoint('slack')",
    )
    other.commit()
    one.commit()
    assert len(messages(one)) == 1
