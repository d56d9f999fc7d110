"""Messages and endpoints from a shell."""

import json
from pathlib import Path

import pytest

from tests.integration.commands.shell import Shell
from tests.postgres import PostgresServer

NEWS = ("message", "schedule", "--kind", "news", "--endpoint", "orders")
HOOK = ("endpoint", "add", "orders", "--format", "webhook", "--url", "https://shop.example.com/in/TOKEN?k=QS")


@pytest.fixture
def shell(url: str) -> Shell:
    shell = Shell(url)
    shell.query("SELECT duepost.set_endpoint('orders', 'webhook', 'https://shop.example.com/in/TOKEN?k=QS')")
    return shell


# Messages ------------------------------------------------------------------------------------------------------------


def test_every_option_of_a_message_reaches_the_row(shell: Shell) -> None:
    times = ("--at", "2030-01-01T00:00:00Z", "--expires-at", "2031-01-01T01:00:00+01:00")
    payload = '{"text": "Grüße", "n": 12345678901234567890.10}'
    assert shell.run(*NEWS, "--payload", payload, *times, "--user", "ann", "--user", "bob", "--key", "k") == "1\n"
    assert shell.query(
        "SELECT kind, endpoint, payload::text, scheduled_at = '2030-01-01Z', expires_at = '2031-01-01Z', key"
        " FROM duepost.scheduled_message"
    ) == [("news", "orders", '{"n": 12345678901234567890.10, "text": "Grüße"}', True, True, "k")]
    assert shell.query("SELECT user_id FROM duepost.scheduled_email_user ORDER BY 1") == [("ann",), ("bob",)]
    assert json.loads(shell.run(*NEWS, "--payload", "-", "--at", "now", "--json", stdin='[{"a": 1}]')) == {"ids": [2]}
    assert shell.query("SELECT payload, due_at <= now() FROM duepost.scheduled_message WHERE id = 2") == [
        ([{"a": 1}], True)
    ]


def test_a_file_of_messages_is_scheduled_whole(shell: Shell, tmp_path: Path) -> None:
    line = '{"kind": "k", "endpoint": "orders", "payload": {"n": 12345678901234567890.10, "ü": %s}, "users": ["ann"]}'
    file = tmp_path / "messages.jsonl"
    file.write_text("\n".join(["", line % 1, line % 2]))
    assert shell.run("message", "schedule", "--file", str(file)) == "Scheduled 2 messages.\n"
    assert json.loads(shell.run("message", "schedule", "--file", "-", "--json", stdin=line % 3)) == {"ids": [3]}
    assert shell.query("SELECT id, payload ->> 'n', payload ->> 'ü' FROM duepost.scheduled_message ORDER BY id") == [
        (number, "12345678901234567890.10", str(number)) for number in (1, 2, 3)
    ]
    said = shell.run("message", "schedule", "--file", str(file), "--kind", "k", status=2)
    assert "--file: goes without kind: the lines say it all" in said


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"kind": "k", "endpoint": "orders"}', "payload: must be given"),
        ('{"kind": "k", "endpoint": "nobody", "payload": {}}', "endpoint: there is none called nobody"),
        ('{"kind": "k", "endpoint": "orders", "payload": 3}', "payload: must be a JSON object or a list"),
        ('{"kind": "k", "endpoint": "orders", "payload": {"a": "' + "x" * 262_144 + '"}}', "payload: must be at most"),
        (r'{"kind": "k", "endpoint": "orders", "payload": {"a": "\u0000"}}', "payload: must not contain NUL"),
        ('{"kind": "k", "endpoint": "orders", "payload": {"a": 1e200000}}', ""),
        ('{"kind": "k", "endpoint": "orders", "payload": {}, "scheduled_at": "soon"}', "scheduled_at: must be a time"),
        ('{"kind": "k", "endpoint": "orders", "payload": {"b": 2}, "key": "taken"}', ""),
        ('{"kind": "k", "endpoint": "orders", "payload": ', "not JSON: "),
    ],
)
def test_of_a_file_with_a_bad_line_nothing_is_scheduled_and_the_line_is_named(
    shell: Shell, tmp_path: Path, bad: str, said: str
) -> None:
    good = '{"kind": "k", "endpoint": "orders", "payload": {"a": 1}, "key": "taken"}'
    file = tmp_path / "messages.jsonl"
    file.write_text(f"{good}\n\n{bad}\n")
    found = shell.run("message", "schedule", "--file", str(file), status=2)
    assert f"messages.jsonl: line 3: {said}" in found
    assert len(found.splitlines()) == 1
    assert shell.query("SELECT count(*) FROM duepost.scheduled_message") == [(0,)]


def test_a_message_is_edited_moved_and_asked_for(shell: Shell) -> None:
    shell.run(*NEWS, "--payload", "{}", "--key", "k")
    assert shell.run("message", "edit", "1", "--payload", '{"a": 1.50}') == "edited\n"
    assert shell.run("message", "edit", "1", "--payload", "-", stdin='{"a": 1.5}') == "edited\n"
    assert shell.json("message", "edit", "99", "--payload", "{}") == {"message_id": 99, "receipt": "too_late"}
    assert shell.run("message", "reschedule", "1", "2030-01-01T00:00:00Z") == "rescheduled\n"
    assert shell.json("message", "reschedule", "99", "now") == {"message_id": 99, "receipt": "too_late"}
    printed = shell.run("status", "--key", "k").splitlines()
    assert [line.split("\t") for line in printed] == [
        ["id", "1"], ["channel", "message"], ["kind", "news"], ["state", "scheduled"],
        ["scheduled at", "2030-01-01 00:00:00+00:00"], ["due at", "2030-01-01 00:00:00+00:00"], ["attempts", "0"],
    ]  # fmt: skip
    found = shell.json("status", "1")
    assert isinstance(found, dict)
    assert (found["channel"], found["outcome"], found["attempts"]) == ("message", None, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*NEWS], "--payload: must be given"),
        ([*NEWS, "--payload", "{"], "--payload: not JSON"),
        ([*NEWS, "--payload", r'{"a": "\u0000"}'], "--payload: must not contain NUL or a lone surrogate"),
        ([*NEWS, "--payload", '{"a": 1e200000}'], "--payload: "),
        (["message", "edit", "1", "--payload", r'{"a": "\u0000"}'], "--payload: must not contain NUL"),
        (["endpoint", "test", "orders", "--payload", r'{"a": "\u0000"}'], "--payload: must not contain NUL"),
        ([*HOOK[:5], "--url", "http://u:TOKEN@shop.example.com/"], "url: must have no user"),
        ([*HOOK, "--secret", "whsec_VE9LRU4="], "secret: must have 24 to 64 bytes"),
        (["endpoint", "add", "e", "--format", "function", "--function", "duepost.status"], "function: there is none"),
        ([*NEWS, "--payload", "3"], "payload: must be a JSON object or a list"),
        (["message", "schedule", "--kind", "k", "--payload", "{}"], "--endpoint: must be given"),
        ([*NEWS[:-1], "x", "--payload", "{}"], "endpoint: there is none called x"),
        ([*NEWS, "--payload", "{}", "--at", "tomorrow"], "--at: must be a time with its zone"),
        (["message", "edit", "1"], "(see `duepost message edit --help`)"),
        (["message", "edit", "0", "--payload", "{}"], "message_id"),
        (["message", "clear"], "clear: give one of an id and --user"),
        (["message", "clear", "1", "--kind", "k"], "--kind: goes with --user"),
        (["message", "reschedule", "1", "tomorrow"], "AT: must be a time with its zone"),
        (["status"], "status: give either an id or --key"),
        (["endpoint", "add", "E", "--format", "slack"], "name: must be 1 to 100 of"),
        (["endpoint", "add", "e", "--format", "pigeon"], "pigeon"),
        (["endpoint", "add", "e", "--format", "slack", "--url", "http://127.0.0.1/TOKEN"], "url: leads to"),
        (["endpoint", "add", "e", "--format", "matrix", "--option", "room"], "--option: must be name=value"),
        (["endpoint", "rotate", "e"], "NAME: there is no endpoint e; known are orders"),
        (["endpoint", "rotate", "orders", "--for", "soon"], "--for: must be an age"),
        (["endpoint", "enable", "e"], "NAME: there is no endpoint e"),
        (["endpoint", "disable", "e"], "name: there is no endpoint of this name"),
        (["endpoint", "remove", "e"], "name: there is no endpoint of this name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_status_2(shell: Shell, arguments: list[str], said: str) -> None:
    found = shell.run(*arguments, status=2)
    assert said in found
    assert len(found.splitlines()) == 1
    assert "TOKEN" not in found
    assert shell.query("SELECT count(*) FROM duepost.scheduled_message") == [(0,)]


def test_messages_are_listed_and_shown_beside_emails(shell: Shell) -> None:
    shell.schedule(at="'2030-01-02Z'")
    shell.run(
        *NEWS, "--payload", '{"secret": "PAYLOAD"}', "--at", "2030-01-01T00:00:00Z", "--user", "ann", "--key", "k"
    )
    assert [line.split("\t")[:3] + line.split("\t")[6:] for line in shell.run("list").splitlines()] == [
        ["id", "kind", "state", "endpoint"], ["2", "news", "scheduled", "orders"], ["1", "welcome", "scheduled", ""],
    ]  # fmt: skip
    listed, shown = shell.json("list"), shell.json("show", "2")
    assert isinstance(listed, list)
    assert [each["endpoint"] for each in listed] == ["orders", None]
    assert isinstance(shown, dict)
    assert "PAYLOAD" not in str(shown)
    [(wire_id,)] = shell.query("SELECT wire_id FROM duepost.scheduled_message")
    assert shown["email"]["wire_id"] == wire_id
    shell.query("SELECT duepost.disable_endpoint('orders', '410 Gone')")
    lines = shell.run("show", "2").splitlines()
    assert lines[:3] == ["Message 2 (news) is scheduled.", "Endpoint: orders", "To: ann"]
    assert f"Id at the endpoint: {wire_id}" in lines
    assert "but its endpoint is disabled (410 Gone): duepost endpoint enable orders" in lines[-1]
    health, said = shell.findings(status=None)["endpoints"]
    assert health == "failed"
    assert said.startswith("orders is disabled (410 Gone)")


def test_a_finished_message_is_shown(shell: Shell) -> None:
    shell.run(*NEWS, "--payload", "{}")
    assert shell.run("message", "clear", "1") == "1 cleared\n"
    lines = shell.run("show", "1").splitlines()
    assert lines[:2] == ["Message 1 (news) is finished: 1 cleared.", "Endpoint: orders"]
    assert lines[-1] == "Next: nothing: it is finished"
    assert shell.json("status", "1")["outcome"] == "cleared"  # type: ignore[index]  # an object


def test_messages_are_retried_and_resolved_as_emails_are(shell: Shell) -> None:
    for _ in range(3):
        shell.run(*NEWS, "--payload", "{}", "--user", "ann")
    shell.query("UPDATE duepost.item SET is_held = true, unknowns = 1, attempts = 1")
    for message_id, resolution, said in ((1, "sent", "sent"), (2, "drop", "dropped"), (3, "resend", "due once more")):
        assert shell.run("resolve", str(message_id), resolution) == f"Message {message_id}: {said}.\n"
    assert shell.query("SELECT email_id, channel, outcome, user_id, endpoint FROM duepost.delivery ORDER BY 1") == [
        (1, "message", "sent", "ann", "orders"),
        (2, "message", "cleared", "ann", "orders"),
    ]
    shell.query("UPDATE duepost.item SET due_at = now() + interval '1 hour', unknowns = 0, last_error = 'http 500'")
    assert shell.run("retry", "--kind", "news") == "Message 3 is due now.\n"
    assert shell.query("SELECT due_at <= now(), count(*) OVER () FROM duepost.scheduled_message") == [(True, 1)]


def test_a_message_is_called_one_whatever_the_command(shell: Shell) -> None:
    shell.schedule()
    shell.run(*NEWS, "--payload", "{}")
    shell.run(*NEWS, "--payload", "{}")
    assert shell.run("retry", "1", "2") == "2 emails and messages: due now.\n"
    assert shell.run("retry", "2", "3") == "2 messages: due now.\n"
    assert "message 2 is not unknown: it is scheduled" in shell.run("resolve", "2", "sent", status=1)
    assert "there is no such email or message" in shell.run("retry", "99", status=1)
    assert "99: there is no such email or message" in shell.run("show", "99", status=1)
    assert "2 is a message: duepost message clear 2" in shell.run("clear", "2", status=2)
    assert "2 is a message: duepost message reschedule 2" in shell.run("reschedule", "2", "now", status=2)
    assert "1 is an email: duepost clear 1" in shell.run("message", "clear", "1", status=2)
    assert "1 is an email: duepost reschedule 1" in shell.run("message", "reschedule", "1", "now", status=2)
    assert "1 is an email: it cannot be edited" in shell.run("message", "edit", "1", "--payload", "{}", status=2)
    shell.query("SELECT duepost.remove_endpoint('orders')")
    assert shell.run("reopen", "2", "--dry-run") == "1 message: 2\n"
    assert "message 2 is not reopened: " in shell.run("reopen", "2", status=1)
    shell.run("clear", "1")
    assert "email 1 is not reopened: nothing of it is undeliverable" in shell.run("reopen", "1", status=1)


def test_what_nobody_knows_is_status_1(shell: Shell) -> None:
    assert "nothing is known of 99" in shell.run("status", "99", status=1)


# Endpoints -----------------------------------------------------------------------------------------------------------


def test_a_secret_is_printed_once_as_it_is_made(url: str) -> None:
    shell = Shell(url)
    first, second, third = shell.run(*HOOK).splitlines()
    assert (first, second) == ("Endpoint orders is registered.", "Its secret, which is not shown again:")
    assert shell.query("SELECT secret FROM duepost.endpoint") == [(third,)]
    assert shell.run(*HOOK) == "Endpoint orders is registered.\n"
    for shown in (shell.run("endpoint", "list"), shell.run("endpoint", "list", "--json")):
        assert not any(word in shown for word in (third, "TOKEN", "QS"))
    rotated = json.loads(shell.run("endpoint", "rotate", "orders", "--for", "2h", "--json"))
    assert shell.query(
        "SELECT secret, previous_secret, extract(epoch FROM previous_secret_until - changed_at)::int"
        " FROM duepost.endpoint"
    ) == [(rotated["secret"], third, 7200)]


def test_a_secret_may_be_read_from_stdin_or_left_where_it_is(url: str) -> None:
    shell = Shell(url)
    zulip = ("endpoint", "add", "chat", "--format", "zulip", "--url", "https://chat.example.com")
    assert shell.run(*zulip, "--option", "user=bot@example.com", "--secret", "-", stdin="KEY\n") == (
        "Endpoint chat is registered.\n"
    )
    assert shell.query("SELECT secret, options FROM duepost.endpoint") == [("KEY", {"user": "bot@example.com"})]
    shell.run("endpoint", "rotate", "chat", "--secret", "env:CHAT_KEY")
    assert shell.query("SELECT secret, previous_secret FROM duepost.endpoint") == [("env:CHAT_KEY", None)]
    assert "--secret: must be given" in shell.run("endpoint", "rotate", "chat", status=2)


def test_endpoints_are_listed_a_line_each(shell: Shell) -> None:
    shell.run(*NEWS, "--payload", "{}")
    shell.run("endpoint", "disable", "orders", "--reason", "the shop moves")
    assert shell.run("endpoint", "list") == (
        "name\tformat\tto\tsecret\tstate\tmessages\n"
        "orders\twebhook\thttps://shop.example.com\tstored\tdisabled (the shop moves)\t1\n"
    )
    listed = shell.json("endpoint", "list")
    assert isinstance(listed, list)
    [found] = listed
    assert (found["name"], found["disabled_because"], found["pending"]) == ("orders", "the shop moves", 1)
    assert "endpoint: is disabled (the shop moves)" in shell.run(*NEWS, "--payload", "{}", status=2)
    assert shell.run("endpoint", "enable", "orders") == "Endpoint orders is enabled.\n"
    assert shell.run(*NEWS, "--payload", "{}") == "2\n"


def test_a_function_is_an_endpoint_and_no_endpoints_are_none(url: str) -> None:
    shell = Shell(url)
    assert shell.run("endpoint", "list") == "There are no endpoints.\n"
    shell.query("CREATE FUNCTION public.post(bigint, jsonb) RETURNS void LANGUAGE sql AS ''")
    shell.run("endpoint", "add", "board", "--format", "function", "--function", "public.post")
    assert shell.run("endpoint", "list").splitlines()[1] == "board\tfunction\tpublic.post(bigint,jsonb)\t\tenabled\t0"


def test_an_operator_needs_no_other_role(server: PostgresServer, url: str) -> None:
    role = "login_endpoints"
    server.execute(f"CREATE ROLE {role} LOGIN IN ROLE duepost_operator")
    try:
        shell = Shell(url.replace("postgres@", f"{role}@", 1))
        assert "secret" in shell.run(*HOOK)
        assert "orders" in shell.run("endpoint", "list")
        assert "a member of duepost_client" in shell.run(*NEWS, "--payload", "{}", status=1)
    finally:
        server.execute(f"DROP ROLE {role}")


def test_show_lists_the_items_of_a_batch_before_and_after_the_claim(shell: Shell) -> None:
    shell.query("SELECT duepost.set_endpoint('hook', 'webhook', 'https://hooks.example.com/in')")
    for number in (1, 2):
        shell.query(
            "SELECT duepost.add_to_batch('orders', jsonb_build_object('n', %s), kind => 'k', endpoint => 'hook',"
            " item_key => 'key-' || %s)",
            number,
            number,
        )
    for first in ('  1 (key-1): {"n": 1}', '  1: {"n": 1}'):
        story_json, printed = shell.run_all(["show", "1", "--json"], ["show", "1"])
        message = json.loads(story_json)["email"]
        assert (message["batch"], [each["item"] for each in message["items"]]) == ("orders", [{"n": 1}, {"n": 2}])
        assert "Batch orders, 2 items:" in printed
        assert first in printed
        shell.query("SELECT duepost.message_content(1)")
