"""`migrate` changes only what its own role has made, and checks all it can before it makes anything."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql

from models.database import advisory_locks
from models.database.connections import Database
from models.database.migrate import check_schema, migrate, migrations
from models.database.preconditions import shortfalls, trust_findings
from models.errors import DatabaseUnreachable, DuepostError, MigrationRefused, NotPermitted, UnfitDatabase
from tests.postgres import PostgresServer
from tests.processes import duepost, environment

OWNER, STRANGER, BYSTANDER = "trust_owner", "trust_mallory", "trust_bystander"
Run = Callable[[str, str], list[tuple[object, ...]]]


@pytest.fixture(scope="module")
def people(each_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server with an owner of databases, a stranger, and somebody who may do nothing."""
    for role in (OWNER, STRANGER, BYSTANDER):
        each_server.execute(f"CREATE ROLE {role} LOGIN")
    yield each_server
    for role in (OWNER, STRANGER, BYSTANDER):
        each_server.execute(f"DROP ROLE {role}")


@pytest.fixture
def empty_url(people: PostgresServer) -> Iterator[str]:
    """An empty database of the owner's, in which the stranger may create too."""
    with people.fresh_database(migrated=False) as url:
        name = name_of(url)
        people.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")
        people.execute(f"GRANT CREATE ON DATABASE {name} TO {STRANGER}")
        yield url


@pytest.fixture
def run(empty_url: str) -> Run:
    """Runs a statement as somebody."""

    def run(role: str, statement: str) -> list[tuple[object, ...]]:
        with closing(psycopg2.connect(as_role(empty_url, role))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []

    return run


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@", 1)


def apply(url: str, role: str) -> list[str]:
    database = Database(as_role(url, role))
    try:
        return list(migrate(database, queue_schema=generate_init_sql()))
    finally:
        database.close()


def tables(run: Run) -> object:
    [(count,)] = run("postgres", "SELECT count(*) FROM pg_class WHERE relnamespace IN"
                     " (SELECT oid FROM pg_namespace WHERE nspname IN ('duepost', 'dramatiq'))")  # fmt: skip
    return count


TAKE_OVER = f"""
    LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            ALTER ROLE {STRANGER} SUPERUSER;
        END IF;
        RETURN NULL;
    END
    $$"""
RECORD = "number integer PRIMARY KEY, name text, checksum text, applied_at timestamptz DEFAULT now()"

#: What a stranger may have put there before, by its name in the refusal.
BEFORE = {
    "schema duepost": "CREATE SCHEMA duepost",
    "schema dramatiq": "CREATE SCHEMA dramatiq",
    "function duepost.take_over()": f"""
        CREATE SCHEMA duepost;
        CREATE TABLE duepost.migration ({RECORD});
        CREATE FUNCTION duepost.take_over() RETURNS trigger {TAKE_OVER};
        CREATE TRIGGER t BEFORE INSERT ON duepost.migration FOR EACH ROW EXECUTE FUNCTION duepost.take_over()""",
    "type duepost.new_email": "CREATE SCHEMA duepost; CREATE TYPE duepost.new_email AS ENUM ('a')",
    "table dramatiq.queue": "CREATE SCHEMA dramatiq; CREATE TABLE dramatiq.queue (message_id uuid)",
    "sequence duepost.claim_number": "CREATE SCHEMA duepost; CREATE SEQUENCE duepost.claim_number",
}


@pytest.mark.parametrize("what", BEFORE)
@pytest.mark.parametrize("role", ["postgres", OWNER])
def test_what_a_stranger_made_before_is_refused_in_one_line_and_nothing_is_made(
    empty_url: str, run: Run, what: str, role: str
) -> None:
    run(STRANGER, BEFORE[what])
    before = tables(run)
    with pytest.raises(MigrationRefused, match=f"belongs to {STRANGER}") as refused:
        apply(empty_url, role)
    assert "\n" not in str(refused.value)
    assert tables(run) == before
    assert run("postgres", f"SELECT rolsuper FROM pg_roles WHERE rolname = '{STRANGER}'") == [(False,)]


#: What a stranger with a right too many puts into a schema that is another's own.
AFTER = {
    "function duepost.": "CREATE FUNCTION duepost.is_blank(a integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "table duepost.": "CREATE TABLE duepost.mine (a integer)",
    "view duepost.": "CREATE VIEW duepost.mine AS SELECT 1 AS a",
    "operator duepost.": "CREATE OPERATOR duepost.= (LEFTARG = text, RIGHTARG = integer, FUNCTION = public.same)",
    "type duepost.": "CREATE DOMAIN duepost.mine AS text",
    "trigger planted on": (
        "CREATE TRIGGER planted BEFORE INSERT ON duepost.migration FOR EACH ROW EXECUTE FUNCTION public.take_over()"
    ),
}


@pytest.mark.parametrize("what", AFTER)
@pytest.mark.parametrize("role", ["postgres", OWNER])
def test_what_a_stranger_put_into_a_schema_of_another_is_refused_and_doctor_says_so(
    empty_url: str, run: Run, what: str, role: str
) -> None:
    apply(empty_url, role)
    run("postgres", "GRANT CREATE, USAGE ON SCHEMA public TO PUBLIC")
    run(STRANGER, "CREATE FUNCTION public.same(text, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    run(STRANGER, f"CREATE FUNCTION public.take_over() RETURNS trigger {TAKE_OVER}")
    run(role, f"GRANT CREATE, USAGE ON SCHEMA duepost TO {STRANGER}; GRANT TRIGGER ON duepost.migration TO {STRANGER}")
    run(STRANGER, AFTER[what])
    with pytest.raises(MigrationRefused, match=f"{what}.* belongs to {STRANGER}"):
        apply(empty_url, role)
    database = Database(empty_url)
    assert any(what in line and STRANGER in line for line in trust_findings(database))
    assert any(f"REVOKE CREATE ON SCHEMA duepost FROM {STRANGER}" in line for line in trust_findings(database))
    database.close()


def test_a_superuser_does_not_upgrade_what_another_role_owns(empty_url: str) -> None:
    apply(empty_url, OWNER)
    with pytest.raises(MigrationRefused, match=f"belongs to {OWNER}.*Run it as that owner"):
        apply(empty_url, "postgres")


def test_another_role_does_not_upgrade_what_a_superuser_owns(empty_url: str) -> None:
    apply(empty_url, "postgres")
    with pytest.raises(MigrationRefused, match=r"schema duepost belongs to postgres.*as that owner"):
        apply(empty_url, OWNER)


def test_schemas_that_were_made_for_the_owner_need_no_right_on_the_database(
    people: PostgresServer, empty_url: str, run: Run
) -> None:
    name = name_of(empty_url)
    people.execute(f"ALTER DATABASE {name} OWNER TO postgres")
    people.execute(f"REVOKE CREATE ON DATABASE {name} FROM {OWNER}")
    run("postgres", f"CREATE SCHEMA duepost AUTHORIZATION {OWNER}")
    with pytest.raises(MigrationRefused, match="may not make the schema dramatiq"):
        apply(empty_url, OWNER)
    assert tables(run) == 0
    run("postgres", f"CREATE SCHEMA dramatiq AUTHORIZATION {OWNER}")
    assert apply(empty_url, OWNER) == [each.name for each in migrations()]
    assert apply(empty_url, OWNER) == []


def test_a_member_of_the_owning_role_upgrades_what_that_role_has_made(people: PostgresServer, empty_url: str) -> None:
    apply(empty_url, OWNER)
    people.execute(f"GRANT {OWNER} TO {BYSTANDER}")
    try:
        assert apply(empty_url, BYSTANDER) == []
    finally:
        people.execute(f"REVOKE {OWNER} FROM {BYSTANDER}")


def test_the_tables_of_stock_dramatiq_pg_of_the_same_owner_are_taken(empty_url: str, run: Run) -> None:
    run(OWNER, generate_init_sql())
    assert apply(empty_url, OWNER)


def test_a_team_s_own_view_of_its_users_may_be_anybody_s(empty_url: str, run: Run) -> None:
    apply(empty_url, OWNER)
    run(OWNER, f"DROP TABLE duepost.recipient; GRANT CREATE, USAGE ON SCHEMA duepost TO {STRANGER}")
    run(STRANGER, "CREATE VIEW duepost.recipient AS SELECT 'a'::text AS user_id")
    run(OWNER, f"REVOKE CREATE ON SCHEMA duepost FROM {STRANGER}")
    assert apply(empty_url, OWNER) == []
    database = Database(as_role(empty_url, OWNER))
    assert trust_findings(database) == []
    assert [line for line in shortfalls(database) if "GRANT SELECT ON duepost.recipient" in line]
    database.close()


PLANTED = """
    CREATE SCHEMA planted;
    GRANT USAGE ON SCHEMA planted TO PUBLIC;
    CREATE FUNCTION planted.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
    CREATE FUNCTION planted.format(text, text, text) RETURNS text
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
    CREATE FUNCTION planted.to_regclass(text) RETURNS regclass
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
    CREATE FUNCTION planted.same(name, text) RETURNS boolean
        LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
    CREATE OPERATOR planted.= (LEFTARG = name, RIGHTARG = text, FUNCTION = planted.same);
"""


def test_what_a_databases_owner_puts_into_everybodys_search_path_stands_in_for_nothing(
    people: PostgresServer, empty_url: str, run: Run
) -> None:
    people.execute(f"ALTER DATABASE {name_of(empty_url)} OWNER TO {STRANGER}")
    run(STRANGER, PLANTED)
    run(STRANGER, f"ALTER DATABASE {name_of(empty_url)} SET search_path = planted, pg_catalog, duepost")
    run(STRANGER, f"ALTER DATABASE {name_of(empty_url)} SET standard_conforming_strings = off")
    assert apply(empty_url, "postgres") == [each.name for each in migrations()]
    assert apply(empty_url, "postgres") == []


def test_what_somebodys_defaults_open_to_everybody_is_found(empty_url: str, run: Run) -> None:
    run(OWNER, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
    apply(empty_url, OWNER)
    database = Database(as_role(empty_url, OWNER))
    assert run("postgres", "SELECT has_table_privilege('public', 'duepost.scheduled_email', 'SELECT')") == [(False,)]
    database.close()


# Everything is checked before anything is made ----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "LATIN9", "EUC_JP"])
def test_a_database_that_is_not_utf8_is_refused_before_anything_is_made(
    each_server: PostgresServer, encoding: str
) -> None:
    name = f"encoded_{encoding.lower()}"
    locale = "LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    each_server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' {locale}")
    try:
        database = Database(each_server.url(name))
        for act in (lambda: list(migrate(database, queue_schema=generate_init_sql())), lambda: check_schema(database)):
            with pytest.raises(UnfitDatabase, match=f"encoding is {encoding}, and Duepost needs UTF8"):
                act()
        assert database.execute("SELECT count(*) FROM pg_namespace WHERE nspname IN ('duepost', 'dramatiq')") == [(0,)]
        database.close()
    finally:
        each_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_takes_no_writes_is_refused_before_anything_is_made(
    people: PostgresServer, empty_url: str
) -> None:
    people.execute(f"ALTER ROLE {OWNER} SET default_transaction_read_only = on")
    try:
        with pytest.raises(DatabaseUnreachable, match="default_transaction_read_only is on"):
            apply(empty_url, OWNER)
    finally:
        people.execute(f"ALTER ROLE {OWNER} RESET default_transaction_read_only")


def test_a_client_that_holds_the_advisory_locks_holds_up_no_migrate(empty_url: str) -> None:
    with closing(psycopg2.connect(as_role(empty_url, BYSTANDER))) as client, client.cursor() as cursor:
        cursor.execute(
            f"SELECT pg_advisory_lock({advisory_locks.ROLE}, n), pg_advisory_lock({advisory_locks.WORKER}, n)"
            " FROM generate_series(0, 9) n"
        )
        assert apply(empty_url, OWNER)


def test_who_is_in_the_way_is_named(empty_url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(empty_url, OWNER)
    run(OWNER, f"GRANT USAGE ON SCHEMA duepost TO {BYSTANDER}; GRANT ALL ON duepost.migration TO {BYSTANDER}")
    monkeypatch.setattr("models.database.migrate.TRIES", 3)
    monkeypatch.setattr("models.database.migrate.PAUSE", 0.01)
    told: list[str] = []
    database = Database(as_role(empty_url, OWNER))
    with closing(psycopg2.connect(as_role(empty_url, BYSTANDER))) as reader, reader.cursor() as cursor:
        cursor.execute("LOCK TABLE duepost.migration IN ROW EXCLUSIVE MODE")
        holder = f"session {reader.info.backend_pid} of {BYSTANDER}"
        with pytest.raises(MigrationRefused, match=f"{holder}.*duepost.migration"):
            list(migrate(database, queue_schema=generate_init_sql(), tell=told.append))
    database.close()
    assert len(told) == 1
    assert holder in told[0]


# Memberships ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [None, "duepost_client"])
def test_a_role_that_is_no_worker_is_told_what_it_needs(
    people: PostgresServer, empty_url: str, granted: str | None
) -> None:
    apply(empty_url, OWNER)
    if granted:
        people.execute(f"GRANT {granted} TO {BYSTANDER}")
    try:
        database = Database(as_role(empty_url, BYSTANDER))
        with pytest.raises(NotPermitted, match=f"{BYSTANDER} needs to be a member of duepost_worker"):
            check_schema(database)
        database.close()
        env = environment(as_role(empty_url, BYSTANDER), "smtp://127.0.0.1:9")
        for command in (["worker"], ["trigger"], ["doctor", "--no-relay"]):
            done = duepost(*command, env=env)
            assert done.returncode == 1, command
            assert f"{BYSTANDER} needs to be a member of duepost_worker" in done.stderr + done.stdout, command
            assert "Traceback" not in done.stderr
        plain = subprocess.run(
            [sys.executable, "-m", "dramatiq", "actors", "--processes", "1"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"{BYSTANDER} needs to be a member of duepost_worker" in plain.stderr + plain.stdout
    finally:
        if granted:
            people.execute(f"REVOKE {granted} FROM {BYSTANDER}")


def test_every_refusal_is_one_of_duepost_s_own_errors() -> None:
    assert all(issubclass(each, DuepostError) for each in (MigrationRefused, NotPermitted, UnfitDatabase))
