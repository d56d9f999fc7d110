"""`duepost endpoint test`: one message now, by what workers send with; nothing of it stays."""

import json
from collections.abc import Iterator

import pytest
from standardwebhooks import Webhook as Judge

from tests.http_servers import ScriptedServer, answer, close, reset
from tests.integration.commands.shell import Shell
from tests.postgres import PostgresServer

#: Everything that a message of ours could leave.
LEFT = (
    "SELECT (SELECT count(*) FROM duepost.item), (SELECT count(*) FROM duepost.delivery),"
    " (SELECT count(*) FROM duepost.attempt), (SELECT count(*) FROM dramatiq.queue),"
    " (SELECT count(*) FROM duepost.route WHERE circuit_open),"
    " (SELECT count(*) FROM duepost.endpoint WHERE failing_since IS NOT NULL),"
    " (SELECT last_value FROM duepost.scheduled_email_id_seq)"
)
NOTHING = [(0, 0, 0, 0, 0, 0, 1)]


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


@pytest.fixture
def shell(url: str) -> Shell:
    return Shell(url)


def register(shell: Shell, hook: ScriptedServer, format_: str = "webhook", more: str = "") -> str:
    """Registers the endpoint `orders`; returns the secret that was made for it."""
    [(made,)] = shell.query(
        f"SELECT duepost.set_endpoint('orders', '{format_}', '{hook.url}in/TOKEN', allow_private => true{more})"
    )
    return str(made)


def test_a_webhook_gets_one_signed_request_that_says_that_it_is_a_test(shell: Shell, hook: ScriptedServer) -> None:
    secret = register(shell, hook)
    said = shell.run("endpoint", "test", "orders")
    assert said.startswith("Endpoint orders took the test: sent, status 204, after 0.")
    assert said.endswith(" s.\n")
    [request] = hook.requests
    assert (request.method, request.path) == ("POST", "/in/TOKEN")
    event = Judge(secret).verify(request.body, request.headers)
    assert event["type"] == "duepost.test"
    assert "duepost endpoint test orders" in event["data"]["text"]
    assert shell.query(LEFT) == NOTHING
    found = shell.json("endpoint", "test", "orders", "--payload", '{"n": 12345678901234567890.10}')
    assert isinstance(found, dict)
    assert hook.requests[1].body == b'{"n": 12345678901234567890.10}'
    assert hook.requests[1].headers["webhook-id"] == found["wire_id"] != request.headers["webhook-id"]
    assert (found["is_taken"], found["verdict"], found["status"]) == (True, "sent", 204)


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (
            [answer("HTTP/1.1 503 Service Unavailable", "retry-after: 7")],
            "did not take the test: retry, status 503 (Service Unavailable)",
        ),
        ([answer("HTTP/1.1 410 Gone")], "did not take the test: undeliverable, status 410 (Gone)"),
        ([answer("HTTP/1.1 302 Found", "location: http://169.254.169.254/x")], "redirects to 169.254.169.254"),
        ([close()], "nobody knows whether endpoint orders took the test: unknown, at response"),
        ([reset()], "nobody knows whether endpoint orders took the test: unknown, at response"),
    ],
)
def test_what_came_back_instead_is_said_with_status_1_and_changes_nothing(
    shell: Shell, hook: ScriptedServer, actions: list[object], said: str
) -> None:
    register(shell, hook)
    hook.script(*actions)  # type: ignore[arg-type]  # actions of different kinds
    printed = shell.run("endpoint", "test", "orders", status=1)
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert "TOKEN" not in printed
    assert len(hook.requests) == 1
    assert shell.query(LEFT) == NOTHING
    assert shell.query("SELECT disabled_at FROM duepost.endpoint") == [(None,)]


def test_an_endpoint_may_not_lead_where_no_worker_connects_to(shell: Shell, hook: ScriptedServer) -> None:
    register(shell, hook)
    shell.query("UPDATE duepost.endpoint SET allow_private = false")
    said = shell.run("endpoint", "test", "orders", status=1)
    assert "retry, at endpoint (endpoint orders: url leads to a loopback address" in said
    shell.query(f"UPDATE duepost.endpoint SET url = 'http://localtest.invalid:{hook.port}/'")
    assert "localtest.invalid does not resolve" in shell.run("endpoint", "test", "orders", status=1)
    assert hook.connections == 0


def test_the_secret_is_read_where_the_command_runs(url: str, hook: ScriptedServer) -> None:
    shell = Shell(url)
    register(shell, hook, more=", secret => 'env:HOOK_SECRET'")
    said = shell.run("endpoint", "test", "orders", status=1)
    assert "the environment variable with its secret is not set" in said
    assert hook.connections == 0
    shell = Shell(url, HOOK_SECRET="whsec_" + "A" * 32)
    shell.run("endpoint", "test", "orders")
    Judge("whsec_" + "A" * 32).verify(hook.requests[0].body, hook.requests[0].headers)


def test_one_that_is_disabled_is_tried_and_stays_so(shell: Shell, hook: ScriptedServer) -> None:
    register(shell, hook)
    shell.query("SELECT duepost.disable_endpoint('orders', '410 Gone')")
    assert shell.run("endpoint", "test", "orders").startswith("Endpoint orders took the test")
    assert shell.query("SELECT disabled_because FROM duepost.endpoint") == [("410 Gone",)]


@pytest.mark.parametrize(
    ("format_", "more", "reply", "shown"),
    [
        ("slack", "", b"ok", "text"),
        ("mattermost", "", b"ok", "text"),
        ("matrix", ", secret => 't', options => '{\"room\": \"!a:x\"}'", b'{"event_id": "$1"}', "body"),
        ("zulip", ", secret => 'k', options => '{\"user\": \"b@x.org\"}'", b'{"result": "success"}', "content"),
        (
            "zulip",
            ', secret => \'k\', options => \'{"user": "b@x.org", "to": "general"}\'',
            b'{"result": "success"}',
            "content",
        ),
    ],
)  # fmt: skip
def test_each_format_says_it_in_its_own_words_which_may_be_scheduled_too(
    shell: Shell, hook: ScriptedServer, format_: str, more: str, reply: bytes, shown: str
) -> None:
    register(shell, hook, format_, more)
    hook.script(answer("HTTP/1.1 200 OK", body=reply))
    assert "took the test: sent, status 200" in shell.run("endpoint", "test", "orders")
    body = hook.requests[0].body.decode()
    assert "endpoint" in body
    if format_ != "zulip":
        assert "duepost endpoint test orders" in json.loads(body)[shown]
        shell.query("SELECT duepost.schedule_message('k', 'orders', %s)", body)


@pytest.fixture
def shells(server: PostgresServer, url: str) -> Iterator[tuple[Shell, Shell]]:
    """Shells of the schema's owner, and of a worker's login."""
    role = "login_of_worker"
    server.execute(f"CREATE ROLE {role} LOGIN IN ROLE duepost_worker")
    owner = Shell(url)
    try:
        yield owner, Shell(url.replace("postgres@", f"{role}@", 1))
    finally:
        owner.query(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


# Functions -----------------------------------------------------------------------------------------------------------


def board(shell: Shell, body: str = "INSERT INTO app.posts VALUES (message_id, payload)") -> None:
    shell.query("CREATE SCHEMA IF NOT EXISTS app")
    shell.query("CREATE TABLE IF NOT EXISTS app.posts (id bigint, payload jsonb)")
    shell.query(
        "CREATE OR REPLACE FUNCTION app.post(message_id bigint, payload jsonb) RETURNS void LANGUAGE plpgsql"
        f" AS $f$ BEGIN {body}; END $f$"
    )
    shell.query("SELECT duepost.set_endpoint('board', 'function', function => 'app.post')")


def test_a_function_runs_and_all_of_it_is_rolled_back(shell: Shell) -> None:
    board(shell)
    said = shell.run("endpoint", "test", "board")
    assert said.startswith("Endpoint board took the test: app.post(bigint,jsonb) as postgres, after ")
    assert said.endswith("all of it is rolled back.\n")
    assert shell.query("SELECT count(*) FROM app.posts") == [(0,)]
    assert shell.query(LEFT) == NOTHING
    board(shell, "IF payload->>'n' <> '1' THEN RAISE 'not %', payload; END IF")
    assert shell.json("endpoint", "test", "board", "--payload", '{"n": 1}')["is_taken"] is True  # type: ignore[index]
    assert "SQLSTATE P0001: not" in shell.run("endpoint", "test", "board", "--payload", '{"n": 2}', status=1)


def test_what_a_commit_would_refuse_is_found_too(shell: Shell) -> None:
    board(shell)
    shell.query("ALTER TABLE app.posts ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")
    board(shell, "INSERT INTO app.posts VALUES (message_id, payload), (message_id, payload)")
    assert "SQLSTATE 23505" in shell.run("endpoint", "test", "board", status=1)


def test_a_function_that_is_gone_strange_or_shut_is_said_with_what_to_do(shells: tuple[Shell, Shell]) -> None:
    owner, worker = shells
    board(owner, "PERFORM 1")
    owner.query("REVOKE ALL ON FUNCTION app.post FROM PUBLIC")
    said = worker.run("endpoint", "test", "board", status=1)
    assert "may not call it: GRANT EXECUTE ON FUNCTION app.post(bigint,jsonb) TO duepost_worker" in said
    owner.query("GRANT EXECUTE ON FUNCTION app.post TO duepost_worker")
    owner.query("GRANT USAGE ON SCHEMA app TO duepost_worker")
    assert "took the test: app.post(bigint,jsonb) as login_of_worker" in worker.run("endpoint", "test", "board")
    owner.query("ALTER FUNCTION app.post OWNER TO login_of_worker")
    said = worker.run("endpoint", "test", "board", status=1)
    assert "belongs to login_of_worker" in said
    assert "ALTER FUNCTION app.post(bigint,jsonb) OWNER TO postgres" in said
    owner.query("DROP FUNCTION app.post")
    assert "there is no such function any more" in worker.run("endpoint", "test", "board", status=1)
    owner.query("CREATE PROCEDURE app.post(bigint, jsonb) LANGUAGE sql AS ''")
    assert "it is no function that takes (bigint, jsonb)" in worker.run("endpoint", "test", "board", status=1)


# What is wrong -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named(shell: Shell, hook: ScriptedServer) -> None:
    register(shell, hook)
    assert "NAME: there is no endpoint nobody; known are orders" in shell.run("endpoint", "test", "nobody", status=2)
    assert "--payload: not JSON" in shell.run("endpoint", "test", "orders", "--payload", "{", status=2)
    disabled = Shell(shell.url, DUEPOST_DISABLED="1")
    assert "nothing is sent while DUEPOST_DISABLED is 1" in disabled.run("endpoint", "test", "orders", status=1)
    assert hook.connections == 0
