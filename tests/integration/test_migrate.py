"""The schema: applied once, in order, by anyone, also at the same time."""

import re
import shutil
import threading
from datetime import timedelta
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from dramatiq_pg.schema import generate_init_sql

from models.database.connections import Database
from models.database.migrate import FOLDER, FUNCTIONS, check_schema, migrate, migrations
from models.errors import MigrationRefused, SchemaMismatch
from tests.postgres import PostgresServer, make_schema_of_0_1, make_tables_of


def apply(url: str, folder: Path = FOLDER) -> list[str]:
    database = Database(url)
    try:
        return list(migrate(database, queue_schema=generate_init_sql(), folder=folder))
    finally:
        database.close()


def test_every_migration_is_applied_once_and_in_order(each_server: PostgresServer) -> None:
    with each_server.fresh_database(migrated=False) as url:
        assert apply(url) == [migration.name for migration in migrations()]
        assert apply(url) == []


def test_racing_runs_do_no_harm(server: PostgresServer) -> None:
    applied: list[str] = []
    with server.fresh_database(migrated=False) as url:
        threads = [threading.Thread(target=lambda: applied.extend(apply(url))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(applied) == [migration.name for migration in migrations()]


def test_a_changed_file_that_is_applied_already_is_refused(server: PostgresServer, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    with server.fresh_database() as url:
        first = min(folder.glob("*.sql"))
        first.write_text(first.read_text() + "\n-- an afterthought\n")
        with pytest.raises(MigrationRefused, match=f"{first.name} has changed"):
            apply(url, folder)


def test_a_migration_that_fails_leaves_nothing_of_itself(server: PostgresServer, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    (folder / "0099_broken.sql").write_text("CREATE TABLE duepost.half (a integer); SELECT 1/0;")
    with server.fresh_database() as url:
        with pytest.raises(psycopg2.DataError):
            apply(url, folder)
        database = Database(url)
        assert database.execute("SELECT to_regclass('duepost.half')") == [(None,)]
        check_schema(database)
        database.close()


def test_a_role_that_is_no_superuser_can_migrate(each_server: PostgresServer) -> None:
    each_server.execute("DROP ROLE IF EXISTS plain_owner")
    each_server.execute("CREATE ROLE plain_owner LOGIN")
    try:
        with each_server.fresh_database(migrated=False) as url:
            name = url.partition("@/")[2].partition("?")[0]
            each_server.execute(f"ALTER DATABASE {name} OWNER TO plain_owner")
            assert apply(url.replace("postgres@", "plain_owner@", 1)) == [each.name for each in migrations()]
    finally:
        each_server.execute("DROP ROLE plain_owner")


def test_a_missing_schema_says_what_to_run(server: PostgresServer) -> None:
    with server.fresh_database(migrated=False) as url:
        database = Database(url)
        with pytest.raises(SchemaMismatch, match="run `duepost migrate`"):
            check_schema(database)
        database.close()


def test_an_older_schema_says_what_to_run(database: Database) -> None:
    database.execute("DELETE FROM duepost.migration WHERE number = (SELECT max(number) FROM duepost.migration)")
    with pytest.raises(SchemaMismatch, match="run `duepost migrate`"):
        check_schema(database)


def test_misnamed_and_doubled_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1_tables.sql").write_text("")
    with pytest.raises(MigrationRefused, match="named like 0001_tables"):
        migrations(tmp_path)
    (tmp_path / "1_tables.sql").rename(tmp_path / "0001_tables.sql")
    (tmp_path / "0001_others.sql").write_text("")
    with pytest.raises(MigrationRefused, match="has the number 1 already"):
        migrations(tmp_path)


def test_a_function_may_gain_an_argument_and_its_old_signature_goes(
    each_server: PostgresServer, tmp_path: Path
) -> None:
    functions = tmp_path / "functions"
    shutil.copytree(FUNCTIONS, functions)
    text = (functions / "schedule.sql").read_text()
    [last] = re.findall(r"    \w+ +[a-z\[\]]+ DEFAULT NULL\n\) RETURNS bigint", text)
    (functions / "schedule.sql").write_text(
        text.replace(last, last.replace("\n)", ",\n    campaign text DEFAULT NULL\n)"))
    )
    call = "SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com', subject => 's', body_text => 'b')"
    with each_server.fresh_database() as url:
        database = Database(url)
        assert list(migrate(database, queue_schema=generate_init_sql(), functions=functions)) == []
        database.execute(call)
        database.execute(call.replace("=> 'b'", "=> 'b', campaign => 'c'"))
        assert database.execute("SELECT count(*) FROM pg_proc WHERE proname = 'schedule_email'") == [(1,)]
        assert database.execute(
            "SELECT has_function_privilege('duepost_client', oid, 'EXECUTE') FROM pg_proc "
            "WHERE proname = 'schedule_email'"
        ) == [(True,)]
        database.close()


def test_a_function_that_was_changed_by_hand_is_restored(database: Database) -> None:
    database.execute(
        "CREATE OR REPLACE FUNCTION duepost.raise_bad_argument(argument text, reason text) RETURNS void"
        " LANGUAGE sql AS ''"
    )
    list(migrate(database, queue_schema=generate_init_sql()))
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="argument: reason"):
        database.execute("SELECT duepost.raise_bad_argument('argument', 'reason')")


def test_a_broken_function_leaves_all_functions_as_they_were(database: Database, tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    shutil.copytree(FUNCTIONS, functions)
    rules = (functions / "rules.sql").read_text()
    (functions / "rules.sql").write_text(rules.replace("must not be empty", "may not be empty"))
    (functions / "schedule.sql").write_text("CREATE FUNCTION duepost.broken() RETURNS nothing LANGUAGE sql AS ''")
    with pytest.raises(psycopg2.Error):
        list(migrate(database, queue_schema=generate_init_sql(), functions=functions))
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="kind: must not be empty"):
        database.execute("SELECT duepost.schedule_email(kind => '', address => 'a@example.com')")


def test_a_database_of_0_1_is_upgraded_with_what_is_pending_in_it(each_server: PostgresServer) -> None:
    with each_server.fresh_database(migrated=False) as url:
        make_schema_of_0_1(url)
        database = Database(url)
        database.execute("""
            SELECT duepost.schedule_email(
                kind => 'k', address => 'a@example.com', subject => 's', body_text => 'b', key => n::text
            ) FROM generate_series(1, 4) AS n
        """)
        apply(url)
        check_schema(database)
        assert database.execute("SELECT e.key FROM duepost.scheduled_email AS e ORDER BY id") == [
            ("1",),
            ("2",),
            ("3",),
            ("4",),
        ]
        again = "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b', key => '4')"
        assert database.execute(again) == database.execute("SELECT max(id) FROM duepost.scheduled_email")
        database.close()


#: What a database holds before its relay has a name: an email in each state, and a circuit that is open.
ONE_RELAY = """
    INSERT INTO duepost.item (id, kind, scheduled_at, due_at, is_held)
    SELECT n, 'k', now(), now(), n = 3 FROM generate_series(1, 4) AS n;
    INSERT INTO duepost.email (item_id, message_id_header, date_header, address, subject, body_text)
    SELECT n, '<' || n || '@x>', now(), 'a@example.com', 's', 'b' FROM generate_series(1, 4) AS n;
    INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at)
    VALUES (1, nextval('duepost.claim_number'), 7, now());
    INSERT INTO dramatiq.queue (message_id, queue_name, state, message, key)
    VALUES (gen_random_uuid(), 'duepost_send', 'queued', '{}', 2);
    INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('k', 'hold');
    INSERT INTO duepost.worker (host, pid, gone_at) VALUES ('elsewhere', 1, now());
    INSERT INTO duepost.route (route, pause) VALUES ('relay.example.com:25', 3);
    INSERT INTO duepost.route_worker (route, worker_id) SELECT 'relay.example.com:25', id FROM duepost.worker;
    UPDATE duepost.control
    SET circuit_open = true, circuit_opened_at = now(), circuit_reason = 'auth 535 5.7.8', probe_pause = 40,
        probe_at = now() + interval '40 s';
    CREATE VIEW public.pending AS SELECT id, route FROM duepost.scheduled_email;
"""


def test_what_is_pending_and_a_circuit_that_is_open_are_the_default_routes_from_then_on(
    each_server: PostgresServer,
) -> None:
    with each_server.fresh_database(migrated=False) as url:
        make_tables_of(url, 15)
        database = Database(url)
        database.execute(ONE_RELAY)
        assert apply(url) == [each.name for each in migrations() if each.number > 15]
        check_schema(database)
        assert database.execute("SELECT id, state, route FROM duepost.scheduled_email ORDER BY id") == [
            (1, "sending", "default"),
            (2, "queued", "default"),
            (3, "unknown", "default"),
            (4, "scheduled", "default"),
        ]
        assert database.execute(
            "SELECT name, circuit_open, circuit_reason, probe_pause, probe_at > now(), pause FROM duepost.route"
        ) == [("default", True, "auth 535 5.7.8", 40, True, 0)]
        assert database.execute("SELECT kind, on_unknown, route FROM duepost.kind") == [("k", "hold", None)]
        assert database.execute("SELECT count(*) FROM public.pending WHERE route = 'default'") == [(4,)]
        database.close()


#: What a database holds before it knows messages: an email, its ledger, what is kept of one, and kinds.
ONE_CHANNEL = """
    INSERT INTO duepost.item (id, kind, scheduled_at, due_at) VALUES (1, 'k', now(), now());
    INSERT INTO duepost.email (item_id, message_id_header, date_header, address, subject, body_text)
    VALUES (1, '<1@x>', now(), 'a@example.com', 's', 'b');
    INSERT INTO duepost.delivery (email_id, kind, outcome, attempts, unknowns, scheduled_at, message_id_header)
    VALUES (2, 'k', 'sent', 1, 0, now(), '<2@x>');
    INSERT INTO duepost.undeliverable_email (id, kind, email, kept_until) VALUES (3, 'k', '{}', now());
    INSERT INTO duepost.email_kind (kind, on_unknown, expire_after) VALUES ('k', 'hold', '3 days');
    INSERT INTO duepost.email_kind (kind) VALUES ('l');
"""


def test_what_is_there_before_messages_are_known_is_emails_and_goes_on(each_server: PostgresServer) -> None:
    with each_server.fresh_database(migrated=False) as url:
        make_tables_of(url, 16)
        database = Database(url)
        database.execute(ONE_CHANNEL)
        assert apply(url) == [each.name for each in migrations() if each.number > 16]
        check_schema(database)
        assert database.execute("SELECT id, state FROM duepost.scheduled_email") == [(1, "scheduled")]
        assert database.execute("SELECT id FROM duepost.scheduled_message") == []
        assert database.execute("SELECT channel, endpoint, message_id_header FROM duepost.delivery") == [
            ("email", None, "<2@x>")
        ]
        assert database.execute("SELECT channel FROM duepost.undeliverable_email") == [("email",)]
        assert database.execute(
            "SELECT kind, on_unknown, expire_after, late_after, catch_up, on_outcome FROM duepost.kind ORDER BY kind"
        ) == [
            ("k", "hold", timedelta(days=3), None, "send", None),
            ("l", "resend", None, None, "send", None),
        ]
        database.execute("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('m', 'hold')")
        database.execute("INSERT INTO duepost.email_kind (kind) VALUES ('n')")
        assert database.execute("SELECT on_unknown FROM duepost.email_kind WHERE kind IN ('m', 'n') ORDER BY kind") == [
            ("hold",),
            (None,),
        ]
        [(installation,)] = database.execute("SELECT installation FROM duepost.control")
        database.close()
        with each_server.fresh_database(migrated=False) as another:
            apply(another)
            other = Database(another)
            assert other.execute("SELECT installation FROM duepost.control") != [(installation,)]
            other.close()
