"""An email's arguments are listed once in SQL and once in Python; one more is five edits, while clients go on."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql

from duepost.arguments import ARGUMENTS
from models.database.connections import Database
from models.database.migrate import migrate
from tests.postgres import PostgresServer, make_schema_of_0_1
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

PLAIN = "kind => 'k', address => 'a@example.com', subject => 's', body_text => 'b'"


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: a place, and what stands for what there (patterns, each of which is found once)."""

    file: str
    place: str
    changes: dict[str, str]


#: All that one more argument takes, beside its column in a new migration. CONTRIBUTING.md lists them too.
EDITS = [
    Edit(
        "models/functions/types/new_email.sql",
        "the type `duepost.new_email`",
        {r"\('priority', 'text'\)\n": "('priority', 'text'),\n            ('campaign', 'text')\n"},
    ),
    Edit(
        "models/functions/schedule.sql",
        "`duepost.schedule_email`",
        {
            r"    priority +text DEFAULT NULL\n\) RETURNS": (
                "    priority text DEFAULT NULL,\n    campaign text DEFAULT NULL\n) RETURNS"
            ),
            r"\bpriority\n    \);": "priority, campaign\n    );",
        },
    ),
    Edit(
        "models/functions/schedule.sql",
        "the INSERT of `duepost.store_emails`",
        {
            r"(INSERT INTO duepost\.\w+ \([^)]*\b)headers\b": r"\g<1>headers, campaign",
            r"\bg\.headers\b": "g.headers, g.campaign",
        },
    ),
    Edit(
        "models/functions/rules.sql",
        "`duepost.email_error`",
        {
            r"( +)(duepost\.kind_error\(email\.kind\),\n)": (
                r"\1\2\1CASE WHEN email.campaign = '' THEN 'campaign: must not be empty' END,\n"
            )
        },
    ),
    Edit(
        "duepost/arguments.py",
        "`NewEmail`",
        {
            r"( +)(headers: Annotated\[.*\n)": (
                r'\1\2\1campaign: Annotated[str | None, Argument("What it is counted with.")]\n'
            )
        },
    ),
]


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """A copy of the code in which `campaign` is one argument more."""
    for package in ("actors", "models", "duepost"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in EDITS:
        file = tmp_path / edit.file
        text = file.read_text()
        for before, after in edit.changes.items():
            text, count = re.subn(before, after, text)
            assert count == 1, (edit.place, before)
        file.write_text(text)
    [table] = re.findall(
        r"INSERT INTO (duepost\.\w+) \([^)]*\bcampaign\b", (tmp_path / "models/functions/schedule.sql").read_text()
    )
    (tmp_path / "models/migrations/9001_campaign.sql").write_text(f"ALTER TABLE {table} ADD COLUMN campaign text;\n")
    return tmp_path


def table_of(release: Path) -> str:
    return (release / "models/migrations/9001_campaign.sql").read_text().split()[2]


def run(release: Path, url: str, *command: str, stdin: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": str(release), "DUEPOST_DATABASE_URL": url}
    done = subprocess.run(
        [sys.executable, *command], cwd=release, env=env, input=stdin, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_sql_and_python_list_the_same_arguments_in_the_same_order(database: Database) -> None:
    of_python = [(name, argument.sql_type) for name, argument in ARGUMENTS.items()]
    type_ = (
        "replace(replace(format_type({}, NULL), 'timestamp with time zone', 'timestamptz'),"
        " 'timestamp without time zone', 'timestamp')"
    )
    assert of_python == database.execute(f"""
        SELECT a.attname::text, {type_.format("a.atttypid")}
        FROM pg_attribute AS a
        WHERE a.attrelid = (SELECT typrelid FROM pg_type WHERE oid = 'duepost.new_email'::regtype)
        ORDER BY a.attnum
    """)
    assert of_python == database.execute(f"""
        SELECT argument.name, {type_.format("argument.type")}
        FROM pg_proc, unnest(proargnames, proargtypes::oid[]) WITH ORDINALITY AS argument (name, type, place)
        WHERE pg_proc.oid = 'duepost.schedule_email'::regproc
        ORDER BY argument.place
    """)


def test_one_more_argument_is_five_edits_and_contributing_names_them() -> None:
    assert len(EDITS) <= 5
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for edit in EDITS:
        assert edit.place in page
        assert f"`{edit.file}`" in page


def test_one_more_argument_works_for_every_caller(url: str, next_release: Path) -> None:
    with closing(psycopg2.connect(url)) as older, older.cursor() as cursor:
        older.autocommit = True
        cursor.execute(f"SELECT duepost.schedule_email({PLAIN}, key => 'before')")
        before = cursor.fetchone()
        assert "9001_campaign.sql" in run(next_release, url, "-m", "duepost", "migrate")

        # Who has been connected all the time, and knows nothing of it.
        cursor.execute(f"SELECT duepost.schedule_email({PLAIN}, key => 'before')")
        assert cursor.fetchone() == before
        with pytest.raises(psycopg2.errors.UniqueViolation, match=r"^key: already used for another content"):
            cursor.execute(f"SELECT duepost.schedule_email({PLAIN}, key => 'before', campaign => 'spring')")
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^campaign: must not be empty"):
            cursor.execute(f"SELECT duepost.schedule_email({PLAIN}, campaign => '')")
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^emails\[0\]: campaign: must be a string"):
            cursor.execute("""SELECT duepost.schedule_emails('[{"kind": "k", "campaign": 1}]')""")
        with pytest.raises(
            psycopg2.errors.InvalidParameterValue, match=r"known are kind, .*, attachments, priority, campaign\n"
        ):
            cursor.execute("""SELECT duepost.schedule_emails('[{"kind": "k", "compaign": "spring"}]')""")

        cursor.execute(f"SELECT duepost.schedule_email({PLAIN}, campaign => 'in SQL')")
        email = {"kind": "k", "address": "a@example.com", "subject": "s", "body_text": "b"}
        for_client = """
            import json, os, sys
            import duepost, psycopg2
            with psycopg2.connect(os.environ["DUEPOST_DATABASE_URL"]) as connection, connection.cursor() as cursor:
                email = json.load(sys.stdin)
                duepost.schedule_email(cursor, **email, campaign="in Python")
                duepost.schedule_emails(cursor, [{**email, "campaign": "in Python, as a set"}])
        """
        script = next_release / "script.py"
        script.write_text("\n".join(line[12:] for line in for_client.splitlines()))
        assert run(next_release, url, str(script), stdin=json.dumps(email)) == ""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in email.items()]
        assert (
            run(next_release, url, "-m", "duepost", "schedule", *options, "--campaign", "by option").strip().isdigit()
        )
        line = json.dumps({**email, "campaign": "by line"})
        said = run(next_release, url, "-m", "duepost", "schedule", "--file", "-", stdin=line)
        assert said == "Scheduled 1 email.\n"
        assert "What it is counted with." in run(next_release, url, "-m", "duepost", "schedule", "--help")

        cursor.execute(f"SELECT campaign FROM {table_of(next_release)} ORDER BY item_id")
        assert [campaign for (campaign,) in cursor.fetchall()] == [
            None, "in SQL", "in Python", "in Python, as a set", "by option", "by line",
        ]  # fmt: skip


#: Ends an email as undeliverable, as a worker does.
DROP = """
    UPDATE duepost.scheduled_email SET state = 'sending', claim = 1, worker_id = 1, claimed_at = now()
    WHERE id = %(id)s;
    SELECT duepost.keep_undeliverable(%(id)s, 1, '[{"address": "a@example.com", "outcome": "undeliverable"}]', 7);
    SELECT duepost.finish(%(id)s, 'undeliverable', NULL)
"""


def test_one_more_argument_comes_back_with_an_email_that_is_reopened(url: str, next_release: Path) -> None:
    with closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        session.autocommit = True

        def schedule(arguments: str) -> int:
            cursor.execute(f"SELECT duepost.schedule_email({arguments})")
            [(email_id,)] = cursor.fetchall()
            return int(email_id)

        def reopen(email_id: int) -> None:
            cursor.execute("SELECT duepost.reopen_email(%s)", (email_id,))
            assert cursor.fetchall() == [("reopened",)]

        before, again = schedule(PLAIN), schedule(PLAIN)
        for email_id in (before, again):
            cursor.execute(DROP, {"id": email_id})
        reopen(again)
        assert "9001_campaign.sql" in run(next_release, url, "-m", "duepost", "migrate")
        # What was kept before the column was there, and what this very session keeps with it.
        after = schedule(f"{PLAIN}, campaign => 'spring'")
        cursor.execute(DROP, {"id": after})
        reopen(after)
        reopen(before)
        cursor.execute("SELECT item_id, campaign FROM duepost.email ORDER BY item_id")
        assert cursor.fetchall() == [(before, None), (again, None), (after, "spring")]


class Client(threading.Thread):
    """Schedules by one statement, again and again, until it is stopped; notes its ids and its errors."""

    def __init__(self, url: str, statement: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._statement = statement
        self.stopping = threading.Event()
        self.ids: list[int] = []
        self.errors: list[str] = []

    def run(self) -> None:
        with closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not self.stopping.is_set():
                try:
                    cursor.execute(self._statement)
                    self.ids += [email_id for (email_id,) in cursor.fetchall()]
                except psycopg2.Error as error:
                    self.errors.append(str(error))


@pytest.fixture
def clients(url: str) -> Iterator[list[Client]]:
    """Clients that schedule one by one and in sets, some of them with keys."""
    one = f"SELECT duepost.schedule_email({PLAIN})"
    keyed = f"SELECT duepost.schedule_email({PLAIN}, key => gen_random_uuid()::text)"
    many = """
        SELECT duepost.schedule_emails(jsonb_agg(jsonb_build_object(
            'kind', 'k', 'users', ARRAY['ann'], 'template', 't', 'scheduled_at', '2030-01-01T00:00:00Z',
            'key', gen_random_uuid()
        ))) FROM generate_series(1, 50)
    """
    clients = [Client(url, statement) for statement in (one, keyed, many)]
    for client in clients:
        client.start()
    yield clients
    for client in clients:
        client.stopping.set()
        client.join(timeout=30)


CALLS = [
    f"SELECT duepost.schedule_email({PLAIN})",
    f"SELECT duepost.schedule_email({PLAIN}, key => gen_random_uuid()::text)",
    """
    SELECT duepost.schedule_emails(jsonb_agg(jsonb_build_object(
        'kind', 'k', 'address', 'a@example.com', 'subject', 's', 'body_text', 'b', 'key', gen_random_uuid()
    ))) FROM generate_series(1, 3)
    """,
]


class Upgrade(threading.Thread):
    """The next release's `duepost migrate`, in a thread of its own."""

    def __init__(self, url: str, release: Path) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._release = release
        self.applied: list[str] = []
        self.start()

    def run(self) -> None:
        with closing(Database(self._url)) as database:
            self.applied += migrate(
                database,
                queue_schema=generate_init_sql(),
                folder=self._release / "models/migrations",
                functions=self._release / "models/functions",
            )


class Call(threading.Thread):
    """One call, in a session that has made it before, or in a new one."""

    def __init__(self, url: str, statement: str, *, is_first: bool) -> None:
        super().__init__(daemon=True)
        self._statement = statement
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self.pid = self._connection.info.backend_pid
        self.ids: list[int] = []
        self.error = ""
        if not is_first:
            self.run()

    def run(self) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(self._statement)
                self.ids += [email_id for (email_id,) in cursor.fetchall()]
        except psycopg2.Error as error:
            self.error = str(error)

    def end(self) -> list[int]:
        """Waits for its end; returns all its ids."""
        self.join(timeout=60)
        self._connection.close()
        assert self.error == ""
        return self.ids


@contextmanager
def held(url: str, *statements: str) -> Iterator[None]:
    """A transaction that has run these and stays open as long as the block."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        yield


def wait_until_all_wait(database: Database, calls: list[Call]) -> None:
    """Waits until each of these calls waits for a lock."""
    pids = [call.pid for call in calls]
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid = ANY (%(pids)s)"
    wait_until(lambda: database.execute(waiting, {"pids": pids}) == [(len(pids),)], timeout=30)


def is_gate_asked_for(database: Database) -> bool:
    """Whether a migration waits until no call is under way."""
    asked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    return database.execute(f"{asked} AND relation = 'duepost.migration'::regclass") == [(1,)]


#: What a call holds until its transaction ends.
GATE = "LOCK TABLE duepost.migration IN ACCESS SHARE MODE"

#: Until this is undone, no item is stored: a call stands still in the middle.
NO_ITEMS = "LOCK TABLE duepost.item IN SHARE MODE"


@pytest.mark.parametrize("is_first", [True, False], ids=["new sessions", "sessions that have called before"])
def test_calls_that_are_under_way_while_an_argument_is_added_end_well(
    url: str, database: Database, next_release: Path, *, is_first: bool
) -> None:
    early, late = ([Call(url, statement, is_first=is_first) for statement in CALLS] for _ in range(2))
    with held(url, NO_ITEMS):
        for call in early:
            call.start()
        wait_until_all_wait(database, early)
        upgrade = Upgrade(url, next_release)
        wait_until(lambda: not upgrade.is_alive() or is_gate_asked_for(database))
        # These come while the upgrade waits for the others, and go on in the middle of it.
        for call in late:
            call.start()
        wait_until_all_wait(database, late)
    ids = [email_id for call in (*early, *late) for email_id in call.end()]
    upgrade.join(timeout=60)
    assert upgrade.applied == ["9001_campaign.sql"]
    stored = database.execute(f"SELECT item_id FROM {table_of(next_release)} ORDER BY item_id")
    assert [email_id for (email_id,) in stored] == sorted(ids)


@pytest.mark.parametrize("is_first", [True, False], ids=["new sessions", "sessions that have called before"])
def test_calls_may_begin_before_and_end_after_the_functions_are_replaced(
    url: str, database: Database, next_release: Path, *, is_first: bool
) -> None:
    calls = [Call(url, statement, is_first=is_first) for statement in CALLS]
    with held(url, NO_ITEMS):
        with held(url, GATE):
            upgrade = Upgrade(url, next_release)
            wait_until(lambda: is_gate_asked_for(database))
            for call in calls:
                call.start()
            wait_until_all_wait(database, calls)
        upgrade.join(timeout=60)
        assert not upgrade.is_alive()
    ids = [email_id for call in calls for email_id in call.end()]
    assert upgrade.applied == ["9001_campaign.sql"]
    stored = database.execute(f"SELECT item_id FROM {table_of(next_release)} ORDER BY item_id")
    assert [email_id for (email_id,) in stored] == sorted(ids)


def test_clients_go_on_while_an_argument_is_added(url: str, next_release: Path, clients: list[Client]) -> None:
    def everybody_schedules() -> None:
        counts = [len(client.ids) for client in clients]
        wait_until(lambda: all(len(c.ids) > count for c, count in zip(clients, counts, strict=True)), timeout=30)

    everybody_schedules()
    with closing(Database(url)) as database:
        applied = list(
            migrate(
                database,
                queue_schema=generate_init_sql(),
                folder=next_release / "models/migrations",
                functions=next_release / "models/functions",
            )
        )
        assert applied == ["9001_campaign.sql"]
        everybody_schedules()
        for client in clients:
            client.stopping.set()
            client.join(timeout=30)
        assert [error for client in clients for error in client.errors] == []
        stored = database.execute(f"SELECT item_id FROM {table_of(next_release)} ORDER BY item_id")
    assert [email_id for (email_id,) in stored] == sorted(email_id for client in clients for email_id in client.ids)


def test_a_key_of_0_1_still_means_its_content(each_server: PostgresServer) -> None:
    everything = """
        'k', users => ARRAY['bob', 'ann', 'bob'], template => 'welcome', context => '{"b": 1.50, "a": [null]}',
        sender => 'Duepost <d@example.com>', reply_to => 'r@example.com', headers => '{"X-A": "b"}', key => 'key 1'
    """
    calls = [
        f"SELECT duepost.schedule_email({everything})",
        f"SELECT duepost.schedule_email({PLAIN}, body_html => '<p>b', key => 'key 2', expires_at => now() + '1 hour')",
    ]
    with each_server.fresh_database(migrated=False) as url, closing(Database(url)) as database:
        make_schema_of_0_1(url)
        before = [database.execute(call) for call in calls]
        list(migrate(database, queue_schema=generate_init_sql()))
        assert [database.execute(call) for call in calls] == before
        with pytest.raises(psycopg2.errors.UniqueViolation, match=r"^key: already used for another content"):
            database.execute(calls[0].replace("1.50", "1.51"))
