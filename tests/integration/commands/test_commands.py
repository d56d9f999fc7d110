"""The commands on a real database, as a shell runs them."""

import json
import re
import signal
from pathlib import Path

import pytest

from duepost.commands.jsonl import ItemLine
from duepost.commands.schedule_file import LONGEST_SET, SET, sets
from tests.integration.commands.shell import BYTECODE, PLAIN, Shell, at_once
from tests.postgres import PostgresServer
from tests.processes import Watch, duepost, environment
from tests.waiting import wait_until

COMMANDS = [
    "worker", "trigger", "up", "demo", "migrate", "schedule", "clear", "reschedule", "list", "show", "stats", "retry",
    "find", "why", "forecast", "top", "journal", "forget", "export",
    "resolve", "probe", "reopen", "pause", "resume", "priority", "doctor", "status", "message schedule", "message edit",
    "message clear", "message reschedule", "endpoint add", "endpoint list", "endpoint rotate", "endpoint disable",
    "endpoint enable", "endpoint remove", "endpoint test",
]  # fmt: skip


@pytest.fixture
def shell(url: str) -> Shell:
    return Shell(url)


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command says with --help; no setting is needed for that."""
    env = {**environment("", ""), **BYTECODE}
    found = at_once(lambda command: duepost(*command.split(), "--help", env=env), COMMANDS)
    return {command: done.stdout for command, done in zip(COMMANDS, found, strict=True) if done.returncode == 0}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(helps: dict[str, str], command: str) -> None:
    assert "usage" in helps[command].lower()
    assert re.search(rf"Examples?: .*duepost {command}", helps[command], re.DOTALL), helps[command]
    assert "\x1b" not in helps[command]


def test_without_a_command_and_with_h_there_is_the_help() -> None:
    env = {**environment("", ""), **BYTECODE}
    bare, short, long = at_once(lambda given: duepost(*given, env=env), [[], ["-h"], ["--help"]])
    assert (bare.returncode, short.returncode) == (0, 0)
    assert bare.stdout == short.stdout == long.stdout
    assert len(bare.stdout.splitlines()) > 20
    assert max(map(len, bare.stdout.splitlines())) <= 80
    assert duepost("list", "-h", env=env).returncode == 0


def test_the_worker_s_help_has_only_what_one_may_give(helps: dict[str, str]) -> None:
    assert "broker" not in helps["worker"]
    assert "module" not in helps["worker"]
    env = {**environment("postgresql://x@127.0.0.1:1/x", "smtp://127.0.0.1:1"), **BYTECODE}
    done = duepost("worker", "some_module", env=env)
    assert done.returncode == 2
    assert "takes no 'some_module'" in done.stderr


def test_migrate_says_what_it_applied_and_can_be_repeated(server: PostgresServer) -> None:
    with server.fresh_database(migrated=False) as url:
        shell = Shell(url)
        printed = shell.run("migrate").splitlines()
        assert printed[0].startswith("applied 0001_")
        assert shell.run("migrate") == "The schema is up to date.\n"
        assert shell.json("migrate") == {"applied": []}
        assert len(printed) == shell.query("SELECT count(*) FROM duepost.migration")[0][0]
    with server.fresh_database(migrated=False) as url:
        assert Shell(url).json("migrate") == {"applied": [line.removeprefix("applied ") for line in printed]}


def test_every_option_of_schedule_reaches_the_row(shell: Shell) -> None:
    times = ("--at", "2030-01-01T00:00:00Z", "--expires-at", "2031-01-01T01:00:00+01:00")
    printed = shell.run(
        "schedule", "--kind", "welcome", "--user", "ann", "--user", "bob", *times, "--template", "t",
        "--context", '{"a": "Grüße"}', "--key", "k", "--sender", "S <s@example.com>",
        "--reply-to", "r@example.com", "--header", "X-A: b", "--header", "X-B:c: d",
    )  # fmt: skip
    assert printed == "1\n"
    [(row,)] = shell.query("SELECT to_jsonb(e) FROM duepost.scheduled_email e")
    assert isinstance(row, dict)
    assert row["context"] == {"a": "Grüße"}
    assert row["headers"] == {"X-A": "b", "X-B": "c: d"}
    assert [row[name] for name in ("kind", "template", "key", "sender", "reply_to")] == [
        "welcome", "t", "k", "S <s@example.com>", "r@example.com",
    ]  # fmt: skip
    assert shell.query(
        "SELECT scheduled_at = '2030-01-01Z', expires_at = '2031-01-01Z' FROM duepost.scheduled_email"
    ) == [(True, True)]
    assert shell.query("SELECT user_id FROM duepost.scheduled_email_user ORDER BY 1") == [("ann",), ("bob",)]
    content = ("--subject", "Hello", "--body-text", "World", "--body-html", "<p>World</p>")
    assert shell.json("schedule", "--kind", "k", "--address", "ann@example.com", *content) == {"ids": [2]}
    assert shell.query("SELECT address, subject, body_text, body_html FROM duepost.scheduled_email WHERE id = 2") == [
        ("ann@example.com", "Hello", "World", "<p>World</p>")
    ]


def test_files_are_attached_by_their_names_and_cids(shell: Shell, tmp_path: Path) -> None:
    for name, content in {"März.pdf": b"%PDF-1.7", "logo.png": b"\x89PNG\r\n\x1a\n", "a=b.txt": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    schedule = ("schedule", "--kind", "k", "--address", "ann@example.com", "--subject", "s")
    files = [
        "--attach",
        f"{tmp_path}/März.pdf",
        "--attach",
        f"logo={tmp_path}/logo.png",
        "--attach",
        f"{tmp_path}/a=b.txt",
    ]
    assert shell.json(*schedule, "--body-html", '<img src="cid:logo">', *files) == {"ids": [1]}
    [(attachments,)] = shell.query("SELECT attachments FROM duepost.email")
    assert isinstance(attachments, list)
    assert [(each["filename"], each["content_type"], each.get("cid"), each["size"]) for each in attachments] == [
        ("März.pdf", "application/pdf", None, 8),
        ("logo.png", "image/png", "logo", 8),
        ("a=b.txt", "text/plain; charset=utf-8", None, 1),
    ]
    for given, said in {
        f"{tmp_path}/none.pdf": f"duepost: --attach: {tmp_path}/none.pdf: No such file or directory\n",
        f"{tmp_path}": f"duepost: --attach: {tmp_path}: Is a directory\n",
        f"a b={tmp_path}/logo.png": "cid: must consist of",
    }.items():
        assert said in shell.run(*schedule, "--body-text", "b", "--attach", given, status=2)
    # What one email lacks, no email has: nothing was stored of it.
    assert shell.query("SELECT count(*) FROM duepost.email") == [(1,)]


def test_a_key_schedules_once_and_takes_no_other_content(shell: Shell) -> None:
    email = ("schedule", *PLAIN, "--key", "k", "--at", "2030-01-01T00:00:00Z", "--address")
    assert shell.run_all([*email, "ann@example.com"], [*email, "ann@example.com"]) == ["1\n", "1\n"]
    assert "key" in shell.run(*email, "bob@example.com", status=2)


def test_a_file_is_scheduled_whole(shell: Shell, tmp_path: Path) -> None:
    line = {"kind": "k", "address": "ann@example.com", "subject": "Grüße", "body_text": "b", "reply_to": None}
    (tmp_path / "emails.jsonl").write_text("\n".join([json.dumps(line), "", json.dumps(line, ensure_ascii=False)]))
    assert shell.run("schedule", "--file", str(tmp_path / "emails.jsonl")) == "Scheduled 2 emails.\n"
    printed = shell.run("schedule", "--file", "-", "--json", stdin=json.dumps(line))
    assert json.loads(printed) == {"ids": [3]}


def test_a_long_file_is_one_set_after_the_other_and_all_or_nothing(shell: Shell, tmp_path: Path) -> None:
    line = {"kind": "k", "subject": "s", "body_text": "b"}
    lines = [json.dumps({**line, "address": f"a{number}@example.com"}) for number in range(2 * SET + 3)]
    file = tmp_path / "emails.jsonl"
    file.write_text("\n".join(["", *lines, json.dumps({**line, "address": "nobody"})]))
    failed = shell.run("schedule", "--file", str(file), status=2)
    assert f"emails.jsonl: line {2 * SET + 5}: address: must be one address" in failed
    assert shell.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]
    file.write_text("\n".join(lines))
    assert shell.run("schedule", "--file", str(file)) == f"Scheduled {2 * SET + 3} emails.\n"
    assert shell.query("SELECT array_agg(address ORDER BY id) FROM duepost.scheduled_email") == [
        ([f"a{number}@example.com" for number in range(2 * SET + 3)],)
    ]


@pytest.mark.parametrize(
    "bad",
    [b'{"n": 1e200000}', b'{"n": "Gr\xfc\xdfe"}', b'{"n": "\\u0000"}', b'{"n": ' + b"[" * 7000 + b"]" * 7000 + b"}"],
)
def test_a_line_that_postgresql_cannot_read_is_named_and_nothing_is_stored(
    shell: Shell, tmp_path: Path, bad: bytes
) -> None:
    email = b'{"kind": "k", "address": "ann@example.com", "template": "t", "context": %s}\n'
    file = tmp_path / "emails.jsonl"
    file.write_bytes(email % b"{}" * 3 + email % bad + email % b"{}")
    assert "emails.jsonl: line 4: " in shell.run("schedule", "--file", str(file), status=2)
    assert shell.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_numbers_are_stored_as_they_are_written(shell: Shell, tmp_path: Path) -> None:
    context = '{"n": 12345678901234567890.12, "whole": 123456789012345678901234567890, "price": 1.10}'
    file = tmp_path / "emails.jsonl"
    email = f'{{"kind": "k", "address": "ann@example.com", "template": "t", "context": {context}}}'
    file.write_text(f"\ufeff{email}\n", encoding="utf-8")
    shell.run("schedule", "--file", str(file))
    shell.run("schedule", "--kind", "k", "--address", "a@example.com", "--template", "t", "--context", context)
    assert (
        shell.query("SELECT context ->> 'n', context ->> 'whole', context ->> 'price' FROM duepost.scheduled_email")
        == [("12345678901234567890.12", "123456789012345678901234567890", "1.10")] * 2
    )


def test_long_lines_go_in_shorter_sets() -> None:
    emails = [ItemLine(number, LONGEST_SET // 2, {}) for number in range(1, 6)]
    assert [[email.number for email in some] for some in sets(emails)] == [[1, 2], [3, 4], [5]]
    assert [len(some) for some in sets([ItemLine(1, LONGEST_SET * 2, {})] * 2)] == [1, 1]


def test_clear_and_reschedule_print_receipts(shell: Shell) -> None:
    shell.schedule()
    for users in (["ann"], ["bob", "cleo"], ["dan"]):
        shell.query("SELECT duepost.schedule_email('k', users => %s, subject => 's', body_text => 'b')", users)
    assert shell.run("reschedule", "1", "2030-01-01T00:00:00Z") == "rescheduled\n"
    assert shell.run_all(
        ["clear", "--address", "ANN@example.com"], ["clear", "--user", "ann", "--user", "bob"], ["clear", "4", "--json"]
    ) == [
        "1 cleared\n",
        "2 cleared\n3 user_removed\n",
        '[\n  {\n    "email_id": 4,\n    "receipt": "cleared"\n  }\n]\n',
    ]
    assert shell.run_all(["clear", "3"], ["clear", "4"], ["reschedule", "4", "now"], ["clear", "--user", "eve"]) == [
        "3 cleared\n", "4 too_late\n", "too_late\n", "",
    ]  # fmt: skip


def test_where_nothing_is_pending_list_says_so(shell: Shell) -> None:
    assert shell.run_all(["list"], ["list", "--json"]) == ["Nothing is pending.\n", "[]\n"]


def test_list_and_stats_count_what_is_pending(shell: Shell) -> None:
    shell.schedule(at="'2030-01-01Z'")
    shell.schedule()
    [listed, table, stats_json, plain] = shell.run_all(["list", "--json"], ["list"], ["stats", "--json"], ["stats"])
    assert [each["id"] for each in json.loads(listed)] == [2, 1]
    assert "welcome" in table
    assert "\x1b" not in table + plain
    stats = json.loads(stats_json)
    assert stats["pending"] == {"scheduled": 2, "queued": 0, "sending": 0, "unknown": 0}
    assert stats["outcomes"] == {
        "sent": 0,
        "undeliverable": 0,
        "cleared": 0,
        "expired": 0,
        "obsolete": 0,
        "suppressed": 0,
    }
    assert stats["oldest_due_seconds"] >= 0
    assert (stats["circuit"], stats["paused"], stats["workers"]) == ("closed", False, 0)


def test_list_can_be_narrowed_by_state_and_kind(shell: Shell) -> None:
    for kind in ("a", "b", "b"):
        shell.query("SELECT duepost.schedule_email(%s, 'ann@example.com', subject => 's', body_text => 'b')", kind)
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id = 3")
    found = shell.run_all(
        ["list", "--json", "--kind", "b"],
        ["list", "--json", "--kind", "b", "--state", "unknown"],
        ["list", "--json", "--limit", "1"],
    )
    assert [[each["id"] for each in json.loads(listed)] for listed in found] == [[3, 2], [3], [3]]


def test_show_tells_how_a_finished_email_ended(shell: Shell) -> None:
    shell.schedule()
    shell.query("SELECT duepost.clear_scheduled_email(1)")
    [story_json, printed] = shell.run_all(["show", "1", "--json"], ["show", "1"])
    story = json.loads(story_json)
    assert story["email"]["state"] == "finished"
    assert [each["outcome"] for each in story["deliveries"]] == ["cleared"]
    assert story["next"].startswith("nothing")
    assert "cleared" in printed
    assert "\x1b" not in printed


def test_show_tells_each_attempt_and_what_is_next(shell: Shell) -> None:
    shell.schedule(at="'2030-01-01Z'")
    shell.schedule()
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id = 2")
    shell.query(
        "INSERT INTO duepost.attempt (email_id, claim, worker_id, started_at, phase, verdict, code, reply)"
        " VALUES (1, 1, 1, now(), 'rcpt', 'retry', 450, 'busy')"
    )
    [story_json, printed, unknown] = shell.run_all(["show", "1", "--json"], ["show", "1"], ["show", "2"])
    story = json.loads(story_json)
    assert story["email"]["state"] == "scheduled"
    assert "2030" in story["next"]
    [attempt] = story["attempts"]
    assert {"when", "phase", "verdict", "reply"} <= set(attempt)
    assert (attempt["phase"], attempt["verdict"], attempt["reply"]) == ("rcpt", "retry", "busy")
    assert "busy" in printed
    assert "1 attempt so far." in printed, "the one that the relay was at fault for"
    assert "duepost resolve 2" in unknown
    assert "no such email" in shell.run("show", "99", status=1)


@pytest.mark.parametrize(
    ("probe_at", "words"),
    [
        ("'2030-01-01Z'", "the next probe is at 2030-01-01 00:00:00 UTC"),
        ("now() - interval '7 min'", "the next probe has been due for 7 min: it needs a worker"),
    ],
)
def test_stats_and_show_say_when_an_open_circuit_is_probed_next(shell: Shell, probe_at: str, words: str) -> None:
    shell.schedule()
    shell.query(f"UPDATE duepost.route SET circuit_open = true, circuit_reason = 'mail 550', probe_at = {probe_at}")
    for said in shell.run_all(["stats"], ["show", "1"]):
        assert words in said


def test_show_lists_the_items_of_a_batch_in_order_before_and_after_the_claim(shell: Shell) -> None:
    for number in range(1, 23):
        shell.query(
            "SELECT duepost.add_to_batch('comments', %s, kind => 'k', address => 'ann@example.com', template => 't',"
            " item_key => 'key-' || %s)",
            json.dumps({"n": number, "text": "x" * 300}),
            number,
        )
    for first in ('  1 (key-1): {"n": 1, ', '  1: {"n": 1, '):
        story_json, printed = shell.run_all(["show", "1", "--json"], ["show", "1"])
        email = json.loads(story_json)["email"]
        assert (email["batch"], [each["item"]["n"] for each in email["items"]]) == ("comments", list(range(1, 23)))
        assert "Batch comments, 22 items:" in printed
        assert first in printed
        assert "x" * 201 not in printed
        assert "… and 2 more: duepost show 1 --json has all" in printed
        shell.query("SELECT duepost.close_batch(1)")


def test_an_operator_can_retry_and_resolve(shell: Shell) -> None:
    shell.schedule(4, at="'2030-01-01Z'")
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id IN (2, 3)")
    shell.run_all(["retry", "1"], ["resolve", "2", "sent"], ["resolve", "3", "resend"])
    assert shell.query("SELECT due_at <= now() FROM duepost.scheduled_email WHERE id = 1") == [(True,)]
    assert shell.query("SELECT email_id, outcome FROM duepost.delivery") == [(2, "sent")]
    assert shell.query("SELECT state FROM duepost.scheduled_email WHERE id = 3") == [("scheduled",)]
    refused = shell.run_all(["retry", "99"], ["retry", "2"], ["resolve", "4", "sent"], status=1)
    for said, why in zip(refused, ["no such email", "it is finished (sent)", "it is scheduled"], strict=True):
        assert why in said


def test_an_operator_retries_and_resolves_many_at_once(shell: Shell) -> None:
    shell.schedule(8, at="'2030-01-01Z'")
    shell.query("UPDATE duepost.scheduled_email SET last_error = 'render: a.txt: no such file' WHERE id IN (1, 2)")
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id >= 4")
    assert shell.run("retry", "--kind", "welcome") == "2 emails: due now.\n"
    assert shell.query("SELECT id FROM duepost.scheduled_email WHERE due_at <= now()") == [(1,), (2,)]
    assert shell.run("resolve", "4", "5", "drop") == "2 emails: dropped.\n"
    assert shell.run("resolve", "6", "resend") == "Email 6: due once more.\n"
    assert "email 3 is not unknown: it is scheduled, and 1 others" in shell.run(
        "resolve", "7", "3", "99", "sent", status=1
    )
    assert shell.run("resolve", "--state", "unknown", "drop") == "Email 8: dropped.\n"
    assert shell.query("SELECT email_id, outcome, reply FROM duepost.delivery ORDER BY 1") == [
        (4, "cleared", "dropped by an operator"),
        (5, "cleared", "dropped by an operator"),
        (7, "sent", "resolved by an operator"),
        (8, "cleared", "dropped by an operator"),
    ]
    for wrong in (["retry"], ["retry", "1", "--kind", "welcome"], ["resolve", "sent"], ["resolve", "1"]):
        shell.run(*wrong, status=2)


def test_of_an_email_to_several_only_those_without_an_outcome_are_dropped(shell: Shell) -> None:
    shell.query("SELECT duepost.schedule_email('k', users => ARRAY['ann', 'bob'], subject => 's', body_text => 'b')")
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2")
    shell.query("UPDATE duepost.scheduled_email_user SET outcome = 'sent' WHERE user_id = 'ann'")
    shell.run("resolve", "1", "drop")
    assert shell.query("SELECT user_id, outcome FROM duepost.delivery ORDER BY 1") == [
        ("ann", "sent"),
        ("bob", "cleared"),
    ]


def test_an_operator_asks_for_a_probe(shell: Shell) -> None:
    assert "closed" in shell.run("probe")
    shell.query("UPDATE duepost.route SET circuit_open = true, probe_at = now() + interval '5 min', probe_pause = 300")
    assert "asked for" in shell.run("probe")
    assert shell.query("SELECT probe_at <= now() FROM duepost.route") == [(True,)]
    assert shell.query("SELECT count(*) FROM dramatiq.queue") == [(1,)]


def test_an_operator_can_pause_and_resume(shell: Shell) -> None:
    shell.run("pause")
    assert shell.query("SELECT paused FROM duepost.control") == [(True,)]
    shell.run("resume")
    assert shell.query("SELECT paused FROM duepost.control") == [(False,)]


def test_a_tick_is_asked_for_once_however_often_it_is_called(shell: Shell) -> None:
    assert "is asked for" in shell.run("trigger")
    assert "already" in shell.run("trigger")
    assert shell.run("trigger", "--quiet") == ""
    assert shell.query("SELECT count(*) FROM dramatiq.queue") == [(1,)]


def test_while_disabled_no_tick_is_asked_for(url: str) -> None:
    shell = Shell(url, DUEPOST_DISABLED="1")
    assert "DUEPOST_DISABLED" in shell.run("trigger")
    assert shell.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


def test_a_watch_ticks_when_an_email_falls_due_and_not_before(shell: Shell, tmp_path: Path) -> None:
    with Watch(shell.env, tmp_path / "watch.log") as watch:
        wait_until(lambda: shell.query("DELETE FROM dramatiq.queue RETURNING 1"), what="the first tick")
        shell.schedule(at="now() + interval '1.5 s'")
        ticked = "SELECT clock_timestamp() >= due_at FROM duepost.scheduled_email, dramatiq.queue"
        assert wait_until(lambda: shell.query(ticked), what="the tick", state=lambda: watch.output) == [(True,)]


def test_a_watch_that_begins_while_the_database_is_away_waits_for_it(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    with own_server.fresh_database() as url:
        shell = Shell(url)
        own_server.stop()
        with Watch(shell.env, tmp_path / "watch.log") as watch:
            wait_until(lambda: "the database is away (" in watch.output, state=lambda: watch.output)
            own_server.start()
            wait_until(lambda: shell.query("SELECT 1 FROM dramatiq.queue"), state=lambda: watch.output)
            wait_until(lambda: "the database is back" in watch.output, state=lambda: watch.output)
            watch.signal(signal.SIGTERM)
            assert watch.wait() == 0
        assert watch.output.count("\n") == 4, watch.output


def test_of_two_watches_one_acts_and_the_other_takes_over(shell: Shell, tmp_path: Path) -> None:
    def leaders() -> int:
        [(count,)] = shell.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 2")
        return int(str(count))

    def ticks() -> int:
        [(count,)] = shell.query("SELECT count(*) FROM dramatiq.queue")
        return int(str(count))

    with Watch(shell.env, tmp_path / "one.log") as first:
        wait_until(lambda: leaders() == 1, state=lambda: first.output)
        with Watch(shell.env, tmp_path / "two.log") as second:
            wait_until(lambda: ticks() == 1, what="the first tick, though nothing is due")
            wait_until(lambda: "another watch acts" in second.output, state=lambda: second.output)
            shell.query("DELETE FROM dramatiq.queue")
            first.kill()
            wait_until(lambda: leaders() == 1, what="the other to take over", state=lambda: second.output)
            shell.query("DELETE FROM dramatiq.queue")
            shell.schedule()
            wait_until(lambda: ticks() == 1, what="a tick for what is due now", state=lambda: second.output)
            shell.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            shell.query("DELETE FROM dramatiq.queue")
            wait_until(lambda: ticks() == 1, what="a tick after its session was ended", state=lambda: second.output)
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
        assert "watching" in first.output
        said = ["watching", "another watch acts", "this watch's turn", "has ended"]
        assert [words for words in said if words in second.output] == said
