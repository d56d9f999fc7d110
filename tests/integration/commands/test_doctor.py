"""`duepost doctor`: a line for each check, and a status that a monitor can go by."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from actors.ruling import Phase
from duepost.commands import server_checks
from models.database.connections import Database
from tests.folders import short_folder
from tests.integration.commands.shell import Shell
from tests.postgres import PostgresServer
from tests.processes import Process, Workers, duepost
from tests.relays import ScriptedRelay, reply
from tests.waiting import wait_until


def test_the_doctor_finds_everything_well(url: str, tmp_path: Path) -> None:
    with ScriptedRelay(auth=("user", "password")) as relay:
        folders = {"DUEPOST_TEMPLATES": str(tmp_path), "DUEPOST_STATE_DIR": str(tmp_path / "state")}
        shell = Shell(url, relay.url, SENTRY_DSN="http://key@127.0.0.1:1/1", **folders)
        health = {check: health for check, (health, _) in shell.findings().items()}
    assert (health.pop("workers"), health.pop("tick")) == ("warning", "warning"), "nobody has started any yet"
    assert set(health.values()) == {"ok"}
    assert {
        "database",
        "session",
        "schema",
        "clock",
        "snapshots",
        "roles",
        "owner",
        "locks",
        "retention",
        "grants",
        "delivery",
        "pace",
        "emails",
        "expired",
        "recipients",
        "links",
        "bounces",
        "webhooks",
        "endpoints",
        "queue",
        "sender",
        "dkim",
        "relay",
        "templates",
        "journal",
        "sentry",
    } == set(health)


def test_the_doctor_says_what_fails(url: str, tmp_path: Path) -> None:
    (tmp_path / "hi.subject.txt").write_text("{% if %}")
    with ScriptedRelay() as relay:
        relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
        shell = Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path))
        shell.query("UPDATE duepost.route SET circuit_open = true, probe_at = now(), circuit_reason = 'banner 554'")
        done = duepost("doctor", env=shell.env)
    assert done.returncode == 1
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("failed")}
    assert failed == {"relay:", "templates:", "delivery:"}
    assert "\x1b" not in done.stdout


def test_the_doctor_says_where_workers_keep_their_journal_or_why_they_keep_none(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for state, health, said in (
        (str(tmp_path), "ok", f"kept in {tmp_path}"),
        ("off", "warning", "off: after a crash"),
        (str(tmp_path / "file"), "warning", f"{tmp_path / 'file'} is no folder: after a crash"),
        (str(tmp_path / ("x" * 300)), "warning", "File name too long: after a crash"),
        ("/proc/self", "warning", "/proc/self cannot be written by this user: "),
    ):
        found, detail = Shell(url, DUEPOST_STATE_DIR=state).findings(status=1)["journal"]
        assert found == health
        assert said in detail
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "the doctor leaves nothing"


def failed(shell: Shell) -> dict[str, str]:
    """The checks that fail, and what is said of them."""
    found = shell.findings(status=1)
    return {check: detail for check, (health, detail) in found.items() if health == "failed"}


def test_the_doctor_names_who_keeps_done_rows_from_being_removed(
    own_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_checks, "OLD_SNAPSHOT", -1.0)
    with own_server.fresh_database() as url:
        shell = Shell(url, "smtp://127.0.0.1:1", DUEPOST_TEMPLATES=str(tmp_path))
        reader = psycopg2.connect(url, application_name="nightly dump")
        reader.set_session(isolation_level="REPEATABLE READ")
        writer = psycopg2.connect(url, application_name="forgotten shell")
        with closing(reader), closing(writer), reader.cursor() as reading, writer.cursor() as writing:
            reading.execute("SELECT 1 FROM duepost.control")
            writing.execute("INSERT INTO duepost.recipient (user_id, address) VALUES ('ann', 'ann@example.com')")
            shell.query("SELECT pg_create_physical_replication_slot('old_standby', true)")
            health, detail = server_checks.snapshots(Database(url))
            pids = reader.info.backend_pid, writer.info.backend_pid
        shell.query("SELECT pg_drop_replication_slot('old_standby')")
    assert health == "warning"
    assert f"session {pids[0]} of postgres (nightly dump, idle in transaction) for 0 s" in detail
    assert f"session {pids[1]} of postgres (forgotten shell, idle in transaction) for 0 s" in detail
    assert "replication slot old_standby (nobody reads from it" in detail


def test_a_relay_that_refuses_the_login_fails(url: str, tmp_path: Path) -> None:
    with ScriptedRelay(auth=("user", "right")) as relay:
        shell = Shell(url, relay.url.replace("right", "topsecret"), DUEPOST_TEMPLATES=str(tmp_path))
        found = failed(shell)
    assert list(found) == ["relay"]
    assert "535" in found["relay"]
    assert "topsecret" not in found["relay"]


@pytest.mark.parametrize(
    ("phase", "said", "advice"),
    [
        (Phase.MAIL, "452 4.3.1 Insufficient system storage", ""),
        (Phase.MAIL, "530 5.7.0 Must issue a STARTTLS command first", "smtp+starttls://"),
        (Phase.MAIL, "550 5.7.1 no", "DUEPOST_FROM"),
        (Phase.RCPT, "554 5.7.1 <noreply@example.com>: Sender address rejected: Access denied", "DUEPOST_FROM"),
        (Phase.RCPT, "554 5.7.1 <x>: Recipient address rejected: Access denied", "login"),
        (Phase.RCPT, "454 4.7.1 <x>: Relay access denied", "login"),
        (Phase.RCPT, "554 5.7.1 <[127.0.0.1]>: Helo command rejected: Access denied", "DUEPOST_SMTP_HELO"),
        (Phase.RCPT, "554 5.7.1 <unknown[127.0.0.1]>: Client host rejected: Access denied", "this host"),
        (Phase.RCPT, "550 5.4.5 Daily user sending limit exceeded", "Wait"),
    ],
)
def test_a_relay_that_takes_no_mail_of_ours_fails_and_the_line_says_what_to_do(
    url: str, tmp_path: Path, phase: Phase, said: str, advice: str
) -> None:
    with ScriptedRelay() as relay:
        relay.on(phase, reply(said))
        found = failed(Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path)))
        assert relay.messages == []
    assert list(found) == ["relay"]
    assert said in found["relay"]
    assert advice in found["relay"]


def test_a_relay_that_does_not_know_the_doctors_mailboxes_takes_mail(url: str, tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
        health, detail = Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path)).findings()["relay"]
    assert health == "ok"
    assert "nothing is encrypted or checked" in detail


def test_a_relay_that_takes_mail_for_its_own_domain_only_is_a_warning(url: str, tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        relay.on(Phase.RCPT, reply("554 5.7.1 Relay access denied"), when=lambda line: "example.org" in line)
        health, detail = Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path)).findings()["relay"]
    assert health == "warning"
    assert "Relay access denied" in detail


def test_the_doctor_shows_nothing_of_a_login_that_the_relay_repeats(url: str, tmp_path: Path) -> None:
    with ScriptedRelay(auth=("user", "right")) as relay:
        relay.on(Phase.AUTH, reply('500 5.5.1 Command unrecognized: "AUTH PLAIN AHVzZXIAdG9wc2VjcmV0"'))
        shell = Shell(url, relay.url.replace("right", "topsecret"), DUEPOST_TEMPLATES=str(tmp_path))
        found = failed(shell)
    assert "500 5.5.1" in found["relay"]
    assert "AHVzZXIAdG9wc2VjcmV0" not in found["relay"]


def test_an_absent_relay_fails_unless_it_is_left_alone(url: str, tmp_path: Path) -> None:
    shell = Shell(url, "smtp://127.0.0.1:1", DUEPOST_TEMPLATES=str(tmp_path))
    assert list(failed(shell)) == ["relay"]
    assert " relay: " not in shell.run("doctor", "--no-relay")


def test_a_missing_schema_fails_and_names_migrate(server: PostgresServer, tmp_path: Path) -> None:
    with server.fresh_database(migrated=False) as url, ScriptedRelay() as relay:
        found = failed(Shell(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path)))
    assert list(found) == ["schema"]
    assert "duepost migrate" in found["schema"]


def test_an_absent_database_fails_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        shell = Shell("postgresql://ann:topsecret@127.0.0.1:1/x", relay.url, DUEPOST_TEMPLATES=str(tmp_path))
        found = shell.findings(status=1)
    assert {check for check, (health, _) in found.items() if health == "failed"} == {"database"}
    assert {"sender", "relay", "templates"} <= set(found)
    assert "topsecret" not in str(found)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that the embedded server's user can reach."""
    folder = short_folder("duepost-doctor-")
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_beside_duepost_up_sender_and_relay_are_its_own_and_well(folder: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_"))}
    arguments = [sys.executable, "-u", "-m", "duepost", "up", "--port", "0"]
    with Process(arguments, env, folder / "up.log", cwd=folder) as up:
        wait_until(lambda: "Duepost is up" in up.output, timeout=90, what="duepost up", state=lambda: up.output)
        done = duepost("doctor", env=env, cwd=folder)
        up.signal(signal.SIGINT)
        assert up.wait() == 0
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    for check in ("sender:", "relay:"):
        assert lines[check].startswith("ok ")
        assert "duepost up" in lines[check]
    assert f"{folder / '.duepost' / 'state'} by the workers of `duepost up`" in lines["journal:"]
    alone = duepost("doctor", env=env, cwd=folder)
    assert alone.returncode == 2, "without it, they are not taken for granted"


def test_the_only_worker_s_death_by_kill_is_seen(url: str, tmp_path: Path) -> None:
    shell = Shell(url, DUEPOST_TEMPLATES=str(tmp_path))
    with Workers(shell.env, tmp_path / "workers.log") as workers:
        assert shell.findings(status=1)["workers"] == ("ok", "1 running")
        workers.kill()
    wait_until(lambda: failed(shell).get("workers"), what="the doctor to see it")
    assert "duepost worker" in failed(shell)["workers"]
