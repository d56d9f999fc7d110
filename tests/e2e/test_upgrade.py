"""Upgrades: under load while workers of the release before run, and of a database that was stopped in full flight."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email import message_from_bytes
from pathlib import Path

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql

from actors.ruling import Phase
from models.database.connections import Database
from models.database.migrate import FOLDER, FUNCTIONS, migrate, migrations
from models.errors import MigrationRefused
from tests.chaos.clients import USERS, Book, Client, address_of
from tests.e2e.conftest import Site
from tests.old_release import unpack
from tests.postgres import PostgresServer, make_schema_of_0_1
from tests.processes import ROOT, duepost, environment
from tests.relays import ScriptedRelay, accept, close, hang
from tests.waiting import wait_until

#: The newest migration that release 0.1 knows.
LEVEL_OF_0_1 = 3

#: What this release's schema asks of workers.
FLOOR = max(each.oldest_worker or 0 for each in migrations())

#: A function's name and arguments, up to what it returns.
SIGNATURE = re.compile(r"(CREATE OR REPLACE FUNCTION duepost\.\w+\()([^$]*?)(\n?\)\s+RETURNS (?!trigger))")

#: Tables, one by one: a column is added to each.
TABLES = """
    SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('duepost', 'dramatiq') AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
"""


@pytest.fixture
def release_0_1(tmp_path: Path) -> Path:
    """The packages of release 0.1."""
    return unpack("0.1", tmp_path / "release-0.1")


@pytest.fixture
def site_of_0_1(server: PostgresServer, relay: ScriptedRelay, tmp_path: Path) -> Iterator[Site]:
    """A site on a database as release 0.1 made it; nothing runs yet."""
    with server.fresh_database(migrated=False) as url:
        make_schema_of_0_1(url)
        yield Site(url, relay, environment(url, relay.url, DUEPOST_TEMPLATES=str(tmp_path)), tmp_path)


@pytest.fixture
def release_0_2(tmp_path: Path) -> Path:
    """The packages of release 0.2."""
    return unpack("0.2", tmp_path / "release-0.2")


@pytest.fixture
def site_of_0_2(server: PostgresServer, relay: ScriptedRelay, release_0_2: Path, tmp_path: Path) -> Iterator[Site]:
    """A site on a database as release 0.2 makes it; nothing runs yet."""
    folders = {"DUEPOST_TEMPLATES": str(tmp_path), "DUEPOST_STATE_DIR": str(tmp_path / "state")}
    with server.fresh_database(migrated=False) as url:
        env = environment(url, relay.url, **folders)
        command = [sys.executable, "-m", "duepost", "migrate"]
        subprocess.run(command, cwd=release_0_2, env={**env, "PYTHONPATH": str(release_0_2)}, check=True)
        yield Site(url, relay, env, tmp_path)


class NextRelease:
    """A release that adds a column to each table, an argument to each function, one to emails, an index, a function."""

    def __init__(self, folder: Path, tables: list[str]) -> None:
        self.migrations = folder / "migrations"
        self.functions = folder / "functions"
        shutil.copytree(FOLDER, self.migrations)
        shutil.copytree(FUNCTIONS, self.functions)
        for number, table in enumerate(tables, 9001):
            (self.migrations / f"{number}_column.sql").write_text(f"ALTER TABLE {table} ADD COLUMN next_release text;")
        (self.migrations / "9101_index.sql").write_text("CREATE INDEX ON dramatiq.queue (mtime);")
        self.changed = sum(map(self._add_argument, self.functions.glob("*.sql")))
        self._edit("types/new_email.sql", r"\('priority', 'text'\)", "('priority', 'text'), ('next_release', 'text')")
        self._edit("schedule.sql", r"\bpriority\n    \);", "priority, next_release\n    );")
        self._edit("schedule.sql", r"(INSERT INTO duepost\.email \([^)]*\bheaders)\b", r"\1, next_release")
        self._edit("schedule.sql", r"\bg\.headers\b", "g.headers, g.next_release")
        (self.functions / "later.sql").write_text(
            "CREATE OR REPLACE FUNCTION duepost.of_later() RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        )

    def _edit(self, name: str, before: str, after: str) -> None:
        text, count = re.subn(before, after, (self.functions / name).read_text())
        assert count == 1, (name, before)
        (self.functions / name).write_text(text)

    def _add_argument(self, path: Path) -> int:
        def with_argument(found: re.Match[str]) -> str:
            comma = "," if found[2].strip() else ""
            return f"{found[1]}{found[2]}{comma} next_release text DEFAULT NULL{found[3]}"

        text, count = SIGNATURE.subn(with_argument, path.read_text())
        path.write_text(text)
        return count

    def migrate(self, url: str) -> list[str]:
        """Its `duepost migrate`."""
        database = Database(url)
        try:
            return list(
                migrate(
                    database,
                    queue_schema=generate_init_sql(),
                    folder=self.migrations,
                    functions=self.functions,
                )
            )
        finally:
            database.close()


@pytest.fixture
def next_release(url: str, tmp_path: Path) -> NextRelease:
    """The release after this one."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        release = NextRelease(tmp_path / "next", [str(name) for (name,) in cursor.fetchall()])
    assert release.changed > 10
    return release


@contextmanager
def load(site: Site) -> Iterator[Book]:
    """Applications schedule, clear and reschedule for as long as the block lasts; at its end all is finished."""
    for user in USERS:
        site.query("INSERT INTO duepost.recipient (user_id, address) VALUES (%s, %s)", user, address_of(user))
    book = Book()
    clients = [Client(site.url, book, f"client-{number}", lock_timeout=10.0) for number in range(2)]
    for client in clients:
        client.start()
    try:
        yield book
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(timeout=60)
    wait_until(lambda: not site.pending(), timeout=90, state=lambda: (site.pending(), site.logs()[-3000:]))


def copies(site: Site) -> Counter[tuple[str, str]]:
    """How many times the relay took each email, by Message-ID and recipient."""
    return Counter(
        (str(message_from_bytes(each.content)["Message-ID"]), recipient)
        for each in site.relay.messages
        for recipient in each.recipients
    )


def assert_all_is_well(site: Site, book: Book, release: NextRelease) -> None:
    """The release is there, and no error; each email was sent once to each recipient, or called off in time."""
    arguments = "SELECT count(*) FROM pg_proc WHERE 'next_release' = ANY (proargnames)"
    assert site.query(arguments) == [(release.changed,)], "each function has its argument more"
    of_emails = "SELECT count(*) FROM pg_attribute WHERE attname = 'next_release' AND attrelid = %s::regclass"
    assert site.query(of_emails, "duepost.new_email") == [(1,)], "emails have theirs"
    assert book.errors == []
    for word in ("Traceback", "ERROR", "CRITICAL"):
        assert word not in site.logs()
    taken = copies(site)
    assert {each: count for each, count in taken.items() if count > 1} == {}, "copies"
    rows = site.query("SELECT email_id, outcome, message_id_header, address, unknowns FROM duepost.delivery")
    assert {email_id for email_id, *_ in rows} == set(book.emails), "each email has come to an end"
    assert {(header, address) for _, outcome, header, address, _ in rows if outcome == "sent"} == set(taken)
    assert {unknowns for *_, unknowns in rows} == {0}
    ended = {(email_id, address) for email_id, outcome, _, address, _ in rows if outcome == "sent"}
    for email in book.emails.values():
        if not email.cleared and not email.either and not email.unsure:
            assert {(email.email_id, address) for address in email.addresses.values()} <= ended, email


def test_this_releases_workers_go_on_while_a_next_one_migrates_under_load(
    site: Site, next_release: NextRelease
) -> None:
    applied: list[str] = []
    upgrading = threading.Thread(target=lambda: applied.extend(next_release.migrate(site.url)))
    with site.workers(processes=2), site.watch(), load(site) as book:
        wait_until(lambda: len(site.relay.messages) > 50, state=site.logs)
        with closing(psycopg2.connect(site.url)) as reader, reader.cursor() as cursor:
            # A dump, say: the migration has to wait for it, and nobody else may.
            cursor.execute("SELECT count(*) FROM duepost.scheduled_email")
            upgrading.start()
            waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            wait_until(lambda: site.query(waiting), timeout=60, what="the migration to wait", state=site.logs)
            seen = len(site.relay.messages)
            wait_until(lambda: len(site.relay.messages) > seen + 100, timeout=60, state=site.logs)
            assert "9101_index.sql" not in applied
            reader.rollback()
        upgrading.join(timeout=120)
        assert applied == sorted(path.name for path in next_release.migrations.glob("9*.sql"))
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
    assert_all_is_well(site, book, next_release)


def test_workers_of_0_2_go_on_while_this_release_and_the_next_one_migrate_under_load(
    site_of_0_2: Site, release_0_2: Path, next_release: NextRelease
) -> None:
    site = site_of_0_2
    with site.workers(processes=2, code=release_0_2), site.watch(code=release_0_2), load(site) as book:
        wait_until(lambda: len(site.relay.messages) > 50, state=site.logs)
        done = duepost("migrate", env=site.env)
        assert done.returncode == 0, done.stderr
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
        applied = next_release.migrate(site.url)
        assert applied == sorted(path.name for path in next_release.migrations.glob("9*.sql"))
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
    assert_all_is_well(site, book, next_release)


@pytest.mark.skipif(FLOOR > LEVEL_OF_0_1, reason="this release leaves workers of 0.1 behind: they are to be stopped")
def test_workers_of_0_1_go_on_while_this_release_and_the_next_one_migrate_under_load(
    site_of_0_1: Site, release_0_1: Path, next_release: NextRelease
) -> None:
    site = site_of_0_1
    with site.workers(processes=2, code=release_0_1), site.watch(code=release_0_1), load(site) as book:
        wait_until(lambda: len(site.relay.messages) > 50, state=site.logs)
        done = duepost("migrate", env=site.env)
        assert done.returncode == 0, done.stderr
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
        assert next_release.migrate(site.url) == sorted(path.name for path in next_release.migrations.glob("9*.sql"))
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
    assert_all_is_well(site, book, next_release)


def test_workers_of_0_1_that_a_migration_would_break_are_named_and_it_waits_for_their_stop(
    site_of_0_1: Site, release_0_1: Path, next_release: NextRelease
) -> None:
    site = site_of_0_1
    (next_release.migrations / "9102_breaking.sql").write_text("-- oldest worker: 9102\nCREATE TABLE duepost.later ();")
    with site.workers(processes=2, code=release_0_1) as workers, site.watch(code=release_0_1) as watch:
        site.schedule(20)
        site.wait_until_finished(20)
        with pytest.raises(MigrationRefused) as refused:
            next_release.migrate(site.url)
        named = [int(pid) for pid in re.findall(r"\(process (\d+) on \S+, release 0\.1\)", str(refused.value))]
        assert sorted(named) == sorted(workers.worker_pids())
        assert site.query("SELECT max(number) FROM duepost.migration") == [(LEVEL_OF_0_1,)]
        site.schedule(20, prefix="later")
        site.wait_until_finished(40)
        assert (watch.stop(), workers.stop()) == (0, 0)
    assert "9102_breaking.sql" in next_release.migrate(site.url)
    assert set(copies(site).values()) == {1}


def test_a_database_of_0_1_that_was_stopped_in_full_flight_is_upgraded_with_none_lost_or_doubled(
    site_of_0_1: Site, release_0_1: Path
) -> None:
    site = site_of_0_1
    site.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('invoice', 'hold')")
    site.relay.on(Phase.DOT, accept(), close(), times=1)
    workers = site.workers(code=release_0_1, DUEPOST_SMTP_CONNECTIONS="2")
    with workers, site.watch(code=release_0_1) as watch:
        [held] = [
            row[0]
            for row in site.query(
                "SELECT duepost.schedule_email(kind => 'invoice', address => 'held@example.com', subject => 's',"
                " body_text => 'b')"
            )
        ]
        wait_until(lambda: site.pending() == {"unknown": 1}, state=site.logs)
        # One that the relay took without a word, and one that it did not take; what follows waits behind them.
        site.relay.on(Phase.DOT, hang())
        site.relay.on(Phase.DOT, accept(), hang(), times=1)
        in_flight = site.schedule(2, prefix="in-flight")
        wait_until(lambda: site.pending() == {"unknown": 1, "sending": 2}, state=site.logs)
        wait_until(lambda: site.relay.transcript.count("C: .") == 3, state=site.logs)
        behind = site.schedule(10, prefix="behind")
        # Some of them are claimed ahead.
        wait_until(
            lambda: site.pending().get("queued", 0) > 0 and "scheduled" not in site.pending(),
            state=lambda: (site.pending(), site.logs()),
        )
        workers.kill()
        watch.kill()
    users = [f"user-{number}" for number in range(3)]
    for user in users:
        site.query("INSERT INTO duepost.recipient (user_id, address) VALUES (%s, %s)", user, address_of(user))
    due = site.schedule(10, prefix="due")
    later = site.schedule(10, prefix="later", scheduled_at="now() + interval '1 day'")
    [(digest,)] = site.query(
        "SELECT duepost.schedule_email(kind => 'digest', users => %s, subject => 's', body_text => 'b')", users
    )
    [(cleared,)] = site.query(
        "SELECT duepost.schedule_email(kind => 'welcome', address => 'cleared@example.com', subject => 's',"
        " body_text => 'b', scheduled_at => now() + interval '1 day')"
    )
    before = site.pending()
    assert (before["unknown"], before["sending"] + before["queued"], before["scheduled"]) == (1, 12, 22)
    facts = "SELECT id, kind, state, due_at, message_id_header, attempts, unknowns FROM duepost.scheduled_email"
    rows = site.query(f"{facts} ORDER BY id")
    claimed = {row[0] for row in rows if row[2] == "sending"}
    assert claimed >= set(in_flight)
    site.relay.forget()

    done = duepost("migrate", env=site.env)
    assert done.returncode == 0, done.stderr
    assert site.query(f"{facts} ORDER BY id") == rows

    assert site.query("SELECT duepost.clear_scheduled_email(%s)", cleared) == [("cleared",)]
    for email_id in later:
        site.query("SELECT duepost.reschedule_email(%s, now())", email_id)
    with site.workers("new", processes=2), site.watch("new-watch"):
        wait_until(
            lambda: site.pending() == {"unknown": 1}, timeout=90, state=lambda: (site.pending(), site.logs()[-3000:])
        )
        listed = json.loads(duepost("list", "--state", "unknown", "--json", env=site.env).stdout)
        assert [each["id"] for each in listed] == [held]
        assert duepost("resolve", str(held), "sent", env=site.env).returncode == 0
        wait_until(lambda: not site.pending(), state=site.pending)

    headers = {row[0]: str(row[4]) for row in rows}
    ledger = site.query("SELECT email_id, outcome, unknowns > 0, address FROM duepost.delivery")
    assert {email_id for email_id, *_ in ledger} == set(headers), "none is lost"
    assert {outcome for email_id, outcome, *_ in ledger if email_id != cleared} == {"sent"}
    taken = copies(site)
    by_email = {
        email_id: sum(n for (header, _), n in taken.items() if header == headers[email_id]) for email_id in headers
    }
    assert {by_email[each] for each in (*behind, *due, *later)} == {1}
    assert (by_email[digest], by_email[cleared], by_email[held]) == (3, 0, 1)
    # What a worker had claimed when it died is sent once more, and named: nobody knows what the relay had taken.
    assert sorted(by_email[each] for each in in_flight) == [1, 2]
    assert {email_id for email_id, _, is_doubtful, _ in ledger if is_doubtful} == {held, *claimed}
    assert "Traceback" not in (site.folder / "new.log").read_text()


def test_what_is_run_as_release_0_1_is_release_0_1(release_0_1: Path) -> None:
    released = (release_0_1 / "models/migrations/0003_functions.sql").read_text()
    assert released == (ROOT / "tests/releases/0.1/0003_functions.sql").read_text()
