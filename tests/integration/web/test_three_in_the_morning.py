"""Each kind of trouble is named, with the command to run next, by `duepost doctor` and by the console's first page.

Both say so within a minute of its beginning: where time has to pass, it is moved by a minute in the database.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from duepost.commands import server_checks
from models import workers
from models.database.connections import Database
from models.workers import Process
from tests.integration.commands.shell import Shell
from tests.integration.web.site import ConsoleSite, Start
from tests.processes import Workers
from tests.relays import ScriptedRelay
from tests.waiting import wait_until


class Night:
    """A site where all is well, until something is done to it: a worker whose session is there, a tick, a relay."""

    def __init__(self, url: str, console: ConsoleSite, relay: ScriptedRelay, folder: Path, stack: ExitStack) -> None:
        self.console = console
        self.relay = relay
        self.folder = folder
        self.stack = stack
        self.shell = Shell(url, relay.url, DUEPOST_TEMPLATES=str(folder))
        database = Database(url)
        stack.callback(database.close)
        self.session = stack.enter_context(closing(database.connect()))
        workers.register(self.session, Process("here", 1), "0.2.0")
        # On a machine that is busy the test may take minutes, and nobody stamps meanwhile.
        self.query("UPDATE duepost.control SET checked_in_at = now() + interval '1 h'")
        self.query("UPDATE duepost.worker SET progressed_at = now() + interval '1 h'")

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.shell.query(statement, *parameters)

    def overdue(self, kind: str = "welcome", route: str = "default") -> None:
        """An email that has been due for a minute."""
        self.shell.query("SELECT duepost.schedule_email(%s, 'ann@example.com', subject => 's', body_text => 'b')", kind)
        self.query("UPDATE duepost.item SET due_at = now() - interval '61 s', route = %s WHERE kind = %s", route, kind)

    def workers(self, relay_url: str) -> Workers:
        """Real ones."""
        env = {**self.shell.env, "DUEPOST_SMTP_URL": relay_url}
        return self.stack.enter_context(Workers(env, self.folder / "workers.log"))


@pytest.fixture
def night(url: str, start: Start, tmp_path: Path) -> Iterator[Night]:
    with ExitStack() as stack:
        relay = stack.enter_context(ScriptedRelay(auth=("user", "right")))
        yield Night(url, start(), relay, tmp_path, stack)


def no_tick(night: Night) -> None:
    # A tick comes each minute: the last one came, and the next one has not come for a minute.
    night.query("UPDATE duepost.control SET checked_in_at = now() - interval '121 s'")


def no_worker(night: Night) -> None:
    night.session.close()
    night.overdue()
    database = Database(night.shell.url)
    wait_until(lambda: workers.present(database) == 0, what="the session to end")
    database.close()


def a_stuck_worker(night: Night) -> None:
    [pid] = night.workers(night.relay.url).worker_pids()
    os.kill(pid, signal.SIGSTOP)
    night.query("UPDATE duepost.worker SET progressed_at = now() - interval '61 s' WHERE pid = %s", pid)


def opened_circuit(night: Night) -> None:
    night.shell.schedule()
    look = "SELECT circuit_reason FROM duepost.route WHERE circuit_open"
    wait_until(lambda: night.query(look), timeout=120, what="the circuit to open")


def a_refused_login(night: Night) -> None:
    night.workers(night.relay.url.replace("right", "wrong"))
    opened_circuit(night)


def an_absent_relay(night: Night) -> None:
    night.workers("smtp://127.0.0.1:1")
    opened_circuit(night)


def a_forgotten_pause_of_one_route(night: Night) -> None:
    night.query("INSERT INTO duepost.route (name) VALUES ('marketing')")
    night.query("INSERT INTO duepost.route_worker (route, worker_id) SELECT 'marketing', id FROM duepost.worker")
    night.shell.run("pause", "--route", "marketing", "--reason", "a test", "--by", "ann")
    night.overdue(route="marketing")


def a_paused_kind(night: Night) -> None:
    night.shell.run("pause", "--kind", "digest", "--reason", "a typo", "--by", "ann")
    night.overdue("digest", route="paused:default")


def all_paused(night: Night) -> None:
    night.shell.run("pause", "--reason", "a test", "--by", "ann")
    night.overdue()


def a_broken_template(night: Night) -> None:
    night.shell.schedule(2)
    night.query("UPDATE duepost.item SET attempts = 1, last_error = 'render: digest.html line 3: TemplateSyntaxError'")


def an_unknown_outcome(night: Night) -> None:
    night.shell.schedule()
    night.query("UPDATE duepost.item SET is_held = true, unknowns = 2, attempts = 2")


def a_disabled_endpoint(night: Night) -> None:
    night.query("SELECT duepost.set_endpoint('ops', 'webhook', url => 'https://example.com/', secret => 'env:X')")
    night.query("UPDATE duepost.endpoint SET disabled_at = now(), disabled_because = 'response 410'")


def a_failing_endpoint(night: Night) -> None:
    night.query("SELECT duepost.set_endpoint('ops', 'webhook', url => 'https://example.com/', secret => 'env:X')")
    night.query(
        "UPDATE duepost.route SET circuit_open = true, circuit_reason = 'response 500', probe_at = now()"
        " WHERE name = 'endpoint:ops'"
    )


def much_expired(night: Night) -> None:
    night.query(
        "INSERT INTO duepost.delivery (email_id, kind, outcome, address, attempts, unknowns, scheduled_at)"
        " SELECT i, 'reminder', 'expired', 'ann@example.com', 0, 0, now() FROM generate_series(1, 10) AS i"
    )


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, the line that names it, and words of that line, the next command among them."""

    happens: Callable[[Night], None]
    check: str
    said: tuple[str, ...]


TROUBLES = [
    Trouble(no_tick, "tick", ("the last pass of the scheduler was", "duepost trigger --watch")),
    Trouble(no_worker, "workers", ("none is running", "1 ended without leave: nothing is sent", "run duepost worker")),
    Trouble(a_stuck_worker, "workers", ("2 running, 1 without progress", "kill -9")),
    Trouble(a_refused_login, "delivery", ("the circuit is open (auth 535", "nothing is dropped", "duepost probe")),
    Trouble(an_absent_relay, "delivery", ("the circuit is open (connect", "nothing is dropped", "duepost probe")),
    Trouble(
        a_forgotten_pause_of_one_route,
        "delivery",
        ("paused: route marketing for", "by ann (a test)", "duepost resume --route marketing"),
    ),
    Trouble(a_paused_kind, "delivery", ("kind digest for", "by ann (a typo)", "duepost resume --kind digest")),
    Trouble(all_paused, "delivery", ("paused for", "by ann (a test)", "duepost resume goes on")),
    Trouble(
        a_broken_template,
        "emails",
        ("2 emails fail on templates (digest.html line 3: TemplateSyntaxError)", "duepost retry"),
    ),
    Trouble(an_unknown_outcome, "emails", ("1 is unknown and waits for a person", "duepost resolve")),
    Trouble(a_disabled_endpoint, "endpoints", ("ops is disabled (response 410)", "duepost endpoint enable ops")),
    Trouble(a_failing_endpoint, "endpoints", ("circuit of ops is open (response 500)", "duepost endpoint enable ops")),
    Trouble(much_expired, "expired", ("10 items expired within the last hour", "duepost list --outcome expired")),
]


def first_page(night: Night) -> str:
    """What the console's first page says, to those who may only look, too."""
    return night.console.browser().get("/").words


def test_where_all_is_well_neither_finds_anything(night: Night) -> None:
    night.shell.findings(status=0)
    page = first_page(night)
    assert "Nothing waits for a person." in page, page


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.happens.__name__)
def test_each_trouble_is_named_with_the_next_command_by_the_doctor_and_the_first_page(
    night: Night, trouble: Trouble
) -> None:
    trouble.happens(night)
    health, detail = night.shell.findings(status=1)[trouble.check]
    page = first_page(night)
    assert health == "failed", detail
    assert "Nothing waits for a person." not in page
    for words in trouble.said:
        assert words in detail
        assert words in page, page


def test_dead_letters_are_named_by_both(night: Night) -> None:
    night.query(
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
        " VALUES (gen_random_uuid(), 'q', 'rejected', '{}')"
    )
    health, detail = night.shell.findings(status=0)["queue"]
    assert health == "warning"
    assert "1 dead letter: duepost dead-letters, then duepost requeue" in detail
    assert detail in first_page(night)


def test_a_transaction_that_holds_back_vacuum_is_named_by_both(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "OLD_SNAPSHOT", -1.0)
    with closing(psycopg2.connect(night.shell.url, application_name="nightly dump")) as reader:
        with reader.cursor() as cursor:
            cursor.execute("CREATE TABLE x (y integer)")
        health, detail = server_checks.snapshots(night.console.database)
        page = first_page(night)
        pid = reader.info.backend_pid
    assert health == "warning"
    for said in (detail, page):
        assert f"session {pid} of postgres (nightly dump" in said
        assert "pg_terminate_backend" in said


def test_several_troubles_are_named_side_by_side(night: Night) -> None:
    a_paused_kind(night)
    an_unknown_outcome(night)
    a_disabled_endpoint(night)
    night.query("UPDATE duepost.route SET circuit_open = true, circuit_reason = 'auth 535', probe_at = now()"
                " WHERE name = 'default'")  # fmt: skip
    found = night.shell.findings(status=1)
    page = first_page(night)
    for check, words in (
        ("delivery", "the circuit is open (auth 535)"), ("delivery", "paused: kind digest"),
        ("emails", "wait for a person"), ("endpoints", "ops is disabled"),
    ):  # fmt: skip
        assert words in found[check][1]
        assert words in page


def test_a_viewer_is_told_the_same(with_logins: ConsoleSite) -> None:
    with_logins.query("SELECT duepost.set_endpoint('ops', 'slack', url => 'https://example.com/hook-secret')")
    with_logins.query("UPDATE duepost.endpoint SET disabled_at = now(), disabled_because = 'response 410'")
    page = with_logins.named("vera").get("/").words
    assert "ops is disabled (response 410)" in page
    assert "permission denied" not in page
    assert "hook-secret" not in page


def test_a_pause_is_only_a_warning_while_nothing_waits_for_it(night: Night) -> None:
    night.shell.run("pause", "--kind", "digest")
    health, detail = night.shell.findings(status=0)["delivery"]
    assert health == "warning"
    assert "paused: kind digest" in detail
    assert detail.split(" for ")[0] in first_page(night)
