"""Endpoints: what an operator registers, changes and removes; no secret is said twice."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from tests.integration.messages.support import error_of, messages, schedule, while_it_waits
from tests.postgres import Connection, run

URLS = json.loads((Path(__file__).parents[2] / "corpus" / "endpoint_urls.json").read_text(encoding="utf-8"))

HOOK = "'hook', 'webhook', 'https://example.com/in'"


def secret_of(size: int) -> str:
    return "whsec_" + base64.b64encode(b"\xfb" * size).decode()


def secrets(connection: Connection) -> tuple[object, ...]:
    """The secret of the endpoint `hook`, the one before, and for how many hours that is signed with."""
    [found] = run(
        connection,
        "SELECT secret, previous_secret, extract(epoch FROM previous_secret_until - now())::int / 3600"
        " FROM duepost.endpoint WHERE name = 'hook'",
    )
    return found


def set_endpoint(connection: Connection, given: str) -> str | None:
    [(made,)] = run(connection, f"SELECT duepost.set_endpoint({given})")
    assert made is None or isinstance(made, str)
    return made


# Secrets -------------------------------------------------------------------------------------------------------------


def test_a_webhook_without_a_secret_gets_one_that_is_said_once(application: Connection) -> None:
    made = set_endpoint(application, HOOK)
    assert made is not None
    assert len(base64.b64decode(made.removeprefix("whsec_"))) == 32
    assert secrets(application) == (made, None, None)
    assert set_endpoint(application, HOOK) is None
    assert secrets(application) == (made, None, None), "setting it as it is changes nothing"
    assert set_endpoint(application, "'other', 'webhook', 'https://example.com/in'") != made


def test_a_secret_that_is_given_is_not_said(application: Connection) -> None:
    assert set_endpoint(application, f"{HOOK}, '{secret_of(24)}'") is None
    assert secrets(application)[0] == secret_of(24)


@pytest.mark.parametrize(
    "secret", [secret_of(24), secret_of(25), secret_of(64), "env:HOOK_SECRET", "file:/run/secrets/hook"]
)
def test_these_secrets_are_taken(application: Connection, secret: str) -> None:
    set_endpoint(application, f"{HOOK}, '{secret}'")
    assert secrets(application)[0] == secret


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_!!!", secret_of(1), secret_of(23), secret_of(65), secret_of(25).rstrip("="),
     secret_of(24).replace("+", "-").replace("/", "_"), "plainSECRETSECRETSECRETSECRETSECRET", f" {secret_of(24)}",
     f"{secret_of(24)}\n", "env:", "env:A B", "env:1A", "file:", "file:relative", "file:/a\nb", "x" * 100_000],
)  # fmt: skip
def test_a_bad_secret_is_refused_and_not_repeated(application: Connection, secret: str) -> None:
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue) as refused:
        run(application, f"SELECT duepost.set_endpoint({HOOK}, %s)", secret)
    assert str(refused.value).startswith("secret: ")
    assert len(secret) < 8 or secret not in str(refused.value)
    run(application, "ROLLBACK TO before")
    assert run(application, "SELECT count(*) FROM duepost.endpoint WHERE name = 'hook'") == [(0,)]


def test_the_former_secret_is_signed_with_for_a_full_window_from_each_rotation(application: Connection) -> None:
    first = set_endpoint(application, HOOK)
    second = set_endpoint(application, "'hook', secret => 'new', rotate_for => '1 hour'")
    assert secrets(application) == (second, first, 1)
    run(
        application, "UPDATE duepost.endpoint SET previous_secret_until = now() - interval '1 hour' WHERE name = 'hook'"
    )
    third = set_endpoint(application, "'hook', secret => 'new'")
    assert secrets(application) == (third, second, 24)
    assert len({first, second, third}) == 3


def test_a_rotation_for_no_time_drops_the_former_secret_at_once(application: Connection) -> None:
    set_endpoint(application, HOOK)
    made = set_endpoint(application, "'hook', secret => 'new', rotate_for => '0'")
    assert secrets(application) == (made, None, None)


def test_a_format_with_one_secret_only_replaces_it(application: Connection) -> None:
    assert set_endpoint(application, "'zulip', secret => 'another'") is None
    assert run(application, "SELECT secret, previous_secret FROM duepost.endpoint WHERE name = 'zulip'") == [
        ("another", None)
    ]


@pytest.mark.parametrize("format_", ["slack", "mattermost", "function"])
def test_a_format_without_a_secret_takes_none(application: Connection, format_: str) -> None:
    given = "function => 'public.post'" if format_ == "function" else "url => 'https://example.com/'"
    found = error_of(application, f"SELECT duepost.set_endpoint('e', '{format_}', secret => 'SECRET', {given})")
    assert found.startswith("secret: ")
    assert "SECRET" not in found


# URLs ----------------------------------------------------------------------------------------------------------------


def test_the_grammar_of_urls_is_the_workers(application: Connection) -> None:
    wrong = []
    for each in URLS:
        if "\0" in each["url"]:
            # No text can hold it.
            continue
        [(found,)] = run(application, "SELECT duepost.endpoint_url_error(%s, %s)", each["url"], each["allow_private"])
        expected = each["error"]
        as_expected = found is None if expected is None else str(found).replace("url: ", "url ", 1).startswith(expected)
        if not as_expected:
            wrong.append((each, found))
    assert wrong == []


@pytest.mark.parametrize(
    "url",
    ["http://user:PASSWORD@example.com/", "https://exa mple.com/TOKEN", "https://127.0.0.1/TOKEN", "gopher://example.com/TOKEN",
     "https://example.com/TOKEN#x", "https://example.com:0/TOKEN", "https://example.com/TOKEN\r\nX: y", "https://[fe80::1%25lo]/TOKEN"],
)  # fmt: skip
def test_a_bad_url_is_refused_and_its_secrets_not_repeated(application: Connection, url: str) -> None:
    found = error_of(application, "SELECT duepost.set_endpoint('e', 'slack', %s)", url)
    assert found.startswith("url: ")
    assert not any(word in found for word in ("PASSWORD", "TOKEN"))


def test_private_addresses_are_the_endpoints_own_to_allow_and_link_local_ones_nobodys(application: Connection) -> None:
    set_endpoint(application, "'e', 'slack', 'http://10.0.0.1:8080/x', allow_private => true")
    assert error_of(application, "SELECT duepost.set_endpoint('e', allow_private => false)").startswith("url: ")
    for address in ("169.254.169.254", "[fd00:ec2::254]", "[fe80::1]"):
        given = f"'e', 'slack', 'http://{address}/', allow_private => true"
        assert error_of(application, f"SELECT duepost.set_endpoint({given})").startswith("url: leads to ")


# Functions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["public.post", "public.post(bigint, jsonb)", 'public."post"(int8,jsonb)'])
def test_a_function_is_registered_by_its_name(application: Connection, name: str) -> None:
    run(application, "SELECT duepost.set_endpoint('e', 'function', function => %s)", name)
    assert run(application, "SELECT function, url, secret FROM duepost.endpoint WHERE name = 'e'") == [
        ("public.post(bigint,jsonb)", None, None)
    ]


OTHERS = """
    CREATE FUNCTION public.of_texts(text, text) RETURNS void LANGUAGE sql AS '';
    CREATE FUNCTION public.of_ints(int, jsonb) RETURNS void LANGUAGE sql AS '';
    CREATE FUNCTION public.many(bigint, jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE public.procedure(bigint, jsonb) LANGUAGE sql AS '';
"""


@pytest.mark.parametrize(
    "name",
    ["", "post", ".", "public.", "public.nobody", "public.of_texts", "public.of_texts(text, text)", "public.procedure",
     "public.of_ints(int, jsonb)", "public.many", "public.post(bigint, jsonb", "public.post; DROP TABLE x", "x" * 1000,
     "public.post(bigint, jsonb(3))", "public.post(bigint, no.type)", "a.b.c.d", "duepost.edit_message",
     "pg_catalog.pg_sleep", "pg_temp.post"],
)  # fmt: skip
def test_what_is_no_function_of_a_message_is_refused(application: Connection, name: str) -> None:
    run(application, OTHERS)
    found = error_of(application, "SELECT duepost.set_endpoint('e', 'function', function => %s)", name)
    assert found.startswith("function: ")


def test_a_strangers_function_is_refused(application: Connection) -> None:
    run(application, "CREATE ROLE stranger; CREATE ROLE operator_x; GRANT duepost_operator TO operator_x")
    run(application, "ALTER FUNCTION public.post OWNER TO stranger; SET SESSION AUTHORIZATION operator_x")
    found = error_of(application, "SELECT duepost.set_endpoint('e', 'function', function => 'public.post')")
    assert found == "function: must belong to you, or to the owner of the schema duepost"
    # One's own is no better where one may not act as the schema's owner: no worker would call it.
    run(application, "RESET SESSION AUTHORIZATION; ALTER FUNCTION public.post OWNER TO operator_x")
    run(application, "SET SESSION AUTHORIZATION operator_x")
    found = error_of(application, "SELECT duepost.set_endpoint('e', 'function', function => 'public.post')")
    assert found == "function: must belong to the owner of the schema duepost, or to a role that may act as it"
    run(application, "RESET SESSION AUTHORIZATION; GRANT postgres TO operator_x; SET SESSION AUTHORIZATION operator_x")
    set_endpoint(application, "'e', 'function', function => 'public.post'")
    run(application, "RESET SESSION AUTHORIZATION; ALTER FUNCTION public.post OWNER TO postgres")


# What is given, and what stays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("name", "NULL, 'slack', 'https://example.com/'"),
        ("name", "'', 'slack', 'https://example.com/'"),
        ("name", "'Team', 'slack', 'https://example.com/'"),
        ("name", "'a b', 'slack', 'https://example.com/'"),
        ("name", "E'a\\n', 'slack', 'https://example.com/'"),
        ("name", "repeat('e', 101), 'slack', 'https://example.com/'"),
        ("format", "'e'"),
        ("format", "'e', 'pigeon', 'https://example.com/'"),
        ("url", "'e', 'slack'"),
        ("url", "'e', 'slack', ''"),
        ("url", "'e', 'function', 'https://example.com/', function => 'public.post'"),
        ("function", "'e', 'function'"),
        ("function", "'e', 'slack', 'https://example.com/', function => 'public.post'"),
        ("secret", "'e', 'zulip', 'https://example.com/', options => '{\"user\": \"a@x\"}'"),
        ("secret", "'e', 'matrix', 'https://example.com/', E'a\\nb', options => '{\"room\": \"!a:x\"}'"),
        ("options", "'e', 'slack', 'https://example.com/', options => '[]'"),
        ("options", "'e', 'slack', 'https://example.com/', options => '{\"room\": \"x\"}'"),
        ("options", "'e', 'zulip', 'https://example.com/', 'key'"),
        ("options", "'e', 'zulip', 'https://example.com/', 'key', options => '{\"user\": \"a@x:y\"}'"),
        ("options", "'e', 'zulip', 'https://example.com/', 'key', options => '{\"user\": \"a@x\", \"type\": \"x\"}'"),
        ("options", "'e', 'zulip', 'https://example.com/', 'key', options => '{\"user\": \"a@x\", \"to\": 7}'"),
        ("options", "'e', 'matrix', 'https://example.com/', 'token', options => '{\"room\": \"#alias:x\"}'"),
        ("options", "'e', 'matrix', 'https://example.com/', 'token', options => '{\"room\": \"!a\\nb\"}'"),
        ("rotate_for", "'e', 'slack', 'https://example.com/', rotate_for => '-1 s'"),
        ("rotate_for", "'e', 'slack', 'https://example.com/', rotate_for => '367 days'"),
        ("rotate_for", "'e', 'slack', 'https://example.com/', rotate_for => NULL"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_made(application: Connection, argument: str, given: str) -> None:
    assert error_of(application, f"SELECT duepost.set_endpoint({given})").startswith(f"{argument}: ")
    assert run(application, "SELECT count(*) FROM duepost.endpoint") == [(6,)]


def test_what_is_not_given_stays_as_it_is(application: Connection) -> None:
    set_endpoint(application, "'matrix', url => 'https://new.example.com/'")
    assert run(
        application, "SELECT url, secret, options, allow_private FROM duepost.endpoint WHERE name = 'matrix'"
    ) == [("https://new.example.com/", "t", {"room": "!a/b:x"}, False)]


def test_a_format_changes_only_while_no_message_waits(application: Connection) -> None:
    message_id = schedule(application)
    change = "SELECT duepost.set_endpoint('webhook', 'slack', 'https://example.com/')"
    assert error_of(application, change).startswith("format: cannot change while messages wait")
    run(application, "DELETE FROM duepost.message WHERE item_id = %s", message_id)
    run(application, change)
    assert run(application, "SELECT format, secret FROM duepost.endpoint WHERE name = 'webhook'") == [("slack", None)]


def test_setting_an_endpoint_enables_it_and_closes_its_circuit(application: Connection) -> None:
    run(application, "SELECT duepost.disable_endpoint('webhook', '410 Gone')")
    run(
        application,
        "UPDATE duepost.route SET circuit_open = true, probe_at = now(), circuit_reason = 'http 500',"
        " paused_until = now(), pause = 3 WHERE name = 'endpoint:webhook'",
    )
    set_endpoint(application, "'webhook'")
    schedule(application)
    route = "SELECT channel, target, circuit_open, circuit_reason, probe_at, paused_until FROM duepost.route"
    assert run(application, f"{route} WHERE name = 'endpoint:webhook'") == [
        ("message", "https://hooks.example.com", False, None, None, None)
    ]


def test_what_waits_for_a_disabled_endpoint_stays(application: Connection) -> None:
    message_id = schedule(application)
    run(application, "SELECT duepost.disable_endpoint('webhook')")
    assert messages(application) == [(message_id,)]
    assert run(application, "SELECT disabled_because FROM duepost.endpoint WHERE name = 'webhook'") == [
        ("by postgres",)
    ]


@pytest.mark.parametrize("call", ["disable_endpoint('nobody')", "remove_endpoint('nobody')", "remove_endpoint(NULL)"])
def test_an_endpoint_that_is_not_there_is_said_so(application: Connection, call: str) -> None:
    assert error_of(application, f"SELECT duepost.{call}") == "name: there is no endpoint of this name"


def test_of_two_that_make_one_endpoint_the_second_changes_it(sessions: Callable[[], Connection]) -> None:
    one, other = sessions(), sessions()
    first = set_endpoint(one, HOOK)
    second = while_it_waits(
        other, lambda: set_endpoint(other, "'hook', 'webhook', 'https://example.com/', 'new'"), sessions(), one.commit
    )
    assert secrets(other)[:2] == (second, first)


def test_the_list_of_endpoints_says_no_secret(application: Connection) -> None:
    made = set_endpoint(application, "'hook', 'webhook', 'https://Example.com:8443/services/TOKEN?k=QS'")
    set_endpoint(application, "'hook', secret => 'env:HOOK'")
    schedule(application, endpoint="hook")
    [row] = run(
        application,
        "SELECT name, format, target, secret, rotated_until > now(), pending FROM duepost.endpoints()"
        " WHERE name = 'hook'",
    )
    assert row == ("hook", "webhook", "https://example.com:8443", "env:HOOK", True, 1)
    shown = str(run(application, "SELECT e::text FROM duepost.endpoints() AS e"))
    assert not any(word in shown for word in ("TOKEN", "QS", str(made)))
