"""The doctor is never green while something fails, waits for a person, or has stopped: a row for each condition."""

import json
import threading
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from duepost import stack
from duepost.commands import checks, server_checks
from duepost.commands.health import Health
from models import control, reports
from models.database import preconditions
from models.database.connections import Database
from tests.integration.commands.shell import Shell
from tests.postgres import Connection, PostgresServer
from tests.processes import duepost
from tests.waiting import wait_until

SCHEDULE = "SELECT duepost.schedule_email('welcome', 'ann@example.com', subject => 's', body_text => 'b')"

#: A pass of the scheduler, a moment ago.
RUNNING = "UPDATE duepost.control SET checked_in_at = now() - interval '20 s'"

Check = Callable[[Database], tuple[Health, str]]


@pytest.fixture
def shell(url: str) -> Shell:
    return Shell(url)


def found(check: Check, url: str) -> tuple[Health, str]:
    database = Database(url)
    try:
        return check(database)
    finally:
        database.close()


FAILING: list[tuple[str, Check, list[str], list[str]]] = [
    (
        "emails fail on a template",
        checks.emails,
        [
            SCHEDULE,
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET attempts = 1, last_error = 'render: digest.subject.txt: no such file'",
        ],
        ["2 emails fail on templates (digest.subject.txt: no such file)", "duepost list", "duepost retry 1"],
    ),
    (
        "a template fails for one of an email's users",
        checks.emails,
        [
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET attempts = 1,"
            " last_error = 'rcpt: 450 busy; render: a.txt line 2: UndefinedError'",
        ],
        ["1 email fails on templates (a.txt line 2: UndefinedError)"],
    ),
    (
        "the team's view of recipients fails for somebody",
        checks.recipients,
        [
            SCHEDULE,
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET attempts = 1,"
            " last_error = 'render: recipient: SQLSTATE 22P02: invalid input syntax for type integer: \"a secret\"'",
        ],
        [
            "2 emails fail on duepost.recipient (SQLSTATE 22P02): duepost show 1",
            "mend the view, then duepost retry 1",
        ],
    ),
    (
        "the table of recipients has two rows for a user, and another user's mailbox is busy",
        checks.recipients,
        [
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET attempts = 1, last_error ="
            " 'rcpt: 450 busy; render: recipient: duepost.recipient has 2 rows for one user'",
        ],
        ["1 email fails on duepost.recipient (duepost.recipient has 2 rows for one user)"],
    ),
    (
        "somebody has dropped the table of recipients and made no view",
        checks.recipients,
        ["DROP TABLE duepost.recipient"],
        ["there is no duepost.recipient", "duepost retry --state scheduled"],
    ),
    (
        "an email waits for a person",
        checks.emails,
        [
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2, due_at = now() - interval '20 min'",
        ],
        ["1 is unknown and waits for a person, for 20 min", "duepost show 1", "duepost resolve 1 sent"],
    ),
    ("nobody has ever made a pass", checks.tick, [SCHEDULE], ["no pass of the scheduler yet, and 1 email due"]),
    (
        "the tick has stopped",
        checks.tick,
        ["UPDATE duepost.control SET checked_in_at = now() - interval '4 min'"],
        ["4 min ago", "duepost worker"],
    ),
    ("no worker while something is pending", checks.workers_alive, [SCHEDULE], ["none is running", "duepost worker"]),
    (
        "the only worker was killed",
        checks.workers_alive,
        ["INSERT INTO duepost.worker (host, pid, missing_since, gone_at) VALUES ('h', 1, now(), now())"],
        ["1 ended without leave", "duepost worker"],
    ),
    (
        "an email is ten minutes late",
        checks.delivery,
        [SCHEDULE, "UPDATE duepost.scheduled_email SET due_at = now() - interval '10 min'"],
        ["1 email due, the oldest for 10 min", "duepost list"],
    ),
    (
        "an email has been in sending for half an hour",
        checks.delivery,
        [
            SCHEDULE,
            "UPDATE duepost.scheduled_email SET state = 'sending', claim = 1, worker_id = 1,"
            " claimed_at = now() - interval '30 min'",
        ],
        ["1 in sending, the oldest for 30 min", "duepost list --state sending"],
    ),
    (
        "actors fail of an exception",
        checks.queue,
        [
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            """ VALUES (gen_random_uuid(), 'q', 'queued', '{"options": {"failures": {"AttributeError": 1}}}')"""
        ],
        ["AttributeError 1 times", "the workers' log"],
    ),
    (
        "the circuit is open",
        checks.delivery,
        ["UPDATE duepost.route SET circuit_open = true, circuit_reason = 'auth 535 5.7.8', probe_at = '2030-01-01Z'"],
        ["the circuit is open (auth 535 5.7.8)", "nothing is dropped", "2030-01-01 00:00:00 UTC", "duepost probe"],
    ),
    (
        "the circuit is open, and nobody probes",
        checks.delivery,
        [
            "UPDATE duepost.route SET circuit_open = true, circuit_reason = 'mail 550',"
            " probe_at = now() - interval '7 min'"
        ],
        ["the next probe has been due for 7 min: it needs a worker"],
    ),
]

WARNING: list[tuple[str, Check, list[str], list[str]]] = [
    (
        "an email is four minutes late",
        checks.delivery,
        [SCHEDULE, "UPDATE duepost.scheduled_email SET due_at = now() - interval '4 min'"],
        ["the oldest for 4 min"],
    ),
    ("paused", checks.delivery, ["UPDATE duepost.control SET paused = true"], ["paused", "duepost resume"]),
    (
        "dead letters",
        checks.queue,
        [
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " VALUES (gen_random_uuid(), 'q', 'rejected', '{}')"
        ],
        ["1 dead letter", "duepost dead-letters"],
    ),
    (
        "an email is retried again and again",
        checks.emails,
        [SCHEDULE, "UPDATE duepost.scheduled_email SET attempts = 12, last_error = 'rcpt: 450 4.2.0 busy'"],
        ["1 retried, one 12 times", "duepost list"],
    ),
]


@pytest.mark.parametrize(
    ("health", "condition", "check", "statements", "said"),
    [(Health.FAILED, *row) for row in FAILING] + [(Health.WARNING, *row) for row in WARNING],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_condition_has_its_line_with_the_next_command(
    shell: Shell, health: Health, condition: str, check: Check, statements: list[str], said: list[str]
) -> None:
    for statement in statements:
        shell.query(statement)
    came_out, detail = found(check, shell.url)
    assert came_out is health, (condition, detail)
    for words in said:
        assert words in detail, condition


def test_one_that_fails_is_status_1(shell: Shell) -> None:
    shell.schedule()
    findings = shell.findings(status=1)
    assert findings["tick"][0] == "failed"
    assert findings["workers"][0] == "failed"


def test_while_the_tick_has_stopped_nothing_is_called_on_time(shell: Shell) -> None:
    shell.query(SCHEDULE)
    for seconds in (20, 131, 313):
        shell.query(f"UPDATE duepost.scheduled_email SET due_at = now() - interval '{seconds} s'")
        _, detail = found(checks.delivery, shell.url)
        assert "on time" not in detail
        assert "due, the oldest for" in detail


def test_an_idle_site_is_well(shell: Shell) -> None:
    shell.schedule(at="'2030-01-01Z'")
    shell.query(RUNNING)
    assert [
        found(check, shell.url)[0]
        for check in (checks.tick, checks.delivery, checks.emails, checks.recipients, checks.queue)
    ] == [Health.OK] * 5


def test_a_role_that_lacks_its_grant_is_told_which(shell: Shell, server: PostgresServer) -> None:
    name = f"lacking_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE ROLE {name} LOGIN IN ROLE duepost_worker")
    try:
        as_role = shell.url.replace("postgres@", f"{name}@", 1)
        assert found(checks.grants, as_role)[0] is Health.OK
        shell.query("REVOKE SELECT ON duepost.recipient FROM duepost_worker, duepost_viewer")
        shell.query("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA duepost FROM duepost_worker")
        health, detail = found(checks.grants, as_role)
        assert health is Health.FAILED
        assert "SELECT on duepost.recipient" in detail
        assert f"GRANT duepost_worker TO {name}" in detail
        assert Shell(as_role).findings(status=1)["grants"][0] == "failed"
    finally:
        server.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("role", ["duepost_client", "duepost_operator", "duepost_worker"])
def test_a_role_that_is_not_there_is_named_with_the_command_that_makes_it(
    shell: Shell, server: PostgresServer, role: str
) -> None:
    assert found(server_checks.roles, shell.url) == (Health.OK, "duepost_client, duepost_operator, duepost_worker")
    server.execute(f"ALTER ROLE {role} RENAME TO renamed")
    try:
        health, detail = found(server_checks.roles, shell.url)
        assert health is Health.WARNING
        assert detail.startswith(
            f"{role}: not there; an administrator runs CREATE ROLE {role} NOLOGIN; then run duepost "
        )
    finally:
        server.execute(f"ALTER ROLE renamed RENAME TO {role}")


@pytest.mark.parametrize(
    ("role", "right", "said"),
    [
        ("duepost_client", "EXECUTE ON FUNCTION duepost.edit_message", "EXECUTE on duepost.edit_message"),
        ("duepost_operator", "EXECUTE ON FUNCTION duepost.set_endpoint", "EXECUTE on duepost.set_endpoint"),
        ("duepost_operator", "USAGE ON SCHEMA duepost", "USAGE on duepost"),
        ("duepost_worker", "SELECT ON duepost.message", "SELECT on duepost.message"),
        ("duepost_worker", "UPDATE (failing_since, disabled_at, disabled_because) ON duepost.endpoint", "UPDATE on"),
        ("duepost_worker", "EXECUTE ON FUNCTION duepost.claim_messages_v1", "EXECUTE on duepost.claim_messages_v1"),
    ],
)
def test_a_role_that_lacks_a_right_is_named_with_the_right_and_the_command(
    shell: Shell, role: str, right: str, said: str
) -> None:
    shell.query(f"REVOKE {right} FROM {role}, duepost_viewer")
    health, detail = found(server_checks.roles, shell.url)
    assert health is Health.FAILED
    assert detail.startswith(f"{role} lacks {said}")
    assert detail.endswith(": run duepost migrate as the schema's owner, which grants their rights")


def test_what_is_asked_of_the_roles_is_what_they_are_granted(shell: Shell) -> None:
    granted = shell.query(
        """
        SELECT role.rolname::text, 'EXECUTE on duepost.' || f.proname
        FROM pg_proc AS f
        CROSS JOIN LATERAL aclexplode(f.proacl) AS each
        JOIN pg_roles AS role ON role.oid = each.grantee AND role.rolname IN ('duepost_client', 'duepost_operator')
        WHERE f.pronamespace = 'duepost'::regnamespace
        """
    )
    shell.query("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA duepost FROM duepost_client, duepost_operator")
    database = Database(shell.url)
    asked = [(each.role, right) for each in reports.rights(database) for right in each.lacking]
    database.close()
    assert sorted(asked) == sorted(granted)


def test_a_database_that_takes_no_writes_fails(server: PostgresServer) -> None:
    with server.fresh_database() as url:
        name = parse_dsn(url)["dbname"]
        server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert "read-only" in Shell(url).findings(status=1)["database"][1]


def test_who_pauses_when_and_why_is_kept(shell: Shell) -> None:
    assert "Paused." in shell.run("pause", "--reason", "a wrong [link]", "--by", "ann")
    again = shell.run("pause")
    assert "Paused already" in again
    assert "by ann (a wrong [link])" in again
    pause = control.read_pause(Database(shell.url))
    assert pause is not None
    assert (pause.by, pause.reason) == ("ann", "a wrong [link]")
    assert "by ann (a wrong [link])" in found(checks.delivery, shell.url)[1]
    assert "by ann" in shell.run("stats")
    assert shell.run("resume") == "Resumed.\n"
    assert shell.run("resume") == "It was not paused.\n"
    assert control.read_pause(Database(shell.url)) is None


def test_stats_counts_what_fails_and_tells_spans_in_words(shell: Shell) -> None:
    shell.schedule(3)
    shell.query("UPDATE duepost.scheduled_email SET due_at = now() - interval '11.4 s'")
    shell.query(
        "UPDATE duepost.scheduled_email SET attempts = 2, last_error = 'render: a.txt: no such file' WHERE id = 1"
    )
    shell.query(
        "UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2, due_at = now() - interval '2 h'"
        " WHERE id = 2"
    )
    numbers = json.loads(shell.run("stats", "--json"))
    assert (numbers["due"], numbers["retrying"], numbers["failing_on_templates"], numbers["most_attempts"]) == (
        2,
        1,
        1,
        2,
    )
    assert 7200 <= numbers["oldest_unknown_seconds"] < 7300
    facts = dict(line.split("\t") for line in shell.run("stats").splitlines())
    assert facts["waiting for a person"].startswith("for 2 h")
    assert facts["oldest due"].endswith(" s")
    assert "." not in facts["oldest due"]
    assert facts["retrying"].startswith("1 (at most 2 attempts")


def test_without_recipients_no_line_says_to_migrate(shell: Shell) -> None:
    shell.query("DROP TABLE duepost.recipient")
    findings = shell.findings(status=1)
    assert [findings[check][0] for check in ("roles", "grants", "recipients")] == ["ok", "ok", "failed"]
    assert not [each for each in findings.values() if "duepost migrate" in each[1]]


def test_a_failing_view_of_recipients_is_no_fault_of_a_template(shell: Shell) -> None:
    shell.schedule(2)
    shell.query(
        "UPDATE duepost.scheduled_email SET attempts = 1, last_error = CASE id WHEN 1"
        " THEN 'render: recipient: SQLSTATE 22012: division by zero' ELSE 'render: a.txt: no such file' END"
    )
    numbers = json.loads(shell.run("stats", "--json"))
    assert (numbers["failing_on_templates"], numbers["failing_on_recipients"]) == (1, 1)
    assert "failing on recipients\t1" in shell.run("stats")
    said = found(checks.emails, shell.url)[1]
    assert "1 email fails on templates (a.txt: no such file)" in said
    assert "duepost retry 2" in said
    assert "mend duepost.recipient, then duepost retry 1" in shell.run("show", "1")


def test_list_says_how_many_there_are_and_begins_with_what_waits_for_a_person(shell: Shell) -> None:
    shell.schedule(3)
    shell.query("UPDATE duepost.scheduled_email SET state = 'unknown', unknowns = 2 WHERE id = 3")
    done = duepost("list", "--limit", "2", env=shell.env)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()[1:]] == ["3", "1"]
    assert "2 of 3; --limit" in done.stderr
    assert duepost("list", "--limit", "3", env=shell.env).stderr == ""


def test_the_failed_are_found_by_their_index(url: str) -> None:
    database = Database(url)
    database.execute(
        "INSERT INTO duepost.item (id, kind, scheduled_at, due_at, last_error)"
        " SELECT i, 'k', now(), now(), CASE WHEN i % 1000 = 0 THEN 'render: a.txt: broken' END"
        " FROM generate_series(1, 5000) AS i"
    )
    database.execute("ANALYZE duepost.item")
    with database.transaction() as cursor:
        cursor.execute("EXPLAIN " + reports.SQL["template_failures"], {"limit": 3})
        plan = "\n".join(str(row[0]) for row in cursor.fetchall())
    database.close()
    assert "item_failed" in plan


def test_the_relay_of_duepost_up_is_told_without_its_password(tmp_path: Path) -> None:
    assert stack.without_password("smtp://user:s%40cret@127.0.0.1:2625") == "smtp://user@127.0.0.1:2625"
    assert stack.without_password("smtps://[::1]:465") == "smtps://[::1]:465"
    assert stack.read_relay(tmp_path) is None
    (tmp_path / stack.RELAY).write_text("nonsense")
    assert stack.read_relay(tmp_path) is None


def test_a_hot_standby_is_named_as_what_it_is_by_whoever_is_to_write_there(
    own_server: PostgresServer,
) -> None:
    with own_server.fresh_database() as url:
        own_server.stop()
        signal = own_server.data / "standby.signal"
        signal.touch()
        own_server.start()
        shell = Shell(url)
        assert "hot standby" in shell.findings(status=1)["database"][1]
        for command in (["worker"], ["trigger"], ["migrate"]):
            done = duepost(*command, env=shell.env)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
            assert "hot standby" in done.stderr
        assert duepost("list", env=shell.env).returncode == 0, "what only reads goes on"
        own_server.stop()
        signal.unlink()
        own_server.start()


def wait_in_vain(connection: Connection) -> None:
    """Asks for a lock until it is cancelled."""
    with connection.cursor() as cursor, suppress(psycopg2.errors.QueryCanceled):
        cursor.execute("LOCK TABLE duepost.delivery")


def test_who_keeps_others_waiting_for_a_table_is_named(shell: Shell, url: str) -> None:
    with closing(psycopg2.connect(url, application_name="nightly dump")) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE duepost.delivery IN ACCESS SHARE MODE")
        waiting = psycopg2.connect(url)
        thread = threading.Thread(target=wait_in_vain, args=(waiting,))
        thread.start()
        looked = Database(url)
        named = wait_until(lambda: preconditions.blockers(looked, 0.1))
        looked.close()
        assert f"session {holder.info.backend_pid} of postgres (nightly dump) keeps others waiting" in named[0]
        waiting.cancel()
        thread.join()
        waiting.close()
    assert shell.findings(status=None)["locks"][0] == "ok"


def test_an_encoding_other_than_utf8_fails_in_one_line(server: PostgresServer) -> None:
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        found = Shell(server.url("latin")).findings(status=1)
        assert found["database"][0] == "failed"
        assert "encoding is LATIN1" in found["database"][1]
    finally:
        server.execute("DROP DATABASE latin WITH (FORCE)")


def test_a_ledger_that_is_kept_for_longer_than_the_settings_say_is_a_warning(server: PostgresServer) -> None:
    with server.fresh_database() as url:
        name = "keeping_worker"
        server.execute(f"CREATE ROLE {name} LOGIN IN ROLE duepost_worker")
        try:
            as_role = Shell(url.replace("postgres@", f"{name}@", 1))
            as_role.env["DUEPOST_RETENTION_DAYS"] = "30"
            health, detail = as_role.findings(status=None)["retention"]
            assert health == "warning"
            assert "kept for good" in detail
            assert duepost("migrate", env={**as_role.env, "DUEPOST_DATABASE_URL": url}).returncode == 0
            assert as_role.findings(status=None)["retention"] == ("ok", "the ledger is kept for 30 days")
        finally:
            server.execute(f"DROP ROLE {name}")
