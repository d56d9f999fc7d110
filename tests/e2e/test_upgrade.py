"""Workers of this release on the schema of a next one, under load, while it is migrated."""

import shutil
import threading
from contextlib import closing
from pathlib import Path

import psycopg2
from dramatiq_pg.schema import generate_init_sql

from models.database.connections import Database
from models.database.migrate import FOLDER, migrate
from tests.chaos.askers import USERS, Asker, Book, address_of
from tests.e2e.conftest import Site
from tests.waiting import wait_until

#: What a next release may do while this one's workers run: add, and rebuild, but take nothing away.
NEXT_RELEASE = {
    "9001_columns.sql": """
        ALTER TABLE duepost.item ADD COLUMN campaign text;
        ALTER TABLE duepost.delivery ADD COLUMN campaign text;
        ALTER TABLE duepost.attempt ADD COLUMN relay text NOT NULL DEFAULT '';
        ALTER TABLE dramatiq.queue ADD COLUMN tenant text;
    """,
    "9002_indexes.sql": """
        CREATE INDEX ON duepost.item (kind);
        CREATE INDEX ON dramatiq.queue (mtime);
    """,
    "9003_functions.sql": """
        CREATE OR REPLACE FUNCTION duepost.clear_scheduled_emails_of(kind text) RETURNS bigint LANGUAGE sql
        AS 'SELECT count(*) FROM duepost.scheduled_email AS e WHERE e.kind = $1';
        ALTER TABLE duepost.worker ADD COLUMN release text;
        ALTER TABLE duepost.control ADD COLUMN note text;
    """,
}


def test_a_migration_under_load_costs_this_releases_workers_nothing(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    for name, statements in NEXT_RELEASE.items():
        (folder / name).write_text(statements)
    for user in USERS:
        site.query("INSERT INTO duepost.recipient (user_id, address) VALUES (%s, %s)", user, address_of(user))
    book = Book()
    askers = [Asker(site.url, book, f"asker-{number}", lock_timeout=10.0) for number in range(2)]
    applied: list[str] = []
    database = Database(site.url)

    def upgrade() -> None:
        applied.extend(migrate(database, queue_schema=generate_init_sql(), folder=folder))
        database.close()

    upgrading = threading.Thread(target=upgrade)
    with site.workers(processes=2), site.watch(), closing(psycopg2.connect(site.url)) as reader:
        for asker in askers:
            asker.start()
        wait_until(lambda: len(site.relay.messages) > 50, state=site.logs)
        with reader.cursor() as cursor:
            # A dump, say: the migration has to wait for it, and nobody else may.
            cursor.execute("SELECT count(*) FROM duepost.scheduled_email")
            upgrading.start()
            waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            wait_until(lambda: site.query(waiting), what="the migration to wait")
            seen = len(site.relay.messages)
            wait_until(lambda: len(site.relay.messages) > seen + 100, timeout=60, state=site.logs)
            assert "9001_columns.sql" not in applied
        reader.rollback()
        upgrading.join(timeout=120)
        assert applied == list(NEXT_RELEASE)
        seen = len(site.relay.messages)
        wait_until(lambda: len(site.relay.messages) > seen + 50, state=site.logs)
        for asker in askers:
            asker.stopping.set()
        for asker in askers:
            asker.join(timeout=60)
        wait_until(lambda: not site.pending(), timeout=90, state=lambda: (site.pending(), site.logs()[-3000:]))
    assert book.errors == []
    assert "Traceback" not in site.logs()
    assert "ERROR" not in site.logs()
    assert site.query("SELECT count(*) FROM duepost.delivery WHERE unknowns > 0") == [(0,)]
