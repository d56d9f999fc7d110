"""Who may do what, and what a hostile client cannot."""

from collections.abc import Iterator

import psycopg2
import pytest

from models.database import Connection
from tests.postgres import PostgresServer

FUNCTIONS = [
    "schedule_email",
    "clear_scheduled_emails",
    "clear_scheduled_emails_to",
    "clear_scheduled_email",
    "reschedule_email",
]
SCHEDULE = "SELECT duepost.schedule_email(kind => 'k', users => ARRAY['ann'], subject => 's', body_text => 'b')"


@pytest.fixture
def admin(each_url: str) -> Iterator[Connection]:
    connection = psycopg2.connect(each_url)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def as_role(each_server: PostgresServer, each_url: str) -> Iterator[dict[str, Connection]]:
    """Logins that are members of one role each, and nothing else."""
    connections = {}
    for role in ("duepost_client", "duepost_worker"):
        login = f"login_{role}"
        each_server.execute(f"DROP ROLE IF EXISTS {login}")
        each_server.execute(f"CREATE ROLE {login} LOGIN IN ROLE {role}")
        connections[role] = psycopg2.connect(each_url.replace("postgres@", f"{login}@", 1))
        connections[role].autocommit = True
    yield connections
    for connection in connections.values():
        connection.close()
    for role in connections:
        owner = psycopg2.connect(each_url)
        owner.autocommit = True
        run(owner, f"DROP OWNED BY login_{role}")
        owner.close()
        each_server.execute(f"DROP ROLE login_{role}")


def run(connection: Connection, statement: str) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def test_a_client_may_call_the_functions(as_role: dict[str, Connection]) -> None:
    client = as_role["duepost_client"]
    [(email_id,)] = run(client, SCHEDULE)
    assert run(client, f"SELECT duepost.reschedule_email({email_id}, now() + interval '1 h')") == [("rescheduled",)]
    assert run(client, "SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY['ann'])") == [("cleared",)]
    assert run(client, "SELECT receipt FROM duepost.clear_scheduled_emails_to('ann@example.com')") == []
    assert run(client, f"SELECT duepost.clear_scheduled_email({email_id})") == [("too_late",)]


def test_a_client_may_execute_those_functions_and_no_other(admin: Connection) -> None:
    found = run(
        admin,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace"
        " AND has_function_privilege('duepost_client', oid, 'EXECUTE')",
    )
    assert sorted(str(name) for (name,) in found) == sorted(FUNCTIONS)


def test_a_client_may_touch_no_table(admin: Connection) -> None:
    assert run(
        admin,
        "SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('duepost'::regnamespace, 'dramatiq'::regnamespace)"
        " AND relkind IN ('r', 'p', 'v')"
        " AND has_table_privilege('duepost_client', oid, 'SELECT, INSERT, UPDATE, DELETE')",
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM duepost.scheduled_email",
        "DELETE FROM duepost.delivery",
        "SELECT * FROM dramatiq.queue",
        "SELECT duepost.finish(1, 'sent', NULL)",
        "SELECT duepost.maintain_partitions('1 day')",
        "UPDATE duepost.control SET paused = true",
    ],
)
def test_what_a_client_may_not_do_is_refused(as_role: dict[str, Connection], statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(as_role["duepost_client"], statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE duepost.delivery",
        "ALTER TABLE duepost.scheduled_email ADD COLUMN a int",
        "CREATE TABLE duepost.mine (a int)",
        "DELETE FROM duepost.delivery",
        "UPDATE duepost.delivery SET outcome = 'sent'",
        "DELETE FROM duepost.email_key",
        "INSERT INTO duepost.migration VALUES (99, 'x', 'x')",
    ],
)
def test_what_a_worker_may_not_do_is_refused(as_role: dict[str, Connection], statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(as_role["duepost_worker"], statement)


def test_neither_role_owns_anything(admin: Connection) -> None:
    assert run(admin, "SELECT relname FROM pg_class WHERE relowner::regrole::text LIKE 'duepost_%'") == []
    assert run(admin, "SELECT proname FROM pg_proc WHERE proowner::regrole::text LIKE 'duepost_%'") == []


def test_functions_that_act_as_the_owner_fix_their_search_path(admin: Connection) -> None:
    assert run(
        admin,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace AND prosecdef"
        " AND NOT coalesce(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)",
    ) == []  # fmt: skip


def test_a_clients_own_functions_and_tables_do_not_stand_in_for_ours(
    admin: Connection, as_role: dict[str, Connection]
) -> None:
    client = as_role["duepost_client"]
    run(admin, "CREATE SCHEMA trap AUTHORIZATION login_duepost_client")
    run(
        client,
        "CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$;"
        "CREATE FUNCTION trap.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        "CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        "CREATE TEMP TABLE scheduled_email (id int); CREATE TABLE trap.control (message_id_domain text);"
        "SET search_path = trap, pg_temp, pg_catalog, duepost",
    )
    run(client, SCHEDULE)
    run(client, "SELECT * FROM duepost.clear_scheduled_emails_to('ann@example.com')")
    assert run(admin, "SELECT scheduled_at > '2020-01-01' FROM duepost.scheduled_email") == [(True,)]


def test_the_recipients_can_be_a_view_of_a_teams_own_users(admin: Connection) -> None:
    run(
        admin,
        "CREATE TABLE public.app_user (id int, email text, full_name text, deleted boolean);"
        "INSERT INTO public.app_user VALUES (7, 'seven@example.com', 'Seven', false);"
        "DROP TABLE duepost.recipient;"
        "CREATE VIEW duepost.recipient AS SELECT id::text AS user_id, email AS address, full_name AS name,"
        " 'en'::text AS locale, 'UTC'::text AS timezone, NOT deleted AS active FROM public.app_user",
    )
    run(admin, SCHEDULE)
    assert run(admin, "SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY['ann'])") == [("cleared",)]
