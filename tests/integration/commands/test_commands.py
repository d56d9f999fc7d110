"""The commands on a real database, as a shell runs them."""

import json
import signal
from pathlib import Path

import psycopg2
import pytest

from actors.smtp.verdicts import Phase
from tests.processes import Watch, duepost, environment
from tests.relays import ScriptedRelay, reply
from tests.waiting import wait_until

COMMANDS = [
    "worker", "trigger", "up", "demo", "migrate", "schedule", "clear", "reschedule", "list", "show", "stats", "retry",
    "resolve", "pause", "resume", "doctor",
]  # fmt: skip
PLAIN = ("--kind", "welcome", "--subject", "Hello", "--body-text", "World")


class Shell:
    """A shell with Duepost's settings."""

    def __init__(self, url: str, smtp_url: str = "smtp://127.0.0.1:1", **more: str) -> None:
        self.url = url
        self.env = environment(url, smtp_url, **more)

    def run(self, *arguments: str, stdin: str | None = None, status: int = 0) -> str:
        """Runs a command, checks its status, gives what it printed."""
        done = duepost(*arguments, env=self.env, stdin=stdin)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    def json(self, *arguments: str) -> object:
        """What a command prints as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            rows = list(cursor.fetchall()) if cursor.description else []
        connection.close()
        return rows


@pytest.fixture
def shell(url: str) -> Shell:
    return Shell(url)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(shell: Shell, command: str) -> None:
    text = shell.run(command, "--help")
    assert "usage" in text.lower()
    assert command in {"worker", "pause", "resume"} or "Example" in text


def test_migrate_says_what_it_applied_and_can_be_repeated(shell: Shell) -> None:
    assert shell.run("migrate") == "The schema is up to date.\n"
    assert shell.json("migrate") == {"applied": []}


def test_every_argument_of_schedule_reaches_the_row(shell: Shell) -> None:
    printed = shell.run(
        "schedule", "--kind", "welcome", "--user", "ann", "--user", "bob", "--at", "2030-01-01T00:00:00Z",
        "--template", "t",
        "--context", '{"a": 1}', "--key", "k", "--expires-at", "2031-01-01T00:00:00Z", "--sender", "S <s@example.com>",
        "--reply-to", "r@example.com", "--header", "X-A: b",
    )  # fmt: skip
    assert printed == "1\n"
    [(row,)] = shell.query("SELECT to_jsonb(e) FROM duepost.scheduled_email e")
    assert isinstance(row, dict)
    assert row["context"] == {"a": 1}
    assert row["headers"] == {"X-A": "b"}
    assert [row[name] for name in ("kind", "template", "key", "sender", "reply_to")] == [
        "welcome", "t", "k", "S <s@example.com>", "r@example.com",
    ]  # fmt: skip
    assert shell.query("SELECT count(*) FROM duepost.scheduled_email_user") == [(2,)]


def test_a_file_is_scheduled_whole(shell: Shell, tmp_path: Path) -> None:
    line = {"kind": "k", "address": "ann@example.com", "subject": "Grüße", "body_text": "b", "reply_to": None}
    (tmp_path / "emails.jsonl").write_text("\n".join([json.dumps(line), "", json.dumps(line, ensure_ascii=False)]))
    assert shell.run("schedule", "--file", str(tmp_path / "emails.jsonl")) == "Scheduled 2 emails.\n"
    printed = shell.run("schedule", "--file", "-", "--json", stdin=json.dumps(line))
    assert json.loads(printed) == {"ids": [3]}


def test_clear_and_reschedule_print_receipts(shell: Shell) -> None:
    for whom in (("--address", "ann@example.com"), ("--user", "ann"), ("--user", "bob", "--user", "cleo")):
        shell.run("schedule", *PLAIN, *whom)
    assert shell.run("reschedule", "1", "2030-01-01T00:00:00Z") == "rescheduled\n"
    assert shell.run("clear", "--address", "ANN@example.com") == "1 cleared\n"
    assert shell.run("clear", "--user", "ann", "--user", "bob") == "2 cleared\n3 user_removed\n"
    assert shell.json("clear", "3") == [{"email_id": 3, "receipt": "cleared"}]
    assert shell.run("clear", "3") == "3 too_late\n"


def test_list_and_show_and_stats(shell: Shell) -> None:
    assert shell.run("list") == "Nothing is pending.\n"
    shell.run("schedule", *PLAIN, "--address", "ann@example.com", "--at", "2030-01-01T00:00:00Z")
    shell.run("schedule", *PLAIN, "--address", "bob@example.com")
    listed = shell.json("list")
    assert isinstance(listed, list)
    assert [each["id"] for each in listed] == [2, 1]
    assert shell.json("list", "--state", "unknown") == []
    assert len(shell.run("list", "--limit", "1").splitlines()) < len(shell.run("list").splitlines())
    story = shell.json("show", "1")
    assert isinstance(story, dict)
    assert story["email"]["state"] == "scheduled"
    assert story["attempts"] == []
    assert "2030" in story["next"]
    assert "\x1b" not in shell.run("show", "1")
    stats = shell.json("stats")
    assert isinstance(stats, dict)
    assert stats["pending"] == {"scheduled": 2, "queued": 0, "sending": 0, "unknown": 0}
    assert stats["outcomes"] == {"sent": 0, "undeliverable": 0, "cleared": 0, "expired": 0}
    assert stats["oldest_due_seconds"] >= 0
    assert (stats["circuit"], stats["paused"], stats["workers"]) == ("closed", False, 0)
    assert "no such email" in shell.run("show", "99", status=1)


def test_show_tells_each_attempt(shell: Shell) -> None:
    shell.run("schedule", *PLAIN, "--address", "ann@example.com")
    shell.query(
        "INSERT INTO duepost.attempt (email_id, claim, worker_id, started_at, phase, verdict, code, reply)"
        " VALUES (1, 1, 1, now(), 'rcpt', 'retry', 450, 'busy')"
    )
    story = shell.json("show", "1")
    assert isinstance(story, dict)
    [attempt] = story["attempts"]
    assert {"when", "phase", "verdict", "reply"} <= set(attempt)
    assert (attempt["phase"], attempt["verdict"], attempt["reply"]) == ("rcpt", "retry", "busy")


def test_an_operator_can_retry_resolve_pause_and_resume(shell: Shell) -> None:
    for _ in range(3):
        shell.run("schedule", *PLAIN, "--address", "ann@example.com", "--at", "2030-01-01T00:00:00Z")
    shell.run("retry", "1")
    assert shell.query("SELECT due_at <= now() FROM duepost.scheduled_email WHERE id = 1") == [(True,)]
    assert "no such email" in shell.run("retry", "99", status=1)
    assert "it is scheduled" in shell.run("resolve", "2", "sent", status=1)
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id > 1")
    shell.run("resolve", "2", "sent")
    shell.run("resolve", "3", "resend")
    assert shell.query("SELECT email_id, outcome FROM duepost.delivery") == [(2, "sent")]
    assert shell.query("SELECT state FROM duepost.scheduled_email WHERE id = 3") == [("scheduled",)]
    assert "it is finished (sent)" in shell.run("retry", "2", status=1)
    shell.run("pause")
    assert shell.query("SELECT paused FROM duepost.control") == [(True,)]
    shell.run("resume")
    assert shell.query("SELECT paused FROM duepost.control") == [(False,)]


def test_a_tick_is_asked_for_once(shell: Shell) -> None:
    assert "is asked for" in shell.run("trigger")
    assert "already" in shell.run("trigger")
    assert shell.query("SELECT count(*) FROM dramatiq.queue") == [(1,)]


def test_while_disabled_no_tick_is_asked_for(url: str) -> None:
    shell = Shell(url, DUEPOST_DISABLED="1")
    assert "DUEPOST_DISABLED" in shell.run("trigger")
    assert shell.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


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
            shell.query("DELETE FROM dramatiq.queue")
            first.kill()
            wait_until(lambda: leaders() == 1, what="the other to take over", state=lambda: second.output)
            shell.query("DELETE FROM dramatiq.queue")
            shell.run("schedule", *PLAIN, "--address", "ann@example.com")
            wait_until(lambda: ticks() == 1, what="a tick for what is due now", state=lambda: second.output)
            shell.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            shell.query("DELETE FROM dramatiq.queue")
            wait_until(lambda: ticks() == 1, what="a tick after its session was ended", state=lambda: second.output)
            second.signal(signal.SIGTERM)
            assert second.wait() == 0


def test_the_doctor_finds_everything_well(url: str, tmp_path: Path) -> None:
    with ScriptedRelay(auth=("user", "password")) as relay:
        shell = Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path), SENTRY_DSN="http://key@127.0.0.1:1/1")
        found = shell.json("doctor")
    assert isinstance(found, list)
    health = {each["check"]: each["health"] for each in found}
    assert health.pop("workers") == "warning"
    assert set(health.values()) == {"ok"}
    assert {"database", "schema", "clock", "roles", "delivery", "sender", "relay", "templates", "sentry"} == set(health)


def test_the_doctor_says_what_fails(url: str, tmp_path: Path) -> None:
    (tmp_path / "hi.subject.txt").write_text("{% if %}")
    with ScriptedRelay() as relay:
        relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
        shell = Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path))
        shell.query("UPDATE duepost.control SET circuit_open = true, probe_at = now(), circuit_reason = 'banner 554'")
        done = duepost("doctor", env=shell.env)
    assert done.returncode == 1
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("failed")}
    assert failed == {"relay:", "templates:", "delivery:"}
    assert "\x1b" not in done.stdout
